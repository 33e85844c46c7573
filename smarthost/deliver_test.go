package smarthost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"dma/internal/smtptest"
)

// outcomes delivers m and returns what becomes of each recipient, in their order.
// It panics where one gets no outcome, or several.
func outcomes(ctx context.Context, d interface {
	Deliver(context.Context, Message, func([]int, []Outcome))
}, m Message) []Outcome {
	out := make([]Outcome, len(m.Recipients))
	left := len(out)
	d.Deliver(ctx, m, func(indices []int, outcomes []Outcome) {
		for k, i := range indices {
			if out[i].Verdict != 0 {
				panic(fmt.Sprintf("recipient %d got two outcomes", i))
			}
			out[i] = outcomes[k]
			left--
		}
	})
	if left != 0 {
		panic(fmt.Sprintf("%d recipients got no outcome", left))
	}
	return out
}

// TestToldBetweenTransactions: what a transaction has decided is told before the
// next one begins.
func TestToldBetweenTransactions(t *testing.T) {
	sink, _, r := sinkRelay(t, smtptest.SinkOptions{MaxRecipients: 10}, Config{})
	var groups []string
	r.Deliver(t.Context(), testMessage(0, many(25, "ok")...), func(indices []int, outcomes []Outcome) {
		groups = append(groups, fmt.Sprint(len(indices), len(outcomes), sink.Counts().Transactions))
	})
	if got := strings.Join(groups, ", "); got != "10 10 1, 10 10 2, 5 5 3" {
		t.Errorf("told %s", got)
	}
}

// TestToldAsHopsAnswer: a hop that hangs does not keep back what others say.
func TestToldAsHopsAnswer(t *testing.T) {
	hang := make(chan struct{})
	_, sinkDial := sinkHosts(t, smtptest.SinkOptions{})
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr == "192.0.2.2:25" {
			<-hang
			return nil, errors.New("connection refused")
		}
		return sinkDial(ctx, network, addr)
	}
	r := NewRouter(RouterConfig{Config: Config{Dial: dial, OwnAddresses: func() []netip.Addr { return nil }, Resolver: fakeResolver{"a.example": {"192.0.2.1"}, "b.example": {"192.0.2.2"}, "c.example": {"192.0.2.3"}}}})
	defer r.Close()
	var told []string
	r.Deliver(t.Context(), testMessage(0, "1@b.example", "2@a.example", "bare", "3@c.example"), func(indices []int, outcomes []Outcome) {
		for k, i := range indices {
			told = append(told, fmt.Sprintf("%d %v", i, outcomes[k].Verdict))
		}
		if len(told) == 3 {
			close(hang) // all but one
		}
	})
	if len(told) != 4 || told[0] != "2 permfail" || !strings.HasPrefix(told[3], "0 tempfail") {
		t.Errorf("told %q", told)
	}
	m := testMessage(0, "1@b.example", "2@A.example", "bare", "3@a.example")
	if got := fmt.Sprintf("%q", r.Destinations(&m)); got != `["b.example" "a.example" "" "a.example"]` {
		t.Errorf("destinations %s", got)
	}
}

// panics is content that cannot be read in a way that nobody expects.
type panics struct{ v any }

func (p panics) ReadAt([]byte, int64) (int, error) { panic(p.v) }

