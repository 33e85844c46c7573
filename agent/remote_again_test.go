package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"dma/forward"
	"dma/internal/passwd"
	"dma/internal/wire"
	"dma/spooldir"
)

// TestAgain: where an agent ends in the middle of messages for an mbox, another
// one goes on at once, and looks first what is there. What it cannot finish
// either is told apart.
func TestAgain(t *testing.T) {
	const jobs = 5
	crash := errors.New("it crashed")
	for name, test := range map[string]struct {
		mailbox string
		kind    spooldir.RecipientKind
		target  string
		agents  []int // how many jobs each agent does before it ends; -1: it cannot be started
		garbage bool  // they end with what no agent says
		good    int   // how many are delivered,
		rest    error // and what the others have
		batches int
	}{
		"at the beginning":             {"mbox:/var/mail/%u", spooldir.Mailbox, "", []int{0, jobs}, false, jobs, nil, 2},
		"in the middle":                {"mbox:/var/mail/%u", spooldir.Mailbox, "", []int{2, jobs}, false, jobs, nil, 2},
		"a file":                       {"maildir:~/M", spooldir.File, "/a", []int{2, jobs}, false, jobs, nil, 2},
		"an mbox in a home":            {"mbox:~/m", spooldir.Mailbox, "", []int{2, jobs}, false, jobs, nil, 2},
		"both":                         {"mbox:/var/mail/%u", spooldir.Mailbox, "", []int{1, 2, jobs}, false, 3, ErrUnfinished, 2},
		"garbage":                      {"mbox:/var/mail/%u", spooldir.Mailbox, "", []int{1, jobs}, true, jobs, nil, 2},
		"no second one":                {"mbox:/var/mail/%u", spooldir.Mailbox, "", []int{1, -1}, false, 1, ErrUnfinished, 1},
		"no first one":                 {"mbox:/var/mail/%u", spooldir.Mailbox, "", []int{-1, jobs}, false, 0, crash, 0},
		"commands are not run again":   {"mbox:/var/mail/%u", spooldir.Command, "a", []int{2, jobs}, false, 2, errDied, 1},
		"a Maildir's file is whole":    {"mbox:/var/mail/%u", spooldir.File, "/a/", []int{2, jobs}, false, 2, errDied, 1},
		"so is that of a Maildir home": {"maildir:~/M", spooldir.Mailbox, "", []int{2, jobs}, false, 2, errDied, 1},
		"a mailbox that is a command":  {"pipe:a", spooldir.Mailbox, "", []int{2, jobs}, false, 2, errDied, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := &starter{}
			starts := 0
			s.before = func(seatKey) error {
				if starts++; test.agents[starts-1] < 0 {
					return crash
				}
				return nil
			}
			batches := 0
			s.serve = func(ctx context.Context, conn *wire.Conn, key seatKey) {
				k := test.agents[starts-1]
				Serve(ctx, conn, double{deliver: func(_ context.Context, got []*Job, done func(*Job)) {
					batches++
					for i, j := range got {
						if want := fmt.Sprintf("id-%d", jobs-len(got)+i); j.Message.ID != want || j.Message.Suspect != (batches > 1) {
							t.Errorf("batch %d: %s, suspect %v; want %s", batches, j.Message.ID, j.Message.Suspect, want)
						}
						if i == k && test.garbage {
							conn.Send([]byte("?"))
							<-ctx.Done()
						}
						if i == k {
							conn.Close()
						}
						done(j)
					}
				}}, alice, key.role)
			}
			r := remoteOf(t, RemoteOptions{Starter: s, Mailbox: test.mailbox, Clock: newFakeClock()})
			all := testJobs(jobs, test.kind)
			for _, j := range all {
				j.Target = test.target
			}
			deliverAll(t, r, alice, all)
			for i, j := range all {
				switch {
				case i < test.good:
					if j.Err != nil {
						t.Errorf("job %d: %v", i, j.Err)
					}
				case j.Err == nil, errors.Is(j.Err, ErrUnfinished) != (test.rest == ErrUnfinished), test.rest == crash && !errors.Is(j.Err, crash):
					t.Errorf("job %d: %v, want %v", i, j.Err, test.rest)
				}
			}
			if name == "no first one" {
				starts = 0
				one := testJobs(2, test.kind)
				one[1].Message.Suspect = true
				deliverAll(t, r, alice, one)
				if errors.Is(one[0].Err, ErrUnfinished) || !errors.Is(one[1].Err, ErrUnfinished) || !errors.Is(one[1].Err, crash) {
					t.Errorf("fresh: %v; suspect: %v", one[0].Err, one[1].Err)
				}
			}
			if batches != test.batches {
				t.Errorf("%d batches, want %d", batches, test.batches)
			}
			if test.garbage {
				deliverAll(t, r, alice, all[:1])
				if all[0].Err == nil {
					t.Error("the next batch got an agent, though one had to be killed")
				}
			}
		})
	}
}

// errDied stands for whatever says that an agent ended.
var errDied = errors.New("died")

