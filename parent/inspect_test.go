package parent

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"

	"dma/agent"
	"dma/internal/wire"
)

// TestInspect: the process has the account of the queue process and gets agents that
// only read, whoever has the locks of their users.
func TestInspect(t *testing.T) {
	f := newFixture(t)
	for _, role := range []agent.Role{agent.UserRole, agent.MailboxRole} {
		lock, err := f.locks.take(5000, role)
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
	}
	f.locks = nil // as it is for Inspect
	f.o.Agent.ReadOnly = true
	out, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	f.queue, f.out = newWorker("look", RoleInspect), out
	type result struct {
		code int
		err  error
	}
	results := make(chan result, 1)
	inspect := func(ctx context.Context) *fakeChild {
		go func() {
			code, err := f.inspect(ctx)
			results <- result{code, err}
		}()
		return f.child(t)
	}
	looker := inspect(t.Context())
	if s := looker.spec; s.title != "look" || s.role != RoleInspect || s.account.UID != queueUID || s.out != out || !s.worker {
		t.Errorf("%+v", s)
	}
	c := NewClient(wire.New(looker.conns[0]))
	looker.conns[0] = nil // the client's now
	defer c.Close()
	reader, err := f.start(t, c, "ann", agent.UserRole)
	if err != nil {
		t.Fatal(err)
	}
	setup, err := agent.ReadSetup(reader.conns[1])
	if err != nil || !setup.ReadOnly || setup.UID != 5000 || reader.spec.files[3] != nil {
		t.Errorf("%+v, %v, files %v", setup, err, reader.spec.files)
	}
	for _, role := range []agent.Role{agent.UserRole, agent.MailboxRole} {
		if _, err := f.start(t, c, "root", role); !errors.Is(err, agent.ErrNotServed) {
			t.Errorf("root, %s: %v", role, err)
		}
	}
	if _, err := f.start(t, c, "bob", agent.MailboxRole); !errors.Is(err, agent.ErrNotServed) {
		t.Errorf("mailbox: %v", err)
	}

	// Its exit code is the answer, and its agents end with it.
	cmd := exec.Command("/bin/sh", "-c", "exit 75")
	_ = cmd.Run()
	looker.end(exited{cmd.ProcessState})
	f.advanceUntil(t, reader.gone, "end of the agent")
	if r := receive(t, results, "result"); r.code != 75 || r.err != nil {
		t.Errorf("exit code %d, %v", r.code, r.err)
	}
	looker = inspect(t.Context())
	looker.kill()
	if r := receive(t, results, "result"); r.err == nil || r.err.Error() != "killed" {
		t.Errorf("killed: %d, %v", r.code, r.err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	looker = inspect(ctx)
	cancel()
	f.advanceUntil(t, looker.gone, "end of the process")
	if r := receive(t, results, "result"); !errors.Is(r.err, context.Canceled) {
		t.Errorf("given up: %d, %v", r.code, r.err)
	}
}
