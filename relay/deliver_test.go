package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dma/internal/maillog"
	"dma/smarthost"
	"dma/spooldir"
	"dma/states"
)

// scripted calls a function for each delivery. It has a destination for each
// domain.
type scripted struct {
	deliver func(ctx context.Context, m smarthost.Message, done func([]int, []smarthost.Outcome))

	flushed, closed int
}

func (s *scripted) Deliver(ctx context.Context, m smarthost.Message, done func([]int, []smarthost.Outcome)) {
	s.deliver(ctx, m, done)
}
func (s *scripted) Flush() { s.flushed++ }
func (s *scripted) Close() { s.closed++ }

func (s *scripted) Destinations(m *smarthost.Message) []string {
	var keys []string
	for _, r := range m.Recipients {
		_, domain, _ := strings.Cut(r.Address, "@")
		keys = append(keys, domain)
	}
	return keys
}

// answered is the outcome by address for all of m.
func answered(m smarthost.Message) (indices []int, outcomes []smarthost.Outcome) {
	for i, r := range m.Recipients {
		indices, outcomes = append(indices, i), append(outcomes, byAddress(r))
	}
	return indices, outcomes
}

// troubles counts what the log says of trouble.
func (f *fixture) troubles() *[]string {
	var list []string
	f.on = func(event string, attrs map[string]string) {
		if event == maillog.EventWorkerTrouble {
			f.mu.Lock()
			defer f.mu.Unlock()
			list = append(list, fmt.Sprint(attrs))
		}
	}
	return &list
}

// TestSettledAsDecided: what one hop decides is recorded while another one has not
// answered yet.
func TestSettledAsDecided(t *testing.T) {
	f := newFixture(t)
	names := f.remote("ok1@a.test", "ok2@a.test", "ok3@b.test")
	d := &scripted{deliver: func(_ context.Context, m smarthost.Message, done func([]int, []smarthost.Outcome)) {
		_, out := answered(m)
		done([]int{1, 0}, []smarthost.Outcome{out[1], out[0]})
		if a, b := f.where(names[0]), f.where(names[2]); a != "sent" || b != "remote" {
			t.Errorf("while the second hop hangs they stand in %q and %q", a, b)
		}
		if j := f.journal(names[0].ID); !j.Delivered(1) || !j.Delivered(2) || j.Delivered(3) {
			t.Errorf("the journal has %+v", j.Entries)
		}
		done([]int{2}, out[2:])
	}}
	f.r.o.Deliverer = d
	f.handle(names[0])
	if got := f.where(names[2]); got != "sent" {
		t.Errorf("the last stands in %q", got)
	}
}

// TestOnlyOnce: outcomes that do not add up stop the worker.
func TestOnlyOnce(t *testing.T) {
	type tell = func([]int, []smarthost.Outcome)
	for name, deliver := range map[string]func(m smarthost.Message, done tell){
		"missing":   func(smarthost.Message, tell) {},
		"one short": func(m smarthost.Message, done tell) { i, o := answered(m); done(i[:1], o[:1]) },
		"twice":     func(m smarthost.Message, done tell) { i, o := answered(m); done(i, o); done(i[:1], o[:1]) },
		"in a row":  func(m smarthost.Message, done tell) { _, o := answered(m); done([]int{0, 0}, o) },
		"beyond":    func(m smarthost.Message, done tell) { _, o := answered(m); done([]int{0, 2}, o) },
		"unequal":   func(m smarthost.Message, done tell) { i, o := answered(m); done(i, o[:1]) },
		"lost":      func(smarthost.Message, tell) { panic(smarthost.Unaccounted("recipient 1 is lost")) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			names := f.remote("ok1@a.test", "ok2@a.test")
			f.r.o.Deliverer = &scripted{deliver: func(_ context.Context, m smarthost.Message, done func([]int, []smarthost.Outcome)) {
				deliver(m, done)
			}}
			defer func() {
				if _, ok := recover().(states.Fatal); !ok {
					t.Error("it went on")
				}
			}()
			f.r.handle(context.Background(), names[0])
		})
	}
}

