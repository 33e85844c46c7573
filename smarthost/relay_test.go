package smarthost

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/emersion/go-smtp"
	"pgregory.net/rapid"

	"dma/internal/smtptest"
)

// sinkRelay starts a sink and makes a Relay to it.
func sinkRelay(t *testing.T, o smtptest.SinkOptions, cfg Config) (*smtptest.Sink, *smtptest.Meter, *Relay) {
	t.Helper()
	sink := smtptest.NewSink(o)
	addr, err := sink.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	meter := &smtptest.Meter{}
	cfg.Name, cfg.Dial = "client.example.org", meter.Dial
	cfg.Hosts = []Host{{IP: netip.MustParseAddr("127.0.0.1"), Port: addr.Port}}
	r := New(cfg)
	t.Cleanup(func() {
		r.Close()
		sink.Close()
	})
	return sink, meter, r
}

// many returns n addresses, sorted into kinds by name.
func many(n int, kinds ...string) []string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("%s%d@example.org", kinds[i%len(kinds)], i))
	}
	return list
}

func TestRoundTrips(t *testing.T) {
	for _, n := range []int{1, 200} {
		sink, meter, r := sinkRelay(t, smtptest.SinkOptions{}, Config{})
		out := outcomes(t.Context(), r, testMessage(0, many(n, "ok")...))
		for i := range out {
			if out[i].Verdict != Sent {
				t.Fatalf("%d recipients: %+v", n, out[i])
			}
		}
		// Greeting, EHLO, commands, content.
		if got := meter.RoundTrips(); got != 4 {
			t.Errorf("%d recipients: %d round trips, want 4", n, got)
		}
		// The next message needs neither a connection nor EHLO.
		outcomes(t.Context(), r, testMessage(0, many(n, "ok")...))
		if got := meter.RoundTrips(); got != 6 {
			t.Errorf("%d recipients: %d round trips for two messages, want 6", n, got)
		}
		if c := sink.Counts(); c.Connections != 1 || c.Hellos != 1 || c.Transactions != 2 || c.Recipients != 2*n {
			t.Errorf("%d recipients: %+v", n, c)
		}
	}
}

func TestSorting(t *testing.T) {
	var rules []smtptest.Rule
	for _, s := range []string{"defer later*@* 451 4.7.1 Greylisted", "refuse no*@*", "accept *"} {
		rule, err := smtptest.ParseRule(s)
		if err != nil {
			t.Fatal(err)
		}
		rules = append(rules, rule)
	}
	sink, _, r := sinkRelay(t, smtptest.SinkOptions{Rules: rules, DSN: true}, Config{})
	to := many(200, "ok", "later", "ok", "no")
	out := outcomes(t.Context(), r, testMessage(0, to...))
	accepted := 0
	for i, a := range to {
		var want string
		switch {
		case strings.HasPrefix(a, "ok"):
			want = a + " sent 2.0.0 end-of-data 250 dsn"
			accepted++
		case strings.HasPrefix(a, "later"):
			want = a + " tempfail 4.7.1 RCPT 451"
		default:
			want = a + " permfail 5.1.1 RCPT 550"
		}
		if got := describe(a, &out[i]); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	list := sink.Transactions()
	if len(list) != 1 || len(list[0].To) != accepted || len(list[0].Refused) != len(to)-accepted {
		t.Errorf("%d transactions: %v", len(list), sink.Counts())
	}
}

// TestTooMany: a server with a limit gets several transactions, and each
// recipient once.
func TestTooMany(t *testing.T) {
	sink, _, r := sinkRelay(t, smtptest.SinkOptions{MaxRecipients: 30}, Config{})
	to := many(100, "ok")
	out := outcomes(t.Context(), r, testMessage(0, to...))
	seen := map[string]int{}
	list := sink.Transactions()
	for _, tr := range list {
		for _, a := range tr.To {
			seen[a]++
		}
	}
	for i, a := range to {
		if out[i].Verdict != Sent || seen[a] != 1 {
			t.Errorf("%s: %+v, %d times", a, out[i], seen[a])
		}
	}
	// The limit is learned from the first transaction.
	if c := sink.Counts(); len(list) != 4 || c.Connections != 1 || c.Rcpts != 100 {
		t.Errorf("%d transactions, %+v", len(list), c)
	}
}

func TestMoreThanATransaction(t *testing.T) {
	sink, _, r := sinkRelay(t, smtptest.SinkOptions{}, Config{})
	out := outcomes(t.Context(), r, testMessage(0, many(2500, "ok")...))
	for i := range out {
		if out[i].Verdict != Sent {
			t.Fatalf("%+v", out[i])
		}
	}
	if c := sink.Counts(); c.Transactions != 3 || c.Recipients != 2500 {
		t.Errorf("%+v", c)
	}
}

func TestConcurrency(t *testing.T) {
	var inside, peak atomic.Int32
	gate := make(chan struct{})
	var once sync.Once
	sink, meter, r := sinkRelay(t, smtptest.SinkOptions{Data: func(*smtptest.Transaction) error {
		n := inside.Add(1)
		defer inside.Add(-1)
		for p := peak.Load(); n > p && !peak.CompareAndSwap(p, n); p = peak.Load() {
		}
		if n == 3 {
			once.Do(func() { close(gate) }) // the bound is reached: all go on
		}
		<-gate
		return nil
	}}, Config{Concurrency: 3})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if out := outcomes(t.Context(), r, testMessage(0, "a@x")); out[0].Verdict != Sent {
				t.Errorf("%+v", out[0])
			}
		})
	}
	wg.Wait()
	if _, open := meter.Connections(); open != 3 || peak.Load() != 3 {
		t.Errorf("%d connections at a time, %d messages", open, peak.Load())
	}
	if c := sink.Counts(); c.Connections != 3 || c.Hellos != 3 || c.Transactions != 50 {
		t.Errorf("%+v", c)
	}
}

