package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"dma/internal/door"
	"dma/internal/fsid"
	"dma/internal/maillog"
	"dma/spooldir"
)

// drainPoll is the time between two looks at whether a drain is done.
const drainPoll = 5 * time.Millisecond

// runDrain delivers what is due, its own bounces included, and ends.
func runDrain(c *call) error {
	if err := c.noArguments("drain"); err != nil {
		return err
	}
	if ids, err := separated(c.config.SpoolDir); err != nil {
		return err
	} else if ids != nil {
		return c.drainSeparated(ids)
	}
	s, err := c.open()
	if err != nil {
		return err
	}
	ctx, cancel := stopped()
	defer cancel()
	return c.drain(ctx, s)
}

// The times of waiting for the lock of another drain, or of a service that may
// be about to end.
const (
	lockPoll      = 20 * time.Millisecond
	serviceEnding = time.Second
)

// drain waits for another drain that holds the spool, works, and looks once
// more after it has let go: a submitter that saw the lock held starts no drain
// of its own. A service that keeps holding the spool does the work itself.
func (c *call) drain(ctx context.Context, s *spooldir.Spool) error {
	log := logTo(c.stdio.Err)
	stuck := make(map[string]bool) // ids that a whole run has left in new
	begun := time.Now()
	for {
		release, err := locks(s, "drain")
		if errors.Is(err, spooldir.ErrLocked) {
			holder, err := s.Holder(spooldir.QueueRole)
			if err != nil {
				return err
			}
			if holder == "service" && time.Since(begun) >= serviceEnding {
				return nil
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(lockPoll):
			}
			continue
		}
		if err != nil {
			return err
		}
		err = c.drainOnce(ctx, s, log)
		release()
		if err != nil || ctx.Err() != nil {
			return err
		}
		left, err := committed(s)
		if err != nil {
			return err
		}
		// What trouble of the machine keeps in new waits for the next drain.
		fresh := false
		for id := range left {
			fresh = fresh || !stuck[id]
		}
		if !fresh {
			return nil
		}
		stuck = left
	}
}

// drainOnce works until there is nothing to do now.
func (c *call) drainOnce(ctx context.Context, s *spooldir.Spool, log *maillog.Log) error {
	v, err := assemble(c.config, s, log)
	if err != nil {
		return err
	}
	log.Started("drain", os.Getpid(), s.Path())
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- v.run(ctx) }()
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	looked := false
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
		}
		if !v.idle() {
			continue
		}
		if looked {
			cancel()
			err := <-done
			log.Stopped("drain", os.Getpid(), "nothing more is due")
			return err
		}
		// Events may be late or lost: one look at everything decides.
		looked = true
		v.queue.Rescan()
		v.watcher.Bell(spooldir.Remote).RingAll()
	}
}

// committed returns the ids of the messages that stand committed in new.
func committed(s *spooldir.Spool) (map[string]bool, error) {
	found := make(map[string]bool)
	var trouble error
	err := s.Scan(spooldir.New, func(n spooldir.Name) bool {
		if found[n.ID] {
			return true
		}
		m, err := s.Open(spooldir.New, n)
		if err == nil {
			m.Close()
			found[n.ID] = true
		} else if !errors.Is(err, spooldir.ErrGone) && !errors.Is(err, spooldir.ErrUncommitted) {
			trouble = err
		}
		return true
	}, nil)
	return found, errors.Join(err, trouble)
}

// runFlush asks for an attempt at everything that waits. A service makes it;
// without one this process does. Who may not do that asks the service over its
// socket.
func runFlush(c *call) error {
	if err := c.noArguments("flush"); err != nil {
		return err
	}
	if ids, err := separated(c.config.SpoolDir); err != nil {
		return err
	} else if ids != nil {
		// As the queue process could: root has not always a right of its own to.
		s, err := c.look()
		if err == nil {
			err = fsid.As(ids.QueueUID, ids.QueueGID, s.RequestFlush)
		}
		if err != nil {
			return fmt.Errorf("flush: %w", err)
		}
		return c.drainSeparated(ids)
	}
	s, err := c.open()
	if err != nil {
		return c.byDoor(err, door.Client.Flush)
	}
	if err := s.RequestFlush(); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	ctx, cancel := stopped()
	defer cancel()
	return c.drain(ctx, s)
}
