package smarthost

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// errStopped is the class of errors of waits that a cancelled context ended.
var errStopped = errors.New("stopped")

// errSilent is the class of errors of waits that were too long.
var errSilent = errors.New("no answer")

// wire is one connection. Every read and every write has a deadline, and a
// context can end them all.
//
// One goroutine reads; another may write at the same time, so that two peers
// which both write first do not wait for each other forever.
type wire struct {
	nc net.Conn
	br *bufio.Reader
	t  *Timeouts

	mu        sync.Mutex
	stopped   bool // the context is done
	committed bool // the final dot is on its way: the reply counts
}

func newWire(nc net.Conn, t *Timeouts) *wire {
	return &wire{nc: nc, br: bufio.NewReaderSize(nc, maxReplyLine), t: t}
}

// replace puts the layers of a connection that are now in use in its place.
func (w *wire) replace(nc net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nc = nc
	w.br.Reset(nc)
}

// goodbye ends TLS as RFC 8446 section 6.1 has it, when the peer has nothing more
// to say.
func (w *wire) goodbye() {
	if c, ok := w.nc.(*tlsConn); ok {
		_ = c.CloseWrite()
	}
}

// watch lets ctx end all reads and writes, until the returned function is called.
func (w *wire) watch(ctx context.Context) (unwatch func()) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.stopped = true
		if w.committed {
			_ = w.nc.SetDeadline(time.Now().Add(w.t.Grace))
		} else {
			_ = w.nc.SetDeadline(time.Unix(1, 0))
		}
	})
	return func() {
		if !stop() {
			<-done
		}
	}
}

// readIn and writeIn bound the reads or writes that follow, or that wait. A
// deadline that cannot be set means a connection that is closed, which the read
// or write will say.
func (w *wire) readIn(d time.Duration)  { w.within(w.nc.SetReadDeadline, d) }
func (w *wire) writeIn(d time.Duration) { w.within(w.nc.SetWriteDeadline, d) }

func (w *wire) within(set func(time.Time) error, d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.stopped {
		_ = set(time.Now().Add(d))
	}
}

// commit marks that the final dot goes out now, or says that it must not.
func (w *wire) commit() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return errStopped
	}
	w.committed = true
	return nil
}

// uncommit marks that the reply to the final dot has come.
func (w *wire) uncommit() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.committed = false
}

func (w *wire) isCommitted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.committed
}

func (w *wire) isStopped() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stopped
}

// reply reads one reply, which has to be complete within d.
func (w *wire) reply(d time.Duration) (reply, error) {
	w.readIn(d)
	r, err := readReply(w.br)
	return r, w.explain(err, d)
}

// write writes b, which has to be accepted by the system within d.
func (w *wire) write(b []byte, d time.Duration) error {
	w.writeIn(d)
	_, err := w.nc.Write(b)
	return w.explain(err, d)
}

// explain puts an error of the connection into plain words. What a *net.OpError
// says about addresses stands in the outcome already.
func (w *wire) explain(err error, d time.Duration) error {
	var op *net.OpError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errReply):
		return err
	case w.isStopped():
		return errStopped
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w within %v", errSilent, d)
	case errors.Is(err, io.EOF):
		return errors.New("the connection was closed")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the connection was closed in the middle of a reply")
	case errors.As(err, &op):
		return fmt.Errorf("the connection was lost: %w", op.Err)
	}
	return fmt.Errorf("the connection was lost: %w", err)
}

// delivery is how the writing of a message ended.
type delivery struct {
	err     error
	written bool // all of it, with the final dot

	fault any // what it panicked with: a matter of this message, not of the program
}

// check goes on with a panic, where the transaction is that it belongs to.
func (d *delivery) check() {
	if d.fault != nil {
		panic(d.fault)
	}
}

// send writes a message in a goroutine of its own. The read deadline is put off
// while it does, and set when it ends: the caller waits for the reply meanwhile,
// which can come early.
func (w *wire) send(m *Message) <-chan delivery {
	done := make(chan delivery, 1)
	w.mu.Lock()
	if !w.stopped {
		_ = w.nc.SetReadDeadline(time.Time{})
	}
	w.mu.Unlock()
	go func() {
		var d delivery
		defer func() {
			if d.fault = recover(); d.fault != nil {
				w.readIn(0)
			}
			done <- d
		}()
		d.err = writeContent(m, func(block []byte, last bool) error {
			if last {
				if err := w.commit(); err != nil {
					return err
				}
			}
			err := w.write(block, w.t.Block)
			d.written = last && err == nil
			return err
		})
		switch {
		case d.err == nil:
			w.readIn(w.t.Dot)
		case errors.Is(d.err, errContent):
			w.readIn(0)
		default:
			// The peer may have said why before it stopped taking more.
			w.readIn(w.t.Grace)
		}
	}()
	return done
}
