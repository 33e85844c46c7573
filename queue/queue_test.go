package queue

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"dma/agent"
	"dma/forward"
	"dma/internal/dsn"
	"dma/internal/maillog"
	"dma/internal/passwd"
	"dma/localwriter"
	"dma/spooldir"
)

// child is an envelope such as only the queue process makes.
func child(sender string, rcpts ...spooldir.Recipient) spooldir.Envelope {
	parent := spooldir.NewName("20400101T000000-00000000000000ff", 1, "parent")
	return spooldir.Envelope{
		ID: spooldir.DeriveID(parent.ID, 1, spooldir.Child), Sender: sender,
		Parents: []spooldir.Parent{{Name: parent}}, Recipients: rcpts,
	}
}

func TestRouting(t *testing.T) {
	f := newFixture(t, memory(t))
	f.writeAliases("team: alice, bob", "two: alice, x@remote.test", "broken alice", "bad: |", "empty: :include:/nonexistent", "run: |filter")
	f.users.trouble["troubled"] = errors.New("the name service does not answer")
	noRelay := func(c *Config) { c.Relay = func() error { return errors.New("no SMARTHOST is configured") } }
	address := func(a string) spooldir.Envelope {
		return spooldir.Envelope{Sender: "s@remote.test", Recipients: []spooldir.Recipient{{Address: a}}}
	}
	of := func(kind spooldir.RecipientKind, user string) spooldir.Envelope {
		r := spooldir.Recipient{Kind: kind, Address: "alice@" + testHost, User: user}
		if kind == spooldir.File || kind == spooldir.Command {
			r.Target, r.Source = "/x", "forward"
		}
		return child("s@remote.test", r)
	}
	deep := of(spooldir.LocalUser, "alice")
	deep.Depth = maxDepth + 1
	atDepth := of(spooldir.LocalUser, "alice")
	atDepth.Depth = maxDepth

	for _, test := range []struct {
		name    string
		env     spooldir.Envelope
		content string
		config  func(*Config)
		want    string // states
		status  string // in the journal
	}{
		{name: "user", env: address("alice"), want: "forwarding"},
		{name: "user at this host", env: address("alice@HOST.test"), want: "forwarding"},
		{name: "user at localhost", env: address("alice@localhost"), want: "forwarding"},
		{name: "user in capitals", env: address("ALICE"), want: "forwarding"},
		{name: "detail", env: address("alice+lists@host.test"), want: "forwarding"},
		{name: "postmaster", env: address("Postmaster"), want: "forwarding"},
		{name: "no such user", env: address("ghost"), want: "permfail", status: "5.1.1"},
		{name: "user unknown for now", env: address("troubled"), want: "tempfail", status: "4.3.5"},
		{name: "alias", env: address("team"), want: "sent", status: "2.0.0"},
		{name: "alias with a mistake", env: address("bad"), want: "tempfail", status: "4.3.5"},
		{name: "alias that cannot be read", env: address("empty"), want: "tempfail", status: "4.3.5"},
		{name: "command without ALIASUSER", env: address("run"), config: func(c *Config) { c.AliasUser = "" }, want: "tempfail", status: "4.3.5"},
		{name: "remote", env: address("x@remote.test"), want: "remote"},
		{name: "remote without smarthost", env: address("x@remote.test"), config: noRelay, want: "tempfail", status: "4.3.5"},
		{name: "local without smarthost", env: address("alice"), config: noRelay, want: "forwarding"},
		{name: "null client", env: address("alice@host.test"), config: func(c *Config) { c.NullClient = true }, want: "remote"},
		{name: "bad address", env: address("a b@remote.test"), want: "permfail", status: "5.1.3"},
		{name: "hops", env: address("alice"), content: strings.Repeat("Received: x\n", maxHops+1), want: "permfail", status: "5.4.6"},
		{name: "not too many hops", env: address("alice"), content: strings.Repeat("Received: x\n", maxHops), want: "forwarding"},
		{name: "hops in the body", env: address("alice"), content: "\n" + strings.Repeat("Received: x\n", maxHops+1), want: "forwarding"},
		{name: "loop", env: address("alice"), content: "Delivered-To: Alice@Host.test\n", want: "permfail", status: "5.4.6"},
		{name: "no loop", env: address("alice"), content: "Delivered-To: bob@host.test\n", want: "forwarding"},
		{name: "loop by alias", env: address("team"), content: "Delivered-To: team@host.test\n", want: "permfail", status: "5.4.6"},
		{name: "remote was here before", env: address("x@remote.test"), content: "Delivered-To: x@remote.test\n", want: "remote"},
		{name: "depth", env: deep, want: "permfail", status: "5.4.6"},
		{name: "not too deep", env: atDepth, want: "forwarding"},
		{name: "child user", env: of(spooldir.LocalUser, "alice"), want: "forwarding"},
		{name: "child user, gone", env: of(spooldir.LocalUser, "ghost"), want: "permfail", status: "5.1.1"},
		{name: "child user, unknown for now", env: of(spooldir.LocalUser, "troubled"), want: "tempfail", status: "4.3.0"},
		{name: "child user named by his own alias", env: of(spooldir.LocalUser, "alice"), content: "Delivered-To: alice@host.test\n", want: "forwarding"},
		{name: "child user, loop", env: of(spooldir.LocalUser, "bob"), content: "Delivered-To: bob@host.test\n", want: "permfail", status: "5.4.6"},
		{name: "mailbox", env: of(spooldir.Mailbox, "alice"), want: "local"},
		{name: "mailbox, loop does not count", env: of(spooldir.Mailbox, "alice"), content: "Delivered-To: alice@host.test\n", want: "local"},
		{name: "mailbox by LMTP", env: of(spooldir.Mailbox, "alice"), config: func(c *Config) { c.LMTP = true }, want: "remote"},
		{name: "file", env: of(spooldir.File, "alice"), want: "local"},
		{name: "command", env: of(spooldir.Command, "alice"), want: "local"},
		{name: "command with LMTP", env: of(spooldir.Command, "alice"), config: func(c *Config) { c.LMTP = true }, want: "local"},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := f.config
			defer func() { f.config = before }()
			if test.config != nil {
				test.config(&f.config)
			}
			f.start()
			name := f.submit(test.env, test.content+"Subject: x\n\nbody\n")[0]
			f.step(spooldir.New, name)
			if got := f.where(name); got != test.want {
				t.Fatalf("%s stands in %q, want %q", name, got, test.want)
			}
			status := ""
			if last := f.journal(name.ID).Last(1); last != nil {
				status = last.Status
			}
			if status != test.status {
				t.Errorf("status %q, want %q", status, test.status)
			}
			for _, state := range spooldir.States() {
				for _, n := range f.names(state) {
					f.spool.Remove(n, state)
				}
			}
			f.spool.RemoveJournal(name.ID)
		})
	}
}

// TestRoutingOfMany: each recipient of a message goes its own way.
func TestRoutingOfMany(t *testing.T) {
	f := newFixture(t, memory(t))
	names := f.send("s@remote.test", "alice", "ghost", "x@remote.test", "bob", "y@remote.test")
	f.step(spooldir.New, names[3])
	for i, want := range []string{"forwarding", "permfail", "remote", "forwarding", "remote"} {
		if got := f.where(names[i]); got != want {
			t.Errorf("%s stands in %q, want %q", names[i], got, want)
		}
	}
}

