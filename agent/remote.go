package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"dma/forward"
	"dma/internal/passwd"
	"dma/internal/wire"
	"dma/spooldir"
	"dma/states"
)

// RemoteOptions are what a Remote needs.
type RemoteOptions struct {
	Starter Starter

	Mailbox     string        // MAILBOX of dma.conf
	MinUID      int           // users below have a mailbox and nothing else,
	Listed      []string      // unless they are listed
	CommandTime time.Duration // the limit of a command, which the agent keeps; 10 minutes if 0

	Idle  time.Duration // how long an agent is kept for the next batch; 2 seconds if 0
	Most  int           // agents at once, the idle ones too; 32 if 0
	Clock states.Clock  // nil: that of the machine

	// Kept counts the sockets that agents have sent files to. May be nil.
	Kept *wire.Kept

	// Trouble is told of agents that died while they were working, said what
	// none should, or had to be killed. It must not use the Remote. May be nil.
	Trouble func(user string, role Role, err error)
}

// Remote is the agent of a queue process that may touch no user's file: it has
// agent processes started, one for a user and role, which do the work, and is
// not hurt by what they do. It may be used by several goroutines.
//
// What an agent had not answered for when it died or was given up has failed for
// now, and may have been delivered nevertheless. A message for an mbox, of which
// some may stand there, goes to another agent at once: see ErrUnfinished.
type Remote struct {
	options RemoteOptions
	share   int // of the seats, which only MailboxRole gets: no code of a user's makes it wait

	mu      sync.Mutex
	seats   map[seatKey]*seat
	changed chan struct{}        // closed when a seat becomes free or an agent idle
	refused map[string]time.Time // users whose agent had to be killed, until when
	closed  bool
	closing sync.WaitGroup
}

type seatKey struct {
	user string
	role Role
}

// A seat is one of the agents, from before it is started until it is surely
// gone.
type seat struct {
	key   seatKey
	link  *link // nil while it is started
	users int   // who use it
	used  time.Time
	idle  chan struct{} // closed when it is used again
	going bool          // it is being ended
	spent bool          // it is to be ended after use
}

const (
	startLimit = 30 * time.Second // for the parent to start an agent
	stopLimit  = 30 * time.Second // and to end one
	busyLimit  = 5 * time.Second  // of waiting for an earlier agent
	busyPause  = 50 * time.Millisecond
	refuseFor  = time.Minute // a user whose agent had to be killed
)

var errClosed = errors.New("the queue process ends")

// ErrUnfinished says that two agents, one after the other, ended in the middle
// of a message for an mbox, or that none could be started to look for a Suspect
// one. Some of the message may stand there. It can be mended while nothing stands
// behind it, so that the mbox is to get nothing else before a Suspect delivery of
// this message.
var ErrUnfinished = errors.New("it may stand there in part")

// NewRemote makes a Remote.
func NewRemote(o RemoteOptions) *Remote {
	if o.CommandTime <= 0 {
		o.CommandTime = 10 * time.Minute
	}
	if o.Idle <= 0 {
		o.Idle = 2 * time.Second
	}
	if o.Most <= 0 {
		o.Most = 32
	}
	if o.Clock == nil {
		o.Clock = states.SystemClock{}
	}
	if o.Trouble == nil {
		o.Trouble = func(string, Role, error) {}
	}
	share := 0
	if RoleFor(o.Mailbox, spooldir.Mailbox) == MailboxRole {
		share = o.Most / 4
	}
	return &Remote{
		options: o, share: share, seats: make(map[seatKey]*seat), changed: make(chan struct{}),
		refused: make(map[string]time.Time),
	}
}

// Serves implements Agent. Nothing is executed as root, and nothing written into
// root's home.
func (r *Remote) Serves(u passwd.User) error {
	if u.UID == 0 && RoleFor(r.options.Mailbox, spooldir.Mailbox) != MailboxRole {
		return fmt.Errorf("mail for %s waits: MAILBOX %s is not used for root; name a person for root in the aliases", u.Name, r.options.Mailbox)
	}
	return nil
}

// Forward implements Agent. Root and accounts of the system have no .forward.
func (r *Remote) Forward(ctx context.Context, u passwd.User, detail string) (forward.Result, error) {
	if err := r.Serves(u); err != nil {
		return forward.Result{}, err
	}
	if u.UID == 0 || u.UID < r.options.MinUID && !slices.Contains(r.options.Listed, u.Name) {
		return forward.Result{}, nil
	}
	if len(detail) > maxText || hasControl(detail) {
		detail = "" // it can be part of no file's name
	}
	s, err := r.acquire(ctx, seatKey{u.Name, UserRole}, false)
	if err != nil {
		return forward.Result{}, agentError(u, err)
	}
	defer r.release(s, false)
	res, err := s.link.readForward(ctx, detail)
	if err != nil {
		if down := s.link.failure(); down != nil {
			err = agentError(u, down)
		}
		return forward.Result{}, err
	}
	return res, nil
}

// agentError is trouble with an agent.
func agentError(u passwd.User, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("the agent of %s: %w", u.Name, err)
}

