package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dma/agent"
	"dma/forward"
	"dma/internal/maillog"
	"dma/internal/passwd"
	"dma/localwriter"
	"dma/spooldir"
)

// TestHangingCommands: commands that hang, of more users than there are lanes,
// keep nobody's mail from a mailbox; nor do they get more agents than their share.
func TestHangingCommands(t *testing.T) {
	const users = parallelAgents + parallelForwards + 4
	f := newFixture(t, memory(t))
	var to []string
	for i := range users {
		name := fmt.Sprintf("user%02d", i)
		f.users.users[name] = passwd.User{Name: name, UID: 1000 + i, GID: 1000 + i, Home: "/home/" + name}
		to = append(to, name)
	}
	f.agent.forward = func(u passwd.User, _ string) (forward.Result, error) {
		if !slices.Contains(to, u.Name) {
			return forward.Result{}, nil
		}
		return forwardTo(t, u.Home+"/.forward", `"|hang"`), nil
	}
	started, release := make(chan struct{}, users), make(chan struct{})
	f.agent.deliver = func(jobs []*agent.Job, done func(*agent.Job)) {
		for _, j := range jobs {
			if j.Kind == spooldir.Command {
				started <- struct{}{}
				<-release
			}
			done(j)
		}
	}
	ended := make(chan string, 4*users)
	f.log.on = func(e logEvent) {
		if e.name == maillog.EventMoved && e.attrs["from"] == "local" && e.attrs["to"] == "sent" {
			ended <- e.attrs["recipient"]
		}
	}
	f.q.forwarding.Run, f.q.local.Run, f.q.commands.Run = f.q.runForwarding, f.q.runLocal, f.q.runLocal
	f.send("s@remote.test", to...)

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- f.q.Run(ctx) }()
	wait := func(what string, c <-chan struct{}) {
		t.Helper()
		select {
		case <-c:
		case <-ctx.Done():
			t.Fatalf("%s: not within a minute", what)
		}
	}
	for range parallelCommands {
		wait("a command", started)
	}
	f.send("s@remote.test", "alice")
	f.q.Rescan()
	select {
	case <-ended:
	case <-ctx.Done():
		t.Fatal("alice gets no mail while commands of others hang")
	}
	if n := len(started); n > 0 {
		t.Errorf("%d commands more than %d run", n, parallelCommands)
	}
	close(release)
	for range users {
		select {
		case <-ended:
		case <-ctx.Done():
			t.Fatal("not all commands have ended")
		}
	}
	cancel()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// TestSlowForwards: homes that do not answer, of more users than there are lanes,
// delay others' mail once at most: from then on these users wait among the like,
// until their homes answer again.
func TestSlowForwards(t *testing.T) {
	const users = parallelForwards + 1
	f := newFixture(t, memory(t))
	var to []string
	for i := range users {
		name := fmt.Sprintf("user%02d", i)
		f.users.users[name] = passwd.User{Name: name, UID: 1000 + i, GID: 1000 + i, Home: "/home/" + name}
		to = append(to, name)
	}
	reads, release := make(chan string, 8*users), make(chan struct{})
	var hang atomic.Bool
	f.agent.forward = func(u passwd.User, _ string) (forward.Result, error) {
		if !slices.Contains(to, u.Name) {
			return forward.Result{}, nil
		}
		reads <- u.Name
		if hang.Load() {
			<-release
			return forward.Result{}, nil
		}
		f.clock.advance(slowForward)
		return forward.Result{}, context.DeadlineExceeded
	}
	left := make(chan string, 8*users)
	f.log.on = func(e logEvent) {
		if e.name == maillog.EventMoved && e.attrs["from"] == "forwarding" {
			left <- e.attrs["recipient"] + " " + e.attrs["to"]
		}
	}
	f.send("s@remote.test", to...)
	f.q.forwarding.Run, f.q.slowly.Run, f.q.local.Run = f.q.runForwarding, f.q.runSlowly, f.q.runLocal
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- f.q.Run(ctx) }()
	next := func(what string, c <-chan string) string {
		t.Helper()
		select {
		case s := <-c:
			return s
		case <-ctx.Done():
			t.Fatalf("%s: not within a minute", what)
		}
		return ""
	}
	send := func(to ...string) {
		f.send("s@remote.test", to...)
		f.q.Rescan()
	}

	for range users {
		next("a home that does not answer", reads)
		if got := next("the end of a read", left); !strings.HasSuffix(got, " tempfail") {
			t.Errorf("moved: %s", got)
		}
	}
	hang.Store(true)
	send(to...)
	for range parallelSlow {
		next("a slow read", reads)
	}
	send("alice")
	if got := next("alice's mail while others' homes hang", left); !strings.HasPrefix(got, "<alice> ") {
		t.Errorf("moved: %s", got)
	}
	if n := len(reads); n > 0 {
		t.Errorf("%d homes more than %d are waited for", n, parallelSlow)
	}
	close(release)
	for range users {
		if got := next("mail of the slow", left); !strings.HasSuffix(got, " local") {
			t.Errorf("moved: %s", got)
		}
	}
	for _, name := range to {
		if f.q.isSlow(name) {
			t.Errorf("%s is still among the slow", name)
		}
	}
	cancel()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// TestSlowDetail: what waits in the usual lanes for a user whose home proves to be
