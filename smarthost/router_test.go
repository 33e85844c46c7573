package smarthost

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"dma/internal/smtptest"
)

// sinkHosts is a network in which every host is one sink.
func sinkHosts(t *testing.T, o smtptest.SinkOptions) (*smtptest.Sink, func(context.Context, string, string) (net.Conn, error)) {
	t.Helper()
	sink := smtptest.NewSink(o)
	addr, err := sink.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sink.Close() })
	return sink, func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr.String())
	}
}

// newAnyDomain returns a Resolver for which these names have the same address.
func newAnyDomain(names ...string) fakeResolver {
	f := fakeResolver{}
	for _, n := range names {
		f[n] = []string{"192.0.2.1"}
	}
	return f
}

func TestRouterSplits(t *testing.T) {
	sink, dial := sinkHosts(t, smtptest.SinkOptions{})
	r := NewRouter(RouterConfig{Config: Config{
		Name: "client.example.org", Dial: dial,
		Resolver: newAnyDomain("a.example", "b.example", "xn--bcher-kva.example"),
	}})
	defer r.Close()
	to := []string{"1@a.example", "2@b.example", "3@A.Example.", "bare", "4@gone.example", "not an address", "5@b\u00fccher.example", "6@b.example", "7@xn--bcher-kva.example"}
	out := outcomes(t.Context(), r, testMessage(0, to...))
	want := `1@a.example sent 2.0.0 end-of-data 250
2@b.example sent 2.0.0 end-of-data 250
3@A.Example. sent 2.0.0 end-of-data 250
bare permfail 5.1.2 RCPT -
4@gone.example permfail 5.1.2 connect -
not an address permfail 5.1.3 RCPT -
5@b` + "\u00fc" + `cher.example sent 2.0.0 end-of-data 250
6@b.example sent 2.0.0 end-of-data 250
7@xn--bcher-kva.example sent 2.0.0 end-of-data 250`
	var got []string
	for i := range out {
		got = append(got, describe(to[i], &out[i]))
	}
	if s := strings.Join(got, "\n"); s != want {
		t.Errorf("got\n%s\nwant\n%s", s, want)
	}
	sets := map[string]bool{}
	for _, tr := range sink.Transactions() {
		sets[strings.Join(tr.To, " ")] = true
	}
	if len(sets) != 3 || !sets["1@a.example 3@A.Example."] || !sets["2@b.example 6@b.example"] || !sets["5@xn--bcher-kva.example 7@xn--bcher-kva.example"] {
		t.Errorf("transactions %v", sets)
	}
}

// TestRouterSmarthost: with a smarthost there is one destination, whatever the
// domains.
func TestRouterSmarthost(t *testing.T) {
	sink, dial := sinkHosts(t, smtptest.SinkOptions{})
	hosts, err := ParseHosts([]string{"mx:relay.example:26"}, 25)
	if err != nil {
		t.Fatal(err)
	}
	r := NewRouter(RouterConfig{Config: Config{Dial: dial, Hosts: hosts, Resolver: fakeResolver{
		"relay.example": {"MX 1 in.example"}, "in.example": {"192.0.2.1"},
	}}})
	defer r.Close()
	out := outcomes(t.Context(), r, testMessage(0, "1@a.example", "2@b.example"))
	for i := range out {
		if out[i].Verdict != Sent || out[i].Relay != "in.example[192.0.2.1]:26" {
			t.Errorf("%+v", out[i])
		}
	}
	if c := sink.Counts(); c.Connections != 1 || c.Transactions != 1 {
		t.Errorf("%+v", c)
	}
	if out := outcomes(t.Context(), r, testMessage(0)); len(out) != 0 {
		t.Errorf("%+v", out)
	}
}

