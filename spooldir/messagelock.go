package spooldir

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrBusy says that another process holds the lock of a message. One of dma's own
// does so for a moment; but whoever may open the file, or had it open before it was
// committed, can do so for ever. So nobody waits for it with something in hand: who
// meets it looks again later.
var ErrBusy = errors.New("another process holds the lock of the message")

// inode identifies a file.
type inode struct{ dev, ino uint64 }

// lock takes the lock of the message that f is. It waits for others in this
// process: their work ends. They are asked for again and again, and not in turn: a
// worker that looks at all names of a message would come between each two that move
// one.
func (s *Spool) lock(ctx context.Context, f *os.File, of inode) error {
	for wait := time.Millisecond; !s.own(of); wait = min(2*wait, 5*time.Millisecond) {
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
	}
	err := ignoringEINTR(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	if err == nil {
		return nil
	}
	s.disown(of)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrBusy
	}
	return &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
}

// own makes this caller the one in this process that may have the lock of a
// message, and reports whether nobody was.
func (s *Spool) own(of inode) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.locks[of] {
		return false
	}
	s.locks[of] = true
	return true
}

func (s *Spool) disown(of inode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.locks, of)
}

// unlock gives the lock back. To close the file would not be enough: a child of
// this process that has not come to its exec yet has it open, too.
func (s *Spool) unlock(f *os.File, of inode) error {
	defer s.disown(of)
	return ignoringEINTR(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_UN) })
}
