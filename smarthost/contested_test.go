package smarthost

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dma/internal/smtptest"
)

// oneAtATime is the listener of a peer that greets nobody while it has a
// connection.
type oneAtATime struct {
	conns  chan net.Conn
	slot   chan struct{}
	closed chan struct{}
}

func (l *oneAtATime) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	l.conns <- server
	return client, nil
}

func (l *oneAtATime) Accept() (net.Conn, error) {
	select {
	case l.slot <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	select {
	case c := <-l.conns:
		return &oneConn{Conn: c, leave: sync.OnceFunc(func() { <-l.slot })}, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *oneAtATime) Close() error   { return nil }
func (l *oneAtATime) Addr() net.Addr { return &net.TCPAddr{} }

type oneConn struct {
	net.Conn
	leave func()
}

func (c *oneConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// TestOneConnection: such a peer gets the messages of the others soon, and not
// when an idle session has run out.
func TestOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &oneAtATime{conns: make(chan net.Conn, 100), slot: make(chan struct{}, 1), closed: make(chan struct{})}
		sink := smtptest.NewSink(smtptest.SinkOptions{})
		go func() { _ = sink.Serve(l) }()
		r := New(Config{
			Name: "client.example", Hosts: []Host{{Name: "one.example", Port: 25}}, Concurrency: 4,
			Dial: l.dial, Resolver: fakeResolver{"one.example": {"192.0.2.1"}},
		})
		began := time.Now()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for _, o := range outcomes(t.Context(), r, testMessage(0, "a@one.example")) {
					if o.Verdict != Sent {
						t.Error(o.Verdict, o.Text())
					}
				}
			})
		}
		wg.Wait()
		// The time here passes only while everybody waits.
		if d := time.Since(began); d > 2*time.Second {
			t.Errorf("it took %v", d)
		}
		r.Close()
		close(l.closed)
		sink.Close()
	})
}
