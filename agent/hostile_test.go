package agent

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"dma/forward"
	"dma/internal/passwd"
	"dma/internal/wire"
	"dma/localwriter"
	"dma/spooldir"
)

// script returns an agent that takes a batch, or a request for a .forward, and
// then does as it likes.
func script(act func(conn *wire.Conn, r request)) *starter {
	return &starter{serve: func(_ context.Context, conn *wire.Conn, _ seatKey) {
		for {
			b, _, err := conn.Receive(maxRequest, 0)
			if err != nil {
				return
			}
			r, err := parseRequest(b)
			if err != nil {
				return
			}
			if r.kind != jobRequest {
				act(conn, r)
			}
		}
	}}
}

// received throws away what arrives.
type received struct{ conn *wire.Conn }

func (r received) Read([]byte) (int, error) {
	_, _, err := r.conn.Receive(maxRequest, 0)
	return 0, err
}

func good() []byte { return encodeOutcome(outcome{place: "/p"}) }

// encoded puts an answer together by hand.
func encoded(kind byte, fill func(e *encoder)) []byte {
	e := encoder{b: []byte{kind}}
	fill(&e)
	return e.b
}

// TestHostile: an agent that says what none should costs its own user's mail a
// delay, and nothing else happens.
func TestHostile(t *testing.T) {
	text := func(e *encoder, list ...string) {
		for _, s := range list {
			e.string(s)
		}
	}
	target := func(kind forward.Kind, value string) []byte {
		return encoded(forwardAnswer, func(e *encoder) {
			e.bool(false)
			e.uint(noError)
			e.string("/f")
			e.uint(1)
			e.uint(uint64(kind))
			text(e, value, "/f")
			e.uint(1)
		})
	}
	part := encodeForwardResult(forward.Result{Targets: []forward.Target{{Kind: forward.Discard}}}, nil)[0]
	moreOf := func(b []byte) []byte { b = slices.Clone(b); b[1] = 1; return b }
	for name, answers := range map[string][][]byte{
		"empty":                   {{}},
		"unknown":                 {{'?'}},
		"outcome with a tail":     {append(good(), 0)},
		"cut outcome":             {good()[:3]},
		"more outcomes than jobs": {good(), good(), good(), good()},
		"unlisted mailbox":        {encodeOutcome(outcome{err: ErrUnlisted})},
		"place too long":          {encoded(outcomeAnswer, func(e *encoder) { e.bool(true); e.string(strings.Repeat("x", maxPlace+1)); e.uint(noError) })},
		"unknown class":           {encoded(outcomeAnswer, func(e *encoder) { e.bool(true); e.string(""); e.uint(numErrors) })},
		"permanent with 4.0.0": {encoded(outcomeAnswer, func(e *encoder) {
			e.bool(false)
			e.string("")
			e.uint(deliveryError)
			e.bool(true)
			text(e, "4.0.0", "", "", "", "")
		})},
		"temporary with 5.0.0": {encoded(outcomeAnswer, func(e *encoder) {
			e.bool(false)
			e.string("")
			e.uint(deliveryError)
			e.bool(false)
			text(e, "5.0.0", "", "", "", "")
		})},
		"status with a newline": {encoded(outcomeAnswer, func(e *encoder) {
			e.bool(false)
			e.string("")
			e.uint(deliveryError)
			e.bool(true)
			text(e, "5.0.\n", "", "", "", "")
		})},
		"a pong to no ping":            {{pongAnswer}},
		"frame too long":               {make([]byte, maxAnswer+1)},
		".forward that nobody wants":   {part},
		"content with a huge offset":   {encoded(readAnswer, func(e *encoder) { e.uint(0); e.uint(1 << 62); e.uint(1) })},
		"content in a huge piece":      {encoded(readAnswer, func(e *encoder) { e.uint(0); e.uint(0); e.uint(1 << 30) })},
		"content again and again":      slices.Repeat([][]byte{encodeRead(span{n: maxChunk})}, contentTimes*maxChunk/requestCost+200),
		"content of another job":       slices.Repeat([][]byte{encodeRead(span{job: 1 << 40, n: maxChunk})}, lateReads+1),
		"forward: user":                {target(forward.User, "root")},
		"forward: include":             {target(forward.Include, "/etc/shadow")},
		"forward: relative file":       {target(forward.File, "x")},
		"forward: file as Maildir":     {target(forward.Maildir, "/x")},
		"forward: two addresses":       {target(forward.Address, "a@b.test,c@d.test")},
		"forward: address with CR":     {target(forward.Address, "a@b.test\r")},
		"forward: command of 2 lines":  {target(forward.Command, "a\nb")},
		"forward: command with NUL":    {target(forward.Command, "a\x00b")},
		"forward: discard with a name": {target(forward.Discard, "x")},
		"forward: endless":             slices.Repeat([][]byte{moreOf(part)}, forward.MaxTargets+1),
		"forward: parts of nothing":    {moreOf(encodeForwardResult(forward.Result{}, nil)[0])},
		"forward: unlisted":            {encodeForwardResult(forward.Result{}, ErrUnlisted)[0]},
		"forward: trouble and targets": {encoded(forwardAnswer, func(e *encoder) {
			e.bool(false)
			e.uint(plainError)
			text(e, "x", "/f")
			e.uint(1)
			e.uint(uint64(forward.Discard))
			text(e, "", "/f")
			e.uint(1)
		})},
		"the last word": {encodeWord(errors.New("I am\nroot"))},
	} {
		t.Run(name, func(t *testing.T) {
			s := script(func(conn *wire.Conn, r request) {
				if strings.HasPrefix(name, "content again") {
					go io.Copy(io.Discard, received{conn})
				}
				for _, a := range answers {
					if conn.Send(a) != nil {
						return
					}
				}
			})
			clock := newFakeClock()
			var trouble []error
			r := remoteOf(t, RemoteOptions{Starter: s, Mailbox: "maildir:~/m", Clock: clock, Trouble: func(user string, role Role, err error) {
				if user != "alice" || role != UserRole {
					t.Errorf("%s, %s", user, role)
				}
				trouble = append(trouble, err)
			}})
			var err error
			if strings.HasPrefix(name, "forward: ") {
				var res forward.Result
				if res, err = r.Forward(t.Context(), alice, ""); res.Forwards() {
					t.Errorf("%+v", res)
				}
			} else {
				jobs := testJobs(3, spooldir.Mailbox)
				deliverAll(t, r, alice, jobs)
				err = jobs[2].Err
				if name == "more outcomes than jobs" {
					err = errors.Join(trouble...) // the three count, or do not
				}
			}
			var final *localwriter.Error
			if err == nil || errors.Is(err, ErrUnlisted) || errors.As(err, &final) || strings.ContainsAny(err.Error(), "\r\n\x00") {
				if name != "more outcomes than jobs" {
					t.Errorf("%v", err)
				}
			}
			if name == "more outcomes than jobs" {
				return
			}
			if len(trouble) != 1 {
				t.Errorf("told of %v", trouble)
			}
			if name == "the last word" {
				return
			}
			// For a while there is no other agent.
			jobs := testJobs(1, spooldir.Mailbox)
			deliverAll(t, r, alice, jobs)
			if n, _ := s.counts(); jobs[0].Err == nil || n != 1 {
				t.Errorf("%d agents, %v", n, jobs[0].Err)
			}
			clock.pass(refuseFor)
			deliverAll(t, r, alice, jobs)
			if n, _ := s.counts(); n != 2 {
				t.Errorf("%d agents after a while", n)
			}
		})
	}
}

