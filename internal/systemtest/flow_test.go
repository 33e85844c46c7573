package systemtest

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"dma/internal/smtptest"
	"dma/spooldir"
)

// One message for 200 recipients of a smarthost that takes some, defers some
// and refuses some.
func TestTwoHundredRecipients(t *testing.T) {
	t.Parallel()
	var args, taken, deferred, refused []string
	for i := range 200 {
		kind := []string{"ok", "later", "ok", "no"}[i%4]
		addr := fmt.Sprintf("%s%03d@far.example", kind, i)
		args = append(args, addr)
		switch kind {
		case "ok":
			taken = append(taken, addr)
		case "later":
			deferred = append(deferred, addr)
		case "no":
			refused = append(refused, addr)
		}
	}
	rules := parseRules(t, "defer later* 451 4.2.1 Come back", "refuse no* 550 5.1.1 Nobody of that name")
	rules[0].Times = len(deferred) // the rule ends with the first attempt
	s := newSiteWith(t, siteOptions{sink: smtptest.NewSink(smtptest.SinkOptions{Rules: rules})})
	s.post("many", append([]string{"-f", "alice"}, args...)...)
	if n := len(s.in(spooldir.New)); n != 200 {
		t.Fatalf("%d names in new", n)
	}
	s.drain()

	c := s.sink.Counts()
	if c.Connections != 1 || c.Mails != 1 || c.Rcpts != 200 {
		t.Errorf("the smarthost saw %d connections, %d MAIL, %d RCPT instead of 1, 1, 200", c.Connections, c.Mails, c.Rcpts)
	}
	first := only(t, "a transaction", s.sink.Transactions())
	equal(t, "taken", first.To, taken)
	equal(t, "deferred or refused", first.Refused, append(slices.Clone(deferred), refused...))
	equal(t, "in tempfail", s.labels(spooldir.Tempfail), deferred)
	if n := len(s.spool()); n != len(deferred)+1 { // and the journal
		t.Errorf("%d names in the spool: %q", n, s.spool())
	}

	r := parseReport(t, only(t, "a bounce", s.mailbox("alice")).text)
	equal(t, "reported", r.finals(), refused)
	for _, h := range r.recipients {
		if h.Get("Action") != "failed" || h.Get("Status") != "5.1.1" || !strings.Contains(h.Get("Diagnostic-Code"), "Nobody of that name") || h.Get("Remote-MTA") == "" {
			t.Errorf("reported as %v", h)
		}
	}
	if from := r.header.Get("From"); !strings.Contains(from, "MAILER-DAEMON@host.example") || r.header.Get("Auto-Submitted") != "auto-replied" {
		t.Errorf("the header of the bounce is %v", r.header)
	}
	if !strings.Contains(r.returned, "Subject: many") {
		t.Errorf("the bounce returns %q", r.returned)
	}

	var waiting []string
	for _, q := range s.mailq() {
		waiting = append(waiting, q.Recipient)
		if q.State != "tempfail" || q.Status != "4.2.1" || !strings.Contains(q.Reason, "Come back") || q.Next == nil || q.Attempts != 1 {
			t.Errorf("listed as %+v", q)
		}
	}
	equal(t, "mailq", waiting, deferred)

	s.flush()
	all := s.sink.Transactions()
	if len(all) != 2 {
		t.Fatalf("%d transactions instead of 2", len(all))
	}
	equal(t, "second attempt", all[1].To, deferred)
	if len(all[1].Refused) > 0 {
		t.Errorf("the second attempt asked for %q too", all[1].Refused)
	}
	if n := len(s.mailbox("alice")); n != 1 {
		t.Errorf("%d messages for the sender", n)
	}
	s.empty()
}

// Without events, the timer alone makes mail flow, and a flush too.
func TestNoEvents(t *testing.T) {
	t.Parallel()
	rules := parseRules(t, "defer later@* 451 4.2.1 Come back")
	rules[0].Times = 1
	s := newSiteWith(t, siteOptions{sink: smtptest.NewSink(smtptest.SinkOptions{Rules: rules})})
	s.env = []string{"DMA_NO_WATCH=1"}
	s.forward("bob", `\bob, far@far.example`)
	v := s.start()
	v.await("word of no events", func(log string) bool { return len(events(log, "watch-unavailable")) == 1 })
	s.post("silent", "alice", "bob", "far2@far.example", "later@far.example")
	v.await("the mail", func(string) bool {
		return len(s.mailbox("alice")) == 1 && len(s.mailbox("bob")) == 1 &&
			slices.Equal(s.relayed(), []string{"far2@far.example", "far@far.example"}) && len(s.in(spooldir.Tempfail)) == 1
	})
	s.flush()
	v.await("the flushed mail", func(string) bool { return slices.Contains(s.relayed(), "later@far.example") })
	eventually(t, "empty spool", func() bool { return len(s.spool()) == 0 })
	v.stop()
}

// When more happens than the kernel keeps events for, what got lost is found.
func TestLostEvents(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	if err != nil {
		t.Skip("no inotify: ", err)
	}
	most, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || most > 200000 {
		t.Skipf("too many events to lose: %q, %v", text, err)
	}
	s := newSite(t)
	v := s.startWorking("carol")
	if err := v.process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// Each rename is two events. A name with a dot in front is nobody's.
	s.write(s.path("spool", "new", ".a"), "")
	for i := range max(20000, most/2+2000) / 2 * 2 {
		from, to := ".a", ".b"
		if i%2 == 1 {
			from, to = to, from
		}
		if err := os.Rename(s.path("spool", "new", from), s.path("spool", "new", to)); err != nil {
			t.Fatal(err)
		}
	}
	s.post("lost", "alice", "far@far.example")
	if err := v.process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// The timer, which would find it too, looks once a minute.
	deadline := time.Now().Add(40 * time.Second)
	for len(s.mailbox("alice")) != 1 || len(s.relayed()) != 1 {
		if time.Now().After(deadline) {
			t.Fatalf("the mail does not flow\n%s", v.log())
		}
		time.Sleep(20 * time.Millisecond)
	}
	eventually(t, "quiet spool", func() bool { return len(s.spool()) == 1 })
	v.stop()
	if err := os.Remove(s.path("spool", "new", ".a")); err != nil {
		t.Fatal(err)
	}
	s.empty()
}
