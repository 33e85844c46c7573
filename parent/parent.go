package parent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"dma/internal/passwd"
)

// parent is the state of Run.
type parent struct {
	starter     starter
	thread      thread
	locks       *locks
	agents      agents
	openMailDir func(pattern string, u passwd.User) (*mailDir, error)
	opening     chan struct{} // slots for it
	out         *os.File      // the standard output of the queue process; nil is /dev/null
	flushed     [2]*os.File   // a pipe from the queue process to the net process
	counted     [2]*os.File   // and one back

	queue, net *worker
	idle       *idleness
	cancel     func() // ends Run
	timing

	mu     sync.Mutex
	o      Options
	alive  time.Time // when Alive was called last
	failed error     // why Run ends, if nobody asked it to
}

// Run starts the workers, starts them again when they end, and serves them
// until ctx ends. Then it asks all processes to end, kills those that have not
// within Grace, and returns when they are reaped. It has to be called as root,
// once in a process, and takes from it, for good, all capabilities that it does
// not need; the umask becomes 077.
func Run(ctx context.Context, o Options) error {
	o, err := prepare(o)
	if err != nil {
		return err
	}
	log := workersLog()
	locks, err := openLocks(o.RunDir)
	if err != nil {
		return fmt.Errorf("locks of users: %w", err)
	}
	defer locks.dir.Close()
	if err := restrict(o.creates()); err != nil {
		return err
	}
	p := newParent(o)
	p.locks, p.thread = locks, newThread()
	p.starter = &system{p.thread, log}
	return p.run(ctx)
}

// prepare makes this process fit to start others, and returns o with its defaults.
func prepare(o Options) (Options, error) {
	if os.Geteuid() != 0 {
		return o, errors.New("the parent has to be root")
	}
	o = o.defaults()
	if err := o.check(); err != nil {
		return o, err
	}
	syscall.Umask(0o077)
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return o, fmt.Errorf("limit of cores: %w", err)
	}
	closeInherited()
	return o, nil
}

func newParent(o Options) *parent {
	return &parent{
		o: o.defaults(), openMailDir: openMailDir, opening: make(chan struct{}, MaxAgents), timing: defaultTiming(),
		queue: newWorker("queue", RoleQueue), net: newWorker("net", RoleNet),
	}
}

func (p *parent) options() Options {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.o
}

// run is Run after everything was given up.
func (p *parent) run(ctx context.Context) error {
	for _, pipe := range []*[2]*os.File{&p.flushed, &p.counted} {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		defer r.Close()
		defer w.Close()
		*pipe = [2]*os.File{r, w}
	}
	o := p.options()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.cancel, p.idle = cancel, newIdleness(o, cancel)
	var group sync.WaitGroup
	for _, w := range []*worker{p.queue, p.net} {
		group.Go(func() { p.supervise(ctx, w) })
	}
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-o.Hangup:
			p.reload()
		}
	}
	group.Wait()
	p.agents.end(o.Clock, o.Grace, p.agents.living(true))
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

// giveUp makes Run end with an error.
func (p *parent) giveUp(err error) {
	p.mu.Lock()
	p.failed = err
	p.mu.Unlock()
	p.cancel()
}

// reload restarts the workers with a new configuration.
func (p *parent) reload() {
	old := p.options()
	if old.Reload == nil {
		return
	}
	o, err := old.Reload()
	if err == nil {
		o = old.changed(o)
		err = o.check()
	}
	if err != nil {
		old.Log.WorkerTrouble("parent", fmt.Errorf("reload: %w; the old configuration stays", err))
		return
	}
	if o.creates() && !old.creates() {
		old.Log.WorkerTrouble("parent", errors.New("reload: to make mailboxes for MAILBOX the service has to be restarted"))
	}
	p.mu.Lock()
	p.o = o
	p.mu.Unlock()
	p.queue.restart()
	p.net.restart()
}

// note records what a worker has said, and calls the hooks that wait for both.
func (p *parent) note(w *worker, ready, answered bool) {
	p.mu.Lock()
	before := p.queue.ready && p.net.ready
	w.ready = w.ready || ready
	w.answered = w.answered || answered
	isReady := !before && p.queue.ready && p.net.ready
	isAlive := p.queue.answered && p.net.answered
	o := p.o
	if isAlive {
		// Pings come more often where idleness is asked for.
		now := o.Clock.Now()
		if isAlive = now.Sub(p.alive) >= p.ping/2; isAlive {
			p.alive = now
		}
		p.queue.answered, p.net.answered = false, false
	}
	p.mu.Unlock()
	if isReady && o.Ready != nil {
		o.Ready()
	}
	if isAlive && o.Alive != nil {
		o.Alive()
	}
}

// forget records that a worker has ended.
func (p *parent) forget(w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w.unready++; w.ready {
		w.unready = 0
	}
	w.ready, w.answered = false, false
	p.idle.forget(w)
}
