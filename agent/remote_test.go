package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dma/forward"
	"dma/internal/passwd"
	"dma/internal/wire"
	"dma/localwriter"
	"dma/spooldir"
)

var alice = passwd.User{Name: "alice", UID: 4711, Home: "/home/alice"}

// testJobs makes n jobs of a kind.
func testJobs(n int, kind spooldir.RecipientKind) []*Job {
	var jobs []*Job
	for i := range n {
		j := &Job{
			Kind: kind, Recipient: "alice@host.test", Original: "alice", Domain: "host.test",
			Message: localwriter.Message{
				ID: fmt.Sprintf("id-%d", i), Recipient: 1, Sender: "s@remote.test", Arrival: time.Unix(2208988800, 7),
				Header: []byte("Return-Path: <s@remote.test>\n"), Content: strings.NewReader("a: b\n\nbody\n"), Size: 11,
			},
		}
		if kind != spooldir.Mailbox {
			j.Target, j.Source = "/target", "forward"
		}
		jobs = append(jobs, j)
	}
	return jobs
}

// deliverAll has jobs delivered and checks that each is answered for in order.
func deliverAll(t *testing.T, a Agent, u passwd.User, jobs []*Job) {
	t.Helper()
	var done []*Job
	a.Deliver(t.Context(), u, jobs, func(j *Job) { done = append(done, j) })
	if !slices.Equal(done, jobs) {
		t.Fatalf("answered for %d of %d jobs, or in another order", len(done), len(jobs))
	}
}

func TestRoleFor(t *testing.T) {
	for _, test := range []struct {
		mailbox string
		kind    spooldir.RecipientKind
		want    Role
	}{
		{"mbox:/var/mail/%u", spooldir.Mailbox, MailboxRole},
		{"mbox:/var/mail/%u", spooldir.File, UserRole},
		{"mbox:/var/mail/%u", spooldir.Command, UserRole},
		{"mbox:~/mbox", spooldir.Mailbox, UserRole},
		{"maildir:/var/mail/%u", spooldir.Mailbox, UserRole},
		{"maildir:~/Maildir", spooldir.Mailbox, UserRole},
		{"pipe:/usr/bin/procmail", spooldir.Mailbox, UserRole},
	} {
		if got := RoleFor(test.mailbox, test.kind); got != test.want {
			t.Errorf("%s, %v: %s", test.mailbox, test.kind, got)
		}
	}
}

// TestSeparateRoles: each job goes to the agent that has the rights for it, and
// an agent does nothing that is not its role's.
func TestSeparateRoles(t *testing.T) {
	var mu sync.Mutex
	did := make(map[Role][]string)
	s := &starter{}
	s.serve = func(ctx context.Context, conn *wire.Conn, key seatKey) {
		note := func(what string) {
			mu.Lock()
			defer mu.Unlock()
			did[key.role] = append(did[key.role], what)
		}
		Serve(ctx, conn, double{
			forward: func(string) (forward.Result, error) { note("forward"); return forward.Result{}, nil },
			deliver: func(_ context.Context, jobs []*Job, done func(*Job)) {
				for _, j := range jobs {
					note(j.Kind.String() + " " + j.Message.ID)
					done(j)
				}
			},
		}, alice, key.role)
	}
	r := remoteOf(t, RemoteOptions{Starter: s, Mailbox: "mbox:/var/mail/%u"})
	jobs := append(testJobs(2, spooldir.Mailbox), testJobs(1, spooldir.Command)...)
	jobs = append(jobs, testJobs(1, spooldir.Mailbox)...)
	jobs = append(jobs, testJobs(1, spooldir.File)...)
	deliverAll(t, r, alice, jobs)
	for _, j := range jobs {
		if j.Err != nil {
			t.Errorf("%s: %v", j.Kind, j.Err)
		}
	}
	if _, err := r.Forward(t.Context(), alice, ""); err != nil {
		t.Error(err)
	}
	want := map[Role][]string{
		MailboxRole: {"mailbox id-0", "mailbox id-1", "mailbox id-0"},
		UserRole:    {"command id-0", "file id-0", "forward"},
	}
	for role := range want {
		if !slices.Equal(did[role], want[role]) {
			t.Errorf("%s did %v, want %v", role, did[role], want[role])
		}
	}
	if n := len(s.started()); n != 2 {
		t.Errorf("%d agents were started", n)
	}

	// What no queue process of ours asks a mailbox writer for.
	s.agents = nil
	did = make(map[Role][]string)
	l := direct(t, s, MailboxRole)
	if _, err := l.readForward(t.Context(), ""); err == nil {
		t.Error("a mailbox writer read a .forward")
	}
	jobs = append(testJobs(1, spooldir.Mailbox), testJobs(1, spooldir.Command)...)
	if _, err := l.deliver(t.Context(), jobs, func(j *Job) {
		if j.Err == nil {
			t.Errorf("a mailbox writer did %s", j.Kind)
		}
	}); err != nil {
		t.Error(err)
	}
	if len(did) > 0 {
		t.Errorf("it did %v", did)
	}
}

