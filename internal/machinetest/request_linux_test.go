package machinetest

import (
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dma/parent"
)

// TestQueueAsksForMailboxes: where mailboxes are made by the parent, a queue
// process that was taken over can have it make those of users, where nothing is,
// and change the owner of nothing else.
func TestQueueAsksForMailboxes(t *testing.T) {
	m := newMachine(t)
	m.do(os.Chown("/var/mail", 0, 0))
	m.do(os.Chmod("/var/mail", 0o755))
	m.write("/etc/dma/secret", "secret\n", 0o600)
	m.write("/etc/dma/empty", "", 0o600)
	m.do(os.Symlink("/etc/dma/empty", "/var/mail/alice"))
	m.write("/var/mail/bob", "secret\n", 0o600) // root's, and not empty
	m.do(unix.Mkfifo("/var/mail/mallory", 0o600))
	m.do(os.Symlink("/etc/dma/secret", "/var/mail/root"))
	m.installEvil()
	next, _ := m.takeOver(parent.RoleQueue)
	v := m.startUnready()
	e := next()
	before := m.files()
	for i, user := range []string{"alice", "bob", "mallory", "root", "robot", "carol"} {
		got := e.ask(uint32(i+1), 'a', user, "mailbox")
		if user == "root" && !strings.HasPrefix(got, "trouble ") {
			t.Errorf("mailbox of root that is a link: %q", got)
		}
		if user == "carol" && got != "ok" {
			t.Errorf("mailbox of carol: %q", got)
		}
	}
	changed := slices.DeleteFunc(m.changes(before), func(path string) bool {
		return path == "/var/mail" || path == "/var/mail/carol" || path == "/var/mail/robot"
	})
	if len(changed) > 0 {
		t.Errorf("changed: %q", changed)
	}
	for _, user := range []string{"carol", "robot"} {
		a := lookup(t, user)
		if got, want := m.owner("/var/mail/"+user), ownerText(a.uid, a.gid, 0o600); got != want {
			t.Errorf("mailbox of %s: %s, want %s", user, got, want)
		}
	}
	e.conn.Close()
	v.kill()
}

// TestNetAsksForPasswords: a net process that was taken over can ask for secrets,
// and what it says is data for the command of root's, never a command; it runs as
// TOKENUSER.
func TestNetAsksForPasswords(t *testing.T) {
	m := newMachine(t, `PASSWORDCMD echo "$(id -u) $(id -g) $LOGIN@$HOST"`, "TOKENUSER carol")
	m.installEvil()
	next, release := m.takeOver(parent.RoleNet)
	v := m.startUnready()
	e := next()
	before := m.files()
	for i, login := range []string{"joe", "joe.doe+x@mail.example", "x=y"} {
		want := "ok 2003 2003 " + login + "@mx.example"
		if got := e.ask(uint32(i+1), 'w', login, "mx.example"); got != want {
			t.Errorf("%q: %q, want %q", login, got, want)
		}
	}
	for _, bad := range [][]string{{"joe", "mx;touch /home/carol/canary"}, {"$(touch /home/carol/canary)", "mx"}, {"../../etc/passwd", "mx"}, {"joe\nPATH=/tmp", "mx"}, {"-c", "mx"}, {"joe", ""}, {"joe", "mx", "touch /home/carol/canary"}, {strings.Repeat("a", 600), "mx"}} {
		if !e.last(evilOrder{Do: "send", Data: frame(9, 0, 'w', bad...)}) {
			t.Fatalf("%q: it lives", bad)
		}
		v.hangup()
		e = next()
	}
	if changed := m.changes(before); len(changed) > 0 {
		t.Errorf("changed: %q", changed)
	}
	// Many at a time: four run, and the others are told so.
	r := e.order(evilOrder{Do: "flood", N: 200, Data: frame(0, 0, 'w', "joe", "mx.example")})
	t.Logf("200 questions: %s", r.Text)
	if r.Err != "" {
		t.Error(r.Err)
	}
	release()
	e.conn.Close()
	m.submit("alice", "after all", "bob")
	v.await("mail", func() bool { return subjects(m.mailbox("bob"))["after all"] == 1 })
	v.stop()
	m.nobodyLeft()
}