// Deliver implements Agent. Jobs for the same role that follow each other go to
// an agent together, which shares syncs among them as Own does.
func (r *Remote) Deliver(ctx context.Context, u passwd.User, jobs []*Job, done func(*Job)) {
	unfinished := false
	for len(jobs) > 0 {
		err := r.refuse(u, jobs[0])
		if err == nil && unfinished && r.tears(jobs[0]) {
			err = agentError(u, errors.New("an earlier message has to be finished first"))
		}
		if err != nil {
			jobs[0].Err = err
			done(jobs[0])
			jobs = jobs[1:]
			continue
		}
		role := RoleFor(r.options.Mailbox, jobs[0].Kind)
		n := 1
		for n < len(jobs) && n < maxBatch && RoleFor(r.options.Mailbox, jobs[n].Kind) == role && r.refuse(u, jobs[n]) == nil {
			n++
		}
		unfinished = r.deliver(ctx, u, role, jobs[:n], done) || unfinished
		jobs = jobs[n:]
	}
}

// refuse says why a job is given to no agent.
func (r *Remote) refuse(u passwd.User, j *Job) error {
	if err := r.Serves(u); err != nil {
		return err
	}
	if u.UID == 0 && RoleFor(r.options.Mailbox, j.Kind) != MailboxRole {
		return fmt.Errorf("nothing is executed or written as root: %s %s; give it to another user, with ALIASUSER", j.Kind, oneLine(j.Target, 100))
	}
	return checkJob(j)
}

// deliver gives jobs to the agent of a role. It reports whether any is left
// unfinished.
func (r *Remote) deliver(ctx context.Context, u passwd.User, role Role, jobs []*Job, done func(*Job)) (unfinished bool) {
	rest, begun, err := r.try(ctx, u, role, jobs, false, done)
	var again []*Job
	for _, j := range rest {
		j.Err = err
		switch {
		case ctx.Err() != nil || !r.tears(j) || errors.Is(err, ErrNotServed):
		case begun:
			j.Err, j.Message.Suspect = nil, true
			again = append(again, j)
		case j.Message.Suspect:
			j.Err = fmt.Errorf("%w: %w", ErrUnfinished, err)
			unfinished = true
		}
	}
	if len(again) > 0 {
		left, _, err := r.try(ctx, u, role, again, true, func(*Job) {})
		for _, j := range left {
			j.Err = fmt.Errorf("%w: %w", ErrUnfinished, err)
			unfinished = true
		}
	}
	for _, j := range rest {
		done(j)
	}
	return unfinished
}

// tears reports whether an agent that ends in the middle of a job may leave a
// part of a message behind.
func (r *Remote) tears(j *Job) bool {
	if j.Kind == spooldir.File {
		return !strings.HasSuffix(j.Target, "/")
	}
	return j.Kind == spooldir.Mailbox && strings.HasPrefix(r.options.Mailbox, "mbox:")
}

// try gives jobs to the agent of a role, and returns those that have no outcome,
// whether an agent may have begun with them, and why they have none. Again is as
// for acquire.
func (r *Remote) try(ctx context.Context, u passwd.User, role Role, jobs []*Job, again bool, done func(*Job)) (rest []*Job, begun bool, err error) {
	s, err := r.acquire(ctx, seatKey{u.Name, role}, again)
	if err != nil {
		return jobs, false, agentError(u, err)
	}
	failed := false
	// A mailbox that vanished, or root's that was replaced, is for the parent
	// to make or open, which it does before it starts an agent.
	defer func() { r.release(s, failed && role == MailboxRole) }()
	n, err := s.link.deliver(ctx, jobs, func(j *Job) {
		failed = failed || j.Err != nil
		done(j)
	})
	if err != nil {
		err = agentError(u, err)
	}
	return jobs[n:], true, err
}