// direct returns a link to an agent, without the Remote.
func direct(t *testing.T, s *starter, role Role) *link {
	t.Helper()
	conn, err := s.StartAgent(t.Context(), "alice", role)
	if err != nil {
		t.Fatal(err)
	}
	l := newLink(conn, newFakeClock(), time.Minute, false, func(error) {})
	go l.receive()
	t.Cleanup(func() { l.fail(errClosed); s.StopAgent(context.Background(), "alice", role) })
	return l
}

// TestRoot: nothing runs as root; root has a mailbox.
func TestRoot(t *testing.T) {
	root := passwd.User{Name: "root", Home: "/root"}
	system := passwd.User{Name: "daemon", UID: 1, Home: "/usr/sbin"}
	listed := passwd.User{Name: "www", UID: 33, Home: "/var/www"}
	s := &starter{serve: serving(t, double{
		forward: func(string) (forward.Result, error) {
			return forward.Result{Path: "/f", Targets: []forward.Target{{Kind: forward.Address, Value: "x@y.test", File: "/f", Line: 1}}}, nil
		},
		deliver: func(_ context.Context, jobs []*Job, done func(*Job)) {
			for _, j := range jobs {
				done(j)
			}
		},
	}, alice)}
	r := remoteOf(t, RemoteOptions{Starter: s, Mailbox: "mbox:/var/mail/%u", MinUID: 1000, Listed: []string{"www"}})
	for _, u := range []passwd.User{root, system} {
		if res, err := r.Forward(t.Context(), u, ""); err != nil || res.Forwards() {
			t.Errorf("%s: %+v, %v", u.Name, res, err)
		}
	}
	if res, err := r.Forward(t.Context(), listed, ""); err != nil || !res.Forwards() {
		t.Errorf("www: %+v, %v", res, err)
	}
	for _, kind := range []spooldir.RecipientKind{spooldir.Mailbox, spooldir.File, spooldir.Command} {
		jobs := testJobs(1, kind)
		deliverAll(t, r, root, jobs)
		if (jobs[0].Err == nil) != (kind == spooldir.Mailbox) {
			t.Errorf("%s for root: %v", kind, jobs[0].Err)
		}
	}
	want := []seatKey{{"www", UserRole}, {"root", MailboxRole}}
	if got := s.started(); !slices.Equal(got, want) {
		t.Errorf("started %v, want %v", got, want)
	}
	if err := NewRemote(RemoteOptions{Mailbox: "maildir:~/Maildir"}).Serves(root); err == nil || strings.ContainsAny(err.Error(), "\n") {
		t.Errorf("root and a Maildir: %v", err)
	}
}

