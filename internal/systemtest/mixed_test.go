package systemtest

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"dma/spooldir"
)

// long reports whether every point is to be tried, and not a sample.
func long() bool { return os.Getenv("DMA_LONG_TESTS") != "" }

// atMost is the number of points to try: all of them in a long run.
func atMost(n int) int {
	if long() {
		return 0
	}
	return n
}

// The message of a mixed site, and what it has to look like when it arrives.
const (
	lastLine = "this is the last line"
	message  = "Subject: a message with many ways to go\n\nFrom the beginning on\n\n.a line with a dot\n" + lastLine + "\n"
)

// mixed is a site with one message in the queue: to a mailbox, to a user whose
// .forward has three targets, to another host that takes one recipient and
// refuses the next, and to nobody.
type mixed struct {
	*site
	id string
}

// The recipients of a mixed message.
const (
	toMailbox  = 1 + iota // carol
	toForward             // bob: \bob, a command, bob@else.example
	toHost                // x@y.example
	toRefusal             // nobody@y.example
	toNowhere             // nosuch
	recipients = 5
)

// The recipients of the child that takes the place of toForward.
const (
	childMailbox = 1 + iota
	childHost
	childCommand
)

// newMixed makes a mixed site below dir. The command appends "begin" and, when
// it has read all of the message, "end" to the file runs.
func newMixed(t *testing.T, o siteOptions) *mixed {
	t.Helper()
	if o.sink == nil {
		o.rules = append(o.rules, "refuse nobody@* 550 5.1.1 No such user here")
	}
	m := &mixed{site: newSiteWith(t, o)}
	m.forward("bob", "\\bob, bob@else.example\n\"|echo begin >>"+m.path("runs")+"; grep '^"+lastLine+"$' >/dev/null && echo end >>"+m.path("runs")+"\"\n")
	m.id = m.queueMixed(t)
	return m
}

// queueMixed submits the message and returns its id.
func (s *site) queueMixed(t *testing.T) string {
	t.Helper()
	r := s.dma(message, "-odq", "-v", "-f", "alice", "carol", "bob", "x@y.example", "nobody@y.example", "nosuch")
	_, id, ok := strings.Cut(strings.TrimSpace(r.stderr), "queued as ")
	if r.code != 0 || !ok {
		t.Fatalf("dma: exit %d, %q", r.code, r.stderr)
	}
	return id
}

func (m *mixed) child() string  { return spooldir.DeriveID(m.id, toForward, spooldir.Child) }
func (m *mixed) bounce() string { return spooldir.DeriveID(m.id, toRefusal, spooldir.Bounce) }

// runs counts how often the command began, and how often it read everything.
func (m *mixed) runs() (begun, ended int) {
	data, _ := os.ReadFile(m.path("runs"))
	return strings.Count(string(data), "begin\n"), strings.Count(string(data), "end\n")
}

// stands reports whether recipient n of a message stands in a state.
func (s *site) stands(id string, n int, state spooldir.State) bool {
	s.t.Helper()
	prefix := fmt.Sprintf("%s.%d-", id, n)
	return slices.ContainsFunc(s.in(state), func(name string) bool { return strings.HasPrefix(name, prefix) })
}

// unrecorded reports whether recipient n of a message stands in a state
// without a record that it was delivered: then nobody can know better than to
// try again.
func (m *mixed) unrecorded(id string, n int, state spooldir.State) bool {
	m.t.Helper()
	if !m.stands(id, n, state) {
		return false
	}
	journal, err := m.open().ReadJournal(id)
	return err != nil || !journal.Delivered(n)
}

// allowed says what may come twice, and whether the two recipients that fail
// may fail apart, each with a bounce of its own: a bounce does not wait for
// who is in tempfail.
type allowed struct {
	command, host, childHost bool
	apart                    bool
}

// mayRepeat says what may come twice after what has just happened.
func (m *mixed) mayRepeat() allowed {
	m.t.Helper()
	return allowed{
		command:   m.unrecorded(m.child(), childCommand, spooldir.Local),
		host:      m.unrecorded(m.id, toHost, spooldir.Remote),
		childHost: m.unrecorded(m.child(), childHost, spooldir.Remote),
	}
}

