package runner

import (
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// oneConn is a listener with a single connection; it ends when that is closed.
type oneConn struct {
	conn  *stdioConn
	given bool
}

func (l *oneConn) Accept() (net.Conn, error) {
	if !l.given {
		l.given = true
		return l.conn, nil
	}
	<-l.conn.done
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return stdioAddr{} }

// stdioConn is standard input and output as a connection. They may be anything,
// a terminal or a pipe that blocks, and have no deadlines of their own; so others
// read and write them, and a Read or a Write that has waited long enough ends
// without what it has waited for. Nothing follows that: what the other side says
// later would be taken for something else.
type stdioConn struct {
	out  io.Writer
	got  chan chunk
	done chan struct{} // closed by Close

	rest  []byte // of the last chunk
	err   error  // that the last chunk had, or that is for ever
	ended atomic.Bool
	mute  bool // a Write has failed

	mu      sync.Mutex
	closed  bool
	read    time.Time // the deadline for a command
	write   time.Time
	message time.Time // the deadline for a message while one is read; then each Read has smtpIdle
}

// chunk is what one read of the input gave.
type chunk struct {
	data []byte
	err  error
}

func newStdioConn(in io.Reader, out io.Writer) *stdioConn {
	c := &stdioConn{out: out, got: make(chan chunk), done: make(chan struct{})}
	go func() {
		for {
			buf := make([]byte, 32<<10)
			n, err := in.Read(buf)
			select {
			case c.got <- chunk{buf[:n], err}:
			case <-c.done:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return c
}

// within and without stand around the reading of a message.
func (c *stdioConn) within(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.message = time.Now().Add(d)
}

func (c *stdioConn) without() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.message = time.Time{}
}

// deadline is when a Read that begins now has to end.
func (c *stdioConn) deadline() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.message.IsZero() {
		return c.read
	}
	if t := time.Now().Add(smtpIdle); t.Before(c.message) {
		return t
	}
	return c.message
}

func (c *stdioConn) Read(p []byte) (int, error) {
	if len(c.rest) == 0 && c.err == nil {
		timer, stop := until(c.deadline())
		defer stop()
		select {
		case got := <-c.got:
			c.rest, c.err = got.data, got.err
		case <-timer:
			c.err = os.ErrDeadlineExceeded
		case <-c.done:
			c.err = net.ErrClosed
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	if n > 0 || c.err == nil {
		return n, nil
	}
	c.ended.Store(true)
	return 0, c.err
}

func (c *stdioConn) Write(p []byte) (int, error) {
	if c.mute {
		return 0, os.ErrDeadlineExceeded
	}
	c.mu.Lock()
	timer, stop := until(c.write)
	c.mu.Unlock()
	defer stop()
	type result struct {
		n   int
		err error
	}
	wrote := make(chan result, 1)
	data := append([]byte(nil), p...) // p is the caller's again if nobody reads
	go func() {
		n, err := c.out.Write(data)
		wrote <- result{n, err}
	}()
	select {
	case r := <-wrote:
		c.mute = r.err != nil
		return r.n, r.err
	case <-timer:
		c.mute = true
		return 0, os.ErrDeadlineExceeded
	}
}

// until returns a channel that speaks at t, and never if t is zero.
func until(t time.Time) (<-chan time.Time, func()) {
	if t.IsZero() {
		return nil, func() {}
	}
	timer := time.NewTimer(time.Until(t))
	return timer.C, func() { timer.Stop() }
}

func (c *stdioConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.closed = true
		close(c.done)
	}
	return nil
}

func (c *stdioConn) LocalAddr() net.Addr  { return stdioAddr{} }
func (c *stdioConn) RemoteAddr() net.Addr { return stdioAddr{} }

func (c *stdioConn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *stdioConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read = t
	return nil
}

func (c *stdioConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.write = t
	return nil
}

type stdioAddr struct{}

func (stdioAddr) Network() string { return "stdio" }
func (stdioAddr) String() string  { return "stdin" }
