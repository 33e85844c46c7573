package parent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"dma/internal/wire"
)

// timing is how long things may take. Tests have shorter ones.
type timing struct {
	firstPause, lastPause time.Duration // before a worker is started again
	steady                time.Duration // a worker that lived so long begins with the first pause
	ping                  time.Duration // between two pings
	send                  time.Duration // for a worker to read an answer
	lookup                time.Duration
	stop                  time.Duration // for an agent to be gone
}

// maxSilent is how many pings in a row a worker may leave without an answer.
const maxSilent = 6

func defaultTiming() timing {
	return timing{
		firstPause: time.Second, lastPause: time.Minute, steady: time.Minute,
		ping: 10 * time.Second, send: 10 * time.Second,
		lookup: 10 * time.Second, stop: 5 * time.Second,
	}
}

// worker is one of the two.
type worker struct {
	name, role string
	again      chan struct{} // to be restarted

	// Under parent.mu.
	ready, answered bool
	unready         int // lives in a row that ended before it was ready
}

func newWorker(name, role string) *worker {
	return &worker{name: name, role: role, again: make(chan struct{}, 1)}
}

// restart asks for the worker to be restarted.
func (w *worker) restart() {
	select {
	case w.again <- struct{}{}:
	default:
	}
}

// Why a worker ended.
var (
	errStopped = errors.New("stopped")
	errReload  = errors.New("restarted")
	errSilent  = errors.New("no answer to a ping")
	errHung    = errors.New("does not end after it was killed")
)

// supervise keeps a worker running until ctx ends.
func (p *parent) supervise(ctx context.Context, w *worker) {
	o := p.options()
	pause := p.firstPause
	for ctx.Err() == nil {
		began := o.Clock.Now()
		err := p.work(ctx, w)
		p.forget(w)
		if w == p.queue {
			// Nobody talks to its agents any more; the next one has others.
			go p.agents.end(o.Clock, o.Grace, p.agents.living(false))
		}
		if ctx.Err() != nil {
			return
		}
		lived := o.Clock.Now().Sub(began)
		if errors.Is(err, errReload) || inOrder(err) && lived >= p.steady {
			continue
		}
		if o.UntilIdle && w.unready >= startTries {
			p.giveUp(fmt.Errorf("%s: %w", w.name, err))
			return
		}
		if lived >= p.steady {
			pause = p.firstPause
		}
		o.Log.WorkerTrouble(w.name, fmt.Errorf("%w; started again in %v", err, pause))
		over, stop := o.Clock.After(pause)
		select {
		case <-over:
			pause = min(2*pause, p.lastPause)
		case <-w.again:
			pause = p.firstPause
		case <-ctx.Done():
		}
		stop()
	}
}

// inOrder reports whether a worker ended by itself and in good order, as one does
// that has to begin anew, and has said why.
func inOrder(err error) bool {
	var how exited
	return errors.As(err, &how) && how.Success()
}

// work starts a worker and serves it until it has ended.
func (p *parent) work(ctx context.Context, w *worker) error {
	select {
	case <-w.again: // it begins with the newest options in any case
	default:
	}
	o := p.options()
	ours, theirs, err := wire.Pair()
	if err != nil {
		return err
	}
	conn := wire.New(ours)
	defer conn.Close()
	defer theirs.Close()
	t, err := newTether()
	if err != nil {
		return err
	}
	sp := spec{title: w.name, role: w.role, worker: true, out: p.out, env: environment(o.Env...)}
	var setup []byte
	if w == p.queue {
		sp.account, setup = o.Queue, o.QueueSetup
		sp.files = []*os.File{theirs, t.setup, t.life, o.Door, p.flushed[1], p.counted[0]}
	} else {
		sp.account, setup = o.Net, o.NetSetup
		sp.files = []*os.File{theirs, t.setup, t.life, nil, p.flushed[0], p.counted[1]}
	}
	c, err := p.starter.start(sp)
	if err != nil {
		t.failed()
		return err
	}
	theirs.Close()
	t.started(setup)
	defer t.cut()

	// Neither goroutine is waited for: what a worker does to its socket must
	// not hold this one up.
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	s := &session{parent: p, worker: w, conn: conn, bad: make(chan error, 1)}
	go s.serve(serving)
	go s.ping(serving)
	if o.UntilIdle {
		go s.poll(serving)
	}

	select {
	case <-c.ended():
		return c.err()
	case err = <-s.bad:
	case <-w.again:
		err = errReload
	case <-ctx.Done():
		err = errStopped
	}
	if !hungUp(err) && !errors.Is(err, errReload) && !errors.Is(err, errStopped) {
		c.kill()
	}
	// The control socket stays open: a worker that ends in good order still gives
	// its agents up.
	t.cut()
	if why := p.await(o, c, err); !hungUp(why) {
		return why
	}
	return c.err() // which says more
}

// hungUp reports whether err says that the other end of a connection has been closed,
// perhaps with something unread in it.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

// await waits for a worker that was asked to end, and kills it after a while.
func (p *parent) await(o Options, c child, why error) error {
	for range 2 {
		over, stop := o.Clock.After(o.Grace)
		select {
		case <-c.ended():
			stop()
			return why
		case <-over:
			c.kill()
		}
	}
	// In a system call that does not end. Its locks keep a second one from
	// working.
	o.Log.WorkerTrouble("parent", errHung)
	return errHung
}
