package parent

import (
	"context"
	"sync"
	"time"
)

// idlePoll is the least time between two questions whether a worker is idle,
// where the service is to end when it is; where it has to be idle for long, it is
// a part of that.
const idlePoll = 20 * time.Millisecond

// startTries is how often a worker may end before it has begun its work, where
// the service is to end when there is nothing to do: it would never do it.
const startTries = 3

// poll asks a worker for its state, more often than for a sign of life.
func (s *session) poll(ctx context.Context) {
	o := s.options()
	pause := max(o.IdleFor/20, idlePoll)
	for {
		over, stop := o.Clock.After(pause)
		select {
		case <-ctx.Done():
			stop()
			return
		case <-over:
		}
		s.send(message{kind: kindPing})
	}
}

// idleness finds out when both workers have nothing to do. What one hands to the
// other shows as activity of the other, later than the first is idle: that counts
// which is the same in two rounds. A worker's word that it is busy, for ever, is
// its own harm.
type idleness struct {
	clock  Clock
	needed time.Duration // for which they have to be idle
	stay   func() bool   // there is a reason to go on nevertheless; may be nil
	end    func()

	mu     sync.Mutex
	state  map[*worker]workState
	seen   [2]string // the activities in the last round, queue first
	since  time.Time // when that was first so
	looks  [2]string // how often they had looked when they were told to look once more
	looked bool      // they were told
}

// workState is what a worker said last.
type workState struct {
	session  *session
	idle     bool
	activity string
	looks    string
	fresh    bool // said since the last round
}

// newIdleness returns nil where nobody asks. end is called, perhaps more than
// once, when there is nothing to do.
func newIdleness(o Options, end func()) *idleness {
	if !o.UntilIdle {
		return nil
	}
	return &idleness{clock: o.Clock, needed: o.IdleFor, stay: o.Stay, end: end, state: make(map[*worker]workState)}
}

// forget takes back what a worker said that has ended.
func (i *idleness) forget(w *worker) {
	if i == nil {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.state, w)
	i.looked = false
}

// report records what a worker says of itself, and decides when both have said
// it.
func (i *idleness) report(s *session, idle bool, activity, looks string) {
	if i == nil {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.state[s.worker] = workState{s, idle, activity, looks, true}
	queue, net := i.state[s.queue], i.state[s.net]
	if !queue.fresh || !net.fresh {
		return
	}
	now := i.clock.Now()
	seen := [2]string{queue.activity, net.activity}
	stable := queue.idle && net.idle && seen == i.seen
	i.seen = seen
	queue.fresh, net.fresh = false, false
	i.state[s.queue], i.state[s.net] = queue, net
	switch {
	case !queue.idle || !net.idle:
		i.since, i.looked = now, false
	case !stable:
		// The look itself is an activity.
		i.since = now
	case !i.looked && now.Sub(i.since) >= i.needed:
		i.looked, i.looks = true, [2]string{queue.looks, net.looks}
		for _, w := range []*session{queue.session, net.session} {
			go w.send(message{kind: kindLook})
		}
	case i.looked && queue.looks != i.looks[0] && net.looks != i.looks[1]:
		if i.stay != nil && i.stay() {
			i.since, i.looked = now, false
			return
		}
		i.end()
	}
}
