package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"dma/forward"
	"dma/internal/passwd"
	"dma/internal/wire"
)

// starter starts agents in this process.
type starter struct {
	serve  func(ctx context.Context, conn *wire.Conn, key seatKey) // is an agent
	before func(key seatKey) error                                 // nil, or may refuse to start one

	mu     sync.Mutex
	agents map[seatKey]func() // ends it
	starts []seatKey
	stops  []seatKey
}

func (s *starter) StartAgent(_ context.Context, user string, role Role) (*wire.Conn, error) {
	key := seatKey{user, role}
	if s.before != nil {
		if err := s.before(key); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agents[key] != nil {
		return nil, fmt.Errorf("%s: %w", user, ErrBusy)
	}
	ours, theirs, err := wire.Pair()
	if err != nil {
		return nil, err
	}
	c := wire.New(theirs)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer c.Close()
		s.serve(ctx, c, key)
	}()
	if s.agents == nil {
		s.agents = make(map[seatKey]func())
	}
	s.agents[key] = func() { cancel(); c.Close(); <-ended }
	s.starts = append(s.starts, key)
	return wire.New(ours), nil
}

func (s *starter) StopAgent(_ context.Context, user string, role Role) error {
	key := seatKey{user, role}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stops = append(s.stops, key)
	if end := s.agents[key]; end != nil {
		end()
		delete(s.agents, key)
	}
	return nil
}

// counts returns how many agents were started, and how many live.
func (s *starter) counts() (started, alive int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.starts), len(s.agents)
}

func (s *starter) started() []seatKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.starts)
}

// serving is an agent as it should be.
func serving(t testing.TB, a Agent, u passwd.User) func(context.Context, *wire.Conn, seatKey) {
	return func(ctx context.Context, conn *wire.Conn, key seatKey) {
		u := u
		u.Name = key.user
		if err := Serve(ctx, conn, a, u, key.role); err != nil && ctx.Err() == nil {
			t.Errorf("agent: %v", err)
		}
	}
}

// newRemote returns a Remote whose agents work with own.
func newRemote(t *testing.T, own *Own, u passwd.User) *Remote {
	return remoteOf(t, RemoteOptions{
		Starter: &starter{serve: serving(t, own, u)}, Mailbox: own.Mailbox, MinUID: own.MinUID, Listed: own.Listed, CommandTime: own.Limit,
	})
}

func remoteOf(t testing.TB, o RemoteOptions) *Remote {
	r := NewRemote(o)
	t.Cleanup(func() {
		r.Close()
		if s, ok := o.Starter.(*starter); ok {
			if _, alive := s.counts(); alive > 0 {
				t.Errorf("%d agents are left", alive)
			}
		}
	})
	return r
}

// double is an Agent that does what a test wants.
type double struct {
	forward func(detail string) (forward.Result, error)
	deliver func(ctx context.Context, jobs []*Job, done func(*Job))
}

func (d double) Serves(passwd.User) error { return nil }

func (d double) Forward(_ context.Context, _ passwd.User, detail string) (forward.Result, error) {
	return d.forward(detail)
}

func (d double) Deliver(ctx context.Context, _ passwd.User, jobs []*Job, done func(*Job)) {
	d.deliver(ctx, jobs, done)
}

// fakeClock is a clock on which time passes only by pass.
type fakeClock struct {
	mu     sync.Mutex
	now    time.Time
	timers map[chan time.Time]time.Time
}

func newFakeClock() *fakeClock {
	return &fakeClock{now: time.Unix(2208988800, 0), timers: make(map[chan time.Time]time.Time)}
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
	return ch, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.timers, ch)
	}
}

// pass lets time pass.
func (c *fakeClock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	for ch, at := range c.timers {
		if !at.After(c.now) {
			ch <- c.now
			delete(c.timers, ch)
		}
	}
}

// run lets time pass, a second each time that so many timers are set and ready
// says so, until done is closed.
func (c *fakeClock) run(timers int, ready func() bool, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		default:
		}
		c.mu.Lock()
		set := len(c.timers)
		c.mu.Unlock()
		if set == timers && ready() {
			c.pass(time.Second)
		} else {
			time.Sleep(50 * time.Microsecond)
		}
	}
}

func always() bool { return true }
