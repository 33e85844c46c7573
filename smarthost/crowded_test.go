package smarthost

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"dma/internal/smtptest"
)

// crowdedListener greets at most three connections at a time and tells the
// others that there are too many.
type crowdedListener struct {
	net.Listener
	open, refused atomic.Int32
}

type crowdedConn struct {
	net.Conn
	l    *crowdedListener
	once sync.Once
}

func (c *crowdedConn) Close() error {
	c.once.Do(func() { c.l.open.Add(-1) })
	return c.Conn.Close()
}

func (l *crowdedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= 3 {
			return &crowdedConn{Conn: c, l: l}, nil
		}
		l.open.Add(-1)
		l.refused.Add(1)
		fmt.Fprint(c, "421 4.7.0 Too many connections\r\n")
		c.Close()
	}
}

// A peer that takes only some sessions is not down: what it refuses a session
// waits for those that it has.
func TestCrowded(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &crowdedListener{Listener: inner}
	sink := smtptest.NewSink(smtptest.SinkOptions{})
	go sink.Serve(l)
	defer sink.Close()
	hosts, err := ParseHosts([]string{inner.Addr().String()}, 25)
	if err != nil {
		t.Fatal(err)
	}
	r := New(Config{Name: "client.example", Hosts: hosts, Concurrency: 10})
	defer r.Close()
	content := "Subject: x\n\nbody\n"
	deliver := func() []Outcome {
		return outcomes(context.Background(), r, Message{ID: "m", Content: strings.NewReader(content), Size: int64(len(content)),
			Recipients: []Recipient{{Address: "a@far.example"}}})
	}
	if o := deliver(); o[0].Verdict != Sent {
		t.Fatalf("the first: %+v", o[0])
	}
	var group sync.WaitGroup
	var failed atomic.Int32
	for range 200 {
		group.Go(func() {
			if o := deliver(); o[0].Verdict != Sent {
				failed.Add(1)
				t.Logf("%s", o[0].Text())
			}
		})
	}
	group.Wait()
	if failed.Load() > 0 || sink.Counts().Transactions != 201 {
		t.Errorf("%d of 200 failed, the sink took %d", failed.Load(), sink.Counts().Transactions)
	}
	if n := l.refused.Load(); n > 20 {
		t.Errorf("%d connections were refused: it is to learn from a few", n)
	}
}
