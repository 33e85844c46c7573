package smtptest

import (
	"context"
	"net"
	"sync"
)

// Meter dials, and counts what its connections do.
type Meter struct {
	mu          sync.Mutex
	connections int
	open, peak  int
	roundTrips  int
}

// Dial is a net.Dialer's DialContext, counted.
func (m *Meter) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.connections++
	m.roundTrips++ // the greeting
	m.open++
	m.peak = max(m.peak, m.open)
	return &meterConn{Conn: c, m: m}, nil
}

// Connections returns how many were opened, and how many were open at a time.
func (m *Meter) Connections() (all, peak int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.connections, m.peak
}

// RoundTrips returns how often a connection waited for its peer: for each
// greeting, and for each group of writes with nothing read between them.
func (m *Meter) RoundTrips() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.roundTrips
}

type meterConn struct {
	net.Conn
	m       *Meter
	wrote   bool // since something was read
	closing sync.Once
}

func (c *meterConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	c.wrote = c.wrote && n == 0
	return n, err
}

func (c *meterConn) Write(b []byte) (int, error) {
	c.m.mu.Lock()
	if !c.wrote {
		c.wrote = true
		c.m.roundTrips++
	}
	c.m.mu.Unlock()
	return c.Conn.Write(b)
}

func (c *meterConn) Close() error {
	c.closing.Do(func() {
		c.m.mu.Lock()
		defer c.m.mu.Unlock()
		c.m.open--
	})
	return c.Conn.Close()
}