// TestRouterAccounts: each recipient gets the outcome of its own domain, whatever
// the mixture.
func TestRouterAccounts(t *testing.T) {
	_, dial := sinkHosts(t, smtptest.SinkOptions{})
	r := NewRouter(RouterConfig{Parallel: 3, Destinations: 2, Config: Config{Dial: dial, Resolver: fakeResolver{
		"a.example": {"192.0.2.1"}, "b.example": {"192.0.2.1"}, "c.example": {"MX 0 a.example"}, "null.example": {"MX 0 ."}, "broken.example": {"broken"},
	}}})
	defer r.Close()
	want := map[string]string{
		"a.example": "2.0.0", "b.example": "2.0.0", "c.example": "2.0.0",
		"null.example": "5.1.10", "broken.example": "4.4.3", "gone.example": "5.1.2",
	}
	rapid.Check(t, func(rt *rapid.T) {
		domains := rapid.SliceOfN(rapid.SampledFrom([]string{"a.example", "b.example", "c.example", "null.example", "broken.example", "gone.example"}), 1, 30).Draw(rt, "domains")
		var to []string
		for i, d := range domains {
			to = append(to, fmt.Sprintf("u%d@%s", i, d))
		}
		for i, o := range outcomes(t.Context(), r, testMessage(0, to...)) {
			if o.Status() != want[domains[i]] {
				rt.Fatalf("%s: %s %s", to[i], o.Status(), o.Text())
			}
		}
	})
	if n := len(r.known); n > 6 {
		t.Errorf("%d destinations are remembered", n)
	}
}

// TestRouterParallel: no more destinations of a message than Parallel are served
// at a time, and a slow one does not hold up the others.
func TestRouterParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		open, peak := 0, 0
		dial := func(ctx context.Context, _, addr string) (net.Conn, error) {
			mu.Lock()
			open++
			peak = max(peak, open)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			open--
			mu.Unlock()
			return nil, fmt.Errorf("no")
		}
		names := many(10, "d")
		zone := fakeResolver{}
		for i := range names {
			names[i] = "x@d" + fmt.Sprint(i) + ".example"
			zone[names[i][2:]] = []string{"192.0.2.1"}
		}
		r := NewRouter(RouterConfig{Parallel: 4, Config: Config{Dial: dial, Resolver: zone}})
		defer r.Close()
		began := time.Now()
		outcomes(t.Context(), r, testMessage(0, names...))
		if d := time.Since(began); peak != 4 || d != 3*time.Second {
			t.Errorf("%d at a time, %v in all", peak, d)
		}
	})
}

// TestRouterRemembers: a destination keeps its back-off while there is room and
// time, and Flush ends it.
func TestRouterRemembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{ctx: t.Context(), scripts: make([]string, 100)}
		r := NewRouter(RouterConfig{Destinations: 3, Keep: time.Hour, Config: Config{
			Dial: n.Dial, Resolver: newAnyDomain("a", "b", "c", "d"), RetryMin: 30 * time.Minute, RetryMax: 30 * time.Minute,
		}})
		defer r.Close()
		send := func(domain string, tried bool) {
			t.Helper()
			o := outcomes(t.Context(), r, testMessage(0, "x@"+domain))[0]
			if o.Verdict != Tempfail || o.Refused == tried {
				t.Errorf("%s after %v: %+v", domain, time.Since(r.swept), o)
			}
			time.Sleep(time.Second)
		}
		for _, d := range []string{"a", "b", "c"} {
			send(d, true)
			send(d, false)
		}
		send("a", false)
		r.Flush()
		send("b", true)
		send("a", true)
		// There is no room for a fourth: c was used longest ago.
		send("d", true)
		send("b", false)
		send("c", true)
		if len(r.known) != 3 {
			t.Errorf("%d are remembered", len(r.known))
		}
		time.Sleep(2 * time.Hour)
		send("a", true)
		if len(r.known) != 1 {
			t.Errorf("%d are remembered after two hours", len(r.known))
		}
	})
}

// TestRouterClose: what is in progress ends, and nothing stays open.
func TestRouterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{ctx: t.Context(), scripts: []string{greets + takes, greets + takes}}
		wait := make(chan struct{})
		dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
			<-wait
			return n.Dial(ctx, network, addr)
		}
		r := NewRouter(RouterConfig{Config: Config{Dial: dial, Resolver: newAnyDomain("a", "b")}})
		var wg sync.WaitGroup
		wg.Go(func() {
			for _, o := range outcomes(t.Context(), r, testMessage(0, "x@a", "x@b")) {
				if o.Verdict != Sent {
					t.Errorf("%+v", o)
				}
			}
		})
		synctest.Wait()
		r.Close()
		close(wait)
		wg.Wait()
		synctest.Wait() // the bubble ends only if nothing waits
		for _, err := range n.errs {
			t.Error(err)
		}
	})
}
