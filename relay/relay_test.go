package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dma/internal/maillog"
	"dma/internal/retry"
	"dma/smarthost"
	"dma/spooldir"
	"dma/states"

	"github.com/emersion/go-smtp"
)

var start = time.Date(2040, 1, 1, 12, 0, 0, 0, time.UTC)

var schedule = retry.Schedule{Min: 5 * time.Minute, Max: 3 * time.Hour, Expire: 5 * 24 * time.Hour}

type clock struct{ now time.Time }

func (c *clock) Now() time.Time                                 { return c.now }
func (c *clock) After(time.Duration) (<-chan time.Time, func()) { return nil, func() {} }

// deliverer answers with a function of the address.
type deliverer struct {
	answer func(r smarthost.Recipient) smarthost.Outcome
	during func(m smarthost.Message) // in the middle of DATA
	got    []smarthost.Message
	short  bool // leaves an outcome out
}

func (d *deliverer) Deliver(_ context.Context, m smarthost.Message, done func([]int, []smarthost.Outcome)) {
	d.got = append(d.got, m)
	if d.during != nil {
		d.during(m)
	}
	var indices []int
	var out []smarthost.Outcome
	for i, r := range m.Recipients {
		if !d.short || i > 0 {
			indices, out = append(indices, i), append(out, d.answer(r))
		}
	}
	done(indices, out)
}

func (d *deliverer) Flush() {}
func (d *deliverer) Close() {}

// byAddress accepts, defers, refuses and leaves alone by the first letters.
func byAddress(r smarthost.Recipient) smarthost.Outcome {
	o := smarthost.Outcome{Relay: "relay.test[192.0.2.1]:25", Command: "RCPT"}
	switch {
	case strings.HasPrefix(r.Address, "ok"):
		o.Verdict, o.Reply = smarthost.Sent, smtp.SMTPError{Code: 250, EnhancedCode: smtp.EnhancedCode{2, 0, 0}, Message: "queued"}
		o.DSN = strings.HasPrefix(r.Address, "okdsn")
	case strings.HasPrefix(r.Address, "defer"):
		o.Verdict, o.Reply = smarthost.Tempfail, smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 7, 1}, Message: "later"}
	case strings.HasPrefix(r.Address, "refuse"):
		o.Verdict, o.Reply = smarthost.Permfail, smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "never"}
	case strings.HasPrefix(r.Address, "rest"):
		o.Verdict, o.Refused, o.Relay, o.Reply = smarthost.Tempfail, true, "", smtp.SMTPError{Message: "left alone"}
	case strings.HasPrefix(r.Address, "unsure"):
		o.Verdict, o.Uncertain, o.Reply = smarthost.Tempfail, true, smtp.SMTPError{Message: "no answer"}
	default:
		o.Verdict, o.Reply = smarthost.Later, smtp.SMTPError{Message: "nothing said"}
	}
	return o
}

// fixture is a Relay whose steps a test makes one by one.
type fixture struct {
	t     *testing.T
	spool *spooldir.Spool
	clock *clock
	d     *deliverer
	r     *Relay

	mu    sync.Mutex
	moves []string // as the log tells them
	on    func(event string, attrs map[string]string)
	ids   int
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "dma-test-") // syncs cost nothing there
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "spool")
	if err := spooldir.Init(path); err != nil {
		t.Fatal(err)
	}
	s, err := spooldir.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, spool: s, clock: &clock{start}, d: &deliverer{answer: byAddress}}
	f.r = New(Options{
		Spool: s, Watcher: s.Unwatched(spooldir.Remote), Log: maillog.New(slog.New(f)), Clock: f.clock,
		Retry: schedule, Deliverer: f.d, HostName: "host.test", Concurrency: 1, Rescan: time.Hour,
	})
	return f
}

func (f *fixture) Enabled(context.Context, slog.Level) bool { return true }
func (f *fixture) WithAttrs([]slog.Attr) slog.Handler       { return f }
func (f *fixture) WithGroup(string) slog.Handler            { return f }

