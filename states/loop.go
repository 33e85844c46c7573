package states

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"dma/spooldir"
)

// Clock is where a Loop takes the time from.
type Clock interface {
	Now() time.Time
	// After returns a channel that receives once d has passed, and a
	// function that gives the timer up.
	After(d time.Duration) (<-chan time.Time, func())
}

// SystemClock is the Clock of the machine.
type SystemClock struct{}

// Now is time.Now.
func (SystemClock) Now() time.Time { return time.Now() }

// After is time.NewTimer.
func (SystemClock) After(d time.Duration) (<-chan time.Time, func()) {
	t := time.NewTimer(d)
	return t.C, func() { t.Stop() }
}

// Loop is the worker of one directory: it waits for the bell, scans, and hands
// each message that has a name there to Handle, several at a time, but one
// message never to two at once. What it keeps in memory is a cache: a new
// Loop finds everything again by its first scan.
type Loop struct {
	Spool *spooldir.Spool
	State spooldir.State
	Bell  *spooldir.Bell
	Clock Clock

	// Handle takes up one message, of which name stands or stood in State.
	// It returns when to look at the message again if nothing rings before,
	// the zero time for never. An error is trouble of the machine: it is
	// given to Trouble, and the message is tried again after a pause. One that
	// wraps spooldir.ErrBusy is trouble only if it lasts: Handle is to return it
	// at once, and is called again until the lock is free.
	Handle func(ctx context.Context, name spooldir.Name) (again time.Time, err error)

	// Parallel is how many messages may be in hand at a time.
	Parallel int

	// Rescan is the time from one scan to the next, whatever rings between.
	Rescan time.Duration

	// Flush takes a request to try everything now and reports whether there
	// was one; then the scan looks at what rests, too. Nil: never.
	Flush func() bool

	// Foreign is called with files that are no names of recipients.
	Foreign func(file string)

	// Trouble is told of errors.
	Trouble func(state spooldir.State, name spooldir.Name, err error)

	// Also reports work that Handle has passed on and that is not done; nil
	// if there is none ever.
	Also func() bool

	mu      sync.Mutex
	held    map[string]*item // by message id
	pending []*item
	later   laterHeap
	busy    map[*item]bool // those that are locked
	running int
	looking bool // what the bell said, or a scan found, is not all pending yet
	done    chan *item
	all     bool      // the next scan looks at what rests, too
	next    time.Time // of the scan that nothing rings for
}

// troublePause is how long a message rests after trouble of the machine.
const troublePause = 30 * time.Second

type item struct {
	name   spooldir.Name
	phase  phase
	dirty  bool // something rang while it was in hand
	due    time.Time
	index  int  // in later
	locked bool // it was, when it was last in hand
	busy   busy
}

type phase byte

const (
	waiting phase = iota // in pending
	inHand
	resting // in later
)

// Run works until ctx ends; what is in hand then is finished first (its
// context ends too, so that it may put back what takes long).
func (l *Loop) Run(ctx context.Context) error {
	l.mu.Lock()
	if l.Clock == nil {
		l.Clock = SystemClock{}
	}
	l.held = make(map[string]*item)
	l.busy = make(map[*item]bool)
	l.looking = true
	l.done = make(chan *item, max(l.Parallel, 1))
	l.mu.Unlock()

	l.scan()
	for {
		l.start(ctx)
		timer, stop := l.timer()
		select {
		case <-ctx.Done():
			stop()
			l.drain()
			l.leaveBusy()
			return nil
		case <-l.Bell.C:
			l.rung()
		case it := <-l.done:
			l.finished(it)
		case <-timer:
			l.wake()
		}
		stop()
	}
}

// timer fires when the next resting message is due, or a scan is.
func (l *Loop) timer() (<-chan time.Time, func()) {
	l.mu.Lock()
	at := l.next
	if len(l.later) > 0 && l.later[0].due.Before(at) {
		at = l.later[0].due
	}
	l.mu.Unlock()
	return l.Clock.After(max(at.Sub(l.Clock.Now()), 0))
}