// TestPanic: a panic in a delivery costs those whom it has not decided an attempt,
// and nobody else anything.
func TestPanic(t *testing.T) {
	f := newFixture(t)
	troubles := f.troubles()
	names := f.remote("ok1@a.test", "ok2@b.test")
	f.r.o.Deliverer = &scripted{deliver: func(_ context.Context, m smarthost.Message, done func([]int, []smarthost.Outcome)) {
		i, o := answered(m)
		done(i[:1], o[:1])
		panic("of a hop")
	}}
	f.handle(names[0])
	if a, b := f.where(names[0]), f.where(names[1]); a != "sent" || b != "tempfail" {
		t.Errorf("they stand in %q and %q", a, b)
	}
	last := f.journal(names[0].ID).Last(2)
	if last.Event != spooldir.Deferred || last.Status != "4.3.0" || !strings.Contains(last.Reply, "of a hop") {
		t.Errorf("%+v", last)
	}
	if len(*troubles) != 1 || !strings.Contains((*troubles)[0], "of a hop") {
		t.Errorf("trouble: %q", *troubles)
	}

	// One that a hop has caught itself is said, too.
	name := f.remote("x@a.test")[0]
	f.r.o.Deliverer = &scripted{deliver: func(_ context.Context, m smarthost.Message, done func([]int, []smarthost.Outcome)) {
		done([]int{0}, []smarthost.Outcome{{Verdict: smarthost.Tempfail, Trouble: errors.New("caught")}})
	}}
	f.handle(name)
	if len(*troubles) != 2 || !strings.Contains((*troubles)[1], "caught") || f.where(name) != "tempfail" {
		t.Errorf("trouble: %q; it stands in %q", *troubles, f.where(name))
	}
}

// TestPanicInSettling: trouble with the outcomes of one hop does not lose those of
// the next, and what is delivered is not delivered again.
func TestPanicInSettling(t *testing.T) {
	f := newFixture(t)
	names := f.remote("ok1@a.test", "ok2@b.test")
	deliveries := 0
	f.r.o.Deliverer = &scripted{deliver: func(_ context.Context, m smarthost.Message, done func([]int, []smarthost.Outcome)) {
		deliveries++
		i, o := answered(m)
		done(i[:1], o[:1])
		done(i[1:], o[1:])
	}}
	f.on = func(event string, attrs map[string]string) {
		if event == maillog.EventDelivery && attrs["n"] == "1" {
			panic("of the log")
		}
	}
	if _, err := f.r.handle(context.Background(), names[0]); err == nil || !strings.Contains(err.Error(), "of the log") {
		t.Errorf("error %v", err)
	}
	if a, b := f.where(names[0]), f.where(names[1]); a != "remote" || b != "sent" {
		t.Errorf("they stand in %q and %q", a, b)
	}
	f.on = nil
	f.handle(names[0])
	if got := f.where(names[0]); got != "sent" || deliveries != 1 {
		t.Errorf("it stands in %q after %d deliveries", got, deliveries)
	}
}

