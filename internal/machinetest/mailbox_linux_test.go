package machinetest

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// subjects counts the messages with a subject in a mailbox.
func (m *machine) subjects(user, subject string) int {
	m.t.Helper()
	return strings.Count(m.mailbox(user), "\nSubject: "+subject+"\n")
}

// once checks that a mailbox has n messages, each with a number as its subject
// behind a word, and each exactly once.
func once(t testing.TB, text, word string, n int) {
	t.Helper()
	for i := range n {
		if got := strings.Count(text, fmt.Sprintf("\nSubject: %s %d\n", word, i)); got != 1 {
			t.Errorf("%s %d is there %d times", word, i, got)
		}
	}
	if got := strings.Count(text, "\nSubject: "+word+" "); got != n {
		t.Errorf("%d messages %q, want %d", got, word, n)
	}
	if got := strings.Count("\n"+text, "\nFrom "); got != strings.Count(text, "\nReturn-Path: <") {
		t.Errorf("%d From_ lines, and another number of messages", got)
	}
}

// TestMailboxAttack puts something else in the place of a mailbox. Nothing is
// written elsewhere, the mail waits with its reason, others' mail flows on, and
// in the end the message is there once.
func TestMailboxAttack(t *testing.T) {
	attacks := []struct {
		name string
		make func(m *machine, path string)
		want string
	}{
		{"link to /etc/passwd", symlink("/etc/passwd"), "symbolic link"},
		{"link to another's mailbox", symlink("/var/mail/bob"), "symbolic link"},
		{"link to nowhere", symlink("/etc/cron.d/x"), "symbolic link"},
		{"link to a file of anybody's", symlink("/home/bob/open"), "symbolic link"},
		{"a second name of a link", func(m *machine, path string) {
			m.do(os.Symlink("/home/bob/open", "/var/mail/other"))
			m.do(os.Link("/var/mail/other", path)) // of the link itself
		}, "symbolic link"},
		{"two names", func(m *machine, path string) {
			m.own("alice", path, "", 0o600)
			m.do(os.Link(path, "/var/mail/other"))
		}, "hard links"},
		{"a name of another's mailbox", func(m *machine, path string) { m.do(os.Link("/var/mail/bob", path)) }, "belongs to uid 2002"},
		{"owned by another", func(m *machine, path string) { m.own("mallory", path, "", 0o666) }, "belongs to uid 2666"},
		{"owned by root", func(m *machine, path string) { m.write(path, "", 0o666) }, "belongs to uid 0"},
		{"directory", func(m *machine, path string) { m.do(os.Mkdir(path, 0o777)) }, "not a regular file"},
		{"FIFO that somebody holds open", func(m *machine, path string) {
			m.do(unix.Mknod(path, unix.S_IFIFO, 0))
			m.do(os.Chmod(path, 0o666))
			m.begin("mallory", "fifo", path)
		}, "not a regular file"},
		{"/dev/zero", node(unix.S_IFCHR|0o666, unix.Mkdev(1, 5)), "not a regular file"},
		{"socket", node(unix.S_IFSOCK|0o666, 0), "not a regular file"},
		{"closed to its owner", func(m *machine, path string) { m.own("alice", path, "", 0o000) }, "permission denied"},
		{"a lock of mallory's, and a directory", func(m *machine, path string) {
			m.own("mallory", path+".lock", "1\n", 0o644)
			m.do(os.Mkdir(path+".lock.dma", 0o755))
		}, ""},
	}
	for _, mode := range []os.FileMode{0o2775, 0o1777} {
		t.Run(fmt.Sprintf("%o", mode), func(t *testing.T) {
			m := newMachine(t)
			if mode == 0o1777 {
				m.do(os.Chown("/var/mail", 0, 0))
				m.do(os.Chmod("/var/mail", 0o777|os.ModeSticky))
			}
			m.own("bob", "open", "anybody's\n", 0o666)
			m.own("bob", "/var/mail/bob", "", 0o600)
			v := m.start()
			for _, attack := range attacks {
				waits := attack.want != "" || mode != 0o1777
				want := attack.want
				if want == "" {
					want = "/var/mail/alice.lock" // where nobody but the group mail can make one, it counts
					if mode != 0o1777 {
						continue // half a minute of waiting, which TestMailboxLock does
					}
				}
				attack.make(m, "/var/mail/alice")
				before := m.files()
				m.submit("mallory", attack.name, "alice", "carol")
				v.await("carol's mail beside "+attack.name, func() bool { return m.subjects("carol", attack.name) == 1 })
				if waits {
					v.await(attack.name+" waits", func() bool { return len(m.in("tempfail")) == 1 && len(m.queued()) == 1 })
					if why := m.root("", dmaFile, "-bp").want(t, 0).stdout; !strings.Contains(why, want) {
						t.Errorf("%s: %q is not in what mailq says:\n%s", attack.name, want, why)
					}
					for _, changed := range m.changes(before) {
						if changed != "/var/mail" && changed != "/var/mail/carol" {
							t.Errorf("%s: %s was changed: %s", attack.name, changed, m.owner(changed))
						}
					}
					for _, name := range []string{"alice", "other"} {
						m.do(os.RemoveAll("/var/mail/" + name))
					}
					m.retry()
				}
				v.await(attack.name+" arrived", func() bool { return m.subjects("alice", attack.name) > 0 && len(m.queued()) == 0 })
				if n := m.subjects("alice", attack.name); n != 1 {
					t.Errorf("%s: alice has %d", attack.name, n)
				}
				for _, name := range []string{"alice", "alice.lock", "alice.lock.dma"} {
					m.do(os.RemoveAll("/var/mail/" + name))
				}
			}
			v.stop()
		})
	}
}