// TestContent: the agent gets the content, all of it and nothing else.
func TestContent(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 40000)
	got := make(map[string][]byte)
	r := remoteOf(t, RemoteOptions{Mailbox: "mbox:~/m", Starter: &starter{serve: serving(t, double{
		deliver: func(_ context.Context, jobs []*Job, done func(*Job)) {
			for _, j := range slices.Backward(jobs) { // in any order
				b, err := io.ReadAll(j.Message.Reader(false))
				j.Err = err
				got[j.Message.ID] = b
				if err == nil && j.Message.Size > 100 {
					p := make([]byte, 50)
					if _, err := j.Message.Content.ReadAt(p, 77); err != nil || !bytes.Equal(p, big[77:127]) {
						j.Err = fmt.Errorf("at 77: %q %v", p, err)
					}
					if n, err := j.Message.Content.ReadAt(p, j.Message.Size-3); n != 3 || err != io.EOF {
						j.Err = fmt.Errorf("beyond the end: %d %v", n, err)
					}
				}
			}
			for _, j := range jobs {
				done(j)
			}
		},
	}, alice)}})
	for _, sizes := range [][]int{{0, 1, maxInline, maxInline + 1, maxChunk, maxChunk + 1, 3*maxChunk + 5}, {500000, 3}} {
		jobs := testJobs(len(sizes), spooldir.Mailbox)
		for i, size := range sizes {
			// More stands behind it, as the other way round in the file of a message.
			jobs[i].Message.Content, jobs[i].Message.Size = bytes.NewReader(big), int64(size)
			if size == 0 {
				jobs[i].Message.Content = nil
			}
		}
		deliverAll(t, r, alice, jobs)
		for i, size := range sizes {
			want := "Return-Path: <s@remote.test>\n" + string(big[:size])
			if jobs[i].Err != nil || string(got[jobs[i].Message.ID]) != want {
				t.Errorf("%d octets: %d arrived, %v", size, len(got[jobs[i].Message.ID]), jobs[i].Err)
			}
		}
	}

	// One that cannot be read costs its own message.
	jobs := testJobs(3, spooldir.Mailbox)
	jobs[0].Message.Content, jobs[0].Message.Size = io.NewSectionReader(bytes.NewReader(nil), 0, 0), 10
	jobs[2].Message.Content, jobs[2].Message.Size = bytes.NewReader(big[:maxInline+7]), maxInline+8
	deliverAll(t, r, alice, jobs)
	if jobs[0].Err == nil || jobs[1].Err != nil || jobs[2].Err == nil {
		t.Errorf("%v, %v, %v", jobs[0].Err, jobs[1].Err, jobs[2].Err)
	}
}

// TestBadJob: a job that cannot be handed over fails alone.
func TestBadJob(t *testing.T) {
	h := newHome(t)
	r := newRemote(t, h.own, h.user)
	for name, spoil := range map[string]func(*Job){
		"newline in the recipient": func(j *Job) { j.Recipient = "a\nb" },
		"endless detail":           func(j *Job) { j.Detail = strings.Repeat("x", maxText+1) },
		"kind":                     func(j *Job) { j.Kind = spooldir.Address },
		"file without a path":      func(j *Job) { j.Kind, j.Target = spooldir.File, "relative" },
		"empty command":            func(j *Job) { j.Kind = spooldir.Command },
		"command of two lines":     func(j *Job) { j.Kind, j.Target = spooldir.Command, "a\nb" },
		"negative size":            func(j *Job) { j.Message.Size = -1 },
		"recipient 0":              func(j *Job) { j.Message.Recipient = 0 },
		"large header":             func(j *Job) { j.Message.Header = make([]byte, maxHeader+1) },
		"before 1970":              func(j *Job) { j.Message.Arrival = time.Unix(-1, 0) },
	} {
		jobs := testJobs(3, spooldir.Mailbox)
		spoil(jobs[1])
		deliverAll(t, r, h.user, jobs)
		if jobs[0].Err != nil || jobs[1].Err == nil || jobs[2].Err != nil {
			t.Errorf("%s: %v, %v, %v", name, jobs[0].Err, jobs[1].Err, jobs[2].Err)
		}
	}
}

