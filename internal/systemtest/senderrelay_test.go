package systemtest

import (
	"slices"
	"strings"
	"testing"

	"dma/internal/smtptest"
)

// listening makes a sink that listens, and returns its address.
func listening(t *testing.T) (*smtptest.Sink, string) {
	t.Helper()
	sink := smtptest.NewSink(smtptest.SinkOptions{})
	addr, err := sink.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sink.Close() })
	return sink, addr.String()
}

func senders(sink *smtptest.Sink) []string {
	var list []string
	for _, t := range sink.Transactions() {
		list = append(list, t.From)
	}
	slices.Sort(list)
	return list
}

// The relay goes by the sender that MAIL says: its own line, then that of its
// domain, then the smarthost. The null sender has none, and a line that cannot be
// read keeps its sender's mail here, and nobody else's.
func TestSenderRelay(t *testing.T) {
	t.Parallel()
	special, specialAddr := listening(t)
	domain, domainAddr := listening(t)
	dir := t.TempDir()
	s := newSiteWith(t, siteOptions{dir: dir, conf: "SENDERRELAY senders\nREWRITE rewrite\n"})
	s.write("rewrite", "bob: robert@example.com\n")
	s.write("senders", strings.Join([]string{
		"# relays",
		"Alice@Host.Example  " + specialAddr,
		"@example.com        127.0.0.1:1, " + domainAddr + " # the first is down",
		"dave@host.example   [127.0.0.1",
		"carol@host.example  me|" + specialAddr, // a login, and no AUTHPATH
		"not an address      " + specialAddr,
	}, "\n")+"\n")
	for _, from := range []string{"alice", "bob", "carol", "dave", "guest@elsewhere.example", "<>"} {
		s.post("from "+from, "-f", from, "friend@far.example")
	}
	r := s.drain()
	if got, want := senders(special), []string{"alice@host.example"}; !slices.Equal(got, want) {
		t.Errorf("the relay of alice got mail from %q", got)
	}
	if got, want := senders(domain), []string{"robert@example.com"}; !slices.Equal(got, want) {
		t.Errorf("the relay of example.com got mail from %q", got)
	}
	if got, want := senders(s.sink), []string{"", "guest@elsewhere.example"}; !slices.Equal(got, want) {
		t.Errorf("the smarthost got mail from %q", got)
	}
	waits := map[string]string{"dave@host.example": "line 4 of " + dir + "/senders", "carol@host.example": "login"}
	for _, q := range s.mailq() {
		if want := waits[q.Sender]; want == "" || q.State != "tempfail" || q.Status != "4.3.5" || !strings.Contains(q.Reason, want) {
			t.Errorf("%s: %s %s %s", q.Sender, q.State, q.Status, q.Reason)
		}
		delete(waits, q.Sender)
	}
	if len(waits) > 0 {
		t.Errorf("these do not wait: %v", waits)
	}
	for _, want := range []string{"/senders line=4 ", "/senders line=6 "} {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("the log lacks %q\n%s", want, r.stderr)
		}
	}

	// A line that is mended counts at once.
	s.write("senders", "dave@host.example "+specialAddr+"\ncarol@host.example "+domainAddr+"\n")
	s.flush()
	if a, b := senders(special), senders(domain); !slices.Contains(a, "dave@host.example") || !slices.Contains(b, "carol@host.example") {
		t.Errorf("after it was mended they got mail from %q and %q", a, b)
	}
}

// Senders have their relays without a smarthost too: with NULLCLIENT the others
// wait, without it their mail goes to the MX of the recipients.
func TestSenderRelayAlone(t *testing.T) {
	t.Parallel()
	for _, null := range []bool{true, false} {
		n := newInternet(t, map[string][]string{"far.example": {"A 127.0.0.11"}}, "127.0.0.11")
		special, addr := listening(t)
		conf := "SENDERRELAY senders\n"
		if null {
			conf += "NULLCLIENT\n"
		}
		s := n.site(conf)
		s.write("senders", "alice@host.example "+addr+"\n")
		s.post("x", "-f", "alice", "friend@far.example")
		s.post("x", "-f", "bob", "friend@far.example")
		s.drain()
		if got := senders(special); !slices.Equal(got, []string{"alice@host.example"}) {
			t.Errorf("NULLCLIENT %v: the relay of alice got mail from %q", null, got)
		}
		waiting := len(s.mailq())
		if got := n.got("127.0.0.11"); len(got) == 1 == null || (waiting == 1) != null {
			t.Errorf("NULLCLIENT %v: the MX got %q, and %d wait", null, got, waiting)
		}
	}
}

// While the file of SENDERRELAY cannot be read, all mail waits.
func TestSenderRelayMissing(t *testing.T) {
	t.Parallel()
	s := newSiteWith(t, siteOptions{conf: "SENDERRELAY senders\n"})
	s.post("x", "-f", "alice", "friend@far.example")
	s.drain()
	if q := only(t, "a waiting name", s.mailq()); q.State != "tempfail" || q.Status != "4.3.5" || !strings.Contains(q.Reason, "SENDERRELAY") {
		t.Errorf("%+v", q)
	}
	if c := s.sink.Counts(); c.Connections != 0 {
		t.Errorf("the smarthost got %d connections", c.Connections)
	}
}
