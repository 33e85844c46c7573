package smarthost

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Relay delivers to one destination: it keeps sessions for the next message,
// bounds how many there are, and leaves a destination that is down alone for a
// while. It is safe for use by many goroutines.
type Relay struct {
	cfg  Config
	back backoff

	slots chan struct{} // one for each delivery in progress
	probe chan struct{} // held while a destination not known to be up is tried

	freed chan struct{} // a session is idle, or in use no more

	mu      sync.Mutex
	idle    []*idleSession // the one used last stands last
	inUse   int            // sessions that carry a message
	crowded time.Time      // until then the peer takes no further session
	closed  bool
}

// idleSession is a session that waits for a message or for its timer.
type idleSession struct {
	*Session
	timer *time.Timer
}

// New returns a Relay for the hosts of cfg. Close it at the end.
func New(cfg Config) *Relay {
	cfg = cfg.withDefaults()
	return &Relay{
		cfg:   cfg,
		slots: make(chan struct{}, cfg.Concurrency),
		probe: make(chan struct{}, 1),
		freed: make(chan struct{}, cfg.Concurrency),
	}
}

// Deliver hands m over, in as many transactions as the peer wants, and returns
// the outcome of every recipient, in their order; none is Later. It waits while
// Config.Concurrency deliveries are in progress. While the destination is left
// alone, and when ctx is done, it returns at once with outcomes that are Refused.
//
// When ctx is done in the middle of a transaction, the connection is given up at
// once, except while the reply to the whole message is due: that is waited for, up
// to Timeouts.Grace, so that nothing is sent twice without need.
func (r *Relay) Deliver(ctx context.Context, m Message) []Outcome {
	out := make([]Outcome, len(m.Recipients))
	rest := make([]int, len(out))
	for i := range rest {
		rest[i] = i
	}
	settle := func(o Outcome) []Outcome {
		for _, i := range rest {
			out[i] = o
		}
		return out
	}
	// A destination that rests holds nobody up, however many wait for a slot.
	if o, yes := r.back.resting(r.cfg.Now()); yes && !r.working() {
		return settle(o)
	}
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return settle(r.stopped())
	}

	replaced := false // a session that had gone stale
	fresh := false    // no idle one now
	for len(rest) > 0 {
		s, o := r.session(ctx, fresh)
		fresh = false
		if s == nil {
			return settle(o)
		}
		part := m
		part.Recipients = make([]Recipient, len(rest))
		for k, i := range rest {
			part.Recipients[k] = m.Recipients[i]
		}
		outcomes := s.Send(ctx, part)
		if s.stale && !replaced {
			// The peer has closed a session that waited too long for its taste;
			// it has probably closed the others too. That is no attempt.
			replaced, fresh = true, true
			r.letGo()
			r.drop()
			continue
		}
		r.judge(s, outcomes)
		r.putBack(s)
		var later []int
		for k, i := range rest {
			out[i] = outcomes[k]
			if outcomes[k].Verdict == Later {
				later = append(later, i)
			}
		}
		rest = later
	}
	return out
}

// session returns a session to use, an idle one or a new one. A peer that takes
// no further session while others carry mail is not down: then it waits for one
// of these.
func (r *Relay) session(ctx context.Context, fresh bool) (*Session, Outcome) {
	for ; ; fresh = false {
		if !fresh {
			if s := r.takeIdle(); s != nil {
				return s, Outcome{}
			}
		}
		if !r.full() {
			s, o := r.connect(ctx)
			if s != nil {
				r.mu.Lock()
				r.inUse++
				r.mu.Unlock()
				return s, Outcome{}
			}
			if !r.crowd(&o) {
				return nil, o
			}
		}
		select {
		case <-r.freed:
		case <-ctx.Done():
			return nil, r.stopped()
		}
	}
}

// working reports whether the destination has a session that works.
func (r *Relay) working() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.inUse > 0 || len(r.idle) > 0
}

// full reports whether the peer has refused a further session lately.
func (r *Relay) full() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.inUse > 0 && r.cfg.Now().Before(r.crowded)
}

// crowd notes that a session could not be opened while others work, and reports
// whether that is so.
func (r *Relay) crowd(o *Outcome) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.inUse == 0 || o.Verdict == Permfail || o.Refused {
		return false
	}
	r.crowded = r.cfg.Now().Add(r.cfg.RetryMin)
	return true
}

// letGo notes that a session is in use no more, and wakes one who waits.
func (r *Relay) letGo() {
	r.mu.Lock()
	r.inUse--
	r.mu.Unlock()
	select {
	case r.freed <- struct{}{}:
	default: // there are as many wake-ups as deliveries
	}
}