// TestShared: a batch reaches the agent as one, so that its messages share a
// sync there as they do without a process between.
func TestShared(t *testing.T) {
	var sizes []int
	r := remoteOf(t, RemoteOptions{Mailbox: "mbox:~/m", Starter: &starter{serve: serving(t, double{
		deliver: func(_ context.Context, jobs []*Job, done func(*Job)) {
			sizes = append(sizes, len(jobs))
			for i, j := range jobs {
				if want := fmt.Sprintf("id-%d", len(sizes)*maxBatch-maxBatch+i); j.Message.ID != want {
					j.Err = fmt.Errorf("%s instead of %s", j.Message.ID, want)
				}
				done(j)
			}
		},
	}, alice)}})
	jobs := testJobs(2*maxBatch+5, spooldir.Mailbox)
	deliverAll(t, r, alice, jobs)
	for _, j := range jobs {
		if j.Err != nil {
			t.Error(j.Err)
		}
	}
	if want := []int{maxBatch, maxBatch, 5}; !slices.Equal(sizes, want) {
		t.Errorf("batches of %v, want %v", sizes, want)
	}
}

// TestOutcomes: errors arrive as what they were.
func TestOutcomes(t *testing.T) {
	errs := []error{
		nil, ErrUnlisted, fmt.Errorf("wrapped: %w", ErrUnlisted), errors.New("plain\ntrouble\x1b[31m"),
		&localwriter.Error{Op: "run", Path: "cmd", Status: "5.1.1", Permanent: true, Output: "no such user", Err: errors.New("exit status 67")},
		&localwriter.Error{Op: "append to", Path: "/m\nx", Status: "4.2.2", Err: errors.New("full")},
		&localwriter.Error{Op: "run", Path: "cmd", Status: "nonsense", Permanent: true, Err: errors.New("x")},
		errors.New(strings.Repeat("long ", 10000)),
	}
	jobs := testJobs(len(errs), spooldir.Command)
	r := remoteOf(t, RemoteOptions{Mailbox: "mbox:~/m", Starter: &starter{serve: serving(t, double{
		deliver: func(_ context.Context, got []*Job, done func(*Job)) {
			for i, j := range got {
				j.Err, j.Place, j.Already = errs[i], "/place\n", i%2 == 0
				done(j)
			}
		},
	}, alice)}})
	deliverAll(t, r, alice, jobs)
	for i, j := range jobs {
		var want, got *localwriter.Error
		switch {
		case (j.Err == nil) != (errs[i] == nil), errors.Is(j.Err, ErrUnlisted) != errors.Is(errs[i], ErrUnlisted):
			t.Errorf("%v became %v", errs[i], j.Err)
		case errors.As(errs[i], &want) && want.Status != "nonsense":
			if !errors.As(j.Err, &got) || got.Status != want.Status || got.Permanent != want.Permanent || got.Output != want.Output {
				t.Errorf("%#v became %#v", errs[i], j.Err)
			}
		case errors.As(j.Err, &got):
			t.Errorf("%#v became %#v", errs[i], j.Err)
		}
		if j.Err != nil && (len(j.Err.Error()) > 4*maxError || hasControl(j.Err.Error())) {
			t.Errorf("%q is no line", j.Err)
		}
		if j.Place != "/place?" || j.Already != (i%2 == 0) {
			t.Errorf("place %q, already %v", j.Place, j.Already)
		}
	}
}

