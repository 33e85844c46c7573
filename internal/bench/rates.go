package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"dma/internal/smtptest"
)

// parallel is how many submitters work at a time.
const parallel = 8

// each calls f(0) to f(n-1), parallel ones at a time, and returns how long it
// took.
func each(n int, f func(i int) error) (time.Duration, error) {
	var group sync.WaitGroup
	var next atomic.Int64
	var failed atomic.Pointer[error]
	start := time.Now()
	for range parallel {
		group.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n || failed.Load() != nil {
					return
				}
				if err := f(i); err != nil {
					failed.Store(&err)
					return
				}
			}
		})
	}
	group.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return time.Since(start), nil
}

func rate(n int, d time.Duration) float64 { return float64(n) / d.Seconds() }

// submission measures submissions, a process each, beside the bare calls.
func (s *site) submission(ctx context.Context, n int) error {
	took, err := each(n, func(int) error { return s.submit(ctx, "alice").Run() })
	if err != nil {
		return err
	}
	none, err := each(n, func(int) error { return s.command(ctx, "dma", "-bi").Run() })
	if err != nil {
		return err
	}
	bare, err := s.bareSubmission(n)
	if err != nil {
		return err
	}
	fmt.Printf("  submission, %d parallel: %.0f messages/s; bare calls without a process %.0f/s; two bare program starts (-bi) %.0f/s; %.2f of these\n",
		parallel, rate(n, took), rate(n, bare), rate(n, none), rate(n, took)/rate(n, none))
	return s.empty()
}

// bareSubmission makes the same system calls without any of the program.
func (s *site) bareSubmission(n int) (time.Duration, error) {
	dir := s.path("bare")
	for _, d := range []string{dir, filepath.Join(dir, "tmp"), filepath.Join(dir, "new")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return 0, err
		}
	}
	defer os.RemoveAll(dir)
	return each(n, func(i int) error {
		tmp, name := filepath.Join(dir, "tmp", fmt.Sprint(i)), filepath.Join(dir, "new", fmt.Sprint(i))
		f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Write(s.msg); err != nil {
			return err
		}
		if err := os.Link(tmp, name); err != nil {
			return err
		}
		if err := os.Remove(tmp); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		if err := os.Chmod(name, 0o640); err != nil {
			return err
		}
		return f.Sync()
	})
}

// draining measures how long a drain takes for a full queue.
func (s *site) draining(ctx context.Context, kind string, n int) error {
	mailbox, recipient, host := "mbox:"+s.path("mail")+"/%u", "alice", ""
	var sink *smtptest.Sink
	switch kind {
	case "maildir":
		mailbox = "maildir:" + s.path("mail") + "/%u.d"
	case "smarthost":
		recipient = "friend@example.org"
		sink = smtptest.NewSink(smtptest.SinkOptions{Dir: s.path("sink")})
		if err := os.Mkdir(s.path("sink"), 0o700); err != nil {
			return err
		}
		addr, err := sink.Listen("127.0.0.1:0")
		if err != nil {
			return err
		}
		defer sink.Close()
		host = addr.String()
	}
	if err := s.configure(mailbox, host); err != nil {
		return err
	}
	if err := s.fill(n, recipient); err != nil {
		return err
	}
	start := time.Now()
	if err := s.drain(ctx); err != nil {
		return err
	}
	took := time.Since(start)
	bare, err := s.bareDelivery(n)
	if err != nil {
		return err
	}
	fmt.Printf("  draining %d messages to %-9s: %.0f messages/s; bare write and sync of as many files %.0f/s; %.2f of it",
		n, kind, rate(n, took), rate(n, bare), rate(n, took)/rate(n, bare))
	if sink != nil {
		c := sink.Counts()
		fmt.Printf("; %d connections", c.Connections)
		if c.Transactions != n {
			return fmt.Errorf("the sink took %d messages of %d", c.Transactions, n)
		}
	}
	fmt.Println()
	return nil
}

// bareDelivery writes and syncs n files, one after the other.
func (s *site) bareDelivery(n int) (time.Duration, error) {
	dir := s.path("bare")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	start := time.Now()
	for i := range n {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			return 0, err
		}
		if _, err := f.Write(s.msg); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		f.Close()
	}
	return time.Since(start), nil
}
