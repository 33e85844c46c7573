package systemtest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"dma/internal/smtptest"
	"dma/spooldir"
)

// A bounce that cannot be delivered goes to the postmaster.
func TestSenderUnknown(t *testing.T) {
	t.Parallel()
	s := newSiteWith(t, siteOptions{rules: []string{"refuse ghost@*"}})
	s.post("here", "-f", "ghost", "nosuch")
	s.post("far", "-f", "ghost@far.example", "nosuch")
	log := s.drain().stderr
	list := s.mailbox("alice")
	if len(list) != 2 || len(events(log, "double-bounce")) != 2 {
		t.Fatalf("the postmaster has %d messages, and the log\n%s", len(list), log)
	}
	var finals []string
	for _, m := range list {
		r := parseReport(t, m.text)
		finals = append(finals, r.finals()...)
		if r.header.Get("Subject") != "Delivery report that could not be delivered" || !m.hasLine("Return-Path: <>") || !strings.Contains(r.returned, "MAILER-DAEMON@host.example") {
			t.Errorf("the postmaster got\n%s", m.text)
		}
	}
	equal(t, "reported", finals, []string{"ghost@host.example", "ghost@far.example"})
	s.empty()
}

// If the postmaster cannot be reached either, the report stays for a person,
// and is logged once.
func TestPostmasterUnknown(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, postmaster string }{
		{"far", "chief@far.example"}, {"here", "nosuch"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSiteWith(t, siteOptions{rules: []string{"refuse chief@*"}})
			s.write("aliases", "postmaster: "+tt.postmaster+"\n")
			s.post("lost", "-f", "ghost", "nosuch")
			log := s.drain().stderr
			name := only(t, "a name in permfail", s.in(spooldir.Permfail))
			log += s.flush().stderr
			v := s.start()
			s.post("sound", "bob")
			v.await("mail", func(string) bool { return len(s.mailbox("bob")) == 1 && len(s.spool()) == 2 })
			v.stop()
			log += v.log()
			if e := only(t, "a line in the log", events(log, "kept")); e["level"] != "error" || !strings.HasPrefix(name, e["id"]+"."+e["n"]+"-") {
				t.Errorf("logged as %v", e)
			}
			if q := only(t, "a name", s.mailq()); q.Name != name || q.State != "permfail" || !strings.HasPrefix(q.Status, "5.1.1") {
				t.Errorf("listed as %+v", q)
			}
			equal(t, "permfail", s.in(spooldir.Permfail), []string{name})
		})
	}
}

// The null sender never gets a report; the postmaster hears of the failure.
func TestNullSender(t *testing.T) {
	t.Parallel()
	s := newSiteWith(t, siteOptions{rules: []string{"refuse no@*"}})
	s.post("null", "-f", "<>", "bob", "far@far.example", "no@far.example", "nosuch")
	s.drain()
	if m := only(t, "mail for bob", s.mailbox("bob")); !m.hasLine("Return-Path: <>") || strings.Contains(m.text, "From: <>") {
		t.Errorf("bob got\n%s", m.text)
	}
	if tr := only(t, "a transaction", s.sink.Transactions()); tr.From != "" || !slices.Equal(tr.To, []string{"far@far.example"}) {
		t.Errorf("the smarthost got %+v", tr)
	}
	r := parseReport(t, only(t, "a report", s.mailbox("alice")).text)
	equal(t, "reported", r.finals(), []string{"no@far.example", "nosuch@host.example"})
	s.empty()
}

func TestNotifyNever(t *testing.T) {
	t.Parallel()
	s := newSiteWith(t, siteOptions{rules: []string{"refuse no@*"}})
	s.post("quiet", "-N", "never", "-f", "alice", "bob", "nosuch", "no@far.example")
	s.post("quiet null", "-N", "never", "-f", "<>", "nosuch")
	s.drain()
	if n := len(s.mailbox("alice")); n != 0 {
		t.Errorf("%d reports:\n%v", n, s.mailbox("alice"))
	}
	s.empty()
}