// TestForwardResult: a .forward arrives as it is, in as many parts as it takes,
// also while a command runs.
func TestForwardResult(t *testing.T) {
	var big forward.Result
	big.Path = "/home/alice/.forward"
	for i := range forward.MaxTargets {
		big.Targets = append(big.Targets, forward.Target{
			Kind: forward.Command, Value: fmt.Sprintf("cmd %d '%s'", i, strings.Repeat("\xe4", 300)), File: "/file" + fmt.Sprint(i/3), Line: i,
		})
	}
	small := forward.Result{Path: "/f", Targets: []forward.Target{
		{Kind: forward.Address, Value: "a@b.test", File: "/f", Line: 1}, {Kind: forward.Mailbox, Value: "alice", File: "/f", Line: 2},
		{Kind: forward.Mailbox, Value: "odd name", File: "/f", Line: 2},
		{Kind: forward.File, Value: "/a b", File: "/f", Line: 3}, {Kind: forward.Maildir, Value: "/a/b/", File: "/f", Line: 4},
		{Kind: forward.Discard, File: "/f", Line: 5}, {Kind: forward.Command, Value: `IFS=' ' && exec "procmail" #jim`, File: "/f", Line: 6},
	}}
	running, end := make(chan bool), make(chan bool)
	r := remoteOf(t, RemoteOptions{Mailbox: "mbox:~/m", Starter: &starter{serve: serving(t, double{
		forward: func(detail string) (forward.Result, error) {
			switch detail {
			case "big":
				return big, nil
			case "small":
				return small, nil
			case "bad":
				return forward.Result{Targets: []forward.Target{{Kind: forward.User, Value: "x"}}}, nil
			case "trouble":
				return forward.Result{}, errors.New("anybody may write to it\n")
			}
			return forward.Result{Path: detail}, nil
		},
		deliver: func(_ context.Context, jobs []*Job, done func(*Job)) {
			running <- true
			<-end
			done(jobs[0])
		},
	}, alice)}})
	delivered := make(chan bool)
	go func() {
		defer close(delivered)
		r.Deliver(context.Background(), alice, testJobs(1, spooldir.Command), func(*Job) {})
	}()
	<-running
	for detail, want := range map[string]forward.Result{"big": big, "small": small, "": {}, "x": {Path: "x"}} {
		got, err := r.Forward(t.Context(), alice, detail)
		if err != nil || got.Path != want.Path || !slices.Equal(got.Targets, want.Targets) {
			t.Errorf("%q: %d targets instead of %d, %v", detail, len(got.Targets), len(want.Targets), err)
		}
	}
	for _, detail := range []string{"bad", "trouble"} {
		if res, err := r.Forward(t.Context(), alice, detail); err == nil || res.Forwards() || hasControl(err.Error()) {
			t.Errorf("%q: %+v, %v", detail, res, err)
		}
	}
	close(end)
	<-delivered
}

// TestKept: an agent serves the next batch too, and ends when it is idle, when
// there are too many, and when it may be the reason of trouble.
func TestKept(t *testing.T) {
	clock := newFakeClock()
	fail := errors.New("no such mailbox")
	s := &starter{serve: serving(t, double{deliver: func(_ context.Context, jobs []*Job, done func(*Job)) {
		for _, j := range jobs {
			if j.Original == "fail" {
				j.Err = fail
			}
			done(j)
		}
	}}, alice)}
	r := remoteOf(t, RemoteOptions{Starter: s, Mailbox: "mbox:/var/mail/%u", Most: 2, Clock: clock})
	deliver := func(user, original string) {
		t.Helper()
		jobs := testJobs(1, spooldir.Mailbox)
		jobs[0].Original = original
		deliverAll(t, r, passwd.User{Name: user, UID: 1000}, jobs)
		if (jobs[0].Err != nil) != (original == "fail") {
			t.Error(jobs[0].Err)
		}
	}
	want := func(what string, keys ...string) {
		t.Helper()
		var got []string
		for _, k := range s.started() {
			got = append(got, k.user)
		}
		if !slices.Equal(got, keys) {
			t.Errorf("%s: started %v, want %v", what, got, keys)
		}
	}
	deliver("a", "")
	deliver("a", "")
	want("kept", "a")
	clock.pass(3 * time.Second)
	for _, alive := s.counts(); alive > 0; _, alive = s.counts() { // its timer has fired
		r.mu.Lock()
		changed := r.changed
		free := len(r.seats) == 0
		r.mu.Unlock()
		if !free {
			<-changed
		}
	}
	deliver("a", "")
	want("after it was idle", "a", "a")
	clock.pass(time.Second)
	deliver("b", "")
	clock.pass(time.Second / 2)
	deliver("c", "") // for which a, idle for longest, has to go
	deliver("b", "")
	want("too many", "a", "a", "b", "c")
	deliver("b", "fail")
	deliver("b", "")
	want("after trouble", "a", "a", "b", "c", "b")
}

