package queue

import (
	"strings"
	"testing"
	"time"

	"dma/forward"
	"dma/internal/passwd"
	"dma/spooldir"
	"dma/states"
)

// net does what the net process does when a server has answered for a recipient
// in remote.
func (f *fixture) net(name spooldir.Name, e spooldir.Entry, to spooldir.State) {
	f.t.Helper()
	e.Time, e.Recipients = f.clock.Now(), []int{name.N}
	if err := f.spool.AppendJournal(name.ID, false, e); err != nil {
		f.t.Fatal(err)
	}
	if err := states.NewMover(f.spool, states.Net, nil, nil).Move(name, spooldir.Remote, to, e.Reply); err != nil {
		f.t.Fatal(err)
	}
}

const lmtpServer = "lmtp:/run/lmtp"

// lmtpFixture serves mailboxes by LMTP.
func lmtpFixture(t *testing.T) *fixture {
	f := newFixture(t, memory(t))
	f.config.LMTP = true
	f.start()
	return f
}

// TestMailboxAddress: what the net process is told of a recipient in remote.
func TestMailboxAddress(t *testing.T) {
	c := Config{HostName: testHost, LocalDomains: []string{testHost, "example.org"}}
	for _, test := range []struct {
		r    spooldir.Recipient
		want string // "": not of this host
	}{
		{spooldir.Recipient{Address: "alice"}, "alice@host.test"},
		{spooldir.Recipient{Address: "alice+d@Example.org"}, "alice+d@host.test"},
		{spooldir.Recipient{Address: `"a b"@host.test`}, `"a b"@host.test`},
		{spooldir.Recipient{Address: "alice@localhost"}, "alice@host.test"},
		{spooldir.Recipient{Address: "x@remote.test"}, ""},
		{spooldir.Recipient{Kind: spooldir.Mailbox, Address: "team@example.org", User: "alice"}, "alice@host.test"},
		{spooldir.Recipient{Kind: spooldir.Mailbox, Address: "x@remote.test", User: "alice", Detail: "d"}, "alice+d@host.test"},
		{spooldir.Recipient{Kind: spooldir.LocalUser, Address: "team", User: "bob"}, "bob@host.test"},
	} {
		got, ok := c.Mailbox(&test.r)
		if got != test.want || ok != (test.want != "") {
			t.Errorf("%+v: %q, %v, want %q", test.r, got, ok, test.want)
		}
	}
	c.NullClient = true
	if _, ok := c.Mailbox(&spooldir.Recipient{Address: "alice"}); ok {
		t.Error("a null client has mailboxes")
	}
}

