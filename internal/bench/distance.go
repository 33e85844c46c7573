package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"dma/internal/smtptest"
	"dma/spooldir"
)

// distant is a listener in front of another server, as far from it as a round
// trip of the given time.
type distant struct {
	net.Listener
	to     string
	oneWay time.Duration
}

func newDistant(to string, roundTrip time.Duration) (*distant, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	d := &distant{Listener: l, to: to, oneWay: roundTrip / 2}
	go d.serve()
	return d, nil
}

func (d *distant) serve() {
	for {
		near, err := d.Accept()
		if err != nil {
			return
		}
		go func() {
			time.Sleep(2 * d.oneWay) // the handshake of TCP
			far, err := net.Dial("tcp", d.to)
			if err != nil {
				near.Close()
				return
			}
			go d.carry(near, far)
			d.carry(far, near)
		}()
	}
}

// carry takes what comes from one side to the other, each piece later by the way.
func (d *distant) carry(from, to net.Conn) {
	type piece struct {
		data []byte
		due  time.Time
	}
	pieces := make(chan piece, 4096)
	go func() {
		defer close(pieces)
		for {
			buf := make([]byte, 64*1024)
			n, err := from.Read(buf)
			if n > 0 {
				pieces <- piece{buf[:n], time.Now().Add(d.oneWay)}
			}
			if err != nil {
				pieces <- piece{nil, time.Now().Add(d.oneWay)}
				return
			}
		}
	}()
	defer to.Close()
	for p := range pieces {
		time.Sleep(time.Until(p.due))
		if _, err := to.Write(p.data); err != nil || p.data == nil {
			from.Close()
			go func() { // the reader may be at its channel
				for range pieces {
				}
			}()
			return
		}
	}
}

// farAway measures one message to 500 recipients over 40 ms.
func (s *site) farAway(ctx context.Context) error {
	sink := smtptest.NewSink(smtptest.SinkOptions{})
	addr, err := sink.Listen("127.0.0.1:0")
	if err != nil {
		return err
	}
	defer sink.Close()
	far, err := newDistant(addr.String(), 40*time.Millisecond)
	if err != nil {
		return err
	}
	defer far.Close()
	if err := s.configure("mbox:"+s.path("mail")+"/%u", far.Addr().String()); err != nil {
		return err
	}
	var to []string
	for i := range 500 {
		to = append(to, fmt.Sprintf("user%d@example.org", i))
	}
	if out, err := s.submit(ctx, to...).CombinedOutput(); err != nil {
		return fmt.Errorf("submit: %w: %s", err, out)
	}
	took, err := s.between(ctx, spooldir.Remote, spooldir.Sent, len(to), func() error { return s.drain(ctx) })
	if err != nil {
		return err
	}
	c := sink.Counts()
	fmt.Printf("  500 recipients at a round trip of 40 ms: %v from the first in remote/ to the last in sent/; %d transactions, %d connections, %d recipients\n",
		took.Round(time.Millisecond), c.Transactions, c.Connections, c.Recipients)
	return nil
}

// between runs f and returns the time from the first name that comes into a state
// to the n-th that comes into another.
func (s *site) between(ctx context.Context, first, last spooldir.State, n int, f func() error) (time.Duration, error) {
	w, err := fsnotify.NewBufferedWatcher(uint(16 * n))
	if err != nil {
		return 0, err
	}
	defer w.Close()
	for _, state := range []spooldir.State{first, last} {
		if err := w.Add(filepath.Join(s.path("spool"), string(state))); err != nil {
			return 0, err
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- f() }()
	var began time.Time
	stop := time.NewTimer(time.Minute)
	defer stop.Stop()
	for {
		select {
		case e := <-w.Events:
			if !e.Has(fsnotify.Create) {
				continue
			}
			switch spooldir.State(filepath.Base(filepath.Dir(e.Name))) {
			case first:
				if began.IsZero() {
					began = time.Now()
				}
			case last:
				if n--; n == 0 {
					took := time.Since(began)
					return took, <-ended
				}
			}
		case err := <-w.Errors:
			return 0, err
		case <-stop.C:
			return 0, errors.New("not all of them came there within a minute")
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// connections counts those for many messages.
func (s *site) connections(ctx context.Context) error {
	const n = 2000
	sink := smtptest.NewSink(smtptest.SinkOptions{Data: func(t *smtptest.Transaction) error { t.Content = nil; return nil }})
	addr, err := sink.Listen("127.0.0.1:0")
	if err != nil {
		return err
	}
	defer sink.Close()
	if err := s.configure("mbox:"+s.path("mail")+"/%u", addr.String()); err != nil {
		return err
	}
	if err := s.fill(n, "friend@example.org"); err != nil {
		return err
	}
	if err := s.drain(ctx); err != nil {
		return err
	}
	c := sink.Counts()
	if c.Transactions != n {
		return fmt.Errorf("the sink took %d messages of %d", c.Transactions, n)
	}
	fmt.Printf("  %d messages to a smarthost: %d connections, %d at a time, %d EHLO\n", n, c.Connections, c.MaxOpen, c.Hellos)
	return nil
}

// port is where it listens.
func (d *distant) port() int { return d.Addr().(*net.TCPAddr).Port }
