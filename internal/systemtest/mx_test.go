package systemtest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"dma/internal/smtptest"
	"dma/spooldir"
)

// internet is a DNS server, and hosts on addresses of loopback which all listen on
// the same port.
type internet struct {
	t     testing.TB
	dns   *smtptest.DNS
	port  int
	sinks map[string]*smtptest.Sink // by address
}

// newInternet makes hosts at addresses, and a DNS server with a zone.
func newInternet(t testing.TB, zone map[string][]string, addresses ...string) *internet {
	t.Helper()
	dns, err := smtptest.NewDNS(zone)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dns.Close)
	n := &internet{t: t, dns: dns, sinks: make(map[string]*smtptest.Sink)}
	for _, ip := range addresses {
		sink := smtptest.NewSink(smtptest.SinkOptions{})
		l := n.listen(ip)
		go func() { _ = sink.Serve(l) }()
		t.Cleanup(func() { sink.Close() })
		n.sinks[ip] = sink
	}
	return n
}

// listen takes the port of the internet at an address; the first one chooses it.
func (n *internet) listen(ip string) net.Listener {
	n.t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", ip, n.port))
	if err != nil && n.port == 0 && errors.Is(err, syscall.EADDRNOTAVAIL) {
		n.t.Skip("this system has no more than one loopback address")
	}
	if err != nil {
		n.t.Fatal(err)
	}
	n.port = l.Addr().(*net.TCPAddr).Port
	return l
}

// site makes a site whose mail goes to the hosts of this internet.
func (n *internet) site(conf string) *site {
	n.t.Helper()
	return newSiteWith(n.t, siteOptions{
		direct: true, resolver: n.dns.Addr(),
		conf: fmt.Sprintf("PORT %d\n", n.port) + conf,
	})
}

// got returns the recipients of the messages that the host at an address took.
func (n *internet) got(ip string) []string {
	var list []string
	for _, t := range n.sinks[ip].Transactions() {
		if t.Accepted {
			list = append(list, strings.Join(t.To, " "))
		}
	}
	slices.Sort(list)
	return list
}

// silent is a host that takes connections and never says a word.
type silent struct {
	mu    sync.Mutex
	conns []net.Conn
	ever  int
}

func (n *internet) silent(ip string) *silent {
	n.t.Helper()
	l := n.listen(ip)
	s := &silent{}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.ever++
			s.conns = append(s.conns, c)
			s.mu.Unlock()
		}
	}()
	n.t.Cleanup(func() { l.Close(); s.hangUp() })
	return s
}

func (s *silent) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		c.Close()
	}
	s.conns = nil
}

func (s *silent) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ever
}

