package smarthost

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dma/internal/smtptest"
)

// fakeResolver has the records of names without their last dot: addresses, and
// "MX 10 host". An entry "broken" is a server that fails; "no mx" one that fails
// for MX.
type fakeResolver map[string][]string

func (f fakeResolver) records(name string) ([]string, error) {
	list, ok := f[strings.TrimSuffix(name, ".")]
	switch {
	case !ok:
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	case slices.Contains(list, "broken"):
		return nil, &net.DNSError{Err: "server misbehaving", Name: name, IsTemporary: true}
	}
	return list, nil
}

func (f fakeResolver) LookupMX(_ context.Context, name string) ([]*net.MX, error) {
	if !strings.HasSuffix(name, ".") {
		return nil, errors.New("the name is not complete")
	}
	list, err := f.records(name)
	if slices.Contains(list, "no mx") {
		err = errors.New("i/o timeout")
	}
	if err != nil {
		return nil, err
	}
	var out []*net.MX
	for _, s := range list {
		var mx net.MX
		if n, _ := fmt.Sscanf(s, "MX %d %s", &mx.Pref, &mx.Host); n == 2 {
			out = append(out, &mx)
		}
	}
	return out, nil
}

func (f fakeResolver) LookupNetIP(_ context.Context, _, name string) ([]netip.Addr, error) {
	list, err := f.records(name)
	var out []netip.Addr
	for _, s := range list {
		if ip, err := netip.ParseAddr(s); err == nil {
			out = append(out, ip)
		}
	}
	if err == nil && len(out) == 0 {
		err = &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return out, err
}

// backwards is a Shuffle that can be foreseen.
func backwards(n int, swap func(i, j int)) {
	for i := range n / 2 {
		swap(i, n-1-i)
	}
}

var testZone = fakeResolver{
	"two.example":           {"MX 20 mx2.example.", "MX 10 mx1.example."},
	"equal.example":         {"MX 5 MX1.example.", "MX 5 mx2.example.", "MX 5 mx3.example."},
	"implicit.example":      {"192.0.2.9", "2001:db8::9"},
	"null.example":          {"MX 0 ."},
	"odd.example":           {"MX 0 .", "MX 10 mx1.example."},
	"only.example":          {"MX 0 .", "MX 1 ."},
	"empty.example":         {},
	"broken.example":        {"broken"},
	"nomx.example":          {"no mx", "192.0.2.9"},
	"lost.example":          {"MX 10 gone.example."},
	"half.example":          {"MX 10 gone.example.", "MX 20 mx1.example."},
	"first.example":         {"MX 10 client.EXAMPLE.org.", "MX 20 mx1.example."},
	"backup.example":        {"MX 10 mx1.example.", "MX 20 client.example.org.", "MX 20 mx2.example.", "MX 30 mx3.example."},
	"here.example":          {"MX 10 own.example.", "MX 10 mx1.example."},
	"later.example":         {"MX 10 gone.example.", "MX 20 own.example."},
	"self.example":          {"192.0.2.200"},
	"loopback.example":      {"MX 10 lo.example."},
	"mx1.example":           {"192.0.2.1", "192.0.2.11", "2001:db8::1"},
	"mx2.example":           {"192.0.2.2"},
	"mx3.example":           {"192.0.2.3"},
	"own.example":           {"192.0.2.200"},
	"lo.example":            {"127.0.0.1"},
	"xn--bcher-kva.example": {"192.0.2.7"},
}

// TestMX: which addresses are tried, in which order, and what it means if there
// is none.
func TestMX(t *testing.T) {
	const (
		mx1     = "[192.0.2.1]:25 [2001:db8::1]:25 [192.0.2.11]:25"
		refused = "tempfail 4.4.1 connect -"
		unknown = "tempfail 4.4.3 connect -"
	)
	for _, c := range []struct{ domain, dialed, want, text string }{
		{"two.example", mx1 + " [192.0.2.2]:25", refused, "connect: connection refused"},
		{"equal.example", "[192.0.2.3]:25 [192.0.2.2]:25 " + mx1, refused, ""},
		{"implicit.example", "[192.0.2.9]:25 [2001:db8::9]:25", refused, ""},
		{"b\u00fccher.example", "[192.0.2.7]:25", refused, ""},
		{"B\u00dcCHER.example", "[192.0.2.7]:25", refused, ""},
		{"odd.example", mx1, refused, ""},
		{"half.example", mx1, refused, ""},
		{"[192.0.2.5]", "[192.0.2.5]:25", refused, ""},
		{"[IPv6:2001:db8::5]", "[2001:db8::5]:25", refused, ""},
		{"backup.example", mx1, refused, ""},
		{"null.example", "", "permfail 5.1.10 connect -", "connect: null.example takes no mail: it has a null MX"},
		{"nowhere.example", "", "permfail 5.1.2 connect -", "connect: the domain nowhere.example has neither MX nor address"},
		{"empty.example", "", "permfail 5.1.2 connect -", ""},
		{"nirg\u00e9ndwo.example", "", "permfail 5.1.2 connect -", ""},
		{"nirge\u0301ndwo.example", "", unknown, ""}, // may be another name
		{"a\u2603.example", "", unknown, "connect: looking up a\u2603.example: '\u2603' has no place in a domain"},
		{"first.example", "", "permfail 5.4.6 connect -", "connect: mail for first.example loops back to this host: this host is its best MX"},
		{"here.example", "", "permfail 5.4.6 connect -", "connect: mail for here.example loops back to this host: own.example has an address of this host"},
		{"self.example", "", "permfail 5.4.6 connect -", ""},
		{"loopback.example", "", "permfail 5.4.6 connect -", ""},
		{"client.example.org", "", "permfail 5.4.6 connect -", ""},
		{"[127.0.0.1]", "", "permfail 5.4.6 connect -", ""},
		{"[192.0.2.200]", "", "permfail 5.4.6 connect -", ""},
		{"[IPv6:::ffff:127.0.0.1]", "", "permfail 5.4.6 connect -", ""},
		{"later.example", "", unknown, "connect: looking up gone.example: no such host"},
		{"lost.example", "", unknown, ""},
		{"only.example", "", unknown, ""},
		{"broken.example", "", unknown, "connect: looking up the MX of broken.example: server misbehaving"},
		{"nomx.example", "", unknown, "connect: looking up the MX of nomx.example: i/o timeout"},
	} {
		synctest.Test(t, func(t *testing.T) {
			n := &network{ctx: t.Context(), scripts: make([]string, 20)}
			r := NewRouter(RouterConfig{Config: Config{
				Name: "client.example.org", Dial: n.Dial, Resolver: testZone, Shuffle: backwards,
				OwnAddresses: func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.0.2.200")} },
			}})
			defer r.Close()
			o := outcomes(t.Context(), r, testMessage(0, "a@"+c.domain))[0]
			if got := strings.TrimPrefix(describe("", &o), " "); got != c.want || c.text != "" && o.Text() != c.text {
				t.Errorf("%s: %s, %q", c.domain, got, o.Text())
			}
			var dialed []string
			for _, a := range n.dialed {
				dialed = append(dialed, "["+strings.Replace(strings.NewReplacer("[", "", "]", "").Replace(a), ":25", "]:25", 1))
			}
			if got := strings.Join(dialed, " "); got != c.dialed {
				t.Errorf("%s: dialed %s", c.domain, got)
			}
			// As a smarthost, nothing of that is final.
			n.dialed = nil
			if strings.Contains(c.domain, "[") {
				return
			}
			hosts := []Host{{Name: c.domain, MX: true, Port: 25}}
			relay := New(Config{Name: "client.example.org", Dial: n.Dial, Resolver: testZone, Hosts: hosts})
			defer relay.Close()
			if o := outcomes(t.Context(), relay, testMessage(0, "a@x"))[0]; o.Verdict != Tempfail {
				t.Errorf("mx:%s: %+v", c.domain, o)
			}
		})
	}
}

// TestPermanentIsNoBackOff: a domain that is not there is asked about again.
func TestPermanentIsNoBackOff(t *testing.T) {
	zone := fakeResolver{}
	n := &network{ctx: t.Context(), scripts: []string{""}}
	r := NewRouter(RouterConfig{Config: Config{Dial: n.Dial, Resolver: zone}})
	defer r.Close()
	for range 2 {
		if o := outcomes(t.Context(), r, testMessage(0, "a@new.example"))[0]; o.Verdict != Permfail || o.Refused {
			t.Errorf("%+v", o)
		}
	}
	zone["new.example"] = []string{"192.0.2.1"}
	if o := outcomes(t.Context(), r, testMessage(0, "a@new.example"))[0]; o.Verdict != Tempfail || o.Relay != "new.example[192.0.2.1]:25" {
		t.Errorf("%+v", o)
	}
}

// TestRace: an address that is silent holds the next one up for Timeouts.Race
// only, one that refuses not at all; what comes too late is closed.
func TestRace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var mu sync.Mutex
		var events []string
		note := func(s string) {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, fmt.Sprintf("%v %s", time.Since(began), s))
		}
		n := &network{ctx: t.Context(), scripts: []string{greets + takes}}
		late := &lateConn{}
		dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
			note(addr)
			switch addr {
			case "[2001:db8::1]:25": // silent
				<-ctx.Done()
				return nil, ctx.Err()
			case "192.0.2.2:25":
				return nil, errors.New("connection refused")
			case "192.0.2.1:25": // answers, but too late, and takes no notice
				time.Sleep(time.Second)
				return late, nil
			}
			time.Sleep(100 * time.Millisecond)
			return n.Dial(ctx, network, addr)
		}
		zone := fakeResolver{"mx.example": {"2001:db8::1", "2001:db8::2", "192.0.2.1", "192.0.2.2"}}
		r := New(Config{Dial: dial, Resolver: zone, Hosts: []Host{{Name: "mx.example", Port: 25}}})
		deliver(t, r, sent)
		want := "0s [2001:db8::1]:25, 250ms 192.0.2.1:25, 500ms [2001:db8::2]:25"
		if got := strings.Join(events, ", "); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		r.Close()
		time.Sleep(time.Second)
		synctest.Wait()
		if !late.closed {
			t.Error("the connection that came too late is open")
		}
		for _, err := range n.errs {
			t.Error(err)
		}
	})
}

