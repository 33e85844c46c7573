package parent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dma/agent"
	"dma/internal/maillog"
	"dma/internal/passwd"
	"dma/internal/wire"
)

const (
	queueUID, netUID, mailGID = 601, 602, 603
)

// fakeUsers are the users of a test.
type fakeUsers map[string]passwd.User

func (f fakeUsers) Lookup(ctx context.Context, name string) (passwd.User, error) {
	switch {
	case name == "slow":
		<-ctx.Done()
		return passwd.User{}, ctx.Err()
	case name == "dead":
		return passwd.User{}, errors.New("ldap: connection\x00 refused\n")
	}
	u, ok := f[name]
	if !ok {
		return u, fmt.Errorf("user %q: %w", name, passwd.ErrUnknown)
	}
	return u, nil
}

func (f fakeUsers) LookupID(_ context.Context, uid int) (passwd.User, error) {
	for _, u := range f {
		if u.UID == uid {
			return u, nil
		}
	}
	return passwd.User{}, fmt.Errorf("uid %d: %w", uid, passwd.ErrUnknown)
}

func (f fakeUsers) Groups(_ context.Context, u passwd.User) ([]int, error) {
	if u.Name == "lost" {
		return nil, errors.New("groups: no answer")
	}
	return []int{u.GID, 7000}, nil
}

func users(extra ...passwd.User) fakeUsers {
	f := fakeUsers{}
	for _, u := range append([]passwd.User{
		{Name: "root", UID: 0, GID: 0, Home: "/root"}, {Name: "toor", UID: 0, GID: 0},
		{Name: "dma", UID: queueUID, GID: mailGID}, {Name: "alsodma", UID: queueUID, GID: 5000}, {Name: "dmanet", UID: netUID, GID: mailGID},
		{Name: "nobody", UID: 65534, GID: 65534}, {Name: "daemon", UID: 1, GID: 1}, {Name: "list", UID: 38, GID: 38}, {Name: "news", UID: 9, GID: 9},
		{Name: "ann", UID: 5000, GID: 5000, Home: "/home/ann", Shell: "/bin/sh", Gecos: "Ann,\x00 Ö"},
		{Name: "bob", UID: 5001, GID: 0}, {Name: "lost", UID: 5002, GID: 5002},
	}, extra...) {
		f[u.Name] = u
	}
	for i := range MaxAgents + 10 {
		name := fmt.Sprintf("user%d", i)
		f[name] = passwd.User{Name: name, UID: 6000 + i, GID: 6000}
	}
	return f
}

// fakeChild is a process that lives until it is killed or told to end.
type fakeChild struct {
	spec  spec
	conns []*os.File // copies of what it was started with, from descriptor 3
	how   error

	once sync.Once
	gone chan struct{}
}

func (c *fakeChild) ended() <-chan struct{} { return c.gone }
func (c *fakeChild) err() error             { return c.how }
func (c *fakeChild) kill()                  { c.end(errors.New("killed")) }

func (c *fakeChild) end(how error) {
	c.once.Do(func() {
		c.how = how
		for _, f := range c.conns {
			if f != nil {
				f.Close()
			}
		}
		close(c.gone)
	})
}

// fakeStarter starts fakeChildren.
type fakeStarter struct {
	t       testing.TB
	fail    atomic.Bool
	started chan *fakeChild
	closed  chan struct{}
}

func (s *fakeStarter) start(sp spec) (child, error) {
	if s.fail.Load() {
		return nil, errors.New("no memory")
	}
	c := &fakeChild{spec: sp, gone: make(chan struct{})}
	for _, f := range sp.files {
		var copied *os.File
		if f != nil {
			copied = dup(s.t, f)
		}
		c.conns = append(c.conns, copied)
	}
	select {
	case s.started <- c:
	case <-s.closed:
		c.kill()
	}
	return c, nil
}

// fakeClock stands until a test moves it.
type fakeClock struct {
	mu     sync.Mutex
	now    time.Time
	timers map[chan time.Time]time.Time
	asked  chan time.Duration
}

func newClock() *fakeClock {
	return &fakeClock{now: time.Unix(1e9, 0), timers: map[chan time.Time]time.Time{}, asked: make(chan time.Duration, 1000)}
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) After(d time.Duration) (<-chan time.Time, func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := make(chan time.Time, 1)
	c.timers[ch] = c.now.Add(d)
	select {
	case c.asked <- d:
	default:
	}
	return ch, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.timers, ch)
	}
}