// TestDies: what the agent had answered for counts; the rest waits, for the next
// agent.
func TestDies(t *testing.T) {
	for _, k := range []int{0, 1, 4, 5} {
		s := &starter{}
		s.serve = func(ctx context.Context, conn *wire.Conn, key seatKey) {
			Serve(ctx, conn, double{deliver: func(_ context.Context, jobs []*Job, done func(*Job)) {
				for i, j := range jobs {
					if i == k {
						conn.Close()
					}
					done(j)
				}
			}}, alice, key.role)
		}
		told := 0
		r := remoteOf(t, RemoteOptions{Starter: s, Mailbox: "maildir:~/m", Trouble: func(string, Role, error) { told++ }})
		jobs := testJobs(5, spooldir.Mailbox)
		deliverAll(t, r, alice, jobs)
		for i, j := range jobs {
			if (j.Err == nil) != (i < k) {
				t.Errorf("dead after %d: job %d: %v", k, i, j.Err)
			}
		}
		if want := map[bool]int{true: 0, false: 1}[k == 5]; told != want {
			t.Errorf("dead after %d: told %d times", k, told)
		}
		deliverAll(t, r, alice, testJobs(1, spooldir.Mailbox))
		if n, _ := s.counts(); k < 5 && n != 2 {
			t.Errorf("%d agents", n)
		}
	}
}