// rung takes what the bell says.
func (l *Loop) rung() {
	l.mu.Lock()
	l.looking = true // before the bell falls silent
	l.mu.Unlock()
	names, flush, rescan := l.Bell.Take()
	if flush || rescan {
		// Whatever was rung for may be among what rests.
		l.mu.Lock()
		l.all = true
		l.mu.Unlock()
		l.scan()
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range names {
		l.add(n, true)
	}
	l.looking = false
}

// scan looks at the whole directory.
func (l *Loop) scan() {
	flush := l.Flush != nil && l.Flush()
	l.mu.Lock()
	all := l.all || flush
	l.all = false
	l.looking = true
	l.next = l.Clock.Now().Add(l.Rescan)
	l.mu.Unlock()
	err := l.Spool.Scan(l.State, func(n spooldir.Name) bool {
		l.mu.Lock()
		l.add(n, all)
		l.mu.Unlock()
		return true
	}, l.Foreign)
	if err != nil && l.Trouble != nil {
		l.Trouble(l.State, spooldir.Name{}, err)
	}
	l.mu.Lock()
	l.looking = false
	l.mu.Unlock()
}

// add makes a message pending. A scan leaves alone what rests and what is in
// hand; news (rung) does not.
func (l *Loop) add(n spooldir.Name, news bool) {
	it := l.held[n.ID]
	switch {
	case it == nil:
		it = &item{name: n}
		l.held[n.ID] = it
		l.pending = append(l.pending, it)
	case it.phase == inHand:
		it.dirty = it.dirty || news
		it.name = n
	case it.phase == resting && news:
		heap.Remove(&l.later, it.index)
		it.phase = waiting
		it.name = n
		l.pending = append(l.pending, it)
	}
}

// wake makes pending what is due, and scans if it is time to.
func (l *Loop) wake() {
	now := l.Clock.Now()
	l.mu.Lock()
	for len(l.later) > 0 && !l.later[0].due.After(now) {
		it := heap.Pop(&l.later).(*item)
		it.phase = waiting
		l.pending = append(l.pending, it)
	}
	rescan := !l.next.After(now)
	l.mu.Unlock()
	if rescan {
		l.scan()
	}
}

// start hands pending messages out.
func (l *Loop) start(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.running < max(l.Parallel, 1) && len(l.pending) > 0 {
		it := l.pending[0]
		l.pending[0] = nil
		l.pending = l.pending[1:]
		it.phase = inHand
		it.dirty = false
		l.running++
		go func(name spooldir.Name) {
			again, err := l.handle(ctx, name)
			it.locked = errors.Is(err, spooldir.ErrBusy)
			if it.locked {
				again = l.foundBusy(it, name, err)
			} else if err != nil && ctx.Err() == nil {
				if l.Trouble != nil {
					l.Trouble(l.State, name, err)
				}
				if again.IsZero() {
					again = l.Clock.Now().Add(troublePause)
				}
			}
			it.due = again
			l.done <- it
		}(it.name)
	}
}

// handle calls Handle and turns a panic into trouble with this one message:
// what is wrong with it must not stop the others.
func (l *Loop) handle(ctx context.Context, name spooldir.Name) (again time.Time, err error) {
	defer func() {
		if r := recover(); r != nil {
			if _, fatal := r.(Fatal); fatal {
				panic(r)
			}
			err = fmt.Errorf("panic while handling %s: %v", name, r)
		}
	}()
	return l.Handle(ctx, name)
}

// Fatal is what a worker panics with when it must not go on: its Loop does not
// stop it.
type Fatal struct{ Reason string }

func (f Fatal) String() string { return f.Reason }

// finished puts a message that was handled where it belongs.
func (l *Loop) finished(it *item) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running--
	if !it.locked {
		l.notBusy(it)
	}
	switch {
	case it.dirty:
		it.phase = waiting
		l.pending = append(l.pending, it)
	case !it.due.IsZero():
		it.phase = resting
		heap.Push(&l.later, it)
	default:
		delete(l.held, it.name.ID)
	}
}

// drain waits for what is in hand.
func (l *Loop) drain() {
	for {
		l.mu.Lock()
		n := l.running
		l.mu.Unlock()
		if n == 0 {
			return
		}
		l.finished(<-l.done)
	}
}

// Started makes Idle say no until Run has made its first scan; it is for
// those who start Run in a goroutine and ask Idle before it has begun.
func (l *Loop) Started() {
	l.mu.Lock()
	l.looking = true
	l.mu.Unlock()
}

// Idle reports whether nothing is pending or in hand and the bell has nothing
// to tell. What rests until its time does not count, nor what somebody keeps
// locked.
func (l *Loop) Idle() bool {
	// In the order in which work goes: from the bell into the loop, from the
	// loop into what else there is.
	if !l.Bell.Silent() {
		return false
	}
	l.mu.Lock()
	idle := !l.looking && l.running == 0 && len(l.pending) == 0 && !l.isBusyBriefly()
	l.mu.Unlock()
	return idle && (l.Also == nil || !l.Also())
}

type laterHeap []*item

func (h laterHeap) Len() int           { return len(h) }
func (h laterHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h laterHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].index, h[j].index = i, j }
func (h *laterHeap) Push(x any)        { it := x.(*item); it.index = len(*h); *h = append(*h, it) }
func (h *laterHeap) Pop() any {
	old := *h
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return it
}
