package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"dma/forward"
	"dma/internal/wire"
	"dma/spooldir"
	"dma/states"
)

// How long an agent may take. A process that answers no ping is stopped, or the
// machine has other troubles; what a job takes is bounded beside that, since one
// thread of a process can hang in the kernel while another one answers.
const (
	pingEvery    = 10 * time.Second
	pongWithin   = 30 * time.Second
	forwardLimit = time.Minute     // package forward has a shorter one
	commandExtra = time.Minute     // beyond COMMANDTIME
	placeLimit   = 5 * time.Minute // for messages to mailboxes, with locks and recovery
	slowest      = 256 << 10       // octets of content that a mailbox takes in a second
)

// contentTimes is how often the content of a message may be asked for:
// recovery of a mailbox compares it with several places. Each request counts as
// requestCost octets more.
const (
	contentTimes = 100
	requestCost  = 4 << 10
)

// lateReads is how often the content of jobs that are not in hand any more may be
// asked for, from one batch to the next: what a command that was killed had still to
// read.
const lateReads = 64

var (
	errStopped = errors.New("it does not answer: stopped, or hanging")
	errSlow    = errors.New("it took too long")
)

// A link is the queue process's end of a connection to an agent.
type link struct {
	conn  *wire.Conn
	clock states.Clock
	limit time.Duration // of a command
	pipe  bool          // mailboxes are commands
	ended func(error)   // called once when the link is down, with what closing it came to

	down chan struct{} // closed when the link is of no further use

	mu      sync.Mutex
	err     error     // why it is down
	pinged  time.Time // when the ping was sent that is not answered yet
	jobs    uint64    // sent before the batch
	late    int       // requests for their content since it began
	batch   *batch
	forward *reading

	delivering chan struct{} // holds a token while a batch is in hand
	forwarding chan struct{} // and while a .forward is
}

// A batch is jobs that were sent, and wait for their outcomes.
type batch struct {
	jobs     []*Job
	decided  int     // how many have their outcome
	budget   []int64 // octets of content that each may still ask for
	outcomes chan outcome
}

// A reading is a .forward that was asked for.
type reading struct {
	targets []forward.Target
	result  chan part
}

func newLink(conn *wire.Conn, clock states.Clock, limit time.Duration, pipe bool, ended func(error)) *link {
	return &link{
		conn: conn, clock: clock, limit: limit, pipe: pipe, ended: ended, down: make(chan struct{}),
		delivering: make(chan struct{}, 1), forwarding: make(chan struct{}, 1),
	}
}

// fail ends the link. The first reason counts.
func (l *link) fail(err error) {
	l.mu.Lock()
	first := l.err == nil
	if first {
		l.err = err
		l.batch, l.forward = nil, nil
		close(l.down)
	}
	l.mu.Unlock()
	if first {
		l.ended(l.conn.Close())
	}
}

// failure returns why the link is down, nil if it is not.
func (l *link) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// receive takes answers until the link is down.
func (l *link) receive() {
	for {
		b, _, err := l.conn.Receive(maxAnswer, 0)
		if err == nil {
			err = l.take(b)
		}
		if err != nil {
			l.fail(err)
			return
		}
	}
}

// take takes up an answer.
func (l *link) take(b []byte) error {
	a, err := parseAnswer(b)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch a.kind {
	case pongAnswer:
		if l.pinged.IsZero() {
			return fmt.Errorf("%w: an answer to no ping", errProtocol)
		}
		l.pinged = time.Time{}
	case wordAnswer:
		return errors.New(a.word)
	case outcomeAnswer:
		if l.batch == nil || l.batch.decided == len(l.batch.jobs) {
			return fmt.Errorf("%w: an outcome of no job", errProtocol)
		}
		if err := checkOutcome(a.outcome, l.batch.jobs[l.batch.decided].Kind); err != nil {
			return err
		}
		l.batch.decided++
		l.batch.outcomes <- a.outcome // has room for all of them
	case forwardAnswer:
		return l.takePart(a.part)
	case readAnswer:
		p, err := l.content(a.read)
		if err != nil {
			return err
		}
		l.mu.Unlock() // the other end may be slow to take it
		err = l.conn.Send(encodeChunk(p))
		l.mu.Lock()
		return err
	}
	return nil
}

// takePart adds a part of what a .forward says.
func (l *link) takePart(p part) error {
	r := l.forward
	if r == nil {
		return fmt.Errorf("%w: a .forward that nobody asked for", errProtocol)
	}
	r.targets = append(r.targets, p.targets...)
	switch {
	case len(r.targets) > forward.MaxTargets:
		return fmt.Errorf("%w: more than %d targets", errProtocol, forward.MaxTargets)
	case p.more && len(p.targets) == 0:
		return fmt.Errorf("%w: an empty part of a .forward", errProtocol)
	case p.more:
		return nil
	}
	l.forward = nil
	r.result <- part{err: p.err, path: p.path, targets: r.targets}
	return nil
}