// TestBusy: the agent before is waited for, for a while.
func TestBusy(t *testing.T) {
	for _, test := range []struct {
		busy int
		err  error
		want bool
	}{
		{0, nil, true}, {3, ErrBusy, true}, {1000000, ErrBusy, false}, {1, ErrNotServed, false},
	} {
		clock := newFakeClock()
		ended := make(chan struct{})
		go clock.run(1, always, ended)
		s := &starter{serve: serving(t, double{deliver: func(_ context.Context, jobs []*Job, done func(*Job)) { done(jobs[0]) }}, alice)}
		asked := 0
		s.before = func(seatKey) error {
			if asked++; asked <= test.busy {
				return fmt.Errorf("alice: %w", test.err)
			}
			return nil
		}
		r := NewRemote(RemoteOptions{Starter: s, Mailbox: "mbox:~/m", Clock: clock, Idle: time.Hour})
		jobs := testJobs(1, spooldir.Mailbox)
		deliverAll(t, r, alice, jobs)
		if (jobs[0].Err == nil) != test.want || jobs[0].Err != nil && !errors.Is(jobs[0].Err, test.err) {
			t.Errorf("%d times %v: %v", test.busy, test.err, jobs[0].Err)
		}
		close(ended)
		r.Close()
	}
}

// TestManyUsers: no more agents than allowed at a time, and nobody waits for
// ever.
func TestManyUsers(t *testing.T) {
	var now, most atomic.Int64
	s := &starter{}
	s.serve = func(ctx context.Context, conn *wire.Conn, key seatKey) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		serving(t, double{
			deliver: func(_ context.Context, jobs []*Job, done func(*Job)) {
				for _, j := range jobs {
					done(j)
				}
			},
			forward: func(string) (forward.Result, error) { return forward.Result{}, nil },
		}, alice)(ctx, conn, key)
	}
	r := remoteOf(t, RemoteOptions{Starter: s, Mailbox: "mbox:/var/mail/%u", Most: 3})
	var group sync.WaitGroup
	for i := range 40 {
		group.Go(func() {
			u := passwd.User{Name: fmt.Sprintf("u%d", i%20), UID: 1000 + i}
			jobs := append(testJobs(2, spooldir.Mailbox), testJobs(1, spooldir.File)...)
			r.Deliver(t.Context(), u, jobs, func(j *Job) {
				if j.Err != nil {
					t.Error(j.Err)
				}
			})
			if _, err := r.Forward(t.Context(), u, ""); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if most.Load() > 3 {
		t.Errorf("%d agents at once", most.Load())
	}
}

// TestManyMessages: neither the queue process nor the agent keeps anything of
// the messages that went through.
func TestManyMessages(t *testing.T) {
	if _, err := os.ReadDir("/dev/fd"); err != nil {
		t.Skip(err)
	}
	descriptors := func() int {
		dir, err := os.ReadDir("/dev/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(dir)
	}
	h := newHome(t)
	h.own.Mailbox = "mbox:" + h.dir + "/mbox"
	s := &starter{serve: serving(t, h.own, h.user)}
	r := remoteOf(t, RemoteOptions{Starter: s, Mailbox: h.own.Mailbox, Idle: time.Hour})
	large := bytes.Repeat([]byte("x"), maxInline+1)
	round := func() {
		jobs := testJobs(maxBatch, spooldir.Mailbox)
		jobs[7].Message.Content, jobs[7].Message.Size = bytes.NewReader(large), maxInline+1
		deliverAll(t, r, h.user, jobs)
		for _, j := range jobs {
			if j.Err != nil {
				t.Fatal(j.Err)
			}
		}
	}
	round()
	before := descriptors()
	for range 10000/maxBatch + 1 {
		round()
		if err := os.Truncate(filepath.Join(h.dir, "mbox"), 0); err != nil {
			t.Fatal(err)
		}
	}
	if after := descriptors(); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	if n, _ := s.counts(); n != 1 {
		t.Errorf("%d agents", n)
	}
}