func (f *fixture) Handle(_ context.Context, rec slog.Record) error {
	attrs := make(map[string]string)
	rec.Attrs(func(a slog.Attr) bool { attrs[a.Key] = a.Value.String(); return true })
	f.mu.Lock()
	if rec.Message == maillog.EventMoved {
		f.moves = append(f.moves, attrs["n"]+" "+attrs["from"]+">"+attrs["to"])
	}
	f.mu.Unlock()
	if f.on != nil {
		f.on(rec.Message, attrs)
	}
	return nil
}

// remote makes a message whose recipients stand in remote, with a journal.
func (f *fixture) remote(to ...string) []spooldir.Name {
	f.t.Helper()
	env := spooldir.Envelope{Sender: "s@host.test", Arrival: start, Return: "HDRS", EnvelopeID: "e1", EightBit: true}
	for _, a := range to {
		env.Recipients = append(env.Recipients, spooldir.Recipient{Address: a, Notify: "SUCCESS,FAILURE", ORCPT: "rfc822;x"})
	}
	f.ids++
	env.ID = fmt.Sprintf("20400101T000000-%016x", f.ids)
	d, err := f.spool.Create(&env)
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := io.WriteString(d, "Subject: test\n\nbody\n"); err != nil {
		f.t.Fatal(err)
	}
	if err := d.Commit(); err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.spool.CreateJournal(env.ID); err != nil {
		f.t.Fatal(err)
	}
	var names []spooldir.Name
	for n := range to {
		names = append(names, env.Name(n+1))
		f.move(names[n], spooldir.New, spooldir.Remote)
	}
	return names
}

func (f *fixture) path(state spooldir.State, name spooldir.Name) string {
	return filepath.Join(f.spool.Path(), string(state), name.String())
}