// TestMailboxes: recipients with mailboxes on this machine go to their server, at
// the same time as the others go to other hosts.
func TestMailboxes(t *testing.T) {
	f := newFixture(t)
	var mu sync.Mutex
	var got []string
	both := make(chan struct{}, 1)
	take := func(what string) *scripted {
		return &scripted{deliver: func(_ context.Context, m smarthost.Message, done func([]int, []smarthost.Outcome)) {
			text, err := io.ReadAll(io.NewSectionReader(m.Content, 0, m.Size))
			if err != nil {
				t.Error(err)
			}
			head, _, _ := strings.Cut(string(text), "\n")
			mu.Lock()
			for _, r := range m.Recipients {
				got = append(got, what+" "+r.Address+" "+head)
			}
			mu.Unlock()
			select { // the one needs the other
			case both <- struct{}{}:
			case <-both:
			}
			done(answered(m))
		}}
	}
	other, server := take("other"), take("server")
	f.r.o.Deliverer, f.r.o.Mailboxes = other, server
	f.r.o.Mailbox = func(r *spooldir.Recipient) (string, bool) {
		user, domain, _ := strings.Cut(r.Address, "@")
		return user + "@box.test", domain == "host.test"
	}
	names := f.remote("ok1@host.test", "ok2@far.test")
	f.handle(names[0])
	slices.Sort(got)
	if want := []string{"other ok2@far.test Subject: test", "server ok1@box.test Subject: test"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, n := range names {
		if at := f.where(n); at != "sent" {
			t.Errorf("%s stands in %q", n, at)
		}
	}
	f.r.Flush()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := f.r.Run(ctx); err != nil {
		t.Error(err)
	}
	if other.flushed+server.flushed != 2 || other.closed+server.closed != 2 {
		t.Errorf("flushed and closed: %+v %+v", other, server)
	}
}

// TestFlushed: who asks for a flush, and then moves a message to remote, has it
// tried, however soon.
func TestFlushed(t *testing.T) {
	f := newFixture(t)
	asked := false
	f.r.o.Flushed = func() bool {
		was := asked
		asked = false
		return was
	}
	var flushed []int
	d := &scripted{}
	d.deliver = func(_ context.Context, m smarthost.Message, done func([]int, []smarthost.Outcome)) {
		flushed = append(flushed, d.flushed)
		done(answered(m))
	}
	f.r.o.Deliverer = d
	for i := range 3 {
		asked = i == 1
		f.handle(f.remote("ok@far.test")[0])
	}
	if want := []int{0, 1, 1}; !slices.Equal(flushed, want) {
		t.Errorf("flushes before the deliveries: %v, want %v", flushed, want)
	}
}

// TestMailboxOrder: the recipients that the server of the mailboxes has go to it
// together, as they are called there.
func TestMailboxOrder(t *testing.T) {
	f := newFixture(t)
	m := &spooldir.Message{Envelope: &spooldir.Envelope{}}
	m.ContentLength = 5
	m.Recipients = []spooldir.Recipient{
		{Kind: spooldir.Address, Address: "Alice", User: "alice"},
		{Kind: spooldir.LocalUser, Address: "team@host.test", User: "bob", Detail: "x"},
		{Kind: spooldir.Mailbox, Address: "carol@host.test", User: "carol"},
	}
	f.r.o.Mailboxes = &scripted{}
	f.r.o.Mailbox = func(r *spooldir.Recipient) (string, bool) { return "box." + r.User + "@host.test", true }
	var got []string
	o := f.r.mailboxOrder(m, []int{1, 2, 3})
	for _, r := range o.message.Recipients {
		got = append(got, fmt.Sprintf("%d:%s", r.N, r.Address))
	}
	want := []string{"1:box.alice@host.test", "2:box.bob@host.test", "3:box.carol@host.test"}
	if !slices.Equal(got, want) || o.message.Size != 5 {
		t.Errorf("got  %q, %d octets\nwant %q, 5", got, o.message.Size, want)
	}
}

// TestShare: no destination has more messages in hand than its share; the others
// of a message go on meanwhile, and those that wait get their turn.
func TestShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		var mu sync.Mutex
		inHand, most := map[string]int{}, map[string]int{}
		var order []string
		slow := map[string]time.Duration{"hang.test": time.Hour, "fast.test": time.Second}
		f.r = New(Options{
			Spool: f.spool, Watcher: f.spool.Unwatched(spooldir.Remote), Log: f.r.o.Log, Clock: states.SystemClock{},
			Retry: schedule, HostName: "host.test", Concurrency: 8, Share: 2, Rescan: 100 * time.Hour,
			Deliverer: &scripted{deliver: func(ctx context.Context, m smarthost.Message, done func([]int, []smarthost.Outcome)) {
				var wg sync.WaitGroup
				results := make(chan int, len(m.Recipients))
				for i, r := range m.Recipients {
					_, domain, _ := strings.Cut(r.Address, "@")
					mu.Lock()
					inHand[domain]++
					most[domain] = max(most[domain], inHand[domain])
					mu.Unlock()
					wg.Go(func() {
						time.Sleep(slow[domain])
						results <- i
					})
				}
				go func() { wg.Wait(); close(results) }()
				for i := range results {
					_, domain, _ := strings.Cut(m.Recipients[i].Address, "@")
					mu.Lock()
					inHand[domain]--
					order = append(order, domain)
					mu.Unlock()
					done([]int{i}, []smarthost.Outcome{byAddress(m.Recipients[i])})
				}
			}},
		})
		var names []spooldir.Name
		for i := range 20 {
			names = append(names, f.remote(fmt.Sprintf("ok%d@hang.test", i))...)
		}
		for i := range 5 {
			names = append(names, f.remote(fmt.Sprintf("ok%d@fast.test", i), "ok@hang.test")...)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- f.r.Run(ctx) }()
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		mu.Lock()
		if inHand["hang.test"] != 2 || len(order) != 5 || slices.Contains(order, "hang.test") {
			t.Errorf("after half an hour: in hand %v, done %q", inHand, order)
		}
		mu.Unlock()
		if f.r.Idle() {
			t.Error("idle, while messages wait for their turn")
		}
		time.Sleep(13 * time.Hour) // 25 recipients, 2 at a time, an hour each
		synctest.Wait()
		if !f.r.Idle() {
			t.Error("not idle at the end")
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		for _, n := range names {
			if at := f.where(n); at != "sent" {
				t.Errorf("%s stands in %q", n, at)
			}
		}
		if most["hang.test"] != 2 || most["fast.test"] > 2 {
			t.Errorf("in hand at a time: %v", most)
		}
		if n := len(f.r.turns.lines) + len(f.r.turns.kept) + len(f.r.turns.visits); n != 0 {
			t.Errorf("%d things are remembered", n)
		}
	})
}