// TestTransparency: what arrives is the content with CRLF.
func TestTransparency(t *testing.T) {
	sink, _, r := sinkRelay(t, smtptest.SinkOptions{}, Config{})
	rapid.Check(t, func(rt *rapid.T) {
		lines := rapid.SliceOfN(rapid.OneOf(
			rapid.StringMatching(`[.a \t]{0,5}`),
			rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 998), func(b []byte) string {
				return string(bytes.Map(func(c rune) rune {
					if c == '\n' || c == '\r' {
						return '.'
					}
					return c
				}, bytes.ToValidUTF8(b, []byte("?"))))
			}),
		), 0, 60).Draw(rt, "lines")
		var in, want strings.Builder
		for _, l := range lines {
			l = l[:min(len(l), 998)]
			in.WriteString(l + rapid.SampledFrom([]string{"\n", "\r\n"}).Draw(rt, "end"))
			want.WriteString(l + "\r\n")
		}
		text := in.String()
		m := Message{ID: "t", Recipients: []Recipient{{Address: "a@x"}}, Content: strings.NewReader(text), Size: int64(len(text))}
		before := len(sink.Transactions())
		if out := outcomes(context.Background(), r, m); out[0].Verdict != Sent {
			rt.Fatalf("%+v", out[0])
		}
		list := sink.Transactions()
		if len(list) != before+1 || string(list[before].Content) != want.String() {
			rt.Fatalf("%q arrived as %q", text, list[before].Content)
		}
	})
	if c := sink.Counts(); c.Connections != 1 {
		t.Errorf("%+v", c)
	}
}

func TestOutcome(t *testing.T) {
	reply := smtp.SMTPError{Code: 552, EnhancedCode: smtp.EnhancedCode{5, 2, 2}, Message: "full"}
	for _, c := range []struct {
		o            Outcome
		status, text string
	}{
		{Outcome{Verdict: Tempfail, Reply: reply}, "4.2.2", "552 5.2.2 full"},
		{Outcome{Verdict: Permfail, Reply: reply}, "5.2.2", "552 5.2.2 full"},
		{Outcome{Verdict: Sent}, "2.0.0", ""},
		{Outcome{Verdict: Permfail, Reply: smtp.SMTPError{Code: 550}}, "5.0.0", "550"},
		{Outcome{Verdict: Tempfail, detail: "4.1", Reply: smtp.SMTPError{Message: "gone"}}, "4.4.1", "gone"},
		{Outcome{}, "4.0.0", ""},
	} {
		if c.o.Status() != c.status || c.o.Text() != c.text {
			t.Errorf("%+v: %s, %s", c.o, c.o.Status(), c.o.Text())
		}
	}
}