// TestNotMail: what is not committed is left alone; what is no message goes to
// corrupt, once, and the rest flows on.
func TestNotMail(t *testing.T) {
	f := newFixture(t, memory(t))
	half := f.send("", "alice")[0]
	if err := os.Chmod(f.file(spooldir.New, half), 0o600); err != nil {
		t.Fatal(err)
	}
	torn := f.send("", "alice", "bob")
	if err := os.Truncate(f.file(spooldir.New, torn[0]), 300); err != nil {
		t.Fatal(err)
	}
	spoilt := f.send("", "alice", "bob")
	w, err := os.OpenFile(f.file(spooldir.New, spoilt[0]), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	info, _ := w.Stat()
	w.WriteAt([]byte("?"), info.Size()-2)
	w.Close()
	good := f.send("", "alice")[0]
	for _, n := range []spooldir.Name{half, torn[0], torn[1], spoilt[0], spoilt[1], good} {
		f.step(spooldir.New, n)
	}
	if got := f.where(half); got != "new" {
		t.Errorf("the uncommitted one stands in %q", got)
	}
	if got := f.where(good); got != "forwarding" {
		t.Errorf("the good one stands in %q", got)
	}
	for _, n := range append(torn, spoilt...) {
		if _, err := os.Lstat(f.file(spooldir.Corrupt, n)); err != nil || f.where(n) != "" {
			t.Errorf("%s stands in %q, and in corrupt: %v", n, f.where(n), err)
		}
	}
	if got := len(f.log.of(maillog.EventCorrupt)); got != 4 {
		t.Errorf("%d lines about corrupt files, want one each", got)
	}
}

func TestChildEnvelope(t *testing.T) {
	f := newFixture(t, memory(t))
	one := []forward.Target{{Kind: forward.Address, Value: "x@remote.test"}}
	many := append(slices.Clone(one), forward.Target{Kind: forward.Mailbox, Value: "alice", Detail: "d"},
		forward.Target{Kind: forward.File, Value: "/f"}, forward.Target{Kind: forward.Maildir, Value: "/d/"},
		forward.Target{Kind: forward.Command, Value: "cmd"}, forward.Target{Kind: forward.User, Value: "bob"},
		forward.Target{Kind: forward.Discard}, one[0])
	for _, test := range []struct {
		name     string
		targets  []forward.Target
		list     bool
		notify   string
		want     string
		keep     bool
		due      dsn.Kind
		original string
	}{
		{name: "one, not asked", targets: one, keep: true},
		{name: "one", targets: one, notify: "SUCCESS,FAILURE", want: "SUCCESS,FAILURE", keep: true},
		{name: "one, never", targets: one, notify: "NEVER", want: "NEVER", keep: true},
		{name: "one, submitted as another", targets: one, original: "first@host.test", keep: true},
		{name: "several, not asked", targets: many, keep: true},
		{name: "several", targets: many, notify: "SUCCESS,FAILURE,DELAY", want: "FAILURE,DELAY", keep: true, due: dsn.Expanded},
		{name: "several, success only", targets: many, notify: "SUCCESS", want: "NEVER", keep: true, due: dsn.Expanded},
		{name: "several, never", targets: many, notify: "NEVER", want: "NEVER", keep: true},
		{name: "list", targets: many, list: true, notify: "SUCCESS,FAILURE", due: dsn.Delivered},
	} {
		t.Run(test.name, func(t *testing.T) {
			env := spooldir.Envelope{
				Sender: "s@remote.test", Return: "FULL", EnvelopeID: "env+2B", EightBit: true, UID: 1234, Depth: 0,
				Recipients: []spooldir.Recipient{{Address: "other"}, {
					Address: "al", Notify: test.notify, ORCPT: "rfc822;al", Original: test.original,
				}},
			}
			name := f.submit(env, "Subject: x\n\nbody\n")[1]
			m := f.open(spooldir.New, name)
			x := expansion{targets: test.targets, sender: m.Sender, list: test.list, source: "forward", user: "carl", detail: "more"}
			if test.list {
				x.sender = "owner-al@host.test"
			}
			got, keep, due, err := f.q.childEnvelope(t.Context(), m, 2, x)
			if err != nil {
				t.Fatal(err)
			}
			if keep != test.keep || due != test.due {
				t.Errorf("keep is %v, due %v; want %v, %v", keep, due, test.keep, test.due)
			}
			if got.ID != spooldir.DeriveID(m.ID, 2, spooldir.Child) || len(got.Parents) != 1 || got.Parents[0].Name != name ||
				got.Sender != x.sender || !got.Arrival.Equal(m.Arrival) || got.UID != 1234 || !got.EightBit || got.Depth != 1 {
				t.Errorf("envelope %+v", got)
			}
			original := test.original
			if original == "" {
				original = "al"
			}
			orcpt := map[bool]string{true: "rfc822;al"}[test.keep]
			want := []spooldir.Recipient{
				{Kind: spooldir.Address, Address: "x@remote.test"},
				{Kind: spooldir.Mailbox, Address: "al@host.test", User: "alice", Detail: "d"},
				{Kind: spooldir.File, Address: "al@host.test", User: "carl", Detail: "more", Target: "/f", Source: "forward"},
				{Kind: spooldir.File, Address: "al@host.test", User: "carl", Detail: "more", Target: "/d/", Source: "forward"},
				{Kind: spooldir.Command, Address: "al@host.test", User: "carl", Detail: "more", Target: "cmd", Source: "forward"},
				{Kind: spooldir.LocalUser, Address: "al@host.test", User: "bob"},
			}[:len(got.Recipients)]
			for i := range want {
				want[i].Notify, want[i].Original, want[i].ORCPT = test.want, original, orcpt
			}
			if !slices.Equal(got.Recipients, want) {
				t.Errorf("recipients\n%+v, want\n%+v", got.Recipients, want)
			}
			if len(test.targets) > 1 && len(got.Recipients) != 6 {
				t.Errorf("%d recipients: the same target twice is one, and /dev/null none", len(got.Recipients))
			}
		})
	}
}

// TestChildEnvelopeSame: what is spelled in several ways is one recipient, if it
// surely is one place.
func TestChildEnvelopeSame(t *testing.T) {
	f := newFixture(t, memory(t))
	f.users = newUsers("root", "alice", "bob", "Carl", "carl", "Plus+x")
	f.users.trouble["Troubled"] = errors.New("the name service does not answer")
	f.start()
	m := f.open(spooldir.New, f.send("s@remote.test", "al")[0])
	for _, test := range []struct{ lines, want string }{
		{"bob, bob@host.test, bob@localhost, BOB, Bob@HOST.Test, <bob>", "bob"},
		{"Bob@host.test, bob", "Bob@host.test"},
		{"ghost, GHOST@localhost", "ghost"},
		{"Carl, carl@host.test, CARL", "Carl carl@host.test"},
		{"bob+x, Bob+x@host.test, bob+X, bob", "bob+x bob+X bob"},
		{"Plus+x, plus+x", "Plus+x plus+x"},
		{"x@remote.test, x@Remote.TEST, X@remote.test", "x@remote.test X@remote.test"},
		{`"bob", \bob, \bob, /f, /f`, "bob al@host.test=bob al@host.test=/f"},
	} {
		x := expansion{targets: forwardTo(t, "/f", test.lines).Targets, sender: m.Sender, source: "forward", user: "alice"}
		env, _, _, err := f.q.childEnvelope(t.Context(), m, 1, x)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range env.Recipients {
			switch r.Kind {
			case spooldir.Mailbox:
				r.Address += "=" + r.User
			case spooldir.File:
				r.Address += "=" + r.Target
			}
			got = append(got, r.Address)
		}
		if got := strings.Join(got, " "); got != test.want {
			t.Errorf("%s: %s; want %s", test.lines, got, test.want)
		}
	}
	x := expansion{targets: forwardTo(t, "/f", "Troubled, troubled").Targets, sender: m.Sender, source: "forward", user: "alice"}
	if env, _, _, err := f.q.childEnvelope(t.Context(), m, 1, x); err == nil {
		t.Errorf("while nobody can tell who is who: %v", env.Recipients)
	}
}

// TestExpand follows an alias with an owner into its child.
func TestExpand(t *testing.T) {
	f := newFixture(t, memory(t))
	f.writeAliases("list: alice, x@remote.test", "owner-list: bob")
	env := spooldir.Envelope{Sender: "s@remote.test", Return: "FULL", EnvelopeID: "e1",
		Recipients: []spooldir.Recipient{{Address: "list", Notify: "SUCCESS", ORCPT: "rfc822;list"}}}
	name := f.submit(env, "Subject: x\n\nbody\n")[0]
	f.step(spooldir.New, name)
	if got := f.where(name); got != "sent" {
		t.Fatalf("the parent stands in %q", got)
	}
	in := f.names(spooldir.New)
	if len(in) != 2 {
		t.Fatalf("new holds %v, want a child with two recipients", in)
	}
	m := f.open(spooldir.New, in[0])
	if m.Sender != "owner-list@host.test" || m.Return != "" || m.EnvelopeID != "" || m.Recipients[0].ORCPT != "" || m.Recipients[0].Notify != "" {
		t.Errorf("the child of a list is %+v", m.Envelope)
	}
	if got, want := content(t, m), "Delivered-To: list@host.test\nSubject: x\n\nbody\n"; got != want {
		t.Errorf("content %q, want %q", got, want)
	}
}

// TestLists: the members of a list get its owner as the sender, whatever leads to
// it, and nobody else does; a null sender stays.
func TestLists(t *testing.T) {
	for _, sender := range []string{"s@remote.test", ""} {
		f := newFixture(t, memory(t))
		f.writeAliases(
			"all: alice, one@remote.test, l1, l2",
			"l1: m1@remote.test, l3", "l2: m2@remote.test, L1", "l3: m3@remote.test",
			"owner-l1: alice", "owner-l2: alice", "owner-l3: bob")
		f.send(sender, "all", "l3")
		var got []string
		for todo := f.names(spooldir.New); len(todo) > 0; todo = f.names(spooldir.New) {
			f.step(spooldir.New, todo[0])
		}
		for _, state := range []spooldir.State{spooldir.Forwarding, spooldir.Remote} {
			for _, n := range f.names(state) {
				m := f.open(state, n)
				r := m.Recipients[n.N-1]
				from, _, _ := strings.Cut(m.Sender, "@")
				got = append(got, r.User+strings.TrimSuffix(r.Address, "@remote.test")+" from "+from)
			}
		}
		slices.Sort(got)
		want := []string{
			"aliceall@host.test from s", "m1 from owner-l1", "m1 from owner-l1", "m2 from owner-l2",
			"m3 from owner-l3", "m3 from owner-l3", "m3 from owner-l3", "one from s",
		}
		if sender == "" {
			for i := range want {
				want[i], _, _ = strings.Cut(want[i], "owner")
				want[i] = strings.TrimSuffix(want[i], "s")
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("from <%s>\n%q, want\n%q", sender, got, want)
		}
	}
}

// TestCatchAll: the catch-all has the mail that was submitted for accounts, and
// not what a .forward or an alias sends to one.
func TestCatchAll(t *testing.T) {
	f := newFixture(t, memory(t))
	f.writeAliases("*: bob", "sales: alice")
	f.agent.forward = func(u passwd.User, _ string) (forward.Result, error) {
		if u.Name == "bob" {
			return forwardTo(t, "/f", "daemon"), nil
		}
		return forward.Result{}, nil
	}
	for _, test := range []struct{ to, want string }{
		{"alice", "daemon by bob"}, {"ghost", "daemon by bob"}, {"postmaster", "daemon by bob"}, {"sales", "alice by sales"},
	} {
		name := f.send("s@remote.test", test.to)[0]
		for range 4 {
			for _, state := range []spooldir.State{spooldir.New, spooldir.Forwarding} {
				for _, n := range f.names(state) {
					f.step(state, n)
				}
			}
		}
		var got []string
		for _, n := range f.names(spooldir.Local) {
			m := f.open(spooldir.Local, n)
			u, _, err := f.q.localUser(context.Background(), &m.Recipients[n.N-1])
			if err != nil {
				t.Fatal(err)
			}
			first, _, _ := strings.Cut(content(t, m), "@")
			got = append(got, u.Name+" by "+strings.TrimPrefix(first, "Delivered-To: "))
			f.spool.Remove(n, spooldir.Local)
		}
		if len(got) != 1 || got[0] != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

// TestAliasesChange: while the aliases are being changed an unknown name waits,
// and is tried again as soon as they have come to rest.
func TestAliasesChange(t *testing.T) {
	f := newFixture(t, memory(t))
	write := func(age time.Duration, lines ...string) time.Time {
		t.Helper()
		f.writeAliases(lines...)
		at := f.clock.now.Add(-age)
		if err := os.Chtimes(f.aliases, at, at); err != nil {
			t.Fatal(err)
		}
		return at
	}
	at := write(5*time.Second, "other: alice")
	names := f.send("s@remote.test", "sales", "alice", "typo")
	f.step(spooldir.New, names[0])
	last := f.journal(names[0].ID).Last(1)
	if last == nil || last.Status != "4.3.5" || !strings.HasPrefix(last.Reply, "no such user: sales, but "+f.aliases+" changed 5s ago") {
		t.Fatalf("%s has %+v", f.where(names[0]), last)
	}
	due := at.Add(30 * time.Second)
	if a, b, next := f.where(names[1]), f.where(names[2]), last.Next; a != "forwarding" || b != "tempfail" || !next.Equal(due) {
		t.Errorf("alice in %q, typo in %q, the next attempt at %v, not %v", a, b, next, due)
	}
	write(time.Hour, "other: alice", "sales: bob")
	f.clock.advance(due.Sub(f.clock.now))
	f.step(spooldir.Tempfail, names[0])
	f.step(spooldir.New, names[0])
	if a, b := f.where(names[0]), f.where(names[2]); a != "sent" || b != "permfail" {
		t.Errorf("sales in %q, typo in %q", a, b)
	}

	// As long as there is no file, nobody is unknown; the wait is the usual one.
	if err := os.Remove(f.aliases); err != nil {
		t.Fatal(err)
	}
	name := f.send("s@remote.test", "sales")[0]
	f.step(spooldir.New, name)
	if last := f.journal(name.ID).Last(1); f.where(name) != "tempfail" || !strings.Contains(last.Reply, "does not exist; create it") || last.Next.Sub(last.Time) < 45*time.Second {
		t.Errorf("it stands in %q with %+v", f.where(name), last)
	}
	if p := f.log.of(maillog.EventAliasProblem); len(p) != 1 || p[0].attrs["file"] != f.aliases {
		t.Errorf("problems: %v", p)
	}
}

// TestDiscard: /dev/null is a delivery, and makes no child.
func TestDiscard(t *testing.T) {
	f := newFixture(t, memory(t))
	f.writeAliases("nobody: /dev/null")
	name := f.send("s@remote.test", "nobody")[0]
	f.step(spooldir.New, name)
	if j := f.journal(name.ID); f.where(name) != "sent" || !j.Delivered(1) || len(f.names(spooldir.New)) != 0 {
		t.Errorf("it stands in %q, with the journal %+v", f.where(name), j)
	}
	f.step(spooldir.Sent, name)
	if _, err := f.spool.ReadJournal(name.ID); f.where(name) != "" || err == nil {
		t.Errorf("it stands in %q, and the journal is there: %v", f.where(name), err)
	}
}

// TestExpandOnce kills the process between the commit of a child and its
// parent's step. However the administrator moves either of them before the
// process is back, there is one child, and the sender hears what he is due.
func TestExpandOnce(t *testing.T) {
	aliases := []struct {
		name, file string
		due        dsn.Kind
	}{
		{"one", "al: x@remote.test", 0},
		{"several", "al: x@remote.test, y@remote.test", dsn.Expanded},
		{"list", "al: x@remote.test\nowner-al: bob", dsn.Delivered},
	}
	hands := []struct {
		name string
		hand func(f *fixture, parent, child spooldir.Name)
	}{
		{"nobody moves", func(*fixture, spooldir.Name, spooldir.Name) {}},
		{"parent parked", func(f *fixture, parent, _ spooldir.Name) { f.move(parent, spooldir.New, spooldir.Hold) }},
		{"parent linked", func(f *fixture, parent, _ spooldir.Name) {
			os.Link(f.file(spooldir.New, parent), f.file(spooldir.Tempfail, parent))
		}},
		{"child parked", func(f *fixture, _, child spooldir.Name) { f.move(child, spooldir.New, spooldir.Hold) }},
	}
	for _, alias := range aliases {
		for _, test := range hands {
			t.Run(alias.name+"/"+test.name, func(t *testing.T) {
				f := newFixture(t, memory(t))
				f.writeAliases(strings.Split(alias.file, "\n")...)
				parent := f.submit(spooldir.Envelope{Sender: "s@remote.test", Recipients: []spooldir.Recipient{
					{Address: "al", Notify: "SUCCESS,FAILURE"}}}, "Subject: x\n\n")[0]
				f.log.on = func(e logEvent) {
					if e.name == maillog.EventExpanded {
						panic(killed{})
					}
				}
				func() {
					defer func() { recover() }()
					f.handle(spooldir.New, parent)
				}()
				f.log.on = nil
				kid := spooldir.NewName(spooldir.DeriveID(parent.ID, 1, spooldir.Child), 1, "x@remote.test")
				if f.where(parent) != "new" || f.where(kid) != "new" {
					t.Fatalf("the parent stands in %q, the child in %q", f.where(parent), f.where(kid))
				}
				test.hand(f, parent, kid)
				f.start()
				if err := f.q.recover(context.Background()); err != nil {
					t.Fatal(err)
				}
				if got := f.where(parent); got != "sent" {
					t.Errorf("the parent stands in %q", got)
				}
				f.step(spooldir.Sent, parent)
				var report spooldir.Name
				if alias.due != 0 {
					report = spooldir.NewName(spooldir.DeriveID(parent.ID, 1, spooldir.Success), 1, "s@remote.test")
					if m := f.open(spooldir.New, report); !strings.Contains(content(t, m), "\nAction: "+alias.due.String()+"\n") {
						t.Errorf("report:\n%s", content(t, m))
					}
				}
				if at := f.where(kid); at == "hold" {
					f.move(kid, spooldir.Hold, spooldir.New)
				}
				f.step(spooldir.New, kid)
				if got := f.where(kid); got != "remote" {
					t.Errorf("the child stands in %q", got)
				}
				for _, n := range f.names(spooldir.New) {
					if n != report && n.ID != kid.ID {
						t.Errorf("new holds %v", n)
					}
				}
			})
		}
	}
}

func TestForwarding(t *testing.T) {
	f := newFixture(t, memory(t))
	f.users.trouble["Troubled"] = errors.New("the name service does not answer")
	for _, test := range []struct {
		name   string
		to     string
		answer forward.Result
		err    error
		lmtp   bool
		want   string
		kids   string
	}{
		{name: "none", to: "alice", want: "local"},
		{name: "none, LMTP", to: "alice", lmtp: true, want: "remote"},
		{name: "none, LMTP, detail", to: "alice+d@HOST.test", lmtp: true, want: "remote"},
		{name: "none, LMTP, another spelling", to: "Alice@host.test", lmtp: true, want: "sent", kids: "mailbox alice"},
		{name: "none, LMTP, another spelling with detail", to: "ALICE+d", lmtp: true, want: "sent", kids: "mailbox alice"},
		{name: "own name, LMTP", to: "alice", lmtp: true, answer: forwardTo(t, "/f", `\alice`, "|cmd"), want: "sent", kids: "mailbox alice, command alice=cmd"},
		{name: "trouble", to: "alice", err: errors.New("/home/alice/.forward: anybody may write to it"), want: "tempfail"},
		{name: "a name that nobody can look up", to: "alice", answer: forwardTo(t, "/f", "Troubled", "bob"), want: "tempfail"},
		{name: "addresses", to: "alice", answer: forwardTo(t, "/f", "x@remote.test", "bob"), want: "sent", kids: "address x@remote.test, address bob"},
		{name: "own name", to: "alice", answer: forwardTo(t, "/f", "alice@host.test", "bob"), want: "sent", kids: "mailbox alice, address bob"},
		{name: "detail", to: "alice+d", answer: forwardTo(t, "/f+d", "|cmd", "/box"), want: "sent", kids: "command alice=cmd, file alice=/box"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f.config.LMTP = test.lmtp
			f.start()
			asked := ""
			f.agent.forward = func(u passwd.User, detail string) (forward.Result, error) {
				asked = u.Name + "+" + detail
				return test.answer, test.err
			}
			name := f.send("s@remote.test", test.to)[0]
			f.step(spooldir.New, name)
			f.step(spooldir.Forwarding, name)
			if got := f.where(name); got != test.want {
				t.Errorf("it stands in %q, want %q", got, test.want)
			}
			_, detail, _ := strings.Cut(strings.TrimSuffix(strings.ToLower(test.to), "@host.test"), "+")
			if asked != "alice+"+detail {
				t.Errorf("asked for %q", asked)
			}
			var kids []string
			for _, n := range f.names(spooldir.New) {
				m := f.open(spooldir.New, n)
				r := m.Recipients[n.N-1]
				kids = append(kids, describe(&r))
				if (r.Kind == spooldir.File || r.Kind == spooldir.Command || r.Kind == spooldir.Mailbox) && r.Detail != detail {
					t.Errorf("%s has the detail %q: its owner lists it for %q", n, r.Detail, detail)
				}
				f.spool.Remove(n, spooldir.New)
			}
			if got := strings.Join(kids, ", "); got != test.kids {
				t.Errorf("children %q, want %q", got, test.kids)
			}
		})
	}
}

// TestForwardReadOnce: one read serves a batch, and trouble of one message is
// not that of another.
func TestForwardReadOnce(t *testing.T) {
	f := newFixture(t, memory(t))
	reads := 0
	f.agent.forward = func(passwd.User, string) (forward.Result, error) { reads++; return forward.Result{}, nil }
	var names []spooldir.Name
	for range 5 {
		names = append(names, f.send("", "alice")...)
	}
	for _, n := range names {
		f.step(spooldir.New, n)
	}
	f.run(batch{spooldir.Forwarding, "alice", names})
	for _, n := range names {
		if got := f.where(n); got != "local" {
			t.Errorf("%s stands in %q", n, got)
		}
	}
	if reads != 1 {
		t.Errorf("%d reads of one .forward", reads)
	}
}

// TestUnserved: mail for a user whom nobody can serve waits.
func TestUnserved(t *testing.T) {
	f := newFixture(t, memory(t))
	f.agent.serves = func(u passwd.User) error {
		if u.Name == "bob" {
			return errors.New("served by another uid")
		}
		return nil
	}
	names := f.send("", "alice", "bob")
	f.step(spooldir.New, names[0])
	f.step(spooldir.Forwarding, names[0])
	if a, b := f.where(names[0]), f.where(names[1]); a != "local" || b != "tempfail" {
		t.Errorf("alice in %q, bob in %q", a, b)
	}
}

// TestMisplaced: another host's recipient that a hand has put among the local
// ones goes back to be routed, also if a user here has the same name.
func TestMisplaced(t *testing.T) {
	for _, state := range []spooldir.State{spooldir.Forwarding, spooldir.Local} {
		f := newFixture(t, memory(t))
		f.agent.deliver = func([]*agent.Job, func(*agent.Job)) { t.Error("delivered here") }
		name := f.send("", "alice@remote.test")[0]
		f.step(spooldir.New, name)
		f.move(name, spooldir.Remote, state)
		f.step(state, name)
		if got := f.where(name); got != "tempfail" {
			t.Errorf("from %s it went to %q", state, got)
		}
	}
}

func TestLocal(t *testing.T) {
	f := newFixture(t, memory(t))
	for _, test := range []struct {
		name   string
		err    error
		want   string
		status string
	}{
		{name: "delivered", want: "sent", status: "2.0.0"},
		{name: "trouble", err: errors.New("what is this"), want: "tempfail", status: "4.3.0"},
		{name: "full", err: &localwriter.Error{Op: "append", Status: "4.2.2", Err: errors.New("full")}, want: "tempfail", status: "4.2.2"},
		{name: "refused", err: &localwriter.Error{Op: "run", Status: "5.7.0", Permanent: true, Err: errors.New("exit 77")}, want: "permfail", status: "5.7.0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var job agent.Job
			f.agent.deliver = func(jobs []*agent.Job, done func(*agent.Job)) {
				job = *jobs[0]
				jobs[0].Err = test.err
				done(jobs[0])
			}
			name := f.send("s@remote.test", "Alice+d")[0]
			for _, state := range []spooldir.State{spooldir.New, spooldir.Forwarding, spooldir.Local} {
				f.step(state, name)
			}
			if got := f.where(name); got != test.want {
				t.Errorf("it stands in %q, want %q", got, test.want)
			}
			if got := f.journal(name.ID).Last(1).Status; got != test.status {
				t.Errorf("status %s, want %s", got, test.status)
			}
			if job.Kind != spooldir.Mailbox || job.Detail != "d" || job.Recipient != "Alice+d@host.test" || job.Domain != testHost ||
				job.Message.Sender != "s@remote.test" || job.Message.Suspect ||
				string(job.Message.Header) != "Return-Path: <s@remote.test>\nDelivered-To: Alice+d@host.test\n" {
				t.Errorf("job %+v", job)
			}
		})
	}
}

// TestSuspect: a delivery that may have been interrupted before looks first.
func TestSuspect(t *testing.T) {
	f := newFixture(t, memory(t))
	var suspect []bool
	var err error
	f.agent.deliver = func(jobs []*agent.Job, done func(*agent.Job)) {
		for _, j := range jobs {
			suspect = append(suspect, j.Message.Suspect)
			j.Err = err
			done(j)
		}
	}
	toLocal := func() spooldir.Name {
		n := f.send("", "alice")[0]
		f.step(spooldir.New, n)
		f.step(spooldir.Forwarding, n)
		return n
	}
	first := toLocal()
	err = errors.New("the sync failed")
	f.step(spooldir.Local, first)
	f.move(first, spooldir.Tempfail, spooldir.Local)
	second := toLocal()
	err = nil
	f.run(batch{spooldir.Local, "alice", []spooldir.Name{second, first}})
	third := toLocal()
	f.start()
	f.step(spooldir.Local, third)
	// A fresh one; after an error; and after a restart. What is in doubt
	// comes first in its batch.
	if want := []bool{false, true, false, true}; !slices.Equal(suspect, want) {
		t.Errorf("suspect: %v, want %v", suspect, want)
	}
}

// TestBatchIsLinedUpTwice: a recipient that came into a lane twice, and whose
// step failed after it was delivered, is not delivered again.
func TestBatchIsLinedUpTwice(t *testing.T) {
	f := newFixture(t, memory(t))
	deliveries := 0
	name := f.send("", "alice")[0]
	f.agent.deliver = func(jobs []*agent.Job, done func(*agent.Job)) {
		deliveries++
		f.move(name, spooldir.Local, spooldir.Hold)
		done(jobs[0])
		f.move(name, spooldir.Hold, spooldir.Local)
	}
	f.step(spooldir.New, name)
	f.step(spooldir.Forwarding, name)
	// One batch delivers it; its step fails, and the second batch comes.
	b := batch{spooldir.Local, "alice", []spooldir.Name{name}}
	f.step(spooldir.Local, name)
	if j := f.journal(name.ID); !j.Delivered(1) || f.where(name) != "local" {
		t.Fatalf("it stands in %q, with the journal %+v", f.where(name), j)
	}
	f.run(b)
	f.step(spooldir.Local, name)
	if deliveries != 1 || f.where(name) != "sent" {
		t.Errorf("%d deliveries, and it stands in %q", deliveries, f.where(name))
	}
}

// TestExpandAgain: the owner does not list a command or a file any more.
func TestExpandAgain(t *testing.T) {
	f := newFixture(t, memory(t))
	f.agent.deliver = func(jobs []*agent.Job, done func(*agent.Job)) {
		for _, j := range jobs {
			j.Err = agent.ErrUnlisted
			done(j)
		}
	}
	for i, test := range []struct {
		source string
		want   spooldir.Recipient
	}{
		{"forward", spooldir.Recipient{Kind: spooldir.LocalUser, Address: "alice+d@host.test", User: "alice", Detail: "d", Original: "al", Notify: "FAILURE", ORCPT: "rfc822;al"}},
		{"aliases", spooldir.Recipient{Kind: spooldir.Address, Address: "alice+d@host.test", Detail: "d", Original: "al", Notify: "FAILURE", ORCPT: "rfc822;al"}},
	} {
		t.Run(test.source, func(t *testing.T) {
			env := child("s@remote.test", spooldir.Recipient{
				Kind: spooldir.Command, Address: "alice+d@host.test", User: "alice", Detail: "d", Target: "cmd", Source: test.source,
				Original: "al", Notify: "FAILURE", ORCPT: "rfc822;al",
			})
			env.ID = spooldir.DeriveID(fmt.Sprintf("20400101T000000-%016x", 700+i), 1, spooldir.Child)
			env.Depth = 3
			env.Return, env.EnvelopeID = "HDRS", "e"
			name := f.submit(env, "Delivered-To: alice+d@host.test\nDelivered-To: al@host.test\nSubject: x\n\nbody\n")[0]
			f.step(spooldir.New, name)
			f.step(spooldir.Local, name)
			if got := f.where(name); got != "sent" {
				t.Fatalf("it stands in %q", got)
			}
			in := f.names(spooldir.New)
			if len(in) != 1 {
				t.Fatalf("new holds %v", in)
			}
			m := f.open(spooldir.New, in[0])
			want := test.want
			if test.source == "aliases" {
				want.Detail = m.Recipients[0].Detail // an address speaks for itself
			}
			if m.Recipients[0] != want || m.Depth != 4 || m.Sender != "s@remote.test" || m.Return != "HDRS" || m.EnvelopeID != "e" {
				t.Errorf("child %+v, want the recipient %+v", m.Envelope, want)
			}
			if got, want := content(t, m), "Delivered-To: al@host.test\nSubject: x\n\nbody\n"; got != want {
				t.Errorf("content %q, want %q", got, want)
			}
			f.step(spooldir.New, in[0])
			if got := f.where(in[0]); got != "forwarding" {
				t.Errorf("the child stands in %q: a loop that is none", got)
			}
			f.spool.Remove(in[0], spooldir.Forwarding)
		})
	}
}

// deferral gives a recipient in remote a deferral, as the net process does.
func (f *fixture) deferral(name spooldir.Name, event spooldir.Event, next time.Time) {
	f.t.Helper()
	e := spooldir.Entry{Time: f.clock.now, Event: event, Recipients: []int{name.N}, Status: "4.4.1", Relay: "relay.test", Reply: "later", Next: next}
	if err := f.spool.AppendJournal(name.ID, false, e); err != nil {
		f.t.Fatal(err)
	}
}

// toTempfail takes a remote recipient to tempfail, due after wait.
func (f *fixture) toTempfail(name spooldir.Name, wait time.Duration) {
	f.t.Helper()
	if f.where(name) == "new" {
		f.step(spooldir.New, name)
	}
	f.deferral(name, spooldir.Deferred, f.clock.now.Add(wait))
	f.move(name, spooldir.Remote, spooldir.Tempfail)
}

func TestTempfail(t *testing.T) {
	f := newFixture(t, memory(t))
	names := f.send("s@remote.test", "a@remote.test", "b@remote.test")
	f.step(spooldir.New, names[0])
	f.toTempfail(names[0], 10*time.Minute)
	f.toTempfail(names[1], 20*time.Minute)
	again := f.step(spooldir.Tempfail, names[0])
	if want := f.clock.now.Add(10 * time.Minute); !again.Equal(want) {
		t.Errorf("to be looked at %v, want %v", again, want)
	}
	if due, err := f.spool.Due(names[0].ID); err != nil || !due.Equal(again) {
		t.Errorf("the journal is due %v, %v", due, err)
	}
	f.clock.advance(10*time.Minute - 1)
	f.step(spooldir.Tempfail, names[0])
	if got := f.where(names[0]); got != "tempfail" {
		t.Errorf("before its time it stands in %q", got)
	}
	f.clock.advance(1)
	again = f.step(spooldir.Tempfail, names[1])
	if a, b := f.where(names[0]), f.where(names[1]); a != "new" || b != "tempfail" {
		t.Errorf("at the time of the first they stand in %q and %q", a, b)
	}
	if want := f.clock.now.Add(10 * time.Minute); !again.Equal(want) {
		t.Errorf("to be looked at %v, want %v", again, want)
	}
}

func TestFlush(t *testing.T) {
	f := newFixture(t, memory(t))
	name := f.send("s@remote.test", "a@remote.test")[0]
	f.toTempfail(name, time.Hour)
	if f.q.flush() {
		t.Error("a flush that nobody asked for")
	}
	f.clock.advance(time.Second)
	if err := f.spool.RequestFlush(); err != nil {
		t.Fatal(err)
	}
	if !f.q.flush() || f.q.flush() {
		t.Error("a request is taken once")
	}
	f.step(spooldir.Tempfail, name)
	if got := f.where(name); got != "new" {
		t.Errorf("after a flush it stands in %q", got)
	}
	// What fails after the request waits again.
	f.clock.advance(time.Second)
	f.toTempfail(name, time.Hour)
	f.step(spooldir.Tempfail, name)
	if got := f.where(name); got != "tempfail" {
		t.Errorf("after the attempt it stands in %q", got)
	}
}

// TestExpiry: a recipient fails for good when the message is too old and it was
// tried five times, and not before.
func TestExpiry(t *testing.T) {
	for _, test := range []struct {
		age      time.Duration
		attempts int
		want     string
	}{
		{testSchedule.Expire, 5, "permfail"},
		{testSchedule.Expire, 4, "new"},
		{testSchedule.Expire - 1, 5, "new"},
		{30 * 24 * time.Hour, 1, "new"},
	} {
		f := newFixture(t, memory(t))
		name := f.send("s@remote.test", "a@remote.test")[0]
		f.toTempfail(name, 0)
		for range test.attempts - 1 {
			f.deferral(name, spooldir.Deferred, f.clock.now)
		}
		f.clock.advance(test.age)
		f.step(spooldir.Tempfail, name)
		if got := f.where(name); got != test.want {
			t.Errorf("%v old and tried %d times it stands in %q, want %q", test.age, test.attempts, got, test.want)
		}
		if test.want == "permfail" {
			last := f.journal(name.ID).Last(1)
			if last.Status != "5.4.7" || !strings.HasSuffix(last.Reply, "last: later") || last.Relay != "relay.test" {
				t.Errorf("it expired with %+v", last)
			}
		}
	}
}

// TestFutureArrival: mail that says that it comes from the future is as old as
// the time since it was taken up.
func TestFutureArrival(t *testing.T) {
	f := newFixture(t, memory(t))
	name := f.submit(spooldir.Envelope{
		Sender: "s@remote.test", Arrival: f.clock.now.AddDate(300, 0, 0),
		Recipients: []spooldir.Recipient{{Address: "a@remote.test", Notify: "DELAY,FAILURE"}},
	}, "Subject: x\n\n")[0]
	f.toTempfail(name, time.Hour)
	for range 4 {
		f.deferral(name, spooldir.Deferred, f.clock.now.Add(f.config.DelayNotice+time.Hour))
	}
	f.clock.advance(f.config.DelayNotice)
	f.step(spooldir.Tempfail, name)
	if got := f.names(spooldir.New); len(got) != 1 {
		t.Errorf("new holds %v, want a notice of delay", got)
	} else if text := content(t, f.open(spooldir.New, got[0])); !strings.Contains(text, "Will-Retry-Until: "+testStart.Add(testSchedule.Expire).Format("Mon, 02 Jan 2006")) {
		t.Errorf("the notice says\n%s", text)
	}
	f.clock.advance(testSchedule.Expire)
	f.step(spooldir.Tempfail, name)
	if got := f.where(name); got != "permfail" {
		t.Errorf("it stands in %q", got)
	}
}

func TestDelayNotice(t *testing.T) {
	f := newFixture(t, memory(t))
	f.config.Retry.Max = 48 * time.Hour // nothing is due meanwhile
	f.start()
	env := spooldir.Envelope{Sender: "s@remote.test", Recipients: []spooldir.Recipient{
		{Address: "a@remote.test", Notify: "DELAY,FAILURE"}, {Address: "b@remote.test"}, {Address: "c@remote.test", Notify: "FAILURE"},
		{Address: "d@remote.test", Notify: "NEVER"}, {Address: "e@remote.test", Notify: "DELAY"},
	}}
	names := f.submit(env, "Subject: x\n\nbody\n")
	null := f.submit(spooldir.Envelope{Recipients: []spooldir.Recipient{{Address: "a@remote.test", Notify: "DELAY"}}}, "Subject: x\n\n")[0]
	f.step(spooldir.New, names[0])
	for _, n := range append(names, null) {
		f.toTempfail(n, 24*time.Hour)
	}
	f.clock.advance(f.config.DelayNotice - 1)
	f.step(spooldir.Tempfail, names[0])
	if got := f.names(spooldir.New); len(got) != 0 {
		t.Fatalf("a notice before its time: %v", got)
	}
	f.clock.advance(1)
	f.step(spooldir.Tempfail, names[0])
	f.step(spooldir.Tempfail, null)
	in := f.names(spooldir.New)
	if len(in) != 1 {
		t.Fatalf("new holds %v, want one notice", in)
	}
	m := f.open(spooldir.New, in[0])
	text := content(t, m)
	if m.Kind() != spooldir.Delay || m.Sender != "" || m.Recipients[0].Address != "s@remote.test" ||
		!m.Arrival.Equal(f.clock.now) {
		t.Errorf("notice %+v", m.Envelope)
	}
	if strings.Count(text, "Final-Recipient:") != 2 || !strings.Contains(text, "; a@remote.test") || !strings.Contains(text, "; e@remote.test") ||
		!strings.Contains(text, "Action: delayed") || !strings.Contains(text, "Will-Retry-Until:") {
		t.Errorf("the notice says\n%s", text)
	}
	// Once, also after a restart; and it waits for nobody.
	f.start()
	f.clock.advance(time.Hour)
	f.step(spooldir.Tempfail, names[0])
	f.step(spooldir.New, in[0])
	if got := f.where(in[0]); got != "remote" || len(f.names(spooldir.New)) != 0 {
		t.Errorf("the notice stands in %q, new holds %v", got, f.names(spooldir.New))
	}
	for _, n := range names {
		if got := f.where(n); got != "tempfail" {
			t.Errorf("%s stands in %q", n, got)
		}
	}
}

// TestDelayNoticeOnce kills the process after a notice of delay is committed and
// before that is noted: what is still under way is not made again.
func TestDelayNoticeOnce(t *testing.T) {
	f := newFixture(t, memory(t))
	f.config.Retry.Max = 48 * time.Hour
	f.start()
	name := f.submit(spooldir.Envelope{Sender: "s@remote.test", Recipients: []spooldir.Recipient{{Address: "a@remote.test", Notify: "DELAY"}}}, "Subject: x\n\n")[0]
	f.toTempfail(name, 24*time.Hour)
	f.clock.advance(f.config.DelayNotice)
	f.log.on = func(e logEvent) {
		if e.name == maillog.EventBounced {
			panic(killed{})
		}
	}
	func() {
		defer func() { recover() }()
		f.handle(spooldir.Tempfail, name)
	}()
	f.log.on = nil
	runtime.GC() // what the killed one held open is closed
	notice := f.names(spooldir.New)
	if len(notice) != 1 || f.journal(name.ID).Has(spooldir.Noticed, 1) {
		t.Fatalf("new holds %v", notice)
	}
	f.start()
	f.step(spooldir.New, notice[0])
	f.step(spooldir.Tempfail, name)
	if in := f.names(spooldir.New); len(in) != 0 || f.where(notice[0]) != "remote" || !f.journal(name.ID).Has(spooldir.Noticed, 1) {
		t.Errorf("new holds %v, the notice stands in %q", in, f.where(notice[0]))
	}
}

// TestBounceWaits: one bounce for all that failed together, when the rest of
// the message has come to rest.
func TestBounceWaits(t *testing.T) {
	f := newFixture(t, memory(t))
	names := f.send("s@remote.test", "ghost", "alice", "x@remote.test", "phantom", "y@remote.test", "z@remote.test")
	f.step(spooldir.New, names[0])
	f.move(names[5], spooldir.Remote, spooldir.Hold)
	f.toTempfail(names[4], time.Hour)
	waits := func(why string) {
		t.Helper()
		again := f.step(spooldir.Permfail, names[0])
		if len(f.names(spooldir.New)) != 0 {
			t.Fatalf("a bounce with a recipient %s", why)
		}
		if want := f.clock.now.Add(time.Minute); !again.Equal(want) {
			t.Errorf("with a recipient %s to be looked at %v, want %v", why, again, want)
		}
		f.q.bell(spooldir.Permfail).Take()
	}
	rings := func(what string) {
		t.Helper()
		if f.q.bell(spooldir.Permfail).Silent() {
			t.Errorf("%s did not ring", what)
		}
	}
	waits("in forwarding")
	f.step(spooldir.Forwarding, names[1])
	rings("the step to local")
	waits("in local")
	f.step(spooldir.Local, names[1])
	waits("in remote")
	// The net process moves it; the queue process is told when it takes it up.
	f.move(names[2], spooldir.Remote, spooldir.Sent)
	f.step(spooldir.Sent, names[2])
	rings("the last one in sent")
	f.step(spooldir.Permfail, names[3])
	in := f.names(spooldir.New)
	if len(in) != 1 {
		t.Fatalf("new holds %v, want one bounce", in)
	}
	m := f.open(spooldir.New, in[0])
	text := content(t, m)
	if m.Kind() != spooldir.Bounce || m.Sender != "" || len(m.Recipients) != 1 || m.Recipients[0].Address != "s@remote.test" ||
		!m.Arrival.Equal(f.clock.now) {
		t.Errorf("bounce %+v", m.Envelope)
	}
	if strings.Count(text, "Final-Recipient:") != 2 || !strings.Contains(text, "; ghost@host.test") || !strings.Contains(text, "; phantom@host.test") {
		t.Errorf("the bounce says\n%s", text)
	}
	for i, want := range []string{"", "", "", "", "tempfail", "hold"} {
		if got := f.where(names[i]); got != want {
			t.Errorf("%s stands in %q, want %q", names[i], got, want)
		}
	}
}

// TestBounceOnce kills the process when the bounce is committed and its causes
// stand.
func TestBounceOnce(t *testing.T) {
	f := newFixture(t, memory(t))
	names := f.send("s@remote.test", "ghost", "phantom")
	f.step(spooldir.New, names[0])
	f.log.on = func(e logEvent) {
		if e.name == maillog.EventMoved && e.attrs["to"] == "gone" {
			panic(killed{})
		}
	}
	func() {
		defer func() { recover() }()
		f.handle(spooldir.Permfail, names[0])
	}()
	f.log.on = nil
	if f.where(names[0]) != "" || f.where(names[1]) != "permfail" || len(f.names(spooldir.New)) != 1 {
		t.Fatalf("they stand in %q and %q, new holds %v", f.where(names[0]), f.where(names[1]), f.names(spooldir.New))
	}
	f.start()
	if err := f.q.recover(context.Background()); err != nil {
		t.Fatal(err)
	}
	if f.where(names[1]) != "" || len(f.names(spooldir.New)) != 1 {
		t.Errorf("the second stands in %q, new holds %v", f.where(names[1]), f.names(spooldir.New))
	}
	if _, err := f.spool.ReadJournal(names[0].ID); err == nil {
		t.Error("the journal is left")
	}
}

func TestNoBounce(t *testing.T) {
	f := newFixture(t, memory(t))
	env := spooldir.Envelope{Sender: "s@remote.test", Recipients: []spooldir.Recipient{{Address: "ghost", Notify: "NEVER"}, {Address: "phantom", Notify: "SUCCESS,DELAY"}}}
	names := f.submit(env, "Subject: x\n\n")
	f.step(spooldir.New, names[0])
	f.step(spooldir.Permfail, names[0])
	if f.where(names[0]) != "" || f.where(names[1]) != "" || len(f.names(spooldir.New)) != 0 {
		t.Errorf("they stand in %q and %q, new holds %v", f.where(names[0]), f.where(names[1]), f.names(spooldir.New))
	}
}

// TestDoubleBounce: a bounce that fails goes to postmaster, and stays in
// permfail if that fails too.
func TestDoubleBounce(t *testing.T) {
	for _, test := range []struct {
		sender string
		hops   int // reports until one is kept
	}{
		{"s@remote.test", 2},
		{"", 1},
		{"postmaster@remote.test", 2}, // another host's
		{"postmaster@host.test", 1},
		{"postmaster", 1},
	} {
		t.Run("<"+test.sender+">", func(t *testing.T) {
			f := newFixture(t, memory(t))
			f.writeAliases("postmaster: p@remote.test")
			name := f.send(test.sender, "ghost")[0]
			f.step(spooldir.New, name)
			f.step(spooldir.Permfail, name)
			reports := 0
			for {
				in := f.names(spooldir.New)
				if len(in) != 1 {
					t.Fatalf("new holds %v after %d reports", in, reports)
				}
				name = in[0]
				if name.ID[len(name.ID)-1] == 'b' {
					reports++
				}
				f.step(spooldir.New, name)
				if f.where(name) == "sent" { // postmaster's alias
					f.step(spooldir.Sent, name)
					continue
				}
				f.deferral(name, spooldir.Failed, time.Time{})
				f.move(name, spooldir.Remote, spooldir.Permfail)
				f.step(spooldir.Permfail, name)
				if f.where(name) == "permfail" {
					break
				}
			}
			if reports != test.hops {
				t.Errorf("%d reports, want %d", reports, test.hops)
			}
			f.step(spooldir.Permfail, name)
			f.start()
			f.step(spooldir.Permfail, name)
			if got := f.where(name); got != "permfail" || !f.journal(name.ID).Has(spooldir.Kept, 1) {
				t.Errorf("the last one stands in %q", got)
			}
			if got := len(f.log.of(maillog.EventKept)); got != 1 {
				t.Errorf("said %d times, want once", got)
			}
		})
	}
}

// TestSuccess: who asked for it hears of a delivery.
func TestSuccess(t *testing.T) {
	f := newFixture(t, memory(t))
	rcpt := func(a, notify string) spooldir.Recipient { return spooldir.Recipient{Address: a, Notify: notify} }
	names := f.submit(spooldir.Envelope{Sender: "s@remote.test", Recipients: []spooldir.Recipient{
		rcpt("alice", "SUCCESS"), rcpt("a@remote.test", "SUCCESS,FAILURE"), rcpt("b@remote.test", "SUCCESS"),
		rcpt("bob", "FAILURE"), rcpt("c@remote.test", "NEVER"), rcpt("d@remote.test", ""), rcpt("e@remote.test", "SUCCESS"),
	}}, "Subject: x\n\nbody\n")
	f.step(spooldir.New, names[0])
	f.step(spooldir.Forwarding, names[0])
	f.step(spooldir.Local, names[0])
	for _, n := range []int{2, 3, 5, 6, 7} {
		e := spooldir.Entry{Time: f.clock.now, Event: spooldir.Delivered, Recipients: []int{n}, Status: "2.0.0", Relay: "relay.test", Reply: "250 ok", DSN: n == 3}
		if err := f.spool.AppendJournal(names[0].ID, false, e); err != nil {
			t.Fatal(err)
		}
		f.move(names[n-1], spooldir.Remote, spooldir.Sent)
	}
	f.step(spooldir.Sent, names[0])
	got := make(map[string]string)
	for _, n := range f.names(spooldir.New) {
		m := f.open(spooldir.New, n)
		text := content(t, m)
		if m.Kind() != spooldir.Success || m.Sender != "" || m.Recipients[0].Address != "s@remote.test" {
			t.Errorf("report %+v", m.Envelope)
		}
		for _, action := range []dsn.Kind{dsn.Delivered, dsn.Relayed} {
			if strings.Contains(text, "Action: "+action.String()+"\n") {
				for _, line := range strings.Split(text, "\n") {
					if a, ok := strings.CutPrefix(line, "Final-Recipient: rfc822; "); ok {
						got[action.String()] += a + " "
					}
				}
			}
		}
	}
	if got["delivered"] != "alice@host.test " || got["relayed"] != "a@remote.test e@remote.test " || len(got) != 2 {
		t.Errorf("reported: %q", got)
	}
	for _, n := range names {
		if at := f.where(n); at != "" {
			t.Errorf("%s stands in %q", n, at)
		}
	}

	// The null sender hears of nothing.
	null := f.submit(spooldir.Envelope{Recipients: []spooldir.Recipient{rcpt("alice", "SUCCESS")}}, "Subject: x\n\n")[0]
	before := len(f.names(spooldir.New)) - 1
	for _, state := range []spooldir.State{spooldir.New, spooldir.Forwarding, spooldir.Local, spooldir.Sent} {
		f.step(state, null)
	}
	if got := len(f.names(spooldir.New)); got != before || f.where(null) != "" {
		t.Errorf("%d messages in new, want %d; it stands in %q", got, before, f.where(null))
	}
}

// TestSuccessOnce: a second name of a recipient, which a hand has linked, makes
// no second report.
func TestSuccessOnce(t *testing.T) {
	f := newFixture(t, memory(t))
	name := f.submit(spooldir.Envelope{Sender: "s@remote.test", Recipients: []spooldir.Recipient{{Address: "alice", Notify: "SUCCESS"}}}, "Subject: x\n\n")[0]
	f.step(spooldir.New, name)
	if err := os.Link(f.file(spooldir.Forwarding, name), f.file(spooldir.Hold, name)); err != nil {
		t.Fatal(err)
	}
	f.step(spooldir.Forwarding, name)
	f.step(spooldir.Local, name)
	f.step(spooldir.Sent, name)
	report := f.names(spooldir.New)
	if len(report) != 1 {
		t.Fatalf("new holds %v", report)
	}
	f.step(spooldir.New, report[0])
	if f.where(name) == "hold" {
		f.move(name, spooldir.Hold, spooldir.New)
		f.step(spooldir.New, name)
		f.step(spooldir.Sent, name)
	}
	if got := f.names(spooldir.New); len(got) != 0 || f.where(name) != "" {
		t.Errorf("new holds %v, the recipient stands in %q", got, f.where(name))
	}
	if _, err := f.spool.ReadJournal(name.ID); err == nil {
		t.Error("the journal is left")
	}
}

// TestJournalSaysDelivered: a name that was moved by hand after its delivery or
// expansion goes to sent wherever it is taken up, and the sender is told of what
// was done, whatever was written behind it.
func TestJournalSaysDelivered(t *testing.T) {
	for _, event := range []spooldir.Event{spooldir.Delivered, spooldir.Expanded} {
		for _, state := range []spooldir.State{spooldir.New, spooldir.Forwarding, spooldir.Local, spooldir.Tempfail} {
			f := newFixture(t, memory(t))
			f.agent.deliver = func([]*agent.Job, func(*agent.Job)) { t.Error("delivered again") }
			f.agent.forward = func(passwd.User, string) (forward.Result, error) {
				t.Error("forwarded again")
				return forward.Result{}, nil
			}
			name := f.submit(spooldir.Envelope{Sender: "s@remote.test", Recipients: []spooldir.Recipient{{Address: "alice", Notify: "SUCCESS"}}}, "Subject: x\n\n")[0]
			f.step(spooldir.New, name)
			done := spooldir.Entry{Time: f.clock.now, Event: event, Recipients: []int{1}, Status: "2.0.0", Relay: "local", Reply: "it is done"}
			later := spooldir.Entry{Time: f.clock.now, Event: spooldir.Deferred, Recipients: []int{1}, Status: "4.3.0", Relay: "local", Reply: "by another name"}
			if err := f.spool.AppendJournal(name.ID, false, done, later); err != nil {
				t.Fatal(err)
			}
			if state != spooldir.Forwarding {
				f.move(name, spooldir.Forwarding, state)
			}
			f.step(state, name)
			if got := f.where(name); got != "sent" {
				t.Errorf("%s: from %s it went to %q", event, state, got)
			}
			f.step(spooldir.Sent, name)
			report := f.names(spooldir.New)
			if len(report) != 1 {
				t.Fatalf("%s, %s: new holds %v", event, state, report)
			}
			text := content(t, f.open(spooldir.New, report[0]))
			if !strings.Contains(text, "\nAction: "+string(event)+"\n") || !strings.Contains(text, "\nStatus: 2.0.0\n") ||
				strings.Contains(text, "it is done") || strings.Contains(text, "by another name") { // where it went is nobody's business
				t.Errorf("%s, %s: report\n%s", event, state, text)
			}
		}
	}
}