// move is a move by hand.
func (f *fixture) move(name spooldir.Name, from, to spooldir.State) {
	f.t.Helper()
	if err := os.Rename(f.path(from, name), f.path(to, name)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) where(name spooldir.Name) string {
	f.t.Helper()
	at, err := f.spool.Find(name)
	if err != nil {
		f.t.Fatal(err)
	}
	var s []string
	for _, state := range at {
		s = append(s, string(state))
	}
	return strings.Join(s, " ")
}

func (f *fixture) handle(name spooldir.Name) {
	f.t.Helper()
	again, err := f.r.handle(context.Background(), name)
	if err != nil || !again.IsZero() {
		f.t.Fatalf("%s: %v, %v", name, again, err)
	}
}

func (f *fixture) journal(id string) *spooldir.Journal {
	f.t.Helper()
	j, err := f.spool.ReadJournal(id)
	if err != nil {
		f.t.Fatal(err)
	}
	return j
}

// TestSorting: one transaction, and each recipient where its own reply says.
func TestSorting(t *testing.T) {
	f := newFixture(t)
	names := f.remote("ok1@x.test", "defer1@x.test", "refuse1@x.test", "ok2@x.test", "okdsn@x.test", "rest@x.test", "unheard@x.test", "okbare")
	f.handle(names[3])
	if len(f.d.got) != 1 || len(f.d.got[0].Recipients) != len(names) {
		t.Fatalf("the smarthost got %+v, want one transaction", f.d.got)
	}
	m := f.d.got[0]
	if m.Sender != "s@host.test" || m.Return != "HDRS" || m.EnvelopeID != "e1" || !m.EightBit || m.Size != int64(len("Subject: test\n\nbody\n")) {
		t.Errorf("message %+v", m)
	}
	if r := m.Recipients[0]; r.N != 1 || r.ORCPT != "rfc822;x" || !slices.Equal(r.Notify, []string{"SUCCESS", "FAILURE"}) {
		t.Errorf("recipient %+v", r)
	}
	if got := m.Recipients[7].Address; got != "okbare@host.test" {
		t.Errorf("an address without domain went out as %s", got)
	}
	j := f.journal(names[0].ID)
	for i, want := range []struct {
		state  string
		event  spooldir.Event
		status string
		relay  string
	}{
		{"sent", spooldir.Delivered, "2.0.0", "relay.test[192.0.2.1]:25"},
		{"tempfail", spooldir.Deferred, "4.7.1", "relay.test[192.0.2.1]:25"},
		{"permfail", spooldir.Failed, "5.1.1", "relay.test[192.0.2.1]:25"},
		{"sent", spooldir.Delivered, "2.0.0", "relay.test[192.0.2.1]:25"},
		{"sent", spooldir.Delivered, "2.0.0", "relay.test[192.0.2.1]:25"},
		{"tempfail", spooldir.Refused, "4.0.0", ""},
		{"tempfail", spooldir.Deferred, "4.0.0", "relay.test[192.0.2.1]:25"},
		{"sent", spooldir.Delivered, "2.0.0", "relay.test[192.0.2.1]:25"},
	} {
		if got := f.where(names[i]); got != want.state {
			t.Errorf("%s stands in %q, want %q", names[i], got, want.state)
		}
		last := j.Last(i + 1)
		if last == nil || last.Event != want.event || last.Status != want.status || last.Relay != want.relay {
			t.Errorf("%s: journal %+v, want %+v", names[i], last, want)
		}
		if due := want.state == "tempfail"; due != (last != nil && last.Next.After(f.clock.now)) {
			t.Errorf("%s is due %v", names[i], last.Next)
		}
		if j.Delivered(i+1) != (want.state == "sent") {
			t.Errorf("%s: delivered is %v", names[i], j.Delivered(i+1))
		}
		if relayed := i == 4; want.state == "sent" && last.Relayed() != relayed {
			t.Errorf("%s: relayed is %v", names[i], last.Relayed())
		}
	}
	// What one reply decides has one line.
	if len(j.Entries) != 6 {
		t.Errorf("%d lines: %+v", len(j.Entries), j.Entries)
	}
}

// TestPossibleDuplicate: what was sent and not answered is tried again, and said to
// be a possible duplicate: by the attempt that got no answer, and by the one that
// hands the message over once more. One that fails before that says nothing.
func TestPossibleDuplicate(t *testing.T) {
	f := newFixture(t)
	var said []string
	f.on = func(event string, attrs map[string]string) {
		if event == maillog.EventDelivery {
			said = append(said, attrs["n"]+" "+attrs["status"]+" "+attrs["duplicate"])
		}
	}
	names := f.remote("unsure@x.test", "ok@x.test")
	f.handle(names[0])
	f.d.answer = func(r smarthost.Recipient) smarthost.Outcome {
		r.Address = "defer"
		return byAddress(r)
	}
	again := func() {
		f.move(names[0], spooldir.Tempfail, spooldir.Remote)
		f.handle(names[0])
	}
	again()
	f.d.answer = func(r smarthost.Recipient) smarthost.Outcome {
		r.Address = "ok"
		return byAddress(r)
	}
	again()
	want := []string{"1 deferred possible", "2 sent ", "1 deferred ", "1 sent possible"}
	if !slices.Equal(said, want) {
		t.Errorf("logged %q, want %q", said, want)
	}
	j := f.journal(names[0].ID)
	if !j.Uncertain(1) || j.Uncertain(2) || !j.Delivered(1) {
		t.Errorf("journal %+v", j.Entries)
	}
}

// TestRefusedCounts: a due time at which the destination was left alone is an
// attempt that was not made, and yet one of those after which a message may be
// too old: else a dead smarthost would keep a long queue for ever.
func TestRefusedCounts(t *testing.T) {
	f := newFixture(t)
	name := f.remote("rest@x.test")[0]
	for i := range retry.MinAttempts {
		if j := f.journal(name.ID); schedule.Expired(start, start.Add(schedule.Expire), j.Attempts(1)) {
			t.Errorf("too old after %d due times", i)
		}
		f.handle(name)
		j := f.journal(name.ID)
		want := schedule.Next(name.ID, i+1, start, f.clock.now).Truncate(time.Microsecond)
		if last := j.Last(1); last.Event != spooldir.Refused || !j.Next(1).Equal(want) {
			t.Errorf("due time %d: %s, next %v, want %v", i+1, last.Event, j.Next(1), want)
		}
		f.move(name, spooldir.Tempfail, spooldir.Remote)
	}
	if j := f.journal(name.ID); !schedule.Expired(start, start.Add(schedule.Expire), j.Attempts(1)) {
		t.Errorf("not too old after %d due times", retry.MinAttempts)
	}
}

// TestStopped: what the end of the process kept from being tried stays, and is
// due at once for the next; what was decided before is recorded.
func TestStopped(t *testing.T) {
	f := newFixture(t)
	names := f.remote("ok@x.test", "rest@x.test", "refuse@x.test", "defer@x.test")
	ctx, cancel := context.WithCancel(context.Background())
	f.d.during = func(smarthost.Message) { cancel() }
	if _, err := f.r.handle(ctx, names[0]); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"sent", "remote", "permfail", "tempfail"} {
		if got := f.where(names[i]); got != want {
			t.Errorf("%s stands in %q, want %q", names[i], got, want)
		}
	}
	if last := f.journal(names[1].ID).Last(2); last != nil {
		t.Errorf("recorded: %+v", last)
	}
}

