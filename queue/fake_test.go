package queue

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dma/agent"
	"dma/forward"
	"dma/internal/maillog"
	"dma/internal/passwd"
	"dma/internal/retry"
	"dma/spooldir"
)

const testHost = "host.test"

// testStart is when the clock of a test begins: far from the machine's own
// time, so that nothing passes that asks the wrong clock.
var testStart = time.Date(2040, 1, 1, 12, 0, 0, 0, time.UTC)

var testSchedule = retry.Schedule{Min: 5 * time.Minute, Max: 3 * time.Hour, Expire: 5 * 24 * time.Hour}

// fakeClock stands still until a test moves it. Its timers never fire.
type fakeClock struct {
	mu    sync.Mutex
	now   time.Time
	point func() // called by Now; may be nil
	wait  func() // called by After; may be nil
}

func (c *fakeClock) Now() time.Time {
	if c.point != nil {
		c.point()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) After(time.Duration) (<-chan time.Time, func()) {
	if c.wait != nil {
		c.wait()
	}
	return nil, func() {}
}

func (c *fakeClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// fakeUsers is a user database. A name in trouble cannot be told.
type fakeUsers struct {
	users   map[string]passwd.User
	trouble map[string]error
	point   func()
	wait    func(ctx context.Context, name string) // may be nil
}

func newUsers(names ...string) *fakeUsers {
	f := &fakeUsers{users: make(map[string]passwd.User), trouble: make(map[string]error)}
	for i, n := range names {
		f.users[n] = passwd.User{Name: n, UID: 1000 + i, GID: 1000 + i, Home: "/home/" + n}
	}
	return f
}

func (f *fakeUsers) Lookup(ctx context.Context, name string) (passwd.User, error) {
	if f.point != nil {
		f.point()
	}
	if f.wait != nil {
		f.wait(ctx, name)
	}
	if err := f.trouble[name]; err != nil {
		return passwd.User{}, err
	}
	if u, ok := f.users[name]; ok {
		return u, nil
	}
	return passwd.User{}, fmt.Errorf("user %q: %w", name, passwd.ErrUnknown)
}

func (f *fakeUsers) LookupID(_ context.Context, uid int) (passwd.User, error) {
	for _, u := range f.users {
		if u.UID == uid {
			return u, nil
		}
	}
	return passwd.User{}, passwd.ErrUnknown
}

// fakeAgent answers with functions.
type fakeAgent struct {
	serves  func(u passwd.User) error
	forward func(u passwd.User, detail string) (forward.Result, error)
	deliver func(jobs []*agent.Job, done func(*agent.Job))
}

func (a *fakeAgent) Serves(u passwd.User) error {
	if a.serves == nil {
		return nil
	}
	return a.serves(u)
}

func (a *fakeAgent) Forward(_ context.Context, u passwd.User, detail string) (forward.Result, error) {
	if a.forward == nil {
		return forward.Result{}, nil
	}
	return a.forward(u, detail)
}

func (a *fakeAgent) Deliver(_ context.Context, _ passwd.User, jobs []*agent.Job, done func(*agent.Job)) {
	if a.deliver == nil {
		for _, j := range jobs {
			done(j)
		}
		return
	}
	a.deliver(jobs, done)
}

// forwardTo is what a .forward with these lines says.
func forwardTo(t failer, path string, lines ...string) forward.Result {
	t.Helper()
	targets, err := forward.ParseForward(path, []byte(strings.Join(lines, "\n")+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	return forward.Result{Path: path, Targets: targets}
}

// logEvent is a line of the log.
type logEvent struct {
	name  string
	attrs map[string]string
}

func (e logEvent) String() string {
	s := e.name
	for _, k := range []string{"id", "n", "recipient", "to", "from", "status", "dsn", "reply", "reason", "child", "bounce", "error", "what"} {
		if v, ok := e.attrs[k]; ok {
			s += fmt.Sprintf(" %s=%q", k, v)
		}
	}
	return s
}

// logRecorder keeps the log.
type logRecorder struct {
	mu     sync.Mutex
	events []logEvent
	on     func(logEvent) // told of each event after it is kept
}

func (r *logRecorder) Enabled(context.Context, slog.Level) bool { return true }
func (r *logRecorder) WithAttrs([]slog.Attr) slog.Handler       { return r }
func (r *logRecorder) WithGroup(string) slog.Handler            { return r }

func (r *logRecorder) Handle(_ context.Context, rec slog.Record) error {
	e := logEvent{rec.Message, make(map[string]string)}
	rec.Attrs(func(a slog.Attr) bool {
		e.attrs[a.Key] = a.Value.String()
		return true
	})
	r.mu.Lock()
	r.events = append(r.events, e)
	r.mu.Unlock()
	if r.on != nil {
		r.on(e)
	}
	return nil
}

// of returns the events of a name.
func (r *logRecorder) of(name string) []logEvent {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []logEvent
	for _, e := range r.events {
		if e.name == name {
			list = append(list, e)
		}
	}
	return list
}

// batch is what a lane hands out.
type batch struct {
	state spooldir.State
	user  string
	names []spooldir.Name
}

// failer is what *testing.T and *rapid.T have in common.
type failer interface {
	Helper()
	Cleanup(func())
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// fixture is a Queue whose steps a test makes one by one.
type fixture struct {
	t       failer
	dir     string
	spool   *spooldir.Spool
	clock   *fakeClock
	log     *logRecorder
	users   *fakeUsers
	agent   *fakeAgent
	aliases string // path
	config  Config
	q       *Queue

	mu      sync.Mutex
	batches []batch
	ids     int
}

// memory returns a directory where syncs cost nothing, if there is one: these
// tests are about the order of steps, and make thousands of them.
func memory(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "dma-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// newFixture makes a spool and a Queue in dir.
func newFixture(t failer, dir string) *fixture {
	t.Helper()
	f := &fixture{
		t: t, dir: dir, aliases: filepath.Join(dir, "aliases"),
		clock: &fakeClock{now: testStart}, log: &logRecorder{},
		users: newUsers("root", "alice", "bob", "daemon"), agent: &fakeAgent{},
		config: Config{
			HostName: testHost, LocalDomains: []string{testHost}, AliasUser: "daemon",
			Relay: func() error { return nil }, MinFree: func() int64 { return 0 },
			Retry: testSchedule, DelayNotice: 4 * time.Hour,
		},
	}
	if err := os.MkdirAll(filepath.Join(dir, "spool"), 0o700); err != nil {
		t.Fatal(err)
	}
	f.writeAliases()
	if err := spooldir.Init(filepath.Join(dir, "spool")); err != nil {
		t.Fatal(err)
	}
	f.start()
	return f
}

// start makes a new Queue, as after a restart of the process.
func (f *fixture) start() {
	f.t.Helper()
	s, err := spooldir.Open(filepath.Join(f.dir, "spool"))
	if err != nil {
		f.t.Fatal(err)
	}
	if f.q != nil { // a kill has left its lanes running
		f.q.wait()
	}
	f.spool = s
	f.mu.Lock()
	f.batches = nil
	f.mu.Unlock()
	f.q = New(Options{
		Config: f.config, Spool: s, Watcher: s.Unwatched(append(States(), spooldir.Remote)...),
		Log: maillog.New(slog.New(f.log)), Clock: f.clock, Aliases: forward.NewAliasFile(f.aliases),
		Users: f.users, Agent: f.agent, Rescan: time.Hour,
		Syncer: s.NewSyncer(func(error) {}), // it may go on when the spool is removed
	})
	// A file's time is what submit says, so the start of the process is too.
	f.q.started = fileTime(f.clock.now)
	f.clock.advance(time.Millisecond)
	for _, l := range f.q.lanes() {
		l.Rest = 0 // the clock does not go on by itself
	}
	collect := func(state spooldir.State) func(context.Context, string, []spooldir.Name) {
		return func(_ context.Context, user string, names []spooldir.Name) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.batches = append(f.batches, batch{state, user, names})
		}
	}
	f.q.forwarding.Run = collect(spooldir.Forwarding)
	f.q.slowly.Run = collect(spooldir.Forwarding)
	f.q.local.Run = collect(spooldir.Local)
	f.q.commands.Run = collect(spooldir.Local)
	for _, l := range f.q.lanes() {
		l.Start(context.Background())
	}
}

// wait returns when the lanes have nothing in hand.
func (q *Queue) wait() {
	for _, l := range q.lanes() {
		l.Wait()
	}
}

// writeAliases replaces the aliases.
func (f *fixture) writeAliases(lines ...string) {
	f.t.Helper()
	if err := os.WriteFile(f.aliases, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

// submit commits a message and returns the names of its recipients.
func (f *fixture) submit(env spooldir.Envelope, content string) []spooldir.Name {
	f.t.Helper()
	if env.ID == "" {
		f.ids++
		env.ID = fmt.Sprintf("20400101T000000-%016x", f.ids)
	}
	if env.Arrival.IsZero() {
		f.clock.mu.Lock()
		env.Arrival = f.clock.now
		f.clock.mu.Unlock()
	}
	d, err := f.spool.Create(&env)
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := io.WriteString(d, content); err != nil {
		f.t.Fatal(err)
	}
	if err := d.Commit(); err != nil {
		f.t.Fatal(err)
	}
	f.stamp(f.file(spooldir.New, env.Name(1)))
	var names []spooldir.Name
	for n := range env.Recipients {
		names = append(names, env.Name(n+1))
	}
	return names
}

// stamp makes a file one that was written just now, by the clock of the test.
func (f *fixture) stamp(path string) {
	f.t.Helper()
	f.clock.mu.Lock()
	defer f.clock.mu.Unlock()
	at := fileTime(f.clock.now)
	if err := os.Chtimes(path, at, at); err != nil {
		f.t.Fatal(err)
	}
}

// fileTime is the time that a file system would have said: no file comes from
// the future.
func fileTime(now time.Time) time.Time { return now.AddDate(-30, 0, 0) }

// send submits a message from sender to addresses.
func (f *fixture) send(sender string, to ...string) []spooldir.Name {
	f.t.Helper()
	env := spooldir.Envelope{Sender: sender}
	for _, a := range to {
		env.Recipients = append(env.Recipients, spooldir.Recipient{Address: a})
	}
	return f.submit(env, "Subject: test\n\nbody\n")
}

// handler returns the handler of a state.
func (f *fixture) handler(state spooldir.State) func(context.Context, spooldir.Name) (time.Time, error) {
	switch state {
	case spooldir.New:
		return f.q.handleNew
	case spooldir.Forwarding:
		return f.q.handleForwarding
	case spooldir.Local:
		return f.q.handleLocal
	case spooldir.Tempfail:
		return f.q.handleTempfail
	case spooldir.Permfail:
		return f.q.handlePermfail
	case spooldir.Sent:
		return f.q.handleSent
	}
	panic("no handler for " + state)
}

// handle has the worker of a state take a message up.
func (f *fixture) handle(state spooldir.State, name spooldir.Name) (time.Time, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	again, err := f.handler(state)(ctx, name)
	f.q.wait()
	return again, err
}

// run carries out a batch of a lane.
func (f *fixture) run(b batch) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if b.state == spooldir.Forwarding {
		f.q.runForwarding(ctx, b.user, b.names)
	} else {
		f.q.runLocal(ctx, b.user, b.names)
	}
}

// take returns the batches that wait, ordered, and forgets them.
func (f *fixture) take() []batch {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := f.batches
	f.batches = nil
	slices.SortFunc(list, func(a, b batch) int {
		return strings.Compare(string(a.state)+a.user+a.names[0].String(), string(b.state)+b.user+b.names[0].String())
	})
	return list
}

// step handles a state that must give no error, with what its lanes hand out.
func (f *fixture) step(state spooldir.State, name spooldir.Name) time.Time {
	f.t.Helper()
	again, err := f.handle(state, name)
	if err != nil {
		f.t.Fatalf("%s in %s: %v", name, state, err)
	}
	for _, b := range f.take() {
		f.run(b)
	}
	if trouble := f.log.of(maillog.EventWorkerTrouble); len(trouble) > 0 {
		f.t.Fatalf("%s in %s: %s", name, state, trouble)
	}
	return again
}

// names returns what stands in a state, in order.
func (f *fixture) names(state spooldir.State) []spooldir.Name {
	f.t.Helper()
	var list []spooldir.Name
	if err := f.spool.Scan(state, func(n spooldir.Name) bool { list = append(list, n); return true }, nil); err != nil {
		f.t.Fatal(err)
	}
	slices.SortFunc(list, func(a, b spooldir.Name) int { return strings.Compare(a.String(), b.String()) })
	return list
}

// where returns the states in which a name stands, separated by blanks.
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

// open opens a message that has to be there.
func (f *fixture) open(state spooldir.State, name spooldir.Name) *spooldir.Message {
	f.t.Helper()
	m, err := f.spool.Open(state, name)
	if err != nil {
		f.t.Fatalf("open %s in %s: %v", name, state, err)
	}
	f.t.Cleanup(func() { m.Close() })
	return m
}

// content returns what a message says.
func content(t failer, m *spooldir.Message) string {
	t.Helper()
	b, err := io.ReadAll(m.Content())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// journal returns the journal of a message.
func (f *fixture) journal(id string) *spooldir.Journal {
	f.t.Helper()
	j, err := f.spool.ReadJournal(id)
	if err != nil {
		f.t.Fatal(err)
	}
	return j
}

// file is the path of a name.
func (f *fixture) file(state spooldir.State, name spooldir.Name) string {
	return filepath.Join(f.spool.Path(), string(state), name.String())
}

// move is a move by hand.
func (f *fixture) move(name spooldir.Name, from, to spooldir.State) {
	f.t.Helper()
	if err := os.Rename(f.file(from, name), f.file(to, name)); err != nil {
		f.t.Fatal(err)
	}
}
