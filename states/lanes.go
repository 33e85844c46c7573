package states

import (
	"context"
	"sync"
	"time"
)

// Lanes hands items out by key: all items of a key wait in one lane, a lane
// has at most PerKey batches in hand, all lanes together at most Total. So one
// user with a hanging command, or one destination that does not answer, delays
// nobody else.
type Lanes[T any] struct {
	PerKey int // batches in hand a key, at least 1
	Total  int // batches in hand altogether, at least 1
	Batch  int // most items a batch, at least 1

	// Most is how many items wait altogether. More are refused, and found by a
	// later scan, but in each lane a batch may wait all the same: who fills the
	// lanes keeps nobody else out of them.
	Most int

	// Rest is how long a lane gathers items after a batch, unless there are enough
	// for a whole one before: under load several share what each batch costs. The
	// first after a pause does not wait. Clock has to be set with it.
	Rest  time.Duration
	Clock Clock

	// Run works on a batch of items of one key.
	Run func(ctx context.Context, key string, items []T)

	// Panicked is told of a panic in Run; the items of its batch are given up,
	// for a later scan to find. Other batches go on.
	Panicked func(key string, items []T, reason any)

	// Spare is called when items were refused and there is room again, be it only
	// for those of one key.
	Spare func()

	mu      sync.Mutex
	ctx     context.Context
	lanes   map[string]*lane[T]
	ready   []string // keys with waiting items and room for a batch, in turn
	in      map[any]*entry[T]
	waiting int
	running int
	refused bool // an item, for want of room altogether
	sparing int  // calls of Spare under way
	group   sync.WaitGroup
}

// entry is an item from Add until its batch is done.
type entry[T any] struct {
	key   string
	id    any
	item  T
	taken bool      // in hand
	again *entry[T] // added again while it was in hand
}

type lane[T any] struct {
	items   []*entry[T]
	running int
	queued  bool // in ready
	refused bool // an item
	resting int  // how many of its batches ended less than Rest ago
}

// Start allows batches to run until ctx ends.
func (l *Lanes[T]) Start(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ctx = ctx
	l.lanes = make(map[string]*lane[T])
	l.in = make(map[any]*entry[T])
}

// Add puts an item into the lane of key. id is what makes it the same item
// when it is added again: as long as it waits, Add does nothing; while it is in
// hand, Add makes it wait again afterwards.
func (l *Lanes[T]) Add(key string, id any, item T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.add(&entry[T]{key: key, id: id, item: item}, l.Most)
	l.fill()
}

func (l *Lanes[T]) add(e *entry[T], most int) {
	if old := l.in[e.id]; old != nil {
		if old.taken {
			old.again = e
		}
		return
	}
	ln := l.lanes[e.key]
	if l.waiting >= most && ln != nil && len(ln.items) >= max(l.Batch, 1) {
		l.refused, ln.refused = true, true
		return
	}
	l.in[e.id] = e
	if ln == nil {
		ln = &lane[T]{}
		l.lanes[e.key] = ln
	}
	ln.items = append(ln.items, e)
	l.waiting++
	l.offer(e.key, ln)
}

// offer puts a lane into the line for its turn if it can take one.
func (l *Lanes[T]) offer(key string, ln *lane[T]) {
	if ln.resting > 0 && len(ln.items) < max(l.Batch, 1) {
		return
	}
	if !ln.queued && len(ln.items) > 0 && ln.running < max(l.PerKey, 1) {
		ln.queued = true
		l.ready = append(l.ready, key)
	}
}

// fill starts batches while there is room.
func (l *Lanes[T]) fill() {
	for l.running < max(l.Total, 1) && len(l.ready) > 0 && l.ctx.Err() == nil {
		key := l.ready[0]
		l.ready = l.ready[1:]
		ln := l.lanes[key]
		ln.queued = false
		n := min(len(ln.items), max(l.Batch, 1))
		batch := ln.items[:n:n]
		ln.items = ln.items[n:]
		items := make([]T, n)
		for i, e := range batch {
			e.taken = true
			items[i] = e.item
		}
		ln.running++
		l.running++
		l.waiting -= n
		l.offer(key, ln)
		l.group.Add(1)
		go func() {
			defer l.group.Done()
			l.run(key, items)
			l.finished(key, ln, batch)
		}()
	}
}

// run calls Run and turns a panic into trouble with this one batch.
func (l *Lanes[T]) run(key string, items []T) {
	defer func() {
		if r := recover(); r != nil {
			if _, fatal := r.(Fatal); fatal || l.Panicked == nil {
				panic(r)
			}
			l.Panicked(key, items, r)
		}
	}()
	l.Run(l.ctx, key, items)
}

func (l *Lanes[T]) finished(key string, ln *lane[T], batch []*entry[T]) {
	l.mu.Lock()
	ln.running--
	l.running--
	for _, e := range batch {
		delete(l.in, e.id)
	}
	for _, e := range batch {
		if e.again != nil {
			l.add(e.again, l.Most+len(batch)) // it had its place
		}
	}
	spare := l.roomAgain(ln)
	if l.Rest > 0 {
		ln.resting++
		go l.rest(key, ln)
	}
	l.goOn(key, ln)
	l.fill()
	l.mu.Unlock()
	if !spare {
		return
	}
	if l.Spare != nil {
		l.Spare()
	}
	l.mu.Lock()
	l.sparing--
	l.mu.Unlock()
}

// goOn offers a lane for its turn, or lets go of one that is done.
func (l *Lanes[T]) goOn(key string, ln *lane[T]) {
	if ln.running == 0 && len(ln.items) == 0 && ln.resting == 0 {
		delete(l.lanes, key)
	} else {
		l.offer(key, ln)
	}
}

// rest waits for the end of a rest of a lane.
func (l *Lanes[T]) rest(key string, ln *lane[T]) {
	timer, stop := l.Clock.After(l.Rest)
	defer stop()
	select {
	case <-timer:
	case <-l.ctx.Done():
		return // nothing is begun any more
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	ln.resting--
	l.goOn(key, ln)
	l.fill()
}

// roomAgain reports whether there is room for what was refused, altogether or in
// one lane. Spare is to be called then.
func (l *Lanes[T]) roomAgain(ln *lane[T]) bool {
	switch {
	case l.refused && l.waiting <= l.Most/2:
		l.refused = false
		for _, ln := range l.lanes {
			ln.refused = false
		}
	case ln.refused && len(ln.items) == 0:
		ln.refused = false
	default:
		return false
	}
	l.sparing++
	return true
}

// Again reports whether an item waits or is in hand. One that is in hand is handed
// out again afterwards, as by Add.
func (l *Lanes[T]) Again(id any) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.in[id]
	if e != nil && e.taken && e.again == nil {
		e.again = &entry[T]{key: e.key, id: id, item: e.item}
	}
	return e != nil
}

// Busy reports whether anything waits or is in hand.
func (l *Lanes[T]) Busy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.running > 0 || l.waiting > 0 || l.sparing > 0
}

// Wait returns when nothing is in hand any more; after the end of the context
// given to Start nothing new is begun.
func (l *Lanes[T]) Wait() { l.group.Wait() }