// TestMailboxSwap has a user exchange the mailbox with a link to another user's
// file, again and again, while mail is written. Nothing is written through the
// link, nothing is lost and nothing there twice.
func TestMailboxSwap(t *testing.T) {
	m := newMachine(t)
	m.do(os.Chown("/var/mail", 0, 0))
	m.do(os.Chmod("/var/mail", 0o777|os.ModeSticky))
	m.own("bob", "target", "bob's\n", 0o666)
	m.own("alice", "/var/mail/alice", "", 0o600)
	m.do(os.Symlink("/home/bob/target", "/var/mail/trap"))
	m.do(os.Lchown("/var/mail/trap", lookup(t, "alice").uid, -1))
	v := m.start()
	before := m.owner("/home/bob/target")
	swap := m.begin("alice", "swap", "/var/mail/alice", "/var/mail/trap")
	const messages = 40
	for i := range messages {
		m.submit("mallory", fmt.Sprintf("swap %d", i), "alice", "carol")
	}
	v.await("carol's mail", func() bool { return strings.Count(m.mailbox("carol"), "\nSubject: swap ") == messages })
	v.await("alice's mail is delivered or waits", func() bool { return len(m.in("tempfail")) == len(m.queued()) })
	arrived := messages - len(m.queued())
	swap.end()
	if info, err := os.Lstat("/var/mail/alice"); err == nil && info.Mode()&os.ModeSymlink != 0 {
		m.do(unix.Renameat2(unix.AT_FDCWD, "/var/mail/alice", unix.AT_FDCWD, "/var/mail/trap", unix.RENAME_EXCHANGE))
	}
	m.root("", dmaFile, "-q").want(t, 0)
	v.empties(m)
	once(t, m.mailbox("alice"), "swap", messages)
	once(t, m.mailbox("carol"), "swap", messages)
	if text, _ := os.ReadFile("/home/bob/target"); string(text) != "bob's\n" || m.owner("/home/bob/target") != before {
		t.Errorf("bob's file was written through the link: %.200q", text)
	}
	t.Logf("%d of %d arrived while the names were exchanged", arrived, messages)
	v.stop()
}

// TestMailboxRace has a user make and remove a link to another user's file, again
// and again, where somebody without a mailbox is to get one. Nothing is written
// through the link, nothing is lost and nothing there twice.
func TestMailboxRace(t *testing.T) {
	m := newMachine(t)
	m.do(os.Chown("/var/mail", 0, 0))
	m.do(os.Chmod("/var/mail", 0o777|os.ModeSticky))
	m.own("bob", "target", "bob's\n", 0o666)
	before := m.owner("/home/bob/target")
	v := m.start()
	race := m.begin("mallory", "race", "/home/bob/target", "/var/mail/alice")
	const messages = 20
	var got strings.Builder
	take := func() { // and there is no mailbox again
		if info, err := os.Lstat("/var/mail/alice"); err == nil && info.Mode().IsRegular() {
			if owner := m.owner("/var/mail/alice"); owner != ownerText(2001, 2001, 0o600) {
				t.Errorf("alice's mailbox: %s", owner)
			}
			got.Write(m.read("/var/mail/alice"))
			m.do(os.Remove("/var/mail/alice"))
		}
	}
	for i := range messages {
		m.submit("mallory", fmt.Sprintf("race %d", i), "alice", "carol")
		v.await("carol's mail, and alice's decided", func() bool {
			return m.subjects("carol", fmt.Sprintf("race %d", i)) == 1 && len(m.queued()) == len(m.in("tempfail"))
		})
		take()
	}
	waited := len(m.queued())
	race.end()
	m.root("", dmaFile, "-q").want(t, 0)
	v.empties(m)
	take()
	once(t, got.String(), "race", messages)
	if string(m.read("/home/bob/target")) != "bob's\n" || m.owner("/home/bob/target") != before {
		t.Errorf("bob's file was written through the link: %.200q", m.read("/home/bob/target"))
	}
	t.Logf("%d of %d waited", waited, messages)
	v.stop()
}