// settle drains until nobody waits. What a kill leaves in tempfail is asked for
// with flush.
func (s *site) settle() {
	s.t.Helper()
	s.drain()
	for range 6 {
		if s.quiet() {
			return
		}
		s.flush()
	}
	s.t.Errorf("it does not come to rest: %v", s.spool())
}

// quiet reports whether no recipient is left.
func (s *site) quiet() bool {
	s.t.Helper()
	for _, state := range spooldir.States() {
		if state == spooldir.New {
			continue // uncommitted ones wait for the cleaner
		}
		if len(s.in(state)) > 0 {
			return false
		}
	}
	return true
}

// clean lets a day and an hour pass for the cleaner, and nothing may be left.
func (s *site) clean() {
	s.t.Helper()
	if _, err := s.open().Clean(time.Now().Add(25 * time.Hour)); err != nil {
		s.t.Error(err)
	}
	if left := s.spool(); len(left) > 0 {
		s.t.Errorf("left over: %v", left)
	}
}

// checkBoxes checks that a mixed message is in every mailbox, once and whole,
// and that each failure was reported once: in one bounce, or apart.
func (m *mixed) checkBoxes(apart bool) {
	t := m.t
	t.Helper()
	once := func(user, key string, lines ...string) {
		t.Helper()
		list := m.mailbox(user)
		if len(list) != 1 || list[0].key != key {
			t.Errorf("%s has %d messages, want just %s: %v", user, len(list), key, list)
			return
		}
		for _, line := range lines {
			if !list[0].hasLine(line) {
				t.Errorf("%s of %s is without the line %q:\n%s", key, user, line, list[0].text)
			}
		}
	}
	from := ">From the beginning on"
	if m.maildirs {
		from = from[1:]
	}
	once("carol", fmt.Sprintf("%s.%d", m.id, toMailbox), from, lastLine)
	once("bob", fmt.Sprintf("%s.%d", m.child(), childMailbox), from, lastLine)
	bounces, reported := m.mailbox("alice"), ""
	for _, b := range bounces {
		reported += b.text
	}
	if len(bounces) != 1 && !apart || len(bounces) == 1 && bounces[0].key != m.bounce()+".1" {
		t.Errorf("alice has %d messages, want just the bounce %s: %v", len(bounces), m.bounce(), bounces)
	}
	for _, failed := range []string{"nobody@y.example", "nosuch@host.example"} {
		if n := strings.Count(reported, "\nFinal-Recipient: rfc822; "+failed+"\n"); n != 1 {
			t.Errorf("the failure for %s was reported %d times:\n%s", failed, n, reported)
		}
	}
}

// unlocked checks that no lock of a mailbox is left.
func (s *site) unlocked() {
	s.t.Helper()
	for _, name := range s.locksLeft() {
		s.t.Errorf("left over: mail/%s", name)
	}
}

// check checks that a mixed message has come to its end everywhere.
func (m *mixed) check(may allowed) {
	t := m.t
	t.Helper()
	m.checkBoxes(may.apart)
	begun, ended := m.runs()
	if ended < 1 || begun > 2 || begun == 2 && !may.command {
		t.Errorf("the command began %d times and read all %d times; twice is allowed: %v", begun, ended, may.command)
	}
	for _, x := range []struct {
		to  string
		may bool
	}{{"x@y.example", may.host}, {"bob@else.example", may.childHost}} {
		n := 0
		for _, tr := range m.sink.Transactions() {
			if !tr.Accepted || !slices.Contains(tr.To, x.to) {
				continue
			}
			n++
			if !strings.HasSuffix(string(tr.Content), "\r\n.a line with a dot\r\n"+lastLine+"\r\n") {
				t.Errorf("to %s went:\n%s", x.to, tr.Content)
			}
		}
		if n < 1 || n > 2 || n == 2 && !x.may {
			t.Errorf("%s got it %d times; twice is allowed: %v", x.to, n, x.may)
		}
	}
}

// locksLeft lists what is in the folder of mailboxes besides mailboxes.
func (s *site) locksLeft() []string {
	entries, err := os.ReadDir(s.boxes + "/mail")
	if err != nil {
		s.t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		if !slices.Contains([]string{"alice", "bob", "carol", "dave"}, e.Name()) {
			list = append(list, e.Name())
		}
	}
	return list
}
