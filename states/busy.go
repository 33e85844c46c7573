package states

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"dma/spooldir"
)

// A message whose lock another process holds rests for as long as it has been
// found so, from busyPause to troublePause: it keeps no place that others need,
// and goes on soon after the lock has gone.
const (
	busyPause = 5 * time.Millisecond

	// busyBriefly is how long the other one is taken for one of dma's own, which
	// lets go at once: so long the message counts as work.
	busyBriefly = time.Second

	// busyLong is when it is said that the message waits.
	busyLong = time.Minute
)

// busy is since when a message has been found locked, without an end.
type busy struct {
	since time.Time // zero: it is not
	err   error     // of the last look
	told  bool
}

// foundBusy notes that a message in hand is locked, and returns when to look again.
func (l *Loop) foundBusy(it *item, name spooldir.Name, err error) time.Time {
	now := l.Clock.Now()
	l.mu.Lock()
	if it.busy.since.IsZero() {
		it.busy.since = now
		l.busy[it] = true
	}
	it.busy.err = err
	past := now.Sub(it.busy.since)
	tell := past >= busyLong && !it.busy.told
	it.busy.told = it.busy.told || tell
	l.mu.Unlock()
	if tell {
		l.tellBusy(name, past, err)
	}
	return now.Add(min(max(past, busyPause), troublePause))
}

// notBusy notes that a message was handled.
func (l *Loop) notBusy(it *item) {
	it.busy = busy{}
	delete(l.busy, it)
}

func (l *Loop) tellBusy(name spooldir.Name, past time.Duration, err error) {
	if l.Trouble == nil {
		return
	}
	file := "FILE"
	var at *fs.PathError
	if errors.As(err, &at) {
		file = at.Path
	}
	l.Trouble(l.State, name, fmt.Errorf("%w, for %v now, and nothing is done about it until that ends; as root, \"fuser %s\" names the process; to end that harms no mail", err, past.Truncate(time.Second), file))
}

// leaveBusy says which messages Run leaves because they are locked.
func (l *Loop) leaveBusy() {
	now := l.Clock.Now()
	for it := range l.busy {
		if past := now.Sub(it.busy.since); past >= busyBriefly && !it.busy.told {
			l.tellBusy(it.name, past, it.busy.err)
		}
	}
}

// isBusyBriefly reports whether a message has been found locked since a moment.
func (l *Loop) isBusyBriefly() bool {
	if len(l.busy) == 0 {
		return false
	}
	now := l.Clock.Now()
	for it := range l.busy {
		if now.Sub(it.busy.since) < busyBriefly {
			return true
		}
	}
	return false
}
