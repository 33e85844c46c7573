package smarthost

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	dialing int            // sessions that are being opened
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

// Deliver hands m over, in as many transactions as the peer wants. It tells done
// of the recipients that a transaction has decided, by index, and of their
// outcomes, before the next one begins: each recipient exactly once, in the
// goroutine of the caller; none is Later. It waits while Config.Concurrency
// deliveries are in progress. While the destination is left alone, and when ctx is
// done, the outcomes are Refused, at once.
//
// When ctx is done in the middle of a transaction, the connection is given up at
// once, except while the reply to the whole message is due: that is waited for, up
// to Timeouts.Grace, so that nothing is sent twice without need.
//
// A panic in a transaction costs the recipients that it has not decided an outcome
// with Trouble, and nobody else anything, unless it is Unaccounted.
func (r *Relay) Deliver(ctx context.Context, m Message, done func(indices []int, outcomes []Outcome)) {
	rest := make([]int, len(m.Recipients))
	for i := range rest {
		rest[i] = i
	}
	// A destination that rests holds nobody up, however many wait for a slot.
	if o, yes := r.back.resting(r.cfg.Now()); yes && !r.working() {
		tell(done, rest, o)
		return
	}
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		tell(done, rest, r.stopped())
		return
	}
	replaced := false // a session that had gone stale
	for len(rest) > 0 {
		rest = r.transaction(ctx, m, rest, &replaced, done)
	}
}

// tell gives all of some recipients the same outcome.
func tell(done func([]int, []Outcome), indices []int, o Outcome) {
	if len(indices) > 0 {
		done(indices, slices.Repeat([]Outcome{o}, len(indices)))
	}
}

// transaction hands m over to those of its recipients that want names, as far as
// one transaction goes, tells done what it has decided, and returns the others.
func (r *Relay) transaction(ctx context.Context, m Message, want []int, replaced *bool, done func([]int, []Outcome)) (later []int) {
	told := make([]bool, len(want)) // by index in want
	early := func(indices []int, outcomes []Outcome) {
		of := make([]int, len(indices))
		for k, i := range indices {
			if told[i] {
				panic(unaccounted("message %s: recipient %d is told of twice", m.ID, want[i]))
			}
			told[i], of[k] = true, want[i]
		}
		done(of, outcomes)
	}
	part := m
	part.Recipients = make([]Recipient, len(want))
	for k, i := range want {
		part.Recipients[k] = m.Recipients[i]
	}
	var outcomes []Outcome
	for fresh := false; ; fresh = true {
		s, o := r.session(ctx, fresh)
		if s == nil {
			tell(done, want, o)
			return nil
		}
		var stale bool
		if outcomes, stale = r.send(ctx, s, part, *replaced, early); !stale || *replaced {
			break
		}
		// The peer has closed a session that waited too long for its taste; it
		// has probably closed the others too. That is no attempt.
		*replaced = true
		r.drop()
	}
	var indices []int
	var decided []Outcome
	for k, i := range want {
		switch {
		case told[k]:
		case outcomes[k].Verdict == Later:
			later = append(later, i)
		default:
			indices, decided = append(indices, i), append(decided, outcomes[k])
		}
	}
	if len(indices) > 0 {
		done(indices, decided)
	}
	return later
}

// send has one transaction on a session that is in use, and puts the session
// back. It judges the destination by it, unless the session was stale and has not
// been replaced yet. A panic ends the session, and no more, unless early is its
// cause.
func (r *Relay) send(ctx context.Context, s *Session, m Message, replaced bool, early func([]int, []Outcome)) (outcomes []Outcome, stale bool) {
	outside, inUse := false, true
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		s.abort()
		if inUse {
			r.letGo()
		}
		if _, fatal := v.(Unaccounted); fatal || outside {
			panic(v)
		}
		o := faulty(v)
		o.Relay, o.TLS, o.Uncertain = s.relay, s.tls, s.wire.isCommitted()
		outcomes, stale = slices.Repeat([]Outcome{o}, len(m.Recipients)), false
	}()
	outcomes = s.send(ctx, m, func(indices []int, outcomes []Outcome) {
		outside = true
		early(indices, outcomes)
		outside = false
	})
	if stale = s.stale; !stale || replaced {
		r.judge(s, outcomes)
	}
	inUse = false
	r.putBack(s) // it may be somebody else's from here
	return outcomes, stale
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
		if r.waits() {
			continue
		}
		select {
		case <-r.freed:
		case <-ctx.Done():
			return nil, r.stopped()
		}
	}
}

// waits reports whether a session is idle.
func (r *Relay) waits() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.idle) > 0
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
	if r.inUse == 0 && len(r.idle) == 0 || o.Verdict == Permfail || o.Refused {
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
	r.mu.Lock()
	r.dialing++
	r.mu.Unlock()
	s, err := dialHosts(ctx, &r.cfg)
	r.mu.Lock()
	r.dialing--
	r.mu.Unlock()
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
	keep := r.cfg.Idle
	if r.dialing > 0 {
		// A peer that has one connection at a time greets nobody until this one
		// is closed.
		keep = min(keep, contested)
	}
	i.timer = time.AfterFunc(keep, func() {
		if r.remove(i) {
			s.Close()
		}
	})
	r.idle = append(r.idle, i)
}

// contested is how long an idle session is kept while others wait for the peer's
// greeting: long enough for the next message of the same delivery.
const contested = 100 * time.Millisecond

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