// TestUnfinishedFirst: nothing comes behind what is unfinished but what leaves no
// part of a message anywhere.
func TestUnfinishedFirst(t *testing.T) {
	s := &starter{}
	var batches atomic.Int64
	s.serve = func(ctx context.Context, conn *wire.Conn, key seatKey) {
		Serve(ctx, conn, double{deliver: func(_ context.Context, jobs []*Job, done func(*Job)) {
			if batches.Add(1) <= 2 {
				conn.Close()
			}
			for _, j := range jobs {
				done(j)
			}
		}}, alice, key.role)
	}
	r := remoteOf(t, RemoteOptions{Starter: s, Mailbox: "mbox:/var/mail/%u"})
	jobs := append(testJobs(maxBatch+3, spooldir.Mailbox), testJobs(1, spooldir.Command)...)
	jobs = append(jobs, testJobs(2, spooldir.Mailbox)...)
	deliverAll(t, r, alice, jobs)
	for i, j := range jobs {
		if (j.Err == nil) != (j.Kind == spooldir.Command) || errors.Is(j.Err, ErrUnfinished) != (i < maxBatch) {
			t.Errorf("job %d: %v", i, j.Err)
		}
	}
	if n := batches.Load(); n != 3 {
		t.Errorf("%d batches", n)
	}
}

// TestNotAgain: the end of the queue process is no reason for another agent.
func TestNotAgain(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := &starter{serve: serving(t, double{deliver: func(ctx context.Context, _ []*Job, _ func(*Job)) {
		cancel()
		<-ctx.Done()
	}}, alice)}
	r := remoteOf(t, RemoteOptions{Starter: s, Mailbox: "mbox:/var/mail/%u"})
	jobs := testJobs(2, spooldir.Mailbox)
	r.Deliver(ctx, alice, jobs, func(j *Job) {
		if !errors.Is(j.Err, context.Canceled) || errors.Is(j.Err, ErrUnfinished) {
			t.Error(j.Err)
		}
	})
	if n, _ := s.counts(); n != 1 {
		t.Errorf("%d agents", n)
	}
}

// TestShare: users whose commands and .forward hang leave agents for mailboxes.
func TestShare(t *testing.T) {
	hanging := make(chan bool)
	end := make(chan struct{})
	s := &starter{serve: serving(t, double{
		forward: func(string) (forward.Result, error) { return forward.Result{}, nil },
		deliver: func(_ context.Context, jobs []*Job, done func(*Job)) {
			if jobs[0].Kind == spooldir.Command || jobs[0].Original == "hang" {
				hanging <- true
				<-end
			}
			for _, j := range jobs {
				done(j)
			}
		},
	}, alice)}
	r := remoteOf(t, RemoteOptions{Starter: s, Mailbox: "mbox:/var/mail/%u", Most: 16})
	user := func(i int) passwd.User { return passwd.User{Name: fmt.Sprintf("u%d", i), UID: 1000 + i} }
	delivered := make(chan error)
	var group sync.WaitGroup
	t.Cleanup(group.Wait) // before the Remote is closed
	deliver := func(i int, kind spooldir.RecipientKind, original string) {
		group.Add(1)
		defer group.Done()
		jobs := testJobs(1, kind)
		jobs[0].Original = original
		r.Deliver(context.Background(), user(i), jobs, func(j *Job) { delivered <- j.Err })
	}
	const users = 20
	for i := range users {
		go deliver(i, spooldir.Command, "")
	}
	for range 12 {
		<-hanging
	}
	for i := range users { // one after another: idle ones make room
		go deliver(i, spooldir.Mailbox, "")
		if err := <-delivered; err != nil {
			t.Error(err)
		}
	}
	for i := range 4 {
		go deliver(i, spooldir.Mailbox, "hang")
		<-hanging
	}
	select {
	case <-hanging:
		t.Error("another command has an agent")
	default:
	}
	if _, alive := s.counts(); alive != 16 {
		t.Errorf("%d agents", alive)
	}
	close(end)
	go func() {
		for range users - 12 {
			<-hanging
		}
	}()
	for range users + 4 {
		if err := <-delivered; err != nil {
			t.Error(err)
		}
	}
	got := s.started()
	if n := len(slices.DeleteFunc(got, func(k seatKey) bool { return k.role != UserRole })); n != users {
		t.Errorf("%d agents for %d users' commands", n, users)
	}
}

// TestNoShare: where mailboxes are written by agents of UserRole, these get all
// there is room for.
func TestNoShare(t *testing.T) {
	hanging, end := make(chan bool), make(chan struct{})
	s := &starter{serve: serving(t, double{deliver: func(_ context.Context, jobs []*Job, done func(*Job)) {
		hanging <- true
		<-end
		done(jobs[0])
	}}, alice)}
	r := remoteOf(t, RemoteOptions{Starter: s, Mailbox: "maildir:~/Maildir", Most: 16})
	var group sync.WaitGroup
	for i := range 16 {
		group.Go(func() {
			r.Deliver(context.Background(), passwd.User{Name: fmt.Sprint(i), UID: 1000 + i}, testJobs(1, spooldir.Mailbox), func(*Job) {})
		})
	}
	for range 16 {
		<-hanging
	}
	close(end)
	group.Wait()
}