// TestPanicInHop: a panic in a transaction is an outcome of its recipients with
// Trouble, and the relay goes on; one that loses count is not caught.
func TestPanicInHop(t *testing.T) {
	sink, _, r := sinkRelay(t, smtptest.SinkOptions{}, Config{Concurrency: 1})
	m := testMessage(0, "a@x", "b@x")
	m.Content = panics{"no such thing"}
	for _, o := range outcomes(t.Context(), r, m) {
		if o.Verdict != Tempfail || o.Status() != "4.3.0" || o.Trouble == nil || o.Uncertain || !strings.Contains(o.Text(), "no such thing") {
			t.Errorf("%+v", o)
		}
	}
	if o := outcomes(t.Context(), r, testMessage(0, "a@x"))[0]; o.Verdict != Sent || o.Trouble != nil {
		t.Errorf("the next one: %+v", o)
	}
	if r.inUse != 0 || len(r.idle) != 1 || len(r.slots) != 0 {
		t.Errorf("in use %d, idle %d, slots %d", r.inUse, len(r.idle), len(r.slots))
	}
	if c := sink.Counts(); c.Transactions != 1 {
		t.Errorf("%+v", c)
	}
	caught := func(f func()) (v any) {
		defer func() { v = recover() }()
		f()
		return nil
	}
	m.Content = panics{Unaccounted("lost")}
	if v := caught(func() { outcomes(t.Context(), r, m) }); v != Unaccounted("lost") {
		t.Errorf("in a relay: %v", v)
	}
	_, dial := sinkHosts(t, smtptest.SinkOptions{})
	router := NewRouter(RouterConfig{Config: Config{Dial: dial, Resolver: newAnyDomain("x.example", "y.example")}})
	defer router.Close()
	m.Recipients = []Recipient{{Address: "a@x.example"}, {Address: "b@y.example"}}
	if v := caught(func() { outcomes(t.Context(), router, m) }); v != Unaccounted("lost") {
		t.Errorf("in a router: %v", v)
	}
	// What done panics with is the caller's matter.
	good := testMessage(0, "a@x.example", "b@y.example")
	if v := caught(func() { router.Deliver(t.Context(), good, func([]int, []Outcome) { panic("done") }) }); v != "done" {
		t.Errorf("of the caller: %v", v)
	}
}

// panicsAt is content that can be read once from its beginning, and panics then.
type panicsAt struct {
	io.ReaderAt
	v     any
	begun atomic.Int32
}

func (p *panicsAt) ReadAt(b []byte, off int64) (int, error) {
	if off == 0 && p.begun.Add(1) > 1 {
		panic(p.v)
	}
	return p.ReaderAt.ReadAt(b, off)
}

// dotPanics is a connection that panics when the final dot has been written.
type dotPanics struct{ net.Conn }

func (c dotPanics) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if bytes.HasSuffix(b, []byte("\r\n.\r\n")) {
		panic("no such thing")
	}
	return n, err
}

// TestPanicInWriter: a panic in the goroutine that writes a message is one of the
// transaction. If the final dot may be with the peer, the outcome says so.
func TestPanicInWriter(t *testing.T) {
	for _, tt := range []struct {
		name      string
		lmtp, dot bool
	}{{name: "content"}, {name: "dot", dot: true}, {name: "lmtp", lmtp: true}, {name: "lmtp dot", lmtp: true, dot: true}} {
		t.Run(tt.name, func(t *testing.T) {
			first := true
			sink, dial := sinkHosts(t, smtptest.SinkOptions{LMTP: tt.lmtp})
			cfg := Config{
				Name: "client.example", Hosts: []Host{{Name: "a.example", Port: 25}}, Concurrency: 1, LMTP: tt.lmtp,
				Resolver: fakeResolver{"a.example": {"192.0.2.1"}},
				Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
					c, err := dial(ctx, network, addr)
					if first && tt.dot && err == nil {
						c = dotPanics{c}
					}
					first = false
					return c, err
				},
			}
			r := New(cfg)
			defer r.Close()
			m := testMessage(0, "a@x", "b@x")
			if !tt.dot {
				m.Content = &panicsAt{ReaderAt: m.Content, v: "no such thing"}
			}
			for _, o := range outcomes(t.Context(), r, m) {
				if o.Verdict != Tempfail || o.Status() != "4.3.0" || o.Trouble == nil || o.Uncertain != tt.dot || !strings.Contains(o.Text(), "no such thing") {
					t.Errorf("%+v", o)
				}
			}
			if o := outcomes(t.Context(), r, testMessage(0, "a@x"))[0]; o.Verdict != Sent || o.Trouble != nil {
				t.Errorf("the next one: %+v", o)
			}
			if r.inUse != 0 || len(r.idle) != 1 || len(r.slots) != 0 {
				t.Errorf("in use %d, idle %d, slots %d", r.inUse, len(r.idle), len(r.slots))
			}
			if c := sink.Counts(); !tt.dot && c.Transactions != 1 {
				t.Errorf("%+v", c)
			}
		})
	}
	// What loses count is not for one transaction alone, wherever it happens.
	_, _, r := sinkRelay(t, smtptest.SinkOptions{}, Config{})
	m := testMessage(0, "a@x")
	m.Content = &panicsAt{ReaderAt: m.Content, v: Unaccounted("lost")}
	defer func() {
		if v := recover(); v != Unaccounted("lost") {
			t.Errorf("%v", v)
		}
	}()
	outcomes(t.Context(), r, m)
}
