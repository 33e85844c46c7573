package machinetest

import (
	"strings"
	"testing"
)

// TestDelivery is the main job: users send to each other, to root and to other
// hosts, through aliases and a .forward with a command.
func TestDelivery(t *testing.T) {
	m := newMachine(t)
	m.own("bob", ".forward", "\\bob, carol, \"|cat > /home/bob/copy\"\n", 0o644)
	v := m.start()
	m.submit("alice", "to all", "alice", "bob", "root", "friend@example.org")
	v.empties(m)
	for user, want := range map[string]int{"alice": 2, "bob": 1, "carol": 1} {
		if got := strings.Count(m.mailbox(user), "\nSubject: to all\n"); got != want {
			t.Errorf("%s has %d messages, want %d\n%s", user, got, want, v.log())
		}
		a := lookup(t, user)
		if got, want := m.owner("/var/mail/"+user), ownerText(a.uid, groupOf(t, "mail"), 0o660); got != want {
			t.Errorf("mailbox of %s: %s, want %s", user, got, want)
		}
	}
	b := lookup(t, "bob")
	if got, want := m.owner("/home/bob/copy"), ownerText(b.uid, b.gid, 0o600); got != want {
		t.Errorf("what bob's command made: %s, want %s", got, want)
	}
	if got := m.sink.Transactions(); len(got) != 1 {
		t.Errorf("the smarthost has %d messages", len(got))
	}
	v.stop()
	if p := m.processes(); len(p) != 0 {
		t.Errorf("left behind: %+v", p)
	}
}