// TestLMTPWay: a recipient goes from forwarding to remote, waits in tempfail and
// goes back there by way of new.
func TestLMTPWay(t *testing.T) {
	f := lmtpFixture(t)
	f.writeAliases("team: alice, \\bob, |cmd")
	names := f.send("s@remote.test", "alice+d", "ghost")
	f.step(spooldir.New, names[0])
	if got := f.where(names[1]); got != "permfail" {
		t.Errorf("an unknown user stands in %q", got)
	}
	f.step(spooldir.Forwarding, names[0])
	for try := range 3 {
		if got := f.where(names[0]); got != "remote" {
			t.Fatalf("try %d: it stands in %q", try, got)
		}
		next := f.clock.Now().Add(time.Hour)
		f.net(names[0], spooldir.Entry{Event: spooldir.Deferred, Relay: lmtpServer, Status: "4.2.2", Reply: "452 4.2.2 full", Next: next}, spooldir.Tempfail)
		f.step(spooldir.Tempfail, names[0])
		if got := f.where(names[0]); got != "tempfail" {
			t.Errorf("try %d: it stands in %q before its time", try, got)
		}
		f.clock.advance(2 * time.Hour)
		f.step(spooldir.Tempfail, names[0])
		f.step(spooldir.New, names[0])
		f.step(spooldir.Forwarding, names[0])
	}
	// Delivered, and killed before the name moved: the journal binds.
	if err := f.spool.AppendJournal(names[0].ID, true, spooldir.Entry{
		Time: f.clock.Now(), Event: spooldir.Delivered, Recipients: []int{1}, Relay: lmtpServer,
	}); err != nil {
		t.Fatal(err)
	}
	f.move(names[0], spooldir.Remote, spooldir.New)
	f.step(spooldir.New, names[0])
	if got := f.where(names[0]); got != "sent" {
		t.Errorf("delivered, it stands in %q", got)
	}

	// The children of an alias: mailboxes by LMTP, the command here.
	parent := f.send("s@remote.test", "team")[0]
	f.step(spooldir.New, parent)
	kids := f.names(spooldir.New)
	if len(kids) != 3 {
		t.Fatalf("children: %v", kids)
	}
	f.step(spooldir.New, kids[0])
	want := map[spooldir.RecipientKind]string{spooldir.LocalUser: "remote", spooldir.Mailbox: "remote", spooldir.Command: "local"}
	for _, k := range kids {
		if at := f.where(k); at == "forwarding" {
			f.step(spooldir.Forwarding, k)
		}
	}
	for _, k := range kids {
		m := f.open(spooldir.State(strings.Fields(f.where(k))[0]), k)
		r := &m.Recipients[k.N-1]
		if got := f.where(k); got != want[r.Kind] {
			t.Errorf("%s stands in %q, want %q", describe(r), got, want[r.Kind])
		}
	}
}

// TestLMTPReports: a mailbox by LMTP is a mailbox of this host for the sender,
// and the server behind it none of his business.
func TestLMTPReports(t *testing.T) {
	f := lmtpFixture(t)
	names := f.submit(spooldir.Envelope{Sender: "s@remote.test", Recipients: []spooldir.Recipient{
		{Address: "alice", Notify: "SUCCESS,FAILURE"}, {Address: "bob", Notify: "FAILURE"},
	}}, "Subject: x\n\nbody\n")
	f.step(spooldir.New, names[0])
	f.step(spooldir.Forwarding, names[0])
	f.net(names[0], spooldir.Entry{Event: spooldir.Delivered, Relay: lmtpServer, Status: "2.0.0", Reply: "250 2.0.0 saved"}, spooldir.Sent)
	f.net(names[1], spooldir.Entry{Event: spooldir.Failed, Relay: lmtpServer, Status: "5.2.1", Reply: "550 5.2.1 disabled"}, spooldir.Permfail)
	f.step(spooldir.Sent, names[0])
	f.step(spooldir.Permfail, names[1])
	reports := f.names(spooldir.New)
	if len(reports) != 2 {
		t.Fatalf("reports: %v", reports)
	}
	var text string
	for _, n := range reports {
		text += content(t, f.open(spooldir.New, n))
	}
	for _, want := range []string{"Action: delivered", "Action: failed", "Status: 5.2.1", "Diagnostic-Code: smtp; 550 5.2.1 disabled"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "Remote-MTA") || strings.Contains(text, "Action: relayed") {
		t.Errorf("the server is shown in\n%s", text)
	}
}

// TestLMTPNoMore: what waits for the server goes to a file when MAILBOX changes.
func TestLMTPNoMore(t *testing.T) {
	f := lmtpFixture(t)
	f.agent.forward = func(passwd.User, string) (forward.Result, error) { return forward.Result{}, nil }
	name := f.send("s@remote.test", "alice")[0]
	f.step(spooldir.New, name)
	f.step(spooldir.Forwarding, name)
	f.net(name, spooldir.Entry{Event: spooldir.Deferred, Relay: lmtpServer, Next: f.clock.Now()}, spooldir.Tempfail)
	f.config.LMTP = false
	f.start()
	f.step(spooldir.Tempfail, name)
	f.step(spooldir.New, name)
	f.step(spooldir.Forwarding, name)
	if got := f.where(name); got != "local" {
		t.Errorf("it stands in %q", got)
	}
}