// TestGather: only what stands in remote, is committed and not delivered is
// handed over.
func TestGather(t *testing.T) {
	f := newFixture(t)
	names := f.remote("ok1@x.test", "ok2@x.test", "ok3@x.test", "ok4@x.test", "ok5@x.test")
	f.move(names[0], spooldir.Remote, spooldir.Hold)
	if err := os.Remove(f.path(spooldir.Remote, names[1])); err != nil {
		t.Fatal(err)
	}
	// Another file under the name of the third.
	if err := os.Remove(f.path(spooldir.Remote, names[2])); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.path(spooldir.Remote, names[2]), []byte("?"), 0o640); err != nil {
		t.Fatal(err)
	}
	e := spooldir.Entry{Time: start, Event: spooldir.Delivered, Recipients: []int{4}, Status: "2.0.0", Relay: "r"}
	if err := f.spool.AppendJournal(names[0].ID, false, e); err != nil {
		t.Fatal(err)
	}
	f.handle(names[4])
	if len(f.d.got) != 1 || len(f.d.got[0].Recipients) != 1 || f.d.got[0].Recipients[0].N != 5 {
		t.Fatalf("handed over: %+v", f.d.got)
	}
	for i, want := range []string{"hold", "", "remote", "sent", "sent"} {
		if got := f.where(names[i]); got != want {
			t.Errorf("%s stands in %q, want %q", names[i], got, want)
		}
	}
	f.handle(names[2])
	if _, err := os.Lstat(f.path(spooldir.Corrupt, names[2])); err != nil || f.where(names[2]) != "" {
		t.Errorf("the other file stands in %q: %v", f.where(names[2]), err)
	}
	f.handle(names[1]) // gone: nothing to do
	if len(f.d.got) != 1 {
		t.Errorf("handed over: %+v", f.d.got)
	}
}

// TestGatherWithoutLock: while the queue process holds the message, in this process
// or another, nobody looks for its names; while the smarthost has it, the lock is
// free.
func TestGatherWithoutLock(t *testing.T) {
	f := newFixture(t)
	names := f.remote("ok1@x.test", "ok2@x.test")
	other, err := spooldir.Open(f.spool.Path())
	if err != nil {
		t.Fatal(err)
	}
	lock := func(s *spooldir.Spool) *spooldir.Message {
		m, err := s.Open(spooldir.Remote, names[0])
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := m.Lock(ctx); err != nil {
			t.Fatal(err)
		}
		return m
	}
	m := lock(f.spool)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := f.r.handle(ctx, names[0]); !errors.Is(err, context.Canceled) || len(f.d.got) != 0 {
		t.Errorf("with the message locked: %v, %d handed over", err, len(f.d.got))
	}
	m.Close()
	m = lock(other)
	if _, err := f.r.handle(context.Background(), names[0]); !errors.Is(err, spooldir.ErrBusy) || len(f.d.got) != 0 {
		t.Errorf("with the message locked by another process: %v, %d handed over", err, len(f.d.got))
	}
	m.Close()
	f.d.during = func(smarthost.Message) { lock(other).Close() }
	f.handle(names[0])
	if len(f.d.got) != 1 {
		t.Errorf("%d handed over", len(f.d.got))
	}
}