// TestMailboxFull fills the file system of the mailboxes, and takes the right to
// write from one. No message is there in part, none twice, none is lost.
func TestMailboxFull(t *testing.T) {
	m := newMachine(t)
	m.do(unix.Mount("tmpfs", "/var/mail", "tmpfs", 0, fmt.Sprintf("size=256k,mode=2775,gid=%d", groupOf(t, "mail"))))
	t.Cleanup(func() { _ = unix.Unmount("/var/mail", unix.MNT_DETACH) })
	v := m.start()
	m.submit("mallory", "full 0", "alice", "bob")
	v.empties(m)
	before := m.mailbox("alice")
	large := "Subject: full 1\n\n" + strings.Repeat("a line of the large one\n", 20_000)
	m.as("mallory", large, dmaFile, "alice").want(t, 0)
	v.await("the large one waits", func() bool { return len(m.in("tempfail")) == 1 && len(m.queued()) == 1 })
	if got := m.mailbox("alice"); got != before {
		t.Errorf("alice's mailbox has %d octets, want the %d of before", len(got), len(before))
	}
	m.submit("mallory", "full 2", "alice", "bob")
	v.await("a small one beside it", func() bool { return m.subjects("alice", "full 2") == 1 && m.subjects("bob", "full 2") == 1 })

	// Not even a small one has room.
	filler, err := os.Create("/var/mail/.filler")
	m.do(err)
	for size := 64 << 10; size > 0; size /= 2 {
		for {
			if _, err := filler.Write(make([]byte, size)); err != nil {
				break
			}
		}
	}
	filler.Close()
	for i := 3; i < 8; i++ {
		m.as("mallory", fmt.Sprintf("Subject: full %d\n\n%s", i, strings.Repeat("some text\n", 1000)), dmaFile, "alice").want(t, 0)
	}
	v.await("all wait", func() bool { return len(m.in("tempfail")) == 6 && len(m.queued()) == 6 })
	if n := strings.Count(m.mailbox("alice"), "\nSubject: "); n != 2 {
		t.Errorf("alice has %d messages, want 2", n)
	}
	m.do(unix.Mount("", "/var/mail", "", unix.MS_REMOUNT, "size=64m"))
	m.do(os.Remove("/var/mail/.filler"))
	m.root("", dmaFile, "-q").want(t, 0)
	v.empties(m)
	once(t, m.mailbox("alice"), "full", 8)
	if !strings.Contains(m.mailbox("alice"), strings.SplitN(large, "\n\n", 2)[1]) {
		t.Error("the large one is not whole")
	}

	for _, flag := range []string{"i", "a"} {
		m.root("", "/usr/bin/chattr", "+"+flag, "/var/mail/alice").want(t, 0)
		before := m.mailbox("alice")
		m.submit("mallory", "flag "+flag, "alice", "bob")
		v.await("bob's", func() bool { return m.subjects("bob", "flag "+flag) == 1 })
		v.await("alice's is decided", func() bool { return len(m.in("tempfail")) == len(m.queued()) })
		if len(m.queued()) == 1 && m.mailbox("alice") != before {
			t.Errorf("chattr +%s: the mail waits, and the mailbox was changed", flag)
		}
		t.Logf("chattr +%s: waiting %d", flag, len(m.queued()))
		m.root("", "/usr/bin/chattr", "-"+flag, "/var/mail/alice").want(t, 0)
		m.root("", dmaFile, "-q").want(t, 0)
		v.empties(m)
		if n := m.subjects("alice", "flag "+flag); n != 1 {
			t.Errorf("chattr +%s: alice has %d", flag, n)
		}
	}
	v.stop()
}