// TestStoppedAgent: an agent that says nothing is killed, and other users' mail
// flows meanwhile.
func TestStoppedAgent(t *testing.T) {
	for _, what := range []string{"deliver", "forward"} {
		clock := newFakeClock()
		reading := make(chan bool, 10)
		ours := double{deliver: func(_ context.Context, jobs []*Job, done func(*Job)) { done(jobs[0]) }}
		s := &starter{}
		s.serve = func(ctx context.Context, conn *wire.Conn, key seatKey) {
			if key.user == "bob" {
				Serve(ctx, conn, ours, alice, key.role)
				return
			}
			reading <- true
			<-ctx.Done() // SIGSTOP, until SIGKILL
		}
		r := remoteOf(t, RemoteOptions{Starter: s, Mailbox: "maildir:~/m", Clock: clock, Idle: time.Hour})
		ended := make(chan struct{})
		var err error
		began := clock.Now()
		go func() {
			defer close(ended)
			if what == "forward" {
				_, err = r.Forward(context.Background(), alice, "")
				return
			}
			jobs := testJobs(maxBatch, spooldir.Command)
			for _, j := range jobs { // more than the socket has room for
				j.Message.Content, j.Message.Size = strings.NewReader(strings.Repeat("x", maxInline)), maxInline
			}
			r.Deliver(context.Background(), alice, jobs, func(j *Job) {
				if j.Err == nil {
					t.Error("delivered")
				}
				err = j.Err
			})
		}()
		<-reading
		jobs := testJobs(1, spooldir.Mailbox)
		deliverAll(t, r, passwd.User{Name: "bob", UID: 1001}, jobs)
		if jobs[0].Err != nil {
			t.Errorf("bob: %v", jobs[0].Err)
		}
		clock.run(3, always, ended) // one of them for bob's agent, which is idle
		if !errors.Is(err, errStopped) {
			t.Errorf("%s: %v", what, err)
		}
		if after := clock.Now().Sub(began); after > pongWithin+2*pingEvery {
			t.Errorf("%s: given up after %v", what, after)
		}
		if _, err := r.Forward(t.Context(), alice, ""); err == nil {
			t.Error("another agent at once")
		}
	}
}

// TestSlowAgent: one that answers pings and does nothing else has a limit too.
func TestSlowAgent(t *testing.T) {
	for _, test := range []struct {
		kind    spooldir.RecipientKind
		mailbox string
		size    int64
		most    time.Duration
	}{
		{spooldir.Mailbox, "maildir:~/m", 1, placeLimit},
		{spooldir.Mailbox, "maildir:~/m", slowest * 60, placeLimit + time.Minute},
		{spooldir.Command, "mbox:~/m", slowest * 60, 20*time.Minute + commandExtra},
		{spooldir.Mailbox, "pipe:cat", 1, 20*time.Minute + commandExtra},
	} {
		clock := newFakeClock()
		s := &starter{}
		s.serve = func(ctx context.Context, conn *wire.Conn, key seatKey) {
			Serve(ctx, conn, double{deliver: func(ctx context.Context, _ []*Job, _ func(*Job)) { <-ctx.Done() }}, alice, key.role)
		}
		r := remoteOf(t, RemoteOptions{Starter: s, Mailbox: test.mailbox, Clock: clock, CommandTime: 20 * time.Minute})
		ended := make(chan struct{})
		jobs := testJobs(1, test.kind)
		jobs[0].Message.Size = test.size
		jobs[0].Message.Content = io.NewSectionReader(strings.NewReader(""), 0, 0)
		began := clock.Now()
		go func() {
			defer close(ended)
			r.Deliver(context.Background(), alice, jobs, func(*Job) {})
		}()
		// A ping is answered before time passes on.
		clock.run(2, func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			for _, s := range r.seats {
				if s.link != nil {
					s.link.mu.Lock()
					defer s.link.mu.Unlock()
					return s.link.pinged.IsZero()
				}
			}
			return true
		}, ended)
		after := clock.Now().Sub(began)
		if !errors.Is(jobs[0].Err, errSlow) || after < test.most || after > test.most+time.Minute {
			t.Errorf("%v in %s: %v after %v, want %v", test.kind, test.mailbox, jobs[0].Err, after, test.most)
		}
	}
}