// acquire returns the agent for a key, for whose use the caller then counts
// until release. Again says that it is to go on where another one ended, which
// even a user gets whose agent had to be killed.
func (r *Remote) acquire(ctx context.Context, key seatKey, again bool) (*seat, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s, wait, err := r.find(key, again)
		switch {
		case err != nil:
			return nil, err
		case s != nil && s.link != nil:
			return s, nil
		case s != nil:
			return r.start(ctx, s)
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// find returns the seat for a key: one with an agent, or one without that the
// caller has to start; or else what to wait for.
func (r *Remote) find(key seatKey, again bool) (*seat, <-chan struct{}, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, nil, errClosed
	}
	if until, ok := r.refused[key.user]; ok && !again {
		if r.options.Clock.Now().Before(until) {
			return nil, nil, fmt.Errorf("the one before had to be killed; the next is started at %s", until.Format(time.TimeOnly))
		}
		delete(r.refused, key.user)
	}
	s := r.seats[key]
	full := len(r.seats) >= r.options.Most
	crowded := key.role == UserRole && r.userSeats() >= r.options.Most-r.share
	switch {
	case s == nil && !full && !crowded:
		s = &seat{key: key, users: 1}
		r.seats[key] = s
		return s, nil, nil
	case s == nil:
		r.makeRoom(crowded)
	case s.link != nil && !s.going && !s.spent && s.link.failure() == nil:
		s.users++
		if s.idle != nil {
			close(s.idle)
			s.idle = nil
		}
		return s, nil, nil
	}
	return nil, r.changed, nil
}

// userSeats counts the agents of UserRole.
func (r *Remote) userSeats() int {
	n := 0
	for key := range r.seats {
		if key.role == UserRole {
			n++
		}
	}
	return n
}

// makeRoom ends the agent that has been idle longest, if there is one; ofUsers
// says that only one of UserRole helps.
func (r *Remote) makeRoom(ofUsers bool) {
	var oldest *seat
	for _, s := range r.seats {
		if ofUsers && s.key.role != UserRole {
			continue
		}
		if s.going {
			return // there will be room
		}
		if s.link != nil && s.users == 0 && (oldest == nil || s.used.Before(oldest.used)) {
			oldest = s
		}
	}
	if oldest != nil {
		r.end(oldest)
	}
}

// start has the agent of a new seat started.
func (r *Remote) start(ctx context.Context, s *seat) (*seat, error) {
	conn, err := r.ask(ctx, s.key)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		delete(r.seats, s.key)
		r.wake()
		return nil, fmt.Errorf("start: %w", err)
	}
	pipe := strings.HasPrefix(r.options.Mailbox, "pipe:")
	s.link = newLink(conn, r.options.Clock, r.options.CommandTime, pipe, func(closed error) { r.died(s, closed) })
	go s.link.receive()
	r.wake()
	return s, nil
}

// ask asks the parent for an agent.
func (r *Remote) ask(ctx context.Context, key seatKey) (*wire.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for began := r.options.Clock.Now(); ; {
		conn, err := r.options.Starter.StartAgent(ctx, key.user, key.role)
		if err == nil {
			return conn, nil
		}
		if !errors.Is(err, ErrBusy) || r.options.Clock.Now().Sub(began) >= busyLimit {
			return nil, err
		}
		timer, stop := r.options.Clock.After(busyPause)
		select {
		case <-timer:
		case <-ctx.Done():
			stop()
			return nil, err
		}
		stop()
	}
}

// release ends the use of an agent, and the agent too if it is spent.
func (r *Remote) release(s *seat, spent bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.spent = s.spent || spent
	err := s.link.failure()
	if err != nil && !s.going {
		r.complain(s, err)
	}
	s.users--
	s.used = r.options.Clock.Now()
	switch {
	case s.users > 0:
		return
	case err != nil || s.spent || r.closed:
		r.end(s)
		return
	}
	idle := make(chan struct{})
	s.idle = idle
	timer, stop := r.options.Clock.After(r.options.Idle)
	go func() {
		defer stop()
		select {
		case <-idle:
			return
		case <-timer:
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if s.idle == idle {
			r.end(s)
		}
	}()
	r.wake()
}

// complain says what was wrong with an agent, and gives its user none for a
// while if it had to be killed.
func (r *Remote) complain(s *seat, err error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errClosed) {
		return
	}
	if errors.Is(err, errStopped) || errors.Is(err, errSlow) || strange(err) {
		r.refused[s.key.user] = r.options.Clock.Now().Add(refuseFor)
	}
	r.options.Trouble(s.key.user, s.key.role, err)
}

// strange reports whether an agent has sent what none should.
func strange(err error) bool {
	return errors.Is(err, errProtocol) || errors.Is(err, wire.ErrTooLong) || errors.Is(err, wire.ErrFiles)
}

// died is called when the link of an agent is down, with what closing it came to.
func (r *Remote) died(s *seat, closed error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := s.link.failure()
	switch kept := r.options.Kept.Closed(closed); {
	case kept && !strange(err): // the files were behind all that was read
		r.complain(s, closed)
	case s.users == 0 && !s.going && strange(err): // else who used it complains
		r.complain(s, err)
	}
	if s.users == 0 {
		r.end(s)
	}
}

// end ends an agent that nobody uses. Its seat is free when the parent says that
// it has gone.
func (r *Remote) end(s *seat) {
	if s.going {
		return
	}
	s.going = true
	if s.idle != nil {
		close(s.idle)
		s.idle = nil
	}
	r.closing.Go(func() {
		s.link.fail(errClosed)
		ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
		defer cancel()
		err := r.options.Starter.StopAgent(ctx, s.key.user, s.key.role)
		if err != nil {
			r.options.Trouble(s.key.user, s.key.role, fmt.Errorf("stop: %w", err))
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.seats, s.key)
		r.wake()
	})
}

// wake makes everybody look again who waits for a seat.
func (r *Remote) wake() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// Close ends all agents and waits until they have gone. Nobody uses the Remote
// any more.
func (r *Remote) Close() {
	r.mu.Lock()
	r.closed = true
	for _, s := range r.seats {
		if s.link != nil && s.users == 0 {
			r.end(s)
		}
	}
	r.wake()
	r.mu.Unlock()
	r.closing.Wait()
}