type lateConn struct {
	net.Conn
	closed bool
}

func (c *lateConn) Close() error { c.closed = true; return nil }

// TestRaceGoesOn: the address that wins the race refuses to talk; those that were
// given up for it are tried again.
func TestRaceGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{ctx: t.Context(), scripts: []string{"S: 554 no", greets + takes}}
		slow := true
		dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == "192.0.2.1:25" && slow {
				slow = false
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return n.Dial(ctx, network, addr)
		}
		zone := fakeResolver{"mx.example": {"192.0.2.1", "192.0.2.2"}}
		r := New(Config{Dial: dial, Resolver: zone, Hosts: []Host{{Name: "mx.example", Port: 25}}})
		deliver(t, r, sent)
		r.Close()
		if got := fmt.Sprint(n.dialed); got != "[192.0.2.2:25 192.0.2.1:25]" {
			t.Error(got)
		}
	})
}

func TestInTurn(t *testing.T) {
	for in, want := range map[string]string{
		"": "[]", "1.1.1.1": "[1.1.1.1]", "::2 ::3 1.1.1.1": "[::2 1.1.1.1 ::3]",
		"1.1.1.1 ::2 1.1.1.1 1.1.1.4 ::ffff:1.1.1.4": "[1.1.1.1 ::2 1.1.1.4]",
	} {
		var list []netip.Addr
		for _, s := range strings.Fields(in) {
			list = append(list, netip.MustParseAddr(s))
		}
		if got := fmt.Sprint(inTurn(list)); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}

func TestASCIIDomain(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"Example.ORG", "example.org"},
		{"b\u00fccher.example", "xn--bcher-kva.example"},
		{"stra\u00dfe.example", "xn--strae-oqa.example"},
		{"\u03b1\u03b2\u03b3.example", "xn--mxacd.example"},
		{"\u4f8b\u3048.\u30c6\u30b9\u30c8", "xn--r8jz45g.xn--zckzah"},
		{"\u4f8b\u3048\u3002jp", "xn--r8jz45g.jp"},
		{"\u043f\u0440\u0438\u043c\u0435\u0440.\u0438\u0441\u043f\u044b\u0442\u0430\u043d\u0438\u0435", "xn--e1afmkfd.xn--80akhbyknj4f"},
		{"e\u0301.example", "? xn--e-xbb.example"},
		{"a b\u00e9", ""}, {"a\u2603", ""}, {"\xff", ""}, {strings.Repeat("a", 64), ""}, {strings.Repeat("\u4f8b", 60), ""},
		{strings.Repeat("aaaaaaaa.", 32), ""},
	} {
		got, exact, err := asciiDomain(c.in)
		if err == nil && !exact {
			got = "? " + got
		}
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%q: %q, %v", c.in, got, err)
		}
	}
	// RFC 3492 section 7.1 (B), (D), (L) and (S).
	for in, want := range map[string]string{
		"\u4ed6\u4eec\u4e3a\u4ec0\u4e48\u4e0d\u8bf4\u4e2d\u6587": "ihqwcrb4cv8a8dqg056pqjye",
		"Pro\u010dprost\u011bnemluv\u00ed\u010desky":             "Proprostnemluvesky-uyb24dma41a",
		"3\u5e74B\u7d44\u91d1\u516b\u5148\u751f":                 "3B-ww4c5e180e575a65lsy2b",
		"-> $1.00 <-":                                            "-> $1.00 <--",
		"\u305d\u306e\u30b9\u30d4\u30fc\u30c9\u3067":             "d9juau41awczczp",
		"\u00fcber": "ber-goa",
	} {
		if got := punycode([]rune(in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzASCIIDomain(f *testing.F) {
	for _, s := range []string{"example.org", "b\u00fccher.example", "\u4f8b\u3048\u3002jp", "\xff", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, _, err := asciiDomain(s)
		if err != nil {
			return
		}
		if len(name) > 253 || !isASCII(name) {
			t.Fatalf("%q became %q", s, name)
		}
		if again, exact, err := asciiDomain(name); err != nil || again != name || !exact {
			t.Fatalf("%q became %q, %v", name, again, err)
		}
	})
}

// TestDNS: the same questions to a server, through the resolver of the system.
func TestDNS(t *testing.T) {
	sink := smtptest.NewSink(smtptest.SinkOptions{})
	addr, err := sink.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	dns, err := smtptest.NewDNS(map[string][]string{
		"mail.example":   {"MX 20 mx2.example", "MX 10 gone.example"},
		"alias.example":  {"CNAME mail.example"},
		"mx2.example":    {"CNAME host.example"},
		"host.example":   {"A 127.0.0.1"},
		"bare.example":   {"A 127.0.0.1"},
		"null.example":   {"MX 0 ."},
		"empty.example":  {},
		"failed.example": {"SERVFAIL"},
		"round.example":  {"CNAME trip.example"},
		"trip.example":   {"CNAME round.example"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer dns.Close()
	r := NewRouter(RouterConfig{Config: Config{Name: "client.example.org", Resolver: ResolverAt(dns.Addr())}, Port: addr.Port})
	defer r.Close()
	at := fmt.Sprintf("[127.0.0.1]:%d", addr.Port)
	for _, c := range []struct{ domain, want, relay string }{
		{"mail.example", "sent 2.0.0 end-of-data 250", "mx2.example" + at},
		{"alias.example", "sent 2.0.0 end-of-data 250", "mx2.example" + at},
		{"bare.example", "sent 2.0.0 end-of-data 250", "bare.example" + at},
		{"null.example", "permfail 5.1.10 connect -", ""},
		{"gone.example", "permfail 5.1.2 connect -", ""},
		{"empty.example", "permfail 5.1.2 connect -", ""},
		{"failed.example", "tempfail 4.4.3 connect -", ""},
	} {
		o := outcomes(t.Context(), r, testMessage(0, "a@"+c.domain))[0]
		if got := strings.TrimPrefix(describe("", &o), " "); got != c.want || o.Relay != c.relay {
			t.Errorf("%s: %s, %s, %s", c.domain, got, o.Relay, o.Text())
		}
	}
	// A chain of aliases without end has an end for us; what it is, the resolver
	// says.
	if o := outcomes(t.Context(), r, testMessage(0, "a@round.example"))[0]; o.Verdict == Sent {
		t.Errorf("%+v", o)
	}
	for _, q := range dns.Asked() {
		if strings.Count(q, ".") > 1 {
			t.Errorf("a search list was used: %s", q)
		}
	}
}
