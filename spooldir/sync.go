package spooldir

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// Syncer makes outcomes durable in groups: within Wait of the first one, or
// when Most of them have come together. Until then a power cut can undo an
// outcome, which repeats a delivery and loses none.
type Syncer struct {
	spool *Spool
	from  State // the directory that names leave, where those that they reach cannot be opened
	wait  time.Duration
	most  int
	after func(time.Duration, func()) // starts a timer; a test's clock may be here
	fail  func(error)                 // told of a failed sync, which is never repeated

	mu      sync.Mutex
	waiting map[State][]Name
	count   int
	armed   bool
	syncing sync.Mutex
}

// The bounds of a group of outcomes.
const (
	SyncWait = 50 * time.Millisecond
	SyncMost = 64
)

// NewSyncer makes a Syncer with the bounds SyncWait and SyncMost. fail is
// called, from any goroutine, when a sync fails.
func (s *Spool) NewSyncer(fail func(error)) *Syncer {
	return &Syncer{
		spool: s, wait: SyncWait, most: SyncMost, fail: fail,
		after:   func(d time.Duration, f func()) { time.AfterFunc(d, f) },
		waiting: make(map[State][]Name),
	}
}

// NewSyncerFrom is NewSyncer for a process that moves names out of one state
// only and may not open the directories that they go to: the net process of a
// shared spool. A file system that is Ordered makes a rename durable as a whole,
// so that a sync of the directory which the names have left is as good.
// Elsewhere the files are synced, which then have to be readable, and that
// directory.
func (s *Spool) NewSyncerFrom(state State, fail func(error)) *Syncer {
	y := s.NewSyncer(fail)
	y.from = state
	return y
}

// Note says that a name has reached a state that has to become durable.
func (y *Syncer) Note(name Name, state State) {
	y.mu.Lock()
	y.waiting[state] = append(y.waiting[state], name)
	y.count++
	now := y.count >= y.most
	arm := !now && !y.armed
	if arm {
		y.armed = true
	}
	y.mu.Unlock()
	if arm {
		y.after(y.wait, func() {
			y.mu.Lock()
			y.armed = false
			y.mu.Unlock()
			y.flush()
		})
	}
	if now {
		y.flush()
	}
}

// Flush makes all that was noted durable and returns then.
func (y *Syncer) Flush() error { return y.flush() }

func (y *Syncer) flush() error {
	y.syncing.Lock() // one group at a time: the next gathers meanwhile
	defer y.syncing.Unlock()
	y.mu.Lock()
	batch := y.waiting
	y.waiting = make(map[State][]Name)
	y.count = 0
	y.mu.Unlock()
	var errs []error
	for state, names := range batch {
		if err := y.spool.syncFiles(state, names); err != nil {
			errs = append(errs, err)
		} else if y.from == "" {
			errs = append(errs, y.spool.syncState(state))
		}
	}
	if y.from != "" && len(batch) > 0 {
		errs = append(errs, y.spool.syncState(y.from))
	}
	err := errors.Join(errs...)
	if err != nil && y.fail != nil {
		y.fail(err)
	}
	return err
}

// Sync makes it durable that names stand in a state, or have left it: by a
// sync of the directory where the file system is Ordered, of each file and the
// directory elsewhere.
func (s *Spool) Sync(state State, names ...Name) error {
	if err := s.syncFiles(state, names); err != nil {
		return err
	}
	return s.syncState(state)
}

// syncFiles syncs the files of names where that of their directory is not
// enough.
func (s *Spool) syncFiles(state State, names []Name) error {
	if s.FileSystem().Ordered {
		return nil
	}
	for _, name := range names {
		f, err := openRegular(s.file(state, name.file))
		var corrupt *CorruptError
		if errors.Is(err, ErrGone) || errors.As(err, &corrupt) {
			continue
		}
		if err != nil {
			return fmt.Errorf("sync: %w", err)
		}
		err = f.Sync()
		f.Close()
		if err != nil {
			return fmt.Errorf("sync: %w", err)
		}
	}
	return nil
}

// syncState syncs the directory of a state.
func (s *Spool) syncState(state State) error {
	if err := syncDir(s.dir(state)); err != nil {
		return fmt.Errorf("sync: %w", &os.PathError{Op: "fsync", Path: s.dir(state), Err: err})
	}
	return nil
}
