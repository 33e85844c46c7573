package localwriter

import (
	"context"
	"math/rand/v2"
	"os"
	"time"
)

// A Session is an open mailbox. It is used by one goroutine at a time.
type Session interface {
	// Mend removes what stands of a Suspect message at the end of the mailbox if
	// the message was cut off there. It is called for all Suspect messages of a
	// batch before one is appended: what stands behind a part keeps it there.
	Mend(ctx context.Context, m Message) error

	// Append puts one message behind those already there. It reports already
	// when a Suspect message was found whole. Either way the message counts as
	// delivered only when the next Commit returns nil. After an error nothing
	// of this message stands in the mailbox, as far as that can be had; the
	// messages before it are not touched. Where it cannot be had, or is not
	// known, the error is Unfinished and nothing more is appended.
	Append(ctx context.Context, m Message) (already bool, err error)

	// Commit makes everything durable that was appended since the last Commit.
	// After an error none of it counts as delivered; it is taken back where that
	// can be done, and is Suspect at the next attempt.
	Commit() error

	// Close takes back what was not committed and gives back the locks.
	Close() error
}

// system is what tests put something else in place of.
type system struct {
	now   func() time.Time
	sleep func(ctx context.Context, d time.Duration) error
	write func(f *os.File, b []byte) (int, error)
	sync  func(f *os.File) error
}

func realSystem() *system {
	return &system{
		now:   time.Now,
		sleep: sleep,
		write: (*os.File).Write,
		sync:  (*os.File).Sync,
	}
}

// syncing returns a copy of s that syncs by sync.
func (s system) syncing(sync func(*os.File) error) *system {
	s.sync = sync
	return &s
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// backoff is the pause before attempt n (from 0) at a lock: short at first,
// half a second at most, and never the same for two who wait together.
func backoff(n int) time.Duration {
	d := 5 * time.Millisecond << min(n, 7)
	d = min(d, 500*time.Millisecond)
	return d/2 + rand.N(d/2)
}
