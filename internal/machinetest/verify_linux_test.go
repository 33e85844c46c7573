package machinetest

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestVerify is what root, a user and another user are shown of where mail would go,
// and what check finds, beside a service that delivers. Nobody's .forward is read but
// under the uid of its user, and the agents of the service are neither waited for nor
// kept away.
func TestVerify(t *testing.T) {
	m := newMachine(t)
	m.write("/etc/aliases", `root: alice
team: alice, bob, carol
owner-team: mallory
run: carol, "|/bin/cat"
closed: :include:/etc/closed
lent: :include:/home/mallory/list
system: robot, dma
gone: nobody.here
`, 0o644)
	m.write("/etc/closed", "bob\n", 0o600)
	m.do(os.Chmod("/home/alice", 0o700))
	m.own("alice", ".forward", "\\alice\na@example.org\n", 0o600)
	m.own("bob", ".forward", "\\bob, \"|cat /home/bob/fifo > /home/bob/copy\"\n", 0o644)
	m.do(unix.Mknod("/home/bob/fifo", unix.S_IFIFO|0o600, 0))
	m.do(os.Chown("/home/bob/fifo", lookup(t, "bob").uid, -1))
	m.write("/home/carol/.forward", secret+"\n", 0o600)
	m.own("mallory", "list", "carol\n/home/mallory/copy\n", 0o644)
	m.own("robot", ".forward", "carol\n", 0o644)
	v := m.start()

	// An agent of bob's is at work, and has bob's lock.
	hold := m.begin("bob", "fifo", "/home/bob/fifo")
	m.submit("mallory", "to the fifo", "bob")
	v.await("bob's command", func() bool { _, err := os.Stat("/home/bob/copy"); return err == nil })
	before := m.processes()

	smarthost := "remote, by way of the smarthost " + m.smarthost + "\n"
	alice := "user, /home/alice/.forward\n    \\alice (/home/alice/.forward:1): kept copy, mailbox /var/mail/alice\n    a@example.org (/home/alice/.forward:2): " + smarthost
	bob := "user, /home/bob/.forward\n    \\bob (/home/bob/.forward:1): kept copy, mailbox /var/mail/bob\n    \"|cat /home/bob/fifo > /home/bob/copy\" (/home/bob/.forward:1): command, as bob\n"
	carol := "waits: /home/carol/.forward cannot be read: permission denied; let uid 2003 read it\n"
	hidden := func(user string) string { return "user\n    (.forward of " + user + ": only " + user + " and root see it)\n" }
	less := func(text string) string { return strings.ReplaceAll(text, "\n  ", "\n") } // a level
	for _, tt := range []struct {
		user, args string
		code       int
		stdout     string
	}{
		{"root", "team", 75, "team: alias, owner owner-team\n  alice (/etc/aliases:2): " + alice + "  bob (/etc/aliases:2): " + bob + "  carol (/etc/aliases:2): " + carol},
		{"alice", "team", 0, "team: alias, owner owner-team\n  alice (/etc/aliases:2): " + alice + "  bob (/etc/aliases:2): " + hidden("bob") + "  carol (/etc/aliases:2): " + hidden("carol")},
		{"mallory", "team", 0, "team: alias, owner owner-team\n  alice (/etc/aliases:2): " + hidden("alice") + "  bob (/etc/aliases:2): " + hidden("bob") + "  carol (/etc/aliases:2): " + hidden("carol")},
		{"root", "alice,bob", 0, less("alice: " + alice + "bob: " + bob)},
		{"carol", "carol", 75, "carol: " + carol},
		{"root", "run", 75, "run: waits: it names a file or a command, and there is no user for that; set ALIASUSER in dma.conf\n  carol (/etc/aliases:4)\n  \"|/bin/cat\" (/etc/aliases:4)\n"},
		{"alice", "run", 75, "run: waits: it names a file or a command, and there is no user for that; set ALIASUSER in dma.conf\n  carol (/etc/aliases:4)\n  \"|/bin/cat\" (/etc/aliases:4)\n"},
		{"root", "closed", 75, "closed: waits: /etc/aliases:5: :include: /etc/closed cannot be read: permission denied; let uid 990 read it\n  :include:/etc/closed (/etc/aliases:5): included file\n    (not shown: open /etc/closed: permission denied)\n"},
		{"alice", "closed", 77, "closed: cannot be told: /etc/aliases:5: :include: /etc/closed cannot be read: permission denied; let uid 2001 read it\n  :include:/etc/closed (/etc/aliases:5): included file\n    (not shown: open /etc/closed: permission denied)\n"},
		{"root", "robot,dma,dmanet", 75, "robot: mailbox /var/mail/robot\ndma: waits: user dma is the mail system; name a person in the aliases\ndmanet: waits: user dmanet is the mail system; name a person in the aliases\n"},
		{"alice", "robot,dma,nobody.here", 67, "robot: mailbox /var/mail/robot\ndma: waits: user dma is the mail system; name a person in the aliases\nnobody.here: no such user\n"},
		{"root", "joe@example.org", 0, "joe@example.org: " + smarthost},
	} {
		r := m.as(tt.user, "", dmaFile, "-bv", "--", tt.args)
		if r.code != tt.code || r.stdout != tt.stdout || r.stderr != "" {
			t.Errorf("%s, %s: exit %d, want %d:\n%s%s\nwant:\n%s", tt.user, tt.args, r.code, tt.code, r.stdout, r.stderr, tt.stdout)
		}
	}

	// Root has looked at alice's and bob's without their locks, and nothing is left of it.
	if after := m.processes(); len(after) != len(before) {
		t.Errorf("processes before: %+v\nafter: %+v", before, after)
	}
	if _, err := os.Lstat("/run/dma/agents/2001.user"); err == nil {
		t.Error("alice's lock was made")
	}
	hold.end()
	v.empties(m)
	if n := m.subjects("bob", "to the fifo"); n != 1 {
		t.Errorf("bob has %d\n%s", n, v.log())
	}
	if text, err := os.ReadFile("/home/bob/copy"); err != nil || !strings.Contains(string(text), "to the fifo") {
		t.Errorf("bob's command has %q, %v", text, err)
	}
	v.stop()
}