// TestMailboxLock holds the locks that mail readers take. That delays the owner
// of the mailbox, and nobody else.
func TestMailboxLock(t *testing.T) {
	m := newMachine(t)
	v := m.start()
	m.own("alice", "/var/mail/alice", "", 0o600)
	hold := m.begin("alice", "lock", "/var/mail/alice")
	m.submit("mallory", "kernel lock", "alice", "bob", "carol")
	v.await("others' mail", func() bool { return m.subjects("bob", "kernel lock") == 1 && m.subjects("carol", "kernel lock") == 1 })
	if m.mailbox("alice") != "" {
		t.Error("the lock did not count")
	}
	hold.end()
	v.await("alice's mail", func() bool { return m.subjects("alice", "kernel lock") == 1 })
	v.empties(m)

	m.write("/var/mail/alice.lock", fmt.Sprintf("%d\n", os.Getpid()), 0o644)
	m.submit("mallory", "dotlock", "alice", "bob")
	v.await("bob's mail", func() bool { return m.subjects("bob", "dotlock") == 1 })
	if m.subjects("alice", "dotlock") != 0 {
		t.Error("the dotlock did not count")
	}
	m.do(os.Remove("/var/mail/alice.lock"))
	v.await("alice's mail", func() bool { return m.subjects("alice", "dotlock") == 1 })
	v.empties(m)
	v.stop()
}

// TestMailDirectory delivers into mail directories as the systems have them.
// Mailboxes come into being there with owner and mode, and a lock file wherever
// one can be made; mailboxes that are there stay what they are.
func TestMailDirectory(t *testing.T) {
	m := newMachine(t)
	m.write("/etc/aliases", "\n", 0o644) // root's mail is root's
	v := m.start()
	mail := groupOf(t, "mail")
	a := lookup(t, "alice")
	for _, style := range []struct {
		name    string
		gid     int
		mode    os.FileMode
		alice   string // the mailbox that is made
		root    string
		dotlock bool
	}{
		{"2775 root:mail, as Debian has it", mail, 0o775 | os.ModeSetgid, ownerText(a.uid, mail, 0o660), ownerText(0, mail, 0o600), true},
		{"775 root:mail", mail, 0o775, ownerText(a.uid, mail, 0o660), ownerText(0, 0, 0o600), true},
		{"1777 root:wheel", 0, 0o777 | os.ModeSticky, ownerText(a.uid, a.gid, 0o600), ownerText(0, 0, 0o600), true},
		{"775 root:wheel", 0, 0o775, ownerText(a.uid, a.gid, 0o600), ownerText(0, 0, 0o600), false},
		{"755 root:wheel", 0, 0o755, ownerText(a.uid, a.gid, 0o600), ownerText(0, 0, 0o600), false},
	} {
		// The writers of the style before may be idle, with its group.
		v.await("end of the agents", func() bool {
			for _, p := range m.processes() {
				if strings.Contains(p.name, ": agent ") {
					return false
				}
			}
			return true
		})
		m.empty("/var/mail")
		m.do(os.Chown("/var/mail", 0, style.gid))
		m.do(os.Chmod("/var/mail", style.mode))
		const old = "From somebody Mon Jan  1 00:00:00 2024\nSubject: old\n\nold\n\n"
		m.own("bob", "/var/mail/bob", old, 0o640)
		had := m.owner("/var/mail/bob")

		// The lock of the kernel counts, whether or not there can be one of files.
		hold := m.begin("bob", "lock", "/var/mail/bob")
		m.submit("mallory", "locked", "bob")
		v.await("writer of bob's mailbox", func() bool { _, ok := m.findAgent("bob"); return ok })
		for _, subject := range []string{"beside", "beside again"} {
			m.submit("mallory", subject, "alice")
			v.await(subject, func() bool { return m.subjects("alice", subject) == 1 })
		}
		if m.mailbox("bob") != old {
			t.Errorf("%s: the lock of bob's mailbox did not count", style.name)
		}
		hold.end()
		v.await("bob's mail", func() bool { return m.subjects("bob", "locked") == 1 })

		watch, err := fsnotify.NewBufferedWatcher(1000)
		m.do(err)
		m.do(watch.Add("/var/mail"))
		m.submit("mallory", "style", "alice", "bob", "root")
		v.empties(m)
		made := false
		for more := true; more; {
			select {
			case e := <-watch.Events:
				made = made || e.Name == "/var/mail/alice.lock"
			default:
				more = false
			}
		}
		watch.Close()
		if made != style.dotlock {
			t.Errorf("%s: lock file made: %v, want %v", style.name, made, style.dotlock)
		}
		for user, want := range map[string]string{"alice": style.alice, "bob": had, "root": style.root} {
			if got := m.owner("/var/mail/" + user); got != want {
				t.Errorf("%s: mailbox of %s: %s, want %s", style.name, user, got, want)
			}
			if n := m.subjects(user, "style"); n != 1 {
				t.Errorf("%s: %s has %d messages", style.name, user, n)
			}
		}
		if !strings.HasPrefix(m.mailbox("bob"), old) {
			t.Errorf("%s: what bob had is gone", style.name)
		}
		entries, err := os.ReadDir("/var/mail")
		m.do(err)
		if len(entries) != 3 {
			t.Errorf("%s: left behind in the mail directory: %v", style.name, entries)
		}
	}
	v.stop()
}
