package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"dma/agent"
	"dma/internal/maillog"
	"dma/internal/passwd"
	"dma/spooldir"
)

// lockedElsewhere has another process lock a message, and returns what ends that.
func (f *fixture) lockedElsewhere(state spooldir.State, name spooldir.Name) (unlock func()) {
	f.t.Helper()
	s, err := spooldir.Open(f.spool.Path()) // flock(2) takes it for another process
	if err != nil {
		f.t.Fatal(err)
	}
	m, err := s.Open(state, name)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { m.Close() })
	if err := m.Lock(context.Background()); err != nil {
		f.t.Fatal(err)
	}
	return func() { m.Unlock() }
}

// rung reports whether the bell of a state has rung for a name.
func (f *fixture) rung(state spooldir.State, name spooldir.Name) bool {
	names, _, _ := f.q.bell(state).Take()
	return slices.Contains(names, name)
}

// TestBusy: nobody waits for the lock that another process has, and nothing is done
// without it.
func TestBusy(t *testing.T) {
	unlisted := func(jobs []*agent.Job, done func(*agent.Job)) {
		for _, j := range jobs {
			j.Err = agent.ErrUnlisted
			done(j)
		}
	}
	for _, test := range []struct {
		state spooldir.State
		to    string
		then  string
	}{
		{spooldir.New, "alice", "forwarding"},
		{spooldir.Forwarding, "alice", "local"},
		{spooldir.Local, "alice", "sent"},
		{spooldir.Tempfail, "a@remote.test", "new"},
		{spooldir.Permfail, "nobody", ""},
		{spooldir.Sent, "alice", ""},
	} {
		t.Run(string(test.state), func(t *testing.T) {
			f := newFixture(t, memory(t))
			name := f.send("s@remote.test", test.to)[0]
			if test.state == spooldir.Tempfail {
				f.toTempfail(name, 0)
			}
			for at := f.where(name); at != string(test.state); at = f.where(name) {
				f.step(spooldir.State(at), name)
			}
			unlock := f.lockedElsewhere(test.state, name)
			if _, err := f.handle(test.state, name); !errors.Is(err, spooldir.ErrBusy) {
				t.Errorf("while it is locked: %v", err)
			}
			if got, lined := f.where(name), f.take(); got != string(test.state) || len(lined) > 0 {
				t.Errorf("while it was locked it came to %q, and lined up were %v", got, lined)
			}
			unlock()
			f.step(test.state, name)
			if got := f.where(name); got != test.then {
				t.Errorf("it stands in %q, want %q", got, test.then)
			}
		})
	}
	t.Run("before its .forward is used", func(t *testing.T) {
		f := newFixture(t, memory(t))
		name := f.send("s@remote.test", "alice")[0]
		f.step(spooldir.New, name)
		unlock := f.lockedElsewhere(spooldir.Forwarding, name)
		f.rung(spooldir.Forwarding, name)
		f.run(batch{spooldir.Forwarding, "alice", []spooldir.Name{name}})
		if f.where(name) != "forwarding" || !f.rung(spooldir.Forwarding, name) {
			t.Errorf("it stands in %q, or the bell did not ring", f.where(name))
		}
		unlock()
		f.step(spooldir.Forwarding, name)
		if got := f.where(name); got != "local" {
			t.Errorf("it stands in %q", got)
		}
	})
	t.Run("before it is expanded again", func(t *testing.T) {
		f := newFixture(t, memory(t))
		f.agent.deliver = unlisted
		name := f.submit(child("s@remote.test", spooldir.Recipient{
			Kind: spooldir.Command, Address: "alice@host.test", User: "alice", Target: "cmd", Source: "forward",
		}), "Subject: x\n\n")[0]
		f.step(spooldir.New, name)
		unlock := f.lockedElsewhere(spooldir.Local, name)
		f.rung(spooldir.Local, name)
		f.run(batch{spooldir.Local, "alice", []spooldir.Name{name}})
		if f.where(name) != "local" || !f.rung(spooldir.Local, name) || len(f.names(spooldir.New)) != 0 {
			t.Errorf("it stands in %q, or the bell did not ring; new holds %v", f.where(name), f.names(spooldir.New))
		}
		if trouble := f.log.of(maillog.EventWorkerTrouble); len(trouble) > 0 {
			t.Errorf("%s", trouble)
		}
		unlock()
		f.step(spooldir.Local, name)
		if f.where(name) != "sent" || len(f.names(spooldir.New)) != 1 {
			t.Errorf("it stands in %q; new holds %v", f.where(name), f.names(spooldir.New))
		}
	})
	for about, content := range map[string]string{"parent": "Subject: x\n\n", "parent of a large one": strings.Repeat("0123456789abcde\n", largeContent/16)} {
		t.Run(about, func(t *testing.T) {
			f := newFixture(t, memory(t))
			f.writeAliases("al: x@remote.test")
			parent, kid := f.cutOff("al", content)
			unlock := f.lockedElsewhere(spooldir.New, parent)
			if _, err := f.handle(spooldir.New, kid); !errors.Is(err, spooldir.ErrBusy) || f.where(kid) != "new" {
				t.Errorf("while its parent is locked: %v, it stands in %q", err, f.where(kid))
			}
			unlock()
			f.step(spooldir.New, kid)
			if f.where(kid) != "remote" || f.where(parent) != "sent" {
				t.Errorf("the child stands in %q, the parent in %q", f.where(kid), f.where(parent))
			}
		})
	}
}