// TestQueueGone: when the queue process ends, a running command is killed and
// the agent ends.
func TestQueueGone(t *testing.T) {
	h := newHome(t)
	fifo := filepath.Join(h.dir, "started")
	line := "echo x > started; sleep 1000; echo x > survived"
	h.write(".forward", `"|`+line+`"`)
	ours, theirs, err := wire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		conn := wire.New(theirs)
		defer conn.Close()
		ended <- Serve(context.Background(), conn, h.own, h.user, UserRole)
	}()
	l := newLink(wire.New(ours), newFakeClock(), time.Minute, false, func(error) {})
	go l.receive()
	j := h.job(spooldir.Command, line, "forward")
	delivered := make(chan error)
	go func() {
		_, err := l.deliver(context.Background(), []*Job{j}, func(*Job) { t.Error("answered for") })
		delivered <- err
	}()
	for {
		if _, err := os.Stat(fifo); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	l.fail(errClosed)
	if err := <-delivered; err != errClosed {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if h.read("survived") != "" {
		t.Error("the command was not killed")
	}
}

// TestHostileQueue: an agent does not take everything from its queue process
// either.
func TestHostileQueue(t *testing.T) {
	job := encodeJob(testJobs(1, spooldir.Mailbox)[0])
	for name, requests := range map[string][][]byte{
		"empty":               {{}},
		"unknown":             {{'?'}},
		"ping with a tail":    {{pingRequest, 0}},
		"end of nothing":      {{endRequest}},
		"too many jobs":       slices.Repeat([][]byte{job}, maxBatch+1),
		"second batch":        {job, {endRequest}, job, {endRequest}},
		"content unasked":     {encodeChunk([]byte("x"))},
		"frame too long":      {make([]byte, maxRequest+1)},
		"detail of 2 lines":   {encodeForward("a\nb")},
		"second .forward":     {encodeForward(""), encodeForward("")},
		"job with a tail":     {append(slices.Clone(job), 'x')},
		"job that is cut":     {job[:len(job)-1]},
		"job of another kind": {func() []byte { b := slices.Clone(job); b[1] = 0; return b }()},
	} {
		ours, theirs, err := wire.Pair()
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			conn := wire.New(theirs)
			defer conn.Close()
			ended <- Serve(context.Background(), conn, double{
				deliver: func(ctx context.Context, _ []*Job, _ func(*Job)) { <-ctx.Done() },
				forward: func(string) (forward.Result, error) {
					return forward.Result{}, errors.New("x")
				},
			}, alice, UserRole)
		}()
		conn := wire.New(ours)
		if name == "second .forward" {
			// It may be quick with the first one: then there is nothing wrong.
			conn.Close()
			if err := <-ended; err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		for _, r := range requests {
			conn.Send(r)
		}
		if err := <-ended; !errors.Is(err, errProtocol) && !errors.Is(err, wire.ErrTooLong) {
			t.Errorf("%s: %v", name, err)
		}
		conn.Close()
	}
}

func TestSetup(t *testing.T) {
	good := Setup{
		User: passwd.User{Name: "alice", UID: 1000, GID: 100, Home: "/home/alice", Shell: "/bin/sh"}, UID: 1000, GID: 8, Groups: []int{100, 27},
		Role: MailboxRole, HostName: "h", Mailbox: "mbox:/var/mail/%u", Flock: true, Forward: "~/.forward", CommandTime: time.Minute,
		MinUID: 1000, Listed: []string{"x"}, Aliases: []string{"/etc/aliases"}, AliasUser: "nobody",
	}
	write := func(change func(*Setup)) (Setup, error) {
		s := good
		change(&s)
		var b strings.Builder
		if err := WriteSetup(&b, s); err != nil {
			return Setup{}, err
		}
		return ReadSetup(strings.NewReader(b.String()))
	}
	if s, err := write(func(*Setup) {}); err != nil || !reflect.DeepEqual(s, good) {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := write(func(s *Setup) { s.User.UID, s.User.Name, s.MailFile = 0, "root", true }); err != nil {
		t.Errorf("root's mailbox: %v", err)
	}
	for name, change := range map[string]func(*Setup){
		"role":                func(s *Setup) { s.Role = "x" },
		"root":                func(s *Setup) { s.UID = 0 },
		"root itself":         func(s *Setup) { s.UID, s.User.UID = 0, 0 },
		"another user":        func(s *Setup) { s.UID = 1001 },
		"root without a file": func(s *Setup) { s.User.UID = 0 },
		"root's user agent":   func(s *Setup) { s.User.UID, s.MailFile, s.Role = 0, true, UserRole },
		"name":                func(s *Setup) { s.User.Name = "a/b" },
		"home in Latin-1":     func(s *Setup) { s.User.Home = "/home/\xe4" },
		"too long":            func(s *Setup) { s.HostName = strings.Repeat("h", maxSetup) },
	} {
		if s, err := write(change); err == nil {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte{pongAnswer})
	f.Add(good())
	f.Add(encodeRead(span{1, 2, 3}))
	f.Add(encodeWord(errors.New("x")))
	f.Add(encodeOutcome(outcome{true, "/p", &localwriter.Error{Op: "run", Path: "p", Status: "5.1.1", Permanent: true, Output: "o", Err: errors.New("e")}}))
	f.Add(encodeForwardResult(forward.Result{Path: "/f", Targets: []forward.Target{
		{Kind: forward.Address, Value: "a@b.test", File: "/f", Line: 1}, {Kind: forward.Mailbox, Value: "x y", File: "/f", Line: 1}, {Kind: forward.Command, Value: "c", File: "/g", Line: 2},
	}}, nil)[0])
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAnswer(b)
		if err != nil {
			return
		}
		var trouble *localwriter.Error
		for _, e := range []error{a.outcome.err, a.part.err} {
			if e != nil && (hasControl(e.Error()) || len(e.Error()) > 6*maxError) {
				t.Errorf("%q", e)
			}
			if errors.As(e, &trouble) && (hasControl(trouble.Status) || !isStatus(trouble.Status, trouble.Permanent)) {
				t.Errorf("%q", trouble.Status)
			}
		}
		if hasControl(a.outcome.place) || hasControl(a.word) || hasControl(a.part.path) {
			t.Errorf("%+v", a)
		}
		// What is believed can be said again.
		var again []byte
		switch a.kind {
		case outcomeAnswer:
			again = encodeOutcome(a.outcome)
		case readAnswer:
			again = encodeRead(a.read)
		case forwardAnswer:
			if a.part.more {
				return
			}
			for _, p := range encodeForwardResult(forward.Result{Path: a.part.path, Targets: a.part.targets}, a.part.err) {
				if _, err := parseAnswer(p); err != nil {
					t.Errorf("said again: %v", err)
				}
			}
			return
		default:
			return
		}
		b2, err := parseAnswer(again)
		if err != nil || !reflect.DeepEqual(b2, a) {
			t.Errorf("%+v became %+v, %v", a, b2, err)
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte{pingRequest})
	f.Add([]byte{endRequest})
	f.Add(encodeForward("d"))
	f.Add(encodeChunk([]byte("x")))
	f.Add(encodeChunk(nil))
	for _, kind := range []spooldir.RecipientKind{spooldir.Mailbox, spooldir.File, spooldir.Command} {
		f.Add(encodeJob(testJobs(1, kind)[0]))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRequest(b)
		if err != nil || r.kind != jobRequest {
			return
		}
		if err := checkJob(r.job); err != nil {
			t.Errorf("%v", err)
		}
		if !r.inline {
			r.job.Message.Content = io.NewSectionReader(strings.NewReader(""), 0, 0)
		}
		again, err := parseRequest(encodeJob(r.job))
		if err != nil {
			t.Fatalf("%v", err)
		}
		if r.inline != again.inline && r.job.Message.Size > 0 {
			t.Errorf("inline %v, then %v", r.inline, again.inline)
		}
		r.job.Message.Content, again.job.Message.Content = nil, nil
		if !reflect.DeepEqual(r.job, again.job) {
			t.Errorf("%+v became %+v", r.job, again.job)
		}
	})
}