// content reads a piece of the content of a job in hand; nil: it cannot be read.
// An agent gets the content, and nothing else of the file that it stands in.
func (l *link) content(s span) ([]byte, error) {
	if l.batch == nil || s.job < l.jobs || s.job-l.jobs >= uint64(len(l.batch.jobs)) {
		if l.late++; l.late > lateReads {
			return nil, fmt.Errorf("%w: it asks for content that is not in hand", errProtocol)
		}
		return nil, nil
	}
	i := int(s.job - l.jobs)
	m := &l.batch.jobs[i].Message
	n := max(0, min(int64(s.n), m.Size-s.off))
	if l.batch.budget[i] -= n + requestCost; l.batch.budget[i] < 0 {
		return nil, fmt.Errorf("%w: it asks for the content again and again", errProtocol)
	}
	p := make([]byte, n)
	if n == 0 {
		return p, nil
	}
	if got, _ := m.Content.ReadAt(p, s.off); got < len(p) {
		return nil, nil
	}
	return p, nil
}

// ping asks whether the agent is alive, and reports false if it did not answer
// in time when it was asked before.
func (l *link) ping() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Now()
	if !l.pinged.IsZero() {
		return now.Sub(l.pinged) < pongWithin
	}
	l.pinged = now
	go l.conn.Send([]byte{pingRequest}) // which waits if the agent does not read
	return true
}

// await returns what comes from ch. If nothing does within limit, or the agent
// is found to be stopped, the link is down.
func await[T any](ctx context.Context, l *link, limit time.Duration, ch <-chan T) (T, error) {
	late, stopLate := l.clock.After(limit)
	defer stopLate()
	for {
		tick, stopTick := l.clock.After(pingEvery)
		select {
		case v := <-ch:
			stopTick()
			return v, nil
		case <-late:
			l.fail(errSlow)
		case <-tick:
			if !l.ping() {
				l.fail(errStopped)
			}
		case <-ctx.Done():
			l.fail(ctx.Err())
		case <-l.down:
			stopTick()
			select {
			case v := <-ch: // it came before the end
				return v, nil
			default:
			}
			var none T
			return none, l.failure()
		}
		stopTick()
	}
}

// hold takes a token, and returns what gives it back.
func (l *link) hold(ctx context.Context, token chan struct{}) (func(), error) {
	select {
	case token <- struct{}{}:
		return func() { <-token }, nil
	case <-l.down:
		return nil, l.failure()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// readForward asks for the .forward.
func (l *link) readForward(ctx context.Context, detail string) (forward.Result, error) {
	free, err := l.hold(ctx, l.forwarding)
	if err != nil {
		return forward.Result{}, err
	}
	defer free()
	r := &reading{result: make(chan part, 1)}
	l.mu.Lock()
	l.forward = r
	l.mu.Unlock()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		if err := l.conn.Send(encodeForward(detail)); err != nil {
			l.fail(err)
		}
	}()
	p, err := await(ctx, l, forwardLimit, r.result)
	<-sent
	if err != nil {
		return forward.Result{}, err
	}
	return forward.Result{Path: p.path, Targets: p.targets}, p.err
}

// deliver has jobs carried out, and calls done for each as soon as its outcome
// is known. It returns how many have one; if not all do, the error says why.
func (l *link) deliver(ctx context.Context, jobs []*Job, done func(*Job)) (int, error) {
	free, err := l.hold(ctx, l.delivering)
	if err != nil {
		return 0, err
	}
	defer free()
	b := &batch{jobs: jobs, outcomes: make(chan outcome, len(jobs))}
	for _, j := range jobs {
		b.budget = append(b.budget, contentTimes*(j.Message.Size+maxChunk))
	}
	l.mu.Lock()
	l.batch, l.late = b, 0
	l.mu.Unlock()
	defer func() {
		// Nothing is read from the messages any more when this has returned.
		l.mu.Lock()
		l.batch = nil
		l.jobs += uint64(len(jobs))
		l.mu.Unlock()
	}()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		if err := l.send(jobs); err != nil {
			l.fail(err)
		}
	}()
	for i, j := range jobs {
		o, err := await(ctx, l, l.limitFor(jobs[i:]), b.outcomes)
		if err != nil {
			<-sent
			return i, err
		}
		j.Already, j.Place, j.Err = o.already, o.place, o.err
		done(j)
	}
	<-sent
	return len(jobs), nil
}

// send sends jobs as a batch.
func (l *link) send(jobs []*Job) error {
	for _, j := range jobs {
		if err := l.conn.Send(encodeJob(j)); err != nil {
			return err
		}
	}
	return l.conn.Send([]byte{endRequest})
}

// limitFor returns how long the outcome of the first of jobs may take. Messages
// for one mailbox are decided together.
func (l *link) limitFor(jobs []*Job) time.Duration {
	command := func(j *Job) bool { return j.Kind == spooldir.Command || j.Kind == spooldir.Mailbox && l.pipe }
	if command(jobs[0]) {
		return l.limit + commandExtra
	}
	limit := placeLimit
	for _, j := range jobs {
		if command(j) {
			break
		}
		limit += time.Duration(j.Message.Size/slowest) * time.Second
	}
	return limit
}
