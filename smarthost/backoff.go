package smarthost

import (
	"sync"
	"time"
)

// backoff keeps a destination that cannot be reached from being asked again and
// again. Its zero value lets everything pass.
type backoff struct {
	mu       sync.Mutex
	up       bool      // the last connection succeeded
	failures int       // since the last success
	until    time.Time // nothing is tried before
	reason   Outcome   // of the last failure
}

// resting returns the outcome for a message that is not tried, as the last
// failure was, if the destination is to be left alone at now.
func (b *backoff) resting(now time.Time) (Outcome, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !now.Before(b.until) {
		return Outcome{}, false
	}
	o := b.reason
	o.Refused, o.Uncertain = true, false
	return o, true
}

// failed notes a failure. Several at the same time, from connections in
// parallel, count as one.
func (b *backoff) failed(o Outcome, now time.Time, least, most time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.up = false
	b.reason = o
	if now.Before(b.until) {
		return
	}
	wait := least
	for i := 0; i < b.failures && wait < most; i++ {
		wait *= 2
	}
	b.failures++
	b.until = now.Add(min(wait, most))
}

// connected notes that a peer said hello, answered that it answered MAIL too.
func (b *backoff) connected() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.up = true
}

func (b *backoff) answered() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.up, b.failures, b.until = true, 0, time.Time{}
}

func (b *backoff) isUp() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.up
}

// reset forgets the failures, so that the next message is tried.
func (b *backoff) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures, b.until = 0, time.Time{}
}
