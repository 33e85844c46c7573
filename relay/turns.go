package relay

import (
	"slices"
	"sync"

	"dma/spooldir"
)

// turns bounds how many messages are in hand for one destination at a time, so
// that one that is slow does not take the room of the others. A message that finds
// no place stands in the line of the destination, by name only; its turn comes with
// a ring of the bell, and the place is kept for it until then.
//
// A visit is the time in which a message is in hand; there is one at a time of each.
type turns struct {
	most int                 // places of a destination; 0: no bound, and no lines
	ring func(spooldir.Name) // makes the loop take a message up

	mu     sync.Mutex
	lines  map[string]*line
	kept   map[string][]string // places for messages that are not in hand, by id
	visits map[string]*visit   // by id
}

// line is a destination: its places that are taken, and who waits for one.
type line struct {
	taken   int
	waiting []spooldir.Name
	in      map[string]bool // the ids of waiting
}

// visit has the places of a message that is in hand.
type visit struct {
	id    string
	keys  map[string]bool // taken
	fresh []string        // given since, and not looked at yet
	wake  chan struct{}   // rings when there are fresh ones
}

func newTurns(most int, ring func(spooldir.Name)) *turns {
	return &turns{most: most, ring: ring, lines: make(map[string]*line), kept: make(map[string][]string), visits: make(map[string]*visit)}
}

// begin begins the visit of a message, with the places that are kept for it.
func (t *turns) begin(id string) *visit {
	v := &visit{id: id, keys: make(map[string]bool), wake: make(chan struct{}, 1)}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, key := range t.kept[id] {
		v.keys[key] = true
	}
	delete(t.kept, id)
	t.visits[id] = v
	return v
}

// take takes a place at a destination, or puts the message into its line.
func (t *turns) take(v *visit, key string, name spooldir.Name) bool {
	if t.most == 0 || key == "" {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range v.fresh {
		v.keys[k] = true
	}
	v.fresh = nil
	if v.keys[key] {
		return true
	}
	l := t.lines[key]
	if l == nil {
		l = &line{in: make(map[string]bool)}
		t.lines[key] = l
	}
	if l.taken < t.most {
		l.taken++
		v.keys[key] = true
		return true
	}
	if !l.in[v.id] {
		l.in[v.id] = true
		l.waiting = append(l.waiting, name)
	}
	return false
}

// leave gives a place up.
func (t *turns) leave(v *visit, key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pass(v, key)
}

// pass gives the place to the first in line.
func (t *turns) pass(v *visit, key string) {
	if !v.keys[key] {
		return
	}
	delete(v.keys, key)
	l := t.lines[key]
	if len(l.waiting) == 0 {
		if l.taken--; l.taken == 0 {
			delete(t.lines, key)
		}
		return
	}
	next := l.waiting[0]
	l.waiting = l.waiting[1:]
	delete(l.in, next.ID)
	if w := t.visits[next.ID]; w != nil {
		w.fresh = append(w.fresh, key)
		select {
		case w.wake <- struct{}{}:
		default:
		}
		return
	}
	t.kept[next.ID] = append(t.kept[next.ID], key)
	t.ring(next)
}

// end ends a visit and gives its places up. Those that came too late to be of use
// are kept for the next one.
func (t *turns) end(v *visit, name spooldir.Name) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.visits, v.id)
	if len(v.fresh) > 0 {
		t.kept[v.id] = slices.Clone(v.fresh)
		t.ring(name)
	}
	for key := range v.keys {
		t.pass(v, key)
	}
}

// busy reports whether a message waits for its turn.
func (t *turns) busy() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range t.lines {
		if len(l.waiting) > 0 {
			return true
		}
	}
	return len(t.kept) > 0
}