// slow is not read there any more.
func TestSlowDetail(t *testing.T) {
	f := newFixture(t, memory(t))
	var read []string
	f.agent.forward = func(_ passwd.User, detail string) (forward.Result, error) {
		read = append(read, detail)
		f.clock.advance(slowForward)
		return forward.Result{}, context.DeadlineExceeded
	}
	f.q.slowly.Run = f.q.runSlowly
	var names []spooldir.Name
	for _, to := range []string{"alice+a", "alice+b", "alice+a", "alice+c"} {
		names = append(names, f.send("s@remote.test", to)...)
	}
	for _, name := range names {
		if _, err := f.q.handleNew(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	f.q.wait()
	f.q.runForwarding(t.Context(), "alice", names)
	f.q.slowly.Wait()
	if got := fmt.Sprint(read); got != "[a b c]" {
		t.Errorf("read %s", got)
	}
	if left := f.names(spooldir.Forwarding); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// TestSlowUntilRead: who was slow stays so until the .forward has been read, and not
// because nobody has tried.
func TestSlowUntilRead(t *testing.T) {
	f := newFixture(t, memory(t))
	for _, test := range []struct {
		about  string
		took   time.Duration
		answer forward.Result
		err    error
		slow   bool
	}{
		{"a home that does not answer", slowForward, forward.Result{}, context.DeadlineExceeded, true},
		{"an agent that had to be killed", 0, forward.Result{}, errors.New("the one before had to be killed"), true},
		{"a bad file", 0, forward.Result{Path: "/home/alice/.forward"}, errors.New("anybody may write to it"), false},
		{"slow, and none", slowForward, forward.Result{}, nil, true},
		{"none", 0, forward.Result{}, nil, false},
	} {
		f.agent.forward = func(passwd.User, string) (forward.Result, error) {
			f.clock.advance(test.took)
			return test.answer, test.err
		}
		name := f.send("s@remote.test", "alice")[0]
		if _, err := f.handler(spooldir.New)(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		f.q.runSlowly(t.Context(), "alice", []spooldir.Name{name})
		if got := f.q.isSlow("alice"); got != test.slow {
			t.Errorf("%s: slow %v", test.about, got)
		}
	}
}

// TestEndWithinLookup: a look-up that the end of the process cuts off, as at every
// reload, decides nothing.
func TestEndWithinLookup(t *testing.T) {
	f := newFixture(t, memory(t))
	name := f.send("s@remote.test", "alice")[0]
	for _, state := range []spooldir.State{spooldir.New, spooldir.Forwarding} {
		if state == spooldir.Forwarding {
			f.users.point, f.users.trouble["alice"] = nil, nil
			f.step(spooldir.New, name)
			f.take()
			f.clock.advance(2 * time.Second) // what was looked up is forgotten
		}
		ctx, cancel := context.WithCancel(t.Context())
		f.users.point, f.users.trouble["alice"] = cancel, context.Canceled
		if _, err := f.handler(state)(ctx, name); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", state, err)
		}
		if at := f.where(name); at != string(state) {
			t.Errorf("%s: then in %s", state, at)
		}
	}
}

// TestInTurn: what may have been cut off comes first, then what goes to one place
// stands together, in the order in which it came.
func TestInTurn(t *testing.T) {
	var jobs []*agent.Job
	add := func(id string, suspect bool, kind spooldir.RecipientKind, target, source, detail string) {
		jobs = append(jobs, &agent.Job{Kind: kind, Target: target, Source: source, Detail: detail, Message: localwriter.Message{ID: id, Suspect: suspect}})
	}
	add("8", false, spooldir.File, "/b", "forward", "")
	add("3", false, spooldir.Mailbox, "", "", "")
	add("5", false, spooldir.Mailbox, "", "", "detail")
	add("6", false, spooldir.File, "/a", "aliases", "")
	add("2", true, spooldir.File, "/b", "forward", "")
	add("4", false, spooldir.Mailbox, "", "", "")
	add("7", false, spooldir.File, "/a", "forward", "")
	add("1", true, spooldir.Mailbox, "", "", "")
	add("9", false, spooldir.File, "/b", "forward", "")
	slices.SortStableFunc(jobs, inTurn)
	got := ""
	for _, j := range jobs {
		got += j.Message.ID
	}
	if got != "123456789" {
		t.Errorf("in the order %s", got)
	}
}