// cutOff submits a message to an alias of x@remote.test, has the process killed
// between the commit of the child and the step of the parent, and returns both.
func (f *fixture) cutOff(to, content string) (parent, kid spooldir.Name) {
	f.t.Helper()
	parent = f.submit(spooldir.Envelope{Sender: "s@remote.test", Recipients: []spooldir.Recipient{{Address: to}}}, content)[0]
	f.log.on = func(e logEvent) {
		if e.name == maillog.EventExpanded {
			panic(killed{})
		}
	}
	func() {
		defer func() { recover() }()
		f.handle(spooldir.New, parent)
	}()
	f.log.on = nil
	kid = spooldir.NewName(spooldir.DeriveID(parent.ID, 1, spooldir.Child), 1, "x@remote.test")
	if f.where(parent) != "new" || f.where(kid) != "new" {
		f.t.Fatalf("the parent stands in %q, the child in %q", f.where(parent), f.where(kid))
	}
	return parent, kid
}

// TestRecoverBusy: a message that somebody keeps locked keeps no other from being
// recovered, and what is to come first with it does.
func TestRecoverBusy(t *testing.T) {
	f := newFixture(t, memory(t))
	f.writeAliases("al: x@remote.test")
	var parents, kids []spooldir.Name
	for range 3 {
		parent, kid := f.cutOff("al", "Subject: x\n\n")
		f.move(kid, spooldir.New, spooldir.Hold) // where nobody takes it up
		parents, kids = append(parents, parent), append(kids, kid)
	}
	local := f.send("s@remote.test", "alice")[0]
	f.step(spooldir.New, local)
	f.step(spooldir.Forwarding, local)
	unlock := []func(){f.lockedElsewhere(spooldir.New, parents[0]), f.lockedElsewhere(spooldir.Local, local)}
	f.start()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := f.q.recover(ctx); err != nil {
		t.Fatal(err)
	}
	f.q.wait()
	if trouble := f.log.of(maillog.EventWorkerTrouble); len(trouble) > 0 {
		t.Errorf("%s", trouble)
	}
	if a, b, c := f.where(parents[0]), f.where(parents[1]), f.where(parents[2]); a != "new" || b != "sent" || c != "sent" {
		t.Errorf("the parents stand in %q, %q and %q", a, b, c)
	}
	// A torn end of the mailbox would be under what comes next.
	if lined := f.take(); len(lined) != 1 || lined[0].names[0] != local || f.where(local) != "local" {
		t.Errorf("lined up: %v", lined)
	}
	for _, f := range unlock {
		f()
	}
	f.step(spooldir.New, parents[0])
	if got := f.where(parents[0]); got != "sent" || len(f.names(spooldir.New)) != 0 || f.where(kids[0]) != "hold" {
		t.Errorf("the parent stands in %q, and new holds %v: expanded twice", got, f.names(spooldir.New))
	}
	if len(f.q.orphaned) != 0 {
		t.Errorf("remembered: %v", f.q.orphaned)
	}
}

// TestLargeMessages: large messages have places of their own in new, one for each
// submitter, and take none from small ones.
func TestLargeMessages(t *testing.T) {
	const submitters, each = parallelLarge + 2, 3
	f := newFixture(t, memory(t))
	started, release := make(chan string, submitters*each), make(chan struct{})
	f.users.wait = func(ctx context.Context, name string) {
		if who, ok := strings.CutPrefix(name, "slow-"); ok {
			started <- who[:1]
			select {
			case <-release:
			case <-ctx.Done():
			}
		}
	}
	large := strings.Repeat("0123456789abcde\n", largeContent/16) + "\n"
	for n := range each {
		for who := range submitters {
			user := fmt.Sprintf("slow-%d-%d", who, n)
			f.users.users[user] = passwd.User{Name: user, UID: 2000, GID: 2000, Home: "/"}
			f.submit(spooldir.Envelope{UID: 3000 + who, Sender: "s@remote.test", Recipients: []spooldir.Recipient{{Address: user}}}, large)
		}
	}
	moved := make(chan string, submitters*each+1)
	f.log.on = func(e logEvent) {
		if e.name == maillog.EventMoved && e.attrs["from"] == "new" {
			moved <- e.attrs["recipient"]
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- f.q.Run(ctx) }()
	receive := func(what string, c <-chan string) string {
		t.Helper()
		select {
		case s := <-c:
			return s
		case <-ctx.Done():
			t.Fatalf("no %s within a minute", what)
		}
		return ""
	}
	of := make(map[string]bool)
	for range parallelLarge {
		of[receive("large message in hand", started)] = true
	}
	if len(of) != parallelLarge {
		t.Errorf("in hand are large messages of %v", of)
	}
	f.send("s@remote.test", "alice")
	f.q.Rescan()
	if who := receive("small message moved", moved); who != "<alice>" {
		t.Errorf("moved: %s", who)
	}
	if n := len(started); n > 0 || f.q.loops[0].Idle() {
		t.Errorf("%d more large messages are in hand, or nobody works", n)
	}
	close(release)
	for range submitters * each {
		receive("large message moved", moved)
	}
	cancel()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if trouble := f.log.of(maillog.EventWorkerTrouble); len(trouble) > 0 {
		t.Errorf("%s", trouble)
	}
}

// TestNoRoomForChild: a message that the disk has no room for a copy of is not
// copied as far as it goes.
func TestNoRoomForChild(t *testing.T) {
	f := newFixture(t, memory(t))
	name := f.send("s@remote.test", "alice")[0]
	m := f.open(spooldir.New, name)
	m.ContentLength = 1 << 60
	var full *spooldir.FullError
	if err := f.q.expand(t.Context(), m, 1, spooldir.New, expansion{targets: forwardTo(t, "/x", "a@remote.test").Targets}); !errors.As(err, &full) {
		t.Errorf("%v", err)
	}
	if got := f.names(spooldir.New); len(got) != 1 {
		t.Errorf("new holds %v", got)
	}
}