// Whoever asks for it hears of success, and only of that.
func TestNotifySuccess(t *testing.T) {
	t.Parallel()
	for _, dsn := range []bool{false, true} {
		t.Run(map[bool]string{false: "plain relay", true: "relay with DSN"}[dsn], func(t *testing.T) {
			t.Parallel()
			s := newSiteWith(t, siteOptions{sink: smtptest.NewSink(smtptest.SinkOptions{DSN: dsn, Rules: parseRules(t, "refuse no@*")})})
			s.forward("carol", "dave, bob\n")
			s.post("asked", "-N", "success,delay", "-V", "ticket 7", "-f", "alice", "bob", "carol", "far@far.example", "no@far.example", "nosuch")
			s.drain()
			got := make(map[string]string)
			for _, m := range s.mailbox("alice") {
				r := parseReport(t, m.text)
				if r.message.Get("Original-Envelope-Id") != "ticket 7" {
					t.Errorf("the envelope id is %q", r.message.Get("Original-Envelope-Id"))
				}
				for i, h := range r.recipients {
					got[r.finals()[i]] += h.Get("Action") + " " + h.Get("Status")
				}
			}
			want := map[string]string{"bob@host.example": "delivered 2.0.0", "carol@host.example": "expanded 2.0.0", "far@far.example": "relayed 2.0.0"}
			if dsn { // the relay reports
				delete(want, "far@far.example")
				var first smtptest.Transaction
				if list := s.sink.Transactions(); len(list) > 0 {
					first = list[0]
				}
				if len(first.Rcpt) != 1 || len(first.Rcpt[0].Notify) != 2 || first.Mail.EnvelopeID != "ticket 7" {
					t.Errorf("the relay was asked %+v", first)
				}
			}
			for addr, what := range want {
				if got[addr] != what {
					t.Errorf("%s was reported as %q, not %q", addr, got[addr], what)
				}
			}
			if len(got) != len(want) {
				t.Errorf("reported: %q", got)
			}
			s.empty()
		})
	}
}

// What a sender asked for goes along where a recipient becomes others, and the
// sender stays the sender. A list is the end of that: its owner takes the place of
// the sender, and hears of the members (RFC 3461 5.2.7). ORCPT, which is what the
// sender knows the recipient as, stands in the reports.
func TestNotifyExpanded(t *testing.T) {
	t.Parallel()
	const known = "The Team@elsewhere.example"
	for _, tt := range []struct {
		name, to, notify string
		alice, dave      []string // reports for the sender, and for the owner of the list
		relayed          string   // sender, NOTIFY, ORCPT and ENVID
	}{
		{"alias of one", "one", "SUCCESS", nil, nil, "alice@host.example [SUCCESS] " + known + " ticket"},
		{"forward file of one", "bob", "SUCCESS", nil, nil, "alice@host.example [SUCCESS] " + known + " ticket"},
		{"alias of several", "team", "SUCCESS", []string{"team expanded " + known}, nil, "alice@host.example [NEVER] " + known + " ticket"},
		{"forward file of several", "carol", "SUCCESS,FAILURE", []string{"carol expanded " + known, "gone failed " + known}, nil, "alice@host.example [FAILURE] " + known + " ticket"},
		{"alias and forward file", "one+two", "SUCCESS,FAILURE", []string{"one+two expanded " + known, "gone failed " + known}, nil, "alice@host.example [FAILURE] " + known + " ticket"},
		{"alias never", "team", "NEVER", nil, nil, "alice@host.example [NEVER] " + known + " ticket"},
		{"forward file never", "carol", "NEVER", nil, nil, "alice@host.example [NEVER] " + known + " ticket"},
		{"alias unasked", "team", "", []string{"gone failed " + known}, nil, "alice@host.example [] " + known + " ticket"},
		{"list", "crew", "SUCCESS,FAILURE", []string{"crew delivered " + known}, []string{"gone failed crew@host.example"}, "owner-crew@host.example []  "},
		{"list never", "crew", "NEVER", nil, []string{"gone failed crew@host.example"}, "owner-crew@host.example []  "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSiteWith(t, siteOptions{sink: smtptest.NewSink(smtptest.SinkOptions{DSN: true, Rules: parseRules(t, "refuse gone@*")})})
			s.write("aliases", `postmaster: alice
root: alice
one: friend@far.example
one+two: carol
team: friend@far.example, gone@far.example
crew: friend@far.example, gone@far.example
owner-crew: dave
`)
			s.forward("bob", "friend@far.example\n")
			s.forward("carol", "friend@far.example, gone@far.example\n")
			e := spooldir.Envelope{Sender: "alice@host.example", EnvelopeID: "ticket", Recipients: []spooldir.Recipient{
				{Address: tt.to, Notify: tt.notify, ORCPT: "rfc822;" + strings.ReplaceAll(known, " ", "+20")},
			}}
			s.check(draft(t, s.open(), e).Commit())
			s.drain()
			for user, want := range map[string][]string{"alice": tt.alice, "dave": tt.dave} {
				var got []string
				for _, m := range s.mailbox(user) {
					r := parseReport(t, m.text)
					for i, h := range r.recipients {
						final, _, _ := strings.Cut(r.finals()[i], "@")
						_, original, _ := strings.Cut(h.Get("Original-Recipient"), "; ")
						got = append(got, final+" "+h.Get("Action")+" "+original)
					}
				}
				equal(t, user+" was told", got, want)
			}
			tr := only(t, "a transaction", s.sink.Transactions())
			if got := fmt.Sprintln(tr.From, tr.Rcpt[0].Notify, tr.Rcpt[0].OriginalRecipient, tr.Mail.EnvelopeID); got != tt.relayed+"\n" {
				t.Errorf("the relay was told %q, want %q", got, tt.relayed)
			}
			s.empty()
		})
	}
}