// Without a smarthost each domain's mail goes to its MX; what the DNS says for good
// returns it, and all other trouble with the DNS keeps it.
func TestDirect(t *testing.T) {
	t.Parallel()
	n := newInternet(t, map[string][]string{
		"one.example":     {"MX 10 mx.one.example"},
		"mx.one.example":  {"A 127.0.0.11"},
		"two.example":     {"MX 20 b.two.example", "MX 10 a.two.example"},
		"a.two.example":   {"A 127.0.0.12"}, // nobody listens
		"b.two.example":   {"A 127.0.0.13"},
		"three.example":   {"A 127.0.0.14"},
		"null.example":    {"MX 0 ."},
		"broken.example":  {"SERVFAIL"},
		"half.example":    {"SERVFAIL AAAA"},
		"mxfail.example":  {"SERVFAIL MX", "A 127.0.0.14"},
		"nomail.example":  {"MX 10 host.example"},
		"lost.example":    {"MX 10 nowhere.example"},
		"literal.example": {"CNAME one.example"},
	}, "127.0.0.11", "127.0.0.13", "127.0.0.14")
	s := n.site("")
	s.post("far and wide", "-f", "bob", "u@one.example", "v@ONE.example", "u@two.example", "u@three.example", "u@[127.0.0.14]",
		"u@null.example", "u@gone.example", "u@nomail.example", "u@broken.example", "u@half.example", "u@mxfail.example", "u@lost.example")
	s.drain()
	for ip, want := range map[string][]string{
		"127.0.0.11": {"u@one.example v@one.example"},
		"127.0.0.13": {"u@two.example"},
		"127.0.0.14": {"u@[127.0.0.14]", "u@three.example"},
	} {
		if got := n.got(ip); !slices.Equal(got, want) {
			t.Errorf("%s got %q, want %q", ip, got, want)
		}
	}
	waits := map[string]string{
		"u@broken.example": "4.4.3", "u@half.example": "4.4.3", "u@mxfail.example": "4.4.3", "u@lost.example": "4.4.3",
	}
	for _, q := range s.mailq() {
		if want, ok := waits[q.Recipient]; !ok || q.State != "tempfail" || q.Status != want || q.Reason == "" {
			t.Errorf("%s is in %s with %s %s", q.Recipient, q.State, q.Status, q.Reason)
		}
		delete(waits, q.Recipient)
	}
	if len(waits) > 0 {
		t.Errorf("these do not wait: %v", waits)
	}
	box := s.mailbox("bob")
	if len(box) != 1 {
		t.Fatalf("bob has %d messages, want one bounce", len(box))
	}
	for _, want := range []string{
		"Final-Recipient: rfc822; u@null.example", "Status: 5.1.10",
		"Final-Recipient: rfc822; u@gone.example", "Status: 5.1.2",
		"Final-Recipient: rfc822; u@nomail.example", "Status: 5.4.6",
	} {
		if !strings.Contains(box[0].text, want) {
			t.Errorf("the bounce lacks %q", want)
		}
	}
	for _, unwanted := range []string{"half.example", "broken.example", "one.example"} {
		if strings.Contains(box[0].text, "Final-Recipient: rfc822; u@"+unwanted) {
			t.Errorf("the bounce is for %s too", unwanted)
		}
	}
}

// A DNS server that does not answer keeps mail, and returns none.
func TestResolverDown(t *testing.T) {
	t.Parallel()
	s := newSiteWith(t, siteOptions{direct: true})
	s.post("x", "-f", "bob", "u@one.example")
	s.drain()
	q := only(t, "a waiting name", s.mailq())
	if q.State != "tempfail" || q.Status != "4.4.3" || !strings.Contains(q.Reason, "one.example") {
		t.Errorf("%+v", q)
	}
	// One that is told to use no other is asked when the first is silent.
	n := newInternet(t, map[string][]string{"one.example": {"A 127.0.0.11"}}, "127.0.0.11")
	s = newSiteWith(t, siteOptions{direct: true, resolver: "127.0.0.1:1, " + n.dns.Addr(), conf: fmt.Sprintf("PORT %d\n", n.port)})
	s.post("x", "-f", "bob", "u@one.example")
	s.drain()
	if got := n.got("127.0.0.11"); len(got) != 1 {
		t.Errorf("with a second DNS server it got %q", got)
	}
}

// NULLCLIENT without SMARTHOST, and a SMARTHOST that cannot be read, send nothing
// to the MX of anybody.
func TestDirectIsNotAskedFor(t *testing.T) {
	t.Parallel()
	for _, conf := range []string{"NULLCLIENT\n", "SMARTHOST :x:\n"} {
		n := newInternet(t, map[string][]string{"one.example": {"A 127.0.0.11"}}, "127.0.0.11")
		s := n.site(conf)
		s.post("x", "-f", "bob", "u@one.example")
		s.drain()
		if q := only(t, "a waiting name", s.mailq()); q.State != "tempfail" || q.Status != "4.3.5" || !strings.Contains(q.Reason, "SMARTHOST") {
			t.Errorf("%s: %+v", conf, q)
		}
		if asked := n.dns.Asked(); len(asked) > 0 || len(n.got("127.0.0.11")) > 0 {
			t.Errorf("%s: the DNS was asked %q, and the host got %q", conf, asked, n.got("127.0.0.11"))
		}
	}
}

