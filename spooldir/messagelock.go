package spooldir

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ErrBusy says that another process holds the lock of a message. One of dma's own
// does so for a moment; but whoever may open the file, or had it open before it was
// committed, can do so for ever. So nobody waits for it with something in hand: who
// meets it looks again later.
var ErrBusy = errors.New("another process holds the lock of the message")

// inode identifies a file.
type inode struct{ dev, ino uint64 }

// turn is held by whoever in this process has the lock of a message. It spares
// those who wait their polling, and tells our own work, which ends, from that of
// another process, which need not.
type turn struct {
	users int           // who holds it or waits for it; under Spool.mu
	held  chan struct{} // holds a value while somebody does
}

// takeTurn waits until nobody else in this process has the lock of a message.
func (s *Spool) takeTurn(ctx context.Context, of inode) error {
	s.mu.Lock()
	t := s.turns[of]
	if t == nil {
		t = &turn{held: make(chan struct{}, 1)}
		s.turns[of] = t
	}
	t.users++
	s.mu.Unlock()
	select {
	case t.held <- struct{}{}:
		return nil
	case <-ctx.Done():
		s.leaveTurn(of, t)
		return ctx.Err()
	}
}

// endTurn ends what takeTurn began.
func (s *Spool) endTurn(of inode) {
	s.mu.Lock()
	t := s.turns[of]
	s.mu.Unlock()
	<-t.held
	s.leaveTurn(of, t)
}

func (s *Spool) leaveTurn(of inode, t *turn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.users--; t.users == 0 {
		delete(s.turns, of)
	}
}

// lock takes the lock of the message that f is.
func (s *Spool) lock(ctx context.Context, f *os.File, of inode) error {
	if err := s.takeTurn(ctx, of); err != nil {
		return err
	}
	err := ignoringEINTR(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	if err == nil {
		return nil
	}
	s.endTurn(of)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrBusy
	}
	return &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
}

// unlock gives the lock back. To close the file would not be enough: a child of
// this process that has not come to its exec yet has it open, too.
func (s *Spool) unlock(f *os.File, of inode) error {
	defer s.endTurn(of)
	return ignoringEINTR(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_UN) })
}