// A delay is told of once, to those who asked.
func TestNotifyDelay(t *testing.T) {
	t.Parallel()
	s := newSiteWith(t, siteOptions{rules: []string{"defer * 451 4.7.1 Not now"}})
	for _, notify := range []string{"DELAY", "FAILURE"} {
		e := spooldir.Envelope{Sender: "alice@host.example", Arrival: time.Now().Add(-5 * time.Hour)}
		e.Recipients = []spooldir.Recipient{{Address: notify + "@far.example", Notify: notify}}
		s.check(draft(t, s.open(), e).Commit())
	}
	for range 3 {
		s.flush()
	}
	r := parseReport(t, only(t, "a notice", s.mailbox("alice")).text)
	h := only(t, "a recipient", r.recipients)
	if r.finals()[0] != "DELAY@far.example" || h.Get("Action") != "delayed" || h.Get("Status") != "4.7.1" || h.Get("Will-Retry-Until") == "" {
		t.Errorf("reported as %v", h)
	}
	if n := len(s.in(spooldir.Tempfail)); n != 2 {
		t.Errorf("%d names wait", n)
	}
}

// What is too old, and has been tried five times, bounces.
func TestExpire(t *testing.T) {
	t.Parallel()
	s := newSiteWith(t, siteOptions{rules: []string{"defer * 451 4.7.1 Not now"}})
	d := draft(t, s.open(), spooldir.Envelope{Sender: "alice@host.example", Arrival: time.Now().Add(-6 * 24 * time.Hour)}, "old@far.example")
	s.check(d.Commit())
	for i := range 5 {
		if n := len(s.mailbox("alice")); n > 0 {
			t.Fatalf("given up after %d attempts", i)
		}
		s.flush()
	}
	r := parseReport(t, only(t, "a bounce", s.mailbox("alice")).text)
	if h := only(t, "a recipient", r.recipients); h.Get("Action") != "failed" || !strings.Contains(h.Get("Diagnostic-Code"), "Not now") {
		t.Errorf("reported as %v", h)
	}
	if n := s.sink.Counts().Rcpts; n != 5 {
		t.Errorf("%d attempts", n)
	}
	s.empty()
}
