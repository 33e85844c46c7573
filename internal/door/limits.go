package door

import (
	"sync"
	"time"
)

// The bounds of what is going on at a time. Root has a share that nobody else
// can take.
const (
	maxConns     = 64       // connections of all users but root
	maxUserConns = 8        // connections of one user
	maxRootConns = 16       // connections of root
	maxHeld      = 64 << 20 // octets of envelopes in memory, of all users but root
	maxUserHeld  = 16 << 20 // octets of envelopes of one user
)

// limits counts who is here.
type limits struct {
	mu    sync.Mutex
	total use // of all but root
	users map[int]*use
	rests map[int]time.Time // until when a user, who was there just now, may not list
}

// errFull says that all places are taken.
var errFull = refuse(Busy, "%d connections are open already", maxConns)

// use is what a user takes.
type use struct {
	conns   int
	held    int
	listing bool
}

// enter takes a place for a connection, leave gives it back with all that hold
// has taken meanwhile.
func (l *limits) enter(uid int) *Refusal {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.user(uid)
	defer l.forget(uid)
	switch {
	case uid == 0 && u.conns >= maxRootConns, uid != 0 && u.conns >= maxUserConns:
		return refuse(Busy, "uid %d has %d connections here already", uid, u.conns)
	case uid != 0 && l.total.conns >= maxConns:
		return errFull
	}
	u.conns++
	if uid != 0 {
		l.total.conns++
	}
	return nil
}

func (l *limits) leave(uid, held int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.user(uid)
	u.conns--
	u.held -= held
	if uid != 0 {
		l.total.conns--
		l.total.held -= held
	}
	l.forget(uid)
}

// hold takes room in memory for an envelope.
func (l *limits) hold(uid, octets int) *Refusal {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.user(uid)
	if u.held+octets > maxUserHeld || uid != 0 && l.total.held+octets > maxHeld {
		return refuse(Busy, "too many recipients at once")
	}
	u.held += octets
	if uid != 0 {
		l.total.held += octets
	}
	return nil
}

// listRest is how many times as long as a listing took a user has to wait for the
// next one, and longestRest the bound of that: to list is to read everybody's
// messages. A client that is told to come again has more patience.
const (
	listRest    = 4
	longestRest = busyTime / 2
)

// list takes a user's turn to list the queue, unlist gives it back.
func (l *limits) list(uid int, now time.Time) *Refusal {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.user(uid)
	if u.listing {
		return refuse(Busy, "uid %d is listing the queue already", uid)
	}
	if now.Before(l.rests[uid]) {
		return refuse(Busy, "uid %d has listed the queue just now", uid)
	}
	u.listing = true
	return nil
}

// unlist says how long the reading took, or nothing for who may list as often as he
// likes.
func (l *limits) unlist(uid int, now time.Time, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.user(uid).listing = false
	for other, until := range l.rests {
		if !now.Before(until) {
			delete(l.rests, other)
		}
	}
	if took > 0 {
		if l.rests == nil {
			l.rests = make(map[int]time.Time)
		}
		l.rests[uid] = now.Add(min(listRest*took, longestRest))
	}
}

// idle reports whether nobody is here.
func (l *limits) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.users) == 0
}

// forget drops a user who has no connection. The caller holds the lock.
func (l *limits) forget(uid int) {
	if u := l.users[uid]; u != nil && u.conns == 0 {
		delete(l.users, uid)
	}
}

// user returns what a user takes. The caller holds the lock.
func (l *limits) user(uid int) *use {
	u := l.users[uid]
	if u == nil {
		if l.users == nil {
			l.users = make(map[int]*use)
		}
		u = &use{}
		l.users[uid] = u
	}
	return u
}

// flushEvery is the least time between two runs of the queue that users ask for:
// each tries every destination.
const flushEvery = time.Minute

// flusher makes one run of the queue out of many requests.
type flusher struct {
	do func() error // says what goes wrong, too

	mu    sync.Mutex
	last  time.Time
	later *time.Timer // a run that has been promised
}

// now runs the queue at once, for who may have that as often as he likes.
func (f *flusher) now() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = time.Now()
	return f.do()
}

// soon runs the queue at once, or when flushEvery has passed since the last run;
// until then further requests are that same one.
func (f *flusher) soon() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.later != nil {
		return nil
	}
	now := time.Now()
	rest := flushEvery - now.Sub(f.last)
	if f.last.IsZero() || rest <= 0 {
		f.last = now
		return f.do()
	}
	f.later = time.AfterFunc(rest, func() { _ = f.promised() })
	return nil
}

// promised makes the run that has been promised, if there is one.
func (f *flusher) promised() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.later == nil {
		return nil
	}
	f.later.Stop()
	f.later = nil
	f.last = time.Now()
	return f.do()
}
