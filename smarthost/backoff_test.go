package smarthost

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dma/internal/smtptest"
)

// network answers dials with scripts, one after another.
type network struct {
	mu      sync.Mutex
	ctx     context.Context
	scripts []string // "" refuses the connection
	dialed  []string
	errs    []error
}

func (n *network) Dial(ctx context.Context, _, addr string) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dialed = append(n.dialed, addr)
	if len(n.scripts) == 0 {
		n.errs = append(n.errs, fmt.Errorf("dial %d: nothing is left", len(n.dialed)))
		return nil, errors.New("nothing is left")
	}
	text := n.scripts[0]
	n.scripts = n.scripts[1:]
	if text == "" {
		return nil, &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	}
	script, err := smtptest.ParseScript(text)
	if err != nil {
		return nil, err
	}
	client, server := smtptest.Pipe()
	go func() {
		if err := script.Serve(n.ctx, server); err != nil {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.errs = append(n.errs, err)
		}
	}()
	return client, nil
}

func (n *network) dials() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.dialed)
}

// inBubble runs f with a Relay to a network of scripts.
func inBubble(t *testing.T, scripts []string, f func(t *testing.T, n *network, r *Relay)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		n := &network{ctx: ctx, scripts: scripts}
		r := New(Config{Dial: n.Dial, RetryMin: time.Minute, RetryMax: 5 * time.Minute, Hosts: []Host{{IP: netip.MustParseAddr("192.0.2.1"), Port: 25}}})
		f(t, n, r)
		r.Close()
		cancel()
		synctest.Wait()
		for _, err := range n.errs {
			t.Error(err)
		}
	})
}

const (
	greets = "hello PIPELINING\n"
	takes  = "C: MAIL RCPT DATA\nS: 250 ok | 250 ok | 354 go\ndata\nS: 250 ok\n"
)

func deliver(t *testing.T, r *Relay, want string) {
	t.Helper()
	out := outcomes(t.Context(), r, testMessage(0, "a@x"))
	if got := describe("a@x", &out[0]); got != "a@x "+want {
		t.Errorf("got  %s (%s)\nwant a@x %s", got, out[0].Text(), want)
	}
}

const sent = "sent 2.0.0 end-of-data 250"

func TestIdleClose(t *testing.T) {
	inBubble(t, []string{greets + takes + takes, greets + takes}, func(t *testing.T, n *network, r *Relay) {
		deliver(t, r, sent)
		time.Sleep(4 * time.Second)
		deliver(t, r, sent)
		if n.dials() != 1 {
			t.Errorf("%d connections", n.dials())
		}
		time.Sleep(6 * time.Second)
		deliver(t, r, sent)
		if n.dials() != 2 {
			t.Errorf("%d connections", n.dials())
		}
	})
}

// TestStale: a session that the peer has closed meanwhile is replaced, and that
// is no failure.
func TestStale(t *testing.T) {
	for _, end := range []string{"close", "reset", "C: MAIL\nclose", "C: MAIL RCPT DATA\nreset", "C: MAIL RCPT DATA\nS: 421 4.4.2 idle for too long\nclose"} {
		inBubble(t, []string{greets + takes + end, greets + takes}, func(t *testing.T, n *network, r *Relay) {
			deliver(t, r, sent)
			deliver(t, r, sent)
			if n.dials() != 2 {
				t.Errorf("%q: %d connections", end, n.dials())
			}
		})
	}
	// One that dies later may have been killed by this message.
	inBubble(t, []string{greets + takes + "C: MAIL RCPT DATA\nS: 250 ok\nclose", greets + takes}, func(t *testing.T, n *network, r *Relay) {
		deliver(t, r, sent)
		deliver(t, r, "tempfail 4.4.2 RCPT -")
		deliver(t, r, sent)
	})
	// A fresh one that dies is an attempt, and so is the second in a row.
	inBubble(t, []string{greets + takes + "close", greets + "close"}, func(t *testing.T, n *network, r *Relay) {
		deliver(t, r, sent)
		deliver(t, r, "tempfail 4.4.2 MAIL -")
		deliver(t, r, "tempfail 4.4.2 MAIL - refused")
	})
}

func TestBackoff(t *testing.T) {
	down := []string{"", "S: 421 4.3.2 busy", "S: 554 no", greets + "C: MAIL RCPT DATA\nS: 421 4.3.2 busy", "silence", ""}
	inBubble(t, append(down, greets+takes+takes), func(t *testing.T, n *network, r *Relay) {
		wait := time.Minute
		for i, want := range []string{"4.4.1 connect -", "4.3.2 greeting 421", "4.3.2 greeting 554", "4.3.2 MAIL 421", "4.4.2 greeting -", "4.4.1 connect -"} {
			deliver(t, r, "tempfail "+want)
			for range 100 {
				deliver(t, r, "tempfail "+want+" refused")
			}
			time.Sleep(wait - time.Second)
			deliver(t, r, "tempfail "+want+" refused")
			time.Sleep(time.Second)
			if wait = min(2*wait, 5*time.Minute); n.dials() != i+1 {
				t.Fatalf("%d connections after %d rounds", n.dials(), i+1)
			}
		}
		deliver(t, r, sent)
		deliver(t, r, sent)
	})
}

