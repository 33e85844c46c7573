package smtptest

import (
	"net"
	"sync/atomic"
	"syscall"
)

// Pipe returns the two ends of a connection in memory. It has no buffer: a write
// waits until the other end reads, which is a network whose buffers are full. Its
// deadlines follow the clock of a testing/synctest bubble. If the server end has a
// method call Reset, the client sees a connection reset by its peer.
func Pipe() (client, server net.Conn) {
	c, s := net.Pipe()
	reset := new(atomic.Bool)
	return &pipeClient{c, reset}, &pipeServer{s, reset}
}

type pipeClient struct {
	net.Conn
	reset *atomic.Bool
}

func (c *pipeClient) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	return n, c.explain(err)
}

func (c *pipeClient) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	return n, c.explain(err)
}

func (c *pipeClient) explain(err error) error {
	if err != nil && c.reset.Load() {
		return syscall.ECONNRESET
	}
	return err
}

type pipeServer struct {
	net.Conn
	reset *atomic.Bool
}

// Reset closes the connection as a host does that has forgotten it.
func (s *pipeServer) Reset() error {
	s.reset.Store(true)
	return s.Close()
}

// reset closes c without the usual goodbye.
func reset(c net.Conn) {
	switch c := c.(type) {
	case *pipeServer:
		_ = c.Reset()
	case *net.TCPConn:
		_ = c.SetLinger(0)
		_ = c.Close()
	default:
		_ = c.Close()
	}
}