// TestTurnOfTheGone: the place of a message that was taken away goes to the next.
func TestTurnOfTheGone(t *testing.T) {
	var rung []string
	turns := newTurns(1, func(n spooldir.Name) { rung = append(rung, n.ID) })
	name := func(id string) spooldir.Name { return spooldir.Name{ID: id, N: 1} }
	a := turns.begin("a")
	for _, key := range []string{"x", "x", ""} { // one place is enough
		if !turns.take(a, key, name("a")) {
			t.Fatalf("no place for the first at %q", key)
		}
	}
	for _, id := range []string{"b", "c", "b"} {
		v := turns.begin(id)
		if turns.take(v, "x", name(id)) {
			t.Errorf("%s has a place", id)
		}
		turns.end(v, name(id))
	}
	turns.leave(a, "x")
	turns.leave(a, "x") // it has left
	turns.end(a, name("a"))
	if len(rung) != 1 || rung[0] != "b" || !turns.busy() {
		t.Fatalf("rung for %q", rung)
	}
	// Others do not get the place that is kept.
	d := turns.begin("d")
	if turns.take(d, "x", name("d")) {
		t.Error("d has the place of b")
	}
	turns.end(d, name("d"))
	turns.end(turns.begin("b"), name("b")) // there is nothing of b
	if len(rung) != 2 || rung[1] != "c" {
		t.Fatalf("rung for %q", rung)
	}
	// A place that comes while the message is in hand, and too late, is kept.
	e := turns.begin("c")
	if !turns.take(e, "x", name("c")) {
		t.Error("c has lost its place")
	}
	d = turns.begin("d")
	turns.end(e, name("c"))
	select {
	case <-d.wake:
	default:
		t.Error("d is not told")
	}
	turns.end(d, name("d"))
	if len(rung) != 3 || rung[2] != "d" || !turns.busy() {
		t.Fatalf("rung for %q", rung)
	}
	turns.end(turns.begin("d"), name("d"))
	if turns.busy() || len(turns.lines)+len(turns.kept)+len(turns.visits) != 0 {
		t.Errorf("left over: %+v", turns)
	}
}