func TestBackoffStartsAgain(t *testing.T) {
	inBubble(t, []string{"", "", greets + takes + "close", "", greets + takes}, func(t *testing.T, n *network, r *Relay) {
		deliver(t, r, "tempfail 4.4.1 connect -")
		time.Sleep(time.Minute)
		deliver(t, r, "tempfail 4.4.1 connect -")
		time.Sleep(2 * time.Minute)
		deliver(t, r, sent)
		deliver(t, r, "tempfail 4.4.1 connect -")
		time.Sleep(time.Minute)
		deliver(t, r, sent)
	})
}

func TestFlush(t *testing.T) {
	inBubble(t, []string{"", greets + takes}, func(t *testing.T, n *network, r *Relay) {
		deliver(t, r, "tempfail 4.4.1 connect -")
		deliver(t, r, "tempfail 4.4.1 connect - refused")
		r.Flush()
		deliver(t, r, sent)
	})
}

// TestOneProbe: many messages at once for a host that is down cost one attempt.
func TestOneProbe(t *testing.T) {
	inBubble(t, []string{"silence"}, func(t *testing.T, n *network, r *Relay) {
		var refused atomic.Int32
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				out := outcomes(t.Context(), r, testMessage(0, "a@x"))
				if out[0].Verdict != Tempfail {
					t.Errorf("%+v", out[0])
				}
				if out[0].Refused {
					refused.Add(1)
				}
			})
		}
		wg.Wait()
		if n.dials() != 1 || refused.Load() != 999 {
			t.Errorf("%d connections, %d refused", n.dials(), refused.Load())
		}
	})
}

func TestFailOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{ctx: t.Context(), scripts: []string{"", "S: 554 no", greets + takes}}
		hosts, err := ParseHosts([]string{"gone.example", "mx.example:26", "[2001:db8::3]:27"}, 25)
		if err != nil {
			t.Fatal(err)
		}
		r := New(Config{Dial: n.Dial, Hosts: hosts, Resolver: fakeResolver{"mx.example": {"192.0.2.1", "2001:db8::2"}}})
		out := outcomes(t.Context(), r, testMessage(0, "a@x"))
		if out[0].Verdict != Sent || out[0].Relay != "[2001:db8::3]:27" {
			t.Errorf("%+v", out[0])
		}
		r.Close()
		if got := fmt.Sprint(n.dialed); got != "[192.0.2.1:26 [2001:db8::2]:26 [2001:db8::3]:27]" {
			t.Error(got)
		}
		for _, err := range n.errs {
			t.Error(err)
		}

		r = New(Config{Dial: n.Dial, Hosts: hosts[:1], Resolver: r.cfg.Resolver})
		out = outcomes(t.Context(), r, testMessage(0, "a@x"))
		if got := describe("a@x", &out[0]); got != "a@x tempfail 4.4.3 connect -" || out[0].Text() != "connect: looking up gone.example: no such host" {
			t.Error(got, out[0].Text())
		}
		r = New(Config{})
		out = outcomes(t.Context(), r, testMessage(0, "a@x"))
		if got := describe("a@x", &out[0]); got != "a@x tempfail 4.3.5 connect -" {
			t.Error(got, out[0].Text())
		}
	})
}

// TestDeliverStopped: a message that waits, for a slot or for a host, is given
// back when the program is to stop.
func TestDeliverStopped(t *testing.T) {
	inBubble(t, []string{"silence", greets + takes}, func(t *testing.T, n *network, r *Relay) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				out := outcomes(ctx, r, testMessage(0, "a@x"))
				if got := describe("a@x", &out[0]); got != "a@x tempfail 4.3.2 connect - refused" {
					t.Error(got)
				}
			})
		}
		synctest.Wait()
		cancel()
		wg.Wait()
		deliver(t, r, sent) // that was no failure of the host
	})
}

// TestLater: a session that dies between two transactions of one message decides
// nothing about those whom the first has delivered.
func TestLater(t *testing.T) {
	const first = "hello PIPELINING,LIMITS RCPTMAX=1\n" + takes
	inBubble(t, []string{first + "close", greets + takes}, func(t *testing.T, n *network, r *Relay) {
		out := outcomes(t.Context(), r, testMessage(0, "a@x", "b@x"))
		for i := range out {
			if out[i].Verdict != Sent {
				t.Errorf("%+v", out[i])
			}
		}
		if n.dials() != 2 {
			t.Errorf("%d connections", n.dials())
		}
	})
}