// judge tells the back-off what a transaction says about the destination. A
// session that is lost before MAIL is answered, or closed with 421, is trouble of
// the destination; one lost later may be trouble with this message.
func (r *Relay) judge(s *Session, outcomes []Outcome) {
	for i := range outcomes {
		o := &outcomes[i]
		switch {
		case o.Refused:
			return
		case s.broken && (o.Reply.Code == 421 || o.Command == "MAIL" || o.Command == "RSET"):
			r.mu.Lock()
			others := r.inUse > 1
			r.mu.Unlock()
			if !others {
				r.fail(*o)
			}
			return
		}
	}
	if s.sent > 0 {
		r.back.answered()
	}
}

func (r *Relay) fail(o Outcome) {
	r.back.failed(o, r.cfg.Now(), r.cfg.RetryMin, r.cfg.RetryMax)
}

// Flush ends the rest of a destination that could not be reached: the next
// message is tried.
func (r *Relay) Flush() { r.back.reset() }

// Close closes the sessions that wait; those in use are closed when their
// delivery ends. It takes Timeouts.Quit at most.
func (r *Relay) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.drop()
}

// stopped is the outcome of what was not tried because ctx is done.
func (r *Relay) stopped() Outcome {
	o := new(Session).local(Tempfail, "connect", "3.2", "not tried: the delivery was stopped")
	o.Refused = true
	return o
}

// connect opens a session. While the destination is not known to be up one
// delivery tries, and the others wait for what it finds: a host that is down
// costs one attempt, not one for each of them.
func (r *Relay) connect(ctx context.Context) (*Session, Outcome) {
	if !r.back.isUp() {
		select {
		case r.probe <- struct{}{}:
			defer func() { <-r.probe }()
		case <-ctx.Done():
			return nil, r.stopped()
		}
	}
	if o, yes := r.back.resting(r.cfg.Now()); yes {
		return nil, o
	}
	s, err := dialHosts(ctx, &r.cfg)
	switch {
	case err == nil:
		r.back.connected()
		return s, Outcome{}
	case ctx.Err() != nil:
		return nil, r.stopped()
	}
	o := connectOutcome(err)
	if o.Verdict != Permfail && !r.working() {
		r.fail(o)
	}
	return nil, o
}

// connectOutcome is the outcome for a message when no host could be reached.
func connectOutcome(err error) Outcome {
	o := Outcome{Verdict: Tempfail, Command: "connect", detail: "4.1"}
	var e *Error
	if errors.As(err, &e) {
		o.Relay, o.Command, o.TLS, o.detail, o.Refused = e.Relay, e.Command, e.TLS, e.detail, e.untried
		if e.Reply != nil {
			o.Reply = *e.Reply
			return o
		}
		if e.permanent {
			o.Verdict = Permfail
		}
		err = fmt.Errorf("%s: %w", e.Command, e.Err)
	}
	o.Reply.Message = oneLine(err.Error())
	return o
}

// takeIdle returns the idle session that was used last, or nil.
func (r *Relay) takeIdle() *Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.idle)
	if n == 0 {
		return nil
	}
	s := r.idle[n-1]
	r.idle[n-1] = nil
	r.idle = r.idle[:n-1]
	r.inUse++
	s.timer.Stop() // if it has fired, it finds that the session is taken
	return s.Session
}

// putBack keeps a session for the next message, or closes it.
func (r *Relay) putBack(s *Session) {
	defer r.letGo()
	r.mu.Lock()
	if !s.Usable() || r.closed {
		r.mu.Unlock()
		s.Close()
		return
	}
	defer r.mu.Unlock()
	i := &idleSession{Session: s}
	i.timer = time.AfterFunc(r.cfg.Idle, func() {
		if r.remove(i) {
			s.Close()
		}
	})
	r.idle = append(r.idle, i)
}

// remove takes a session out of the idle ones and reports whether it was there.
func (r *Relay) remove(s *idleSession) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k := range r.idle {
		if r.idle[k] == s {
			r.idle = append(r.idle[:k], r.idle[k+1:]...)
			return true
		}
	}
	return false
}

// drop closes all idle sessions.
func (r *Relay) drop() {
	r.mu.Lock()
	idle := r.idle
	r.idle = nil
	r.mu.Unlock()
	var wg sync.WaitGroup
	for _, s := range idle {
		s.timer.Stop()
		wg.Go(s.Close)
	}
	wg.Wait()
}