func (c *fakeClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	for ch, at := range c.timers {
		if !at.After(c.now) {
			delete(c.timers, ch)
			ch <- c.now
		}
	}
}

// until waits until somebody asks for a timer of d.
func (c *fakeClock) until(t testing.TB, d time.Duration) {
	t.Helper()
	for {
		select {
		case got := <-c.asked:
			if got == d {
				return
			}
		case <-time.After(limit):
			t.Fatalf("nobody waits for %v", d)
		}
	}
}

// limit is when a test that hangs is given up.
const limit = 20 * time.Second

// logText is what was logged.
type logText struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// fixture is a parent with fakes around it.
type fixture struct {
	*parent
	clock   *fakeClock
	starter *fakeStarter
	log     *logText
	ready   chan struct{}
	alive   chan struct{}
	hangup  chan os.Signal
	ours    *wire.Conn // of the latest session
}

func newFixture(t testing.TB) *fixture {
	f := &fixture{
		clock: newClock(), log: &logText{},
		starter: &fakeStarter{t: t, started: make(chan *fakeChild, 64), closed: make(chan struct{})},
		ready:   make(chan struct{}, 64), alive: make(chan struct{}, 64), hangup: make(chan os.Signal),
	}
	f.parent = newParent(Options{
		Queue: Account{UID: queueUID, GID: mailGID, Groups: []int{mailGID}}, Net: Account{UID: netUID, GID: mailGID},
		QueueSetup: []byte("for the queue"), NetSetup: []byte("for the net"), Env: []string{"X=1"},
		RunDir: t.TempDir(), Users: users(), Clock: f.clock, Hangup: f.hangup,
		Agent: agent.Setup{Mailbox: "mbox:~/mail", MinUID: 1000, Listed: []string{"list"}, AliasUser: "news"},
		Log:   maillog.New(slog.New(maillog.NewHandler(f.log, nil))),
		Ready: func() { f.ready <- struct{}{} }, Alive: func() { f.alive <- struct{}{} },
	})
	f.parent.starter, f.thread = f.starter, newThread()
	locks, err := openLocks(f.o.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	f.locks = locks
	t.Cleanup(func() { locks.dir.Close() })
	return f
}

// session serves one connection as that of a worker, without a process.
func (f *fixture) session(t testing.TB, w *worker) (worker *wire.Conn, bad chan error) {
	t.Helper()
	a, b, err := wire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := wire.New(a), wire.New(b)
	f.ours = ours
	s := &session{parent: f.parent, worker: w, conn: ours, bad: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { s.serve(ctx); ours.Close(); close(done) }()
	t.Cleanup(func() {
		cancel()
		ours.Close()
		theirs.Close()
		<-done
	})
	return theirs, s.bad
}

// child returns the next process that was started.
func (f *fixture) child(t testing.TB) *fakeChild {
	t.Helper()
	select {
	case c := <-f.starter.started:
		return c
	case <-time.After(limit):
		t.Fatalf("nothing is started; log:\n%s", f.log)
		return nil
	}
}

func receive[T any](t testing.TB, from <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(limit):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

// advanceUntil lets time pass until something that waits for it has happened,
// whenever it begins to wait.
func (f *fixture) advanceUntil(t testing.TB, done <-chan struct{}, what string) {
	t.Helper()
	over := time.After(limit)
	for {
		select {
		case <-done:
			return
		case <-time.After(time.Millisecond):
			f.clock.advance(time.Second)
		case <-over:
			t.Fatalf("no %s", what)
		}
	}
}

// run runs the parent until the test ends.
func (f *fixture) run(t testing.TB) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.parent.run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			close(f.starter.closed)
			for {
				select {
				case err := <-done:
					if err != nil {
						t.Error(err)
					}
					return
				case c := <-f.starter.started:
					c.kill()
				case <-time.After(time.Millisecond):
					f.clock.advance(time.Second)
				case <-time.After(limit):
					t.Error("run does not end")
					return
				}
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// both returns the first two processes, the queue process first.
func (f *fixture) both(t testing.TB) (queue, net *fakeChild) {
	t.Helper()
	pair := []*fakeChild{f.child(t), f.child(t)}
	slices.SortFunc(pair, func(a, b *fakeChild) int { return strings.Compare(b.spec.role, a.spec.role) })
	return pair[0], pair[1]
}