// TestNoJournal: only the queue process makes journals.
func TestNoJournal(t *testing.T) {
	f := newFixture(t)
	names := f.remote("ok1@x.test", "ok2@x.test")
	if err := f.spool.RemoveJournal(names[0].ID); err != nil {
		t.Fatal(err)
	}
	f.handle(names[0])
	for _, n := range names {
		if got := f.where(n); got != "tempfail" {
			t.Errorf("%s stands in %q", n, got)
		}
	}
	if _, err := f.spool.ReadJournal(names[0].ID); !os.IsNotExist(err) || len(f.d.got) != 0 {
		t.Errorf("the journal: %v; handed over: %+v", err, f.d.got)
	}
}

// TestOneLineFirst: what one reply decides is one line in the journal before
// the first name moves, whatever happens in between.
func TestOneLineFirst(t *testing.T) {
	f := newFixture(t)
	names := f.remote("ok1@x.test", "ok2@x.test", "ok3@x.test", "ok4@x.test")
	f.on = func(event string, attrs map[string]string) {
		switch event {
		case maillog.EventDelivery: // before the journal
			if len(f.moves) != 0 {
				t.Errorf("moved before it was recorded: %v", f.moves)
			}
		case maillog.EventMoved: // after the first step
			panic(states.Fatal{Reason: "killed"})
		}
	}
	func() {
		defer func() {
			if _, ok := recover().(states.Fatal); !ok {
				t.Error("no step was made")
			}
		}()
		f.r.handle(context.Background(), names[0])
	}()
	f.on = nil
	j := f.journal(names[0].ID)
	if len(j.Entries) != 1 || !slices.Equal(j.Entries[0].Recipients, []int{1, 2, 3, 4}) || j.Entries[0].Event != spooldir.Delivered {
		t.Fatalf("journal after the first step: %+v", j.Entries)
	}
	if a, b := f.where(names[0]), f.where(names[1]); a != "sent" || b != "remote" {
		t.Fatalf("they stand in %q and %q", a, b)
	}
	// The next process hands nothing over again.
	f.handle(names[1])
	for _, n := range names {
		if got := f.where(n); got != "sent" {
			t.Errorf("%s stands in %q", n, got)
		}
	}
	if len(f.d.got) != 1 {
		t.Errorf("handed over %d times", len(f.d.got))
	}
}

// TestHandInData: names that are moved by hand while the smarthost has them.
func TestHandInData(t *testing.T) {
	f := newFixture(t)
	names := f.remote("ok1@x.test", "ok2@x.test", "refuse@x.test", "ok3@x.test")
	f.d.during = func(smarthost.Message) {
		f.move(names[0], spooldir.Remote, spooldir.Hold)
		if err := os.Remove(f.path(spooldir.Remote, names[1])); err != nil {
			t.Error(err)
		}
		f.move(names[2], spooldir.Remote, spooldir.Hold)
	}
	f.handle(names[0])
	for i, want := range []string{"hold", "", "hold", "sent"} {
		if got := f.where(names[i]); got != want {
			t.Errorf("%s stands in %q, want %q", names[i], got, want)
		}
	}
	// Taken up again: what was delivered is known, what was refused is tried.
	f.d.during = nil
	f.move(names[0], spooldir.Hold, spooldir.Remote)
	f.move(names[2], spooldir.Hold, spooldir.Remote)
	f.handle(names[0])
	if a, b := f.where(names[0]), f.where(names[2]); a != "sent" || b != "permfail" {
		t.Errorf("they stand in %q and %q", a, b)
	}
	if len(f.d.got) != 2 || len(f.d.got[1].Recipients) != 1 || f.d.got[1].Recipients[0].N != 3 {
		t.Errorf("handed over: %+v", f.d.got)
	}
}