// A domain that hangs, with more messages than are in hand at a time, holds nobody
// up: not other messages, and not the other recipients of the same one. A kill
// while it hangs repeats nothing.
func TestHangingDomain(t *testing.T) {
	t.Parallel()
	n := newInternet(t, map[string][]string{
		"one.example":    {"MX 10 mx.one.example"},
		"mx.one.example": {"A 127.0.0.11"},
		"hang.example":   {"A 127.0.0.12"},
	}, "127.0.0.11")
	hangs := n.silent("127.0.0.12")
	s := n.site("CONCURRENCY 1\n")
	const many = 130 // more than CONCURRENCY 1 has in hand
	for range many {
		s.post("lost", "-f", "bob", "u@hang.example")
	}
	s.post("both", "-f", "bob", "first@one.example", "u@hang.example")
	v := s.start()
	delivered := func(n int) func(string) bool {
		return func(log string) bool {
			return strings.Count(log, "@one.example") > 0 && strings.Count(log, " to=sent ") >= n
		}
	}
	v.await("delivery to one.example", delivered(1))
	s.post("late", "-f", "bob", "second@one.example", "u@hang.example")
	v.await("a second one", delivered(2))
	v.kill()
	if got := len(s.in(spooldir.Remote)); got != many+2 {
		t.Errorf("remote holds %d names, want %d", got, many+2)
	}
	if c := hangs.connections(); c != 1 {
		t.Errorf("%d connections to the one that hangs", c)
	}

	v = s.start()
	s.post("after", "-f", "bob", "third@one.example")
	v.await("a third one", delivered(1))
	v.kill()
	if got := n.got("127.0.0.11"); !slices.Equal(got, []string{"first@one.example", "second@one.example", "third@one.example"}) {
		t.Errorf("one.example got %q", got)
	}

	// When it hangs up, it rests, and all of its mail waits.
	s.must("hold", s.in(spooldir.Remote)[0])
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.drain()
	}()
	for done := false; !done; {
		select {
		case <-ended:
			done = true
		case <-t.Context().Done():
			t.Fatal("the drain does not end")
		default:
			hangs.hangUp()
		}
	}
	if got, held := len(s.in(spooldir.Tempfail)), len(s.in(spooldir.Hold)); got != many+1 || held != 1 {
		t.Errorf("tempfail holds %d names, hold %d", got, held)
	}
}

// verify says which hosts would be asked, and looks nobody up where a smarthost is.
func TestVerifyRemote(t *testing.T) {
	t.Parallel()
	n := newInternet(t, map[string][]string{
		"one.example":    {"MX 20 c.one.example", "MX 10 a.one.example"},
		"three.example":  {"A 127.0.0.14"},
		"null.example":   {"MX 0 ."},
		"broken.example": {"SERVFAIL"},
	}, "127.0.0.11")
	s := n.site("")
	for addr, want := range map[string]struct {
		code int
		text string
	}{
		"u@one.example":    {0, fmt.Sprintf("u@one.example: remote, to the mail exchangers of one.example: a.one.example:%d, c.one.example:%d\n", n.port, n.port)},
		"u@three.example":  {0, "u@three.example: remote, to three.example, which has no mail exchangers\n"},
		"u@null.example":   {67, "u@null.example: remote, the mail is returned: null.example takes no mail: it has a null MX\n"},
		"u@gone.example":   {67, "u@gone.example: remote, the mail is returned: the domain gone.example has neither MX nor address\n"},
		"u@broken.example": {75, "u@broken.example: remote, waits: looking up the MX of broken.example: server misbehaving\n"},
	} {
		if r := s.dma("", "-bv", addr); r.code != want.code || r.stdout != want.text {
			t.Errorf("%s: exit %d\n%s%s", addr, r.code, r.stdout, r.stderr)
		}
	}
	asked := len(n.dns.Asked())
	s.write("senders", "me@host.example 192.0.2.1\n")
	s.write("passwd", fmt.Sprintf("me:x:%d:%d::/:/bin/sh\n", os.Getuid(), os.Getgid()))
	conf, err := os.ReadFile(s.path("dma.conf"))
	if err != nil {
		t.Fatal(err)
	}
	s.write("dma.conf", string(conf)+"SENDERRELAY senders\n")
	want := fmt.Sprintf("u@one.example: remote, by way of the relay of me@host.example: [192.0.2.1]:%d\n", n.port)
	if r := s.dma("", "-bv", "u@one.example"); r.code != 0 || r.stdout != want {
		t.Errorf("with a relay of the sender: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	if now := len(n.dns.Asked()); now != asked {
		t.Errorf("the DNS was asked %d times for nothing", now-asked)
	}
}