// TestJournalVanishes: the steps say what happened if the journal cannot.
func TestJournalVanishes(t *testing.T) {
	f := newFixture(t)
	names := f.remote("ok@x.test", "refuse@x.test", "defer@x.test")
	f.d.during = func(smarthost.Message) { f.spool.RemoveJournal(names[0].ID) }
	trouble := 0
	f.on = func(event string, _ map[string]string) {
		if event == maillog.EventWorkerTrouble {
			trouble++
		}
	}
	f.handle(names[0])
	for i, want := range []string{"sent", "permfail", "tempfail"} {
		if got := f.where(names[i]); got != want {
			t.Errorf("%s stands in %q, want %q", names[i], got, want)
		}
	}
	if trouble != 1 {
		t.Errorf("said %d times", trouble)
	}
}

// TestAccountedFor: a recipient without an outcome stops the worker, loudly.
func TestAccountedFor(t *testing.T) {
	f := newFixture(t)
	names := f.remote("ok1@x.test", "ok2@x.test")
	f.d.short = true
	defer func() {
		if fatal, ok := recover().(states.Fatal); !ok || !strings.Contains(fatal.Reason, names[0].ID) {
			t.Errorf("it went on: %v", fatal)
		}
		// What was said is recorded.
		for i, want := range []string{"remote", "sent"} {
			if got := f.where(names[i]); got != want {
				t.Errorf("%s stands in %q, want %q", names[i], got, want)
			}
		}
	}()
	f.r.handle(context.Background(), names[0])
}

// TestRun drives the loop: it takes what stands there, and ends.
func TestRun(t *testing.T) {
	f := newFixture(t)
	names := append(f.remote("ok1@x.test", "defer@x.test"), f.remote("refuse@x.test")...)
	foreign := filepath.Join(f.spool.Path(), "remote", "README")
	if err := syscall.Mkfifo(foreign, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	f.on = func(event string, _ map[string]string) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.moves) == len(names) {
			cancel()
		}
	}
	if f.r.Idle() {
		t.Error("idle before the first look")
	}
	if err := f.r.Run(ctx); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"sent", "tempfail", "permfail"} {
		if got := f.where(names[i]); got != want {
			t.Errorf("%s stands in %q, want %q", names[i], got, want)
		}
	}
	if _, err := os.Lstat(filepath.Join(f.spool.Path(), "corrupt", "README")); err != nil {
		t.Errorf("the foreign file: %v", err)
	}
}

// TestUnrecorded: a disk that takes neither the line nor the step must not make
// the message go out again.
func TestUnrecorded(t *testing.T) {
	f := newFixture(t)
	name := f.remote("ok@x.test")[0]
	log := filepath.Join(f.spool.Path(), spooldir.LogDir, name.ID)
	sent := filepath.Join(f.spool.Path(), string(spooldir.Sent))
	f.d.during = func(smarthost.Message) {
		// A FIFO takes a line and keeps nothing of it.
		if err := errors.Join(os.Remove(log), syscall.Mkfifo(log, 0o600), os.Rename(sent, sent+"x")); err != nil {
			t.Error(err)
		}
	}
	for range 3 {
		if _, err := f.r.handle(context.Background(), name); err == nil {
			t.Fatal("no trouble without the directory sent")
		}
		f.d.during = nil
	}
	if len(f.d.got) != 1 {
		t.Errorf("the message was handed over %d times", len(f.d.got))
	}
	if err := os.Rename(sent+"x", sent); err != nil {
		t.Fatal(err)
	}
	f.handle(name)
	if got := f.where(name); got != "sent" || len(f.d.got) != 1 {
		t.Errorf("it stands in %q, handed over %d times", got, len(f.d.got))
	}
}
