package machinetest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A forwardAttack is something that stands in the place of bob's .forward.
type forwardAttack struct {
	name string
	make func(m *machine, path string)
	want string // a part of why the mail waits; else
	to   string // where the mail goes at once: a user
}

const secret = "a line that only its owner may see"

// regular makes a .forward of bob's that leads to carol, with a mode and group.
func regular(mode os.FileMode, group int) func(*machine, string) {
	return func(m *machine, path string) {
		m.own("bob", path, "carol\n", mode)
		m.do(os.Chown(path, -1, group))
		m.do(os.Chmod(path, mode))
	}
}

func node(mode uint32, dev uint64) func(*machine, string) {
	return func(m *machine, path string) {
		m.do(unix.Mknod(path, mode, int(dev)))
		m.do(os.Chown(path, lookup(m.t, "bob").uid, -1))
	}
}

func symlink(to string) func(*machine, string) {
	return func(m *machine, path string) {
		m.do(os.Symlink(to, path))
		m.do(os.Lchown(path, lookup(m.t, "bob").uid, -1))
	}
}

func content(text string) func(*machine, string) {
	return func(m *machine, path string) { m.own("bob", path, text, 0o644) }
}

// home changes bob's home directory, in which there is a good .forward.
func home(change func(m *machine, dir string)) func(*machine, string) {
	return func(m *machine, path string) {
		m.own("bob", path, "carol\n", 0o644)
		change(m, filepath.Dir(path))
	}
}

func forwardAttacks() []forwardAttack {
	return []forwardAttack{
		{name: "FIFO", make: node(unix.S_IFIFO|0o644, 0), want: "is a FIFO"},
		{name: "FIFO that somebody holds open", make: func(m *machine, path string) {
			node(unix.S_IFIFO|0o644, 0)(m, path)
			m.begin("bob", "fifo", path)
		}, want: "is a FIFO"},
		{name: "socket", make: node(unix.S_IFSOCK|0o644, 0), want: "is a socket"},
		{name: "/dev/zero", make: node(unix.S_IFCHR|0o644, unix.Mkdev(1, 5)), want: "is a device"},
		{name: "directory", make: func(m *machine, path string) { m.do(os.Mkdir(path, 0o755)) }, want: "is a directory"},
		{name: "link to /etc/shadow", make: symlink("/etc/shadow"), want: "leads out of"},
		{name: "relative link to /etc/shadow", make: symlink("../../etc/shadow"), want: "leads out of"},
		{name: "link to another user's file", make: symlink("/home/alice/private"), want: "leads out of"},
		{name: "link to /proc/self/environ", make: symlink("/proc/self/environ"), want: "leads out of"},
		{name: "link to itself", make: symlink(".forward"), want: "symbolic links"},
		{name: "link to nowhere", make: symlink("nowhere"), want: "leads nowhere"},
		{name: "link within the home", make: func(m *machine, path string) {
			m.own("bob", "elsewhere", "carol\n", 0o644)
			symlink("elsewhere")(m, path)
		}, to: "carol"},
		{name: "hard link to another user's file", make: func(m *machine, path string) { m.do(os.Link("/home/alice/private", path)) }, want: "belongs to uid 2001"},
		{name: "hard link to root's file", make: func(m *machine, path string) { m.do(os.Link("/home/roots", path)) }, want: "permission denied"},
		{name: "unreadable", make: regular(0o000, 2002), want: "permission denied"},
		{name: "world-writable", make: regular(0o646, 2002), want: "anybody may write"},
		{name: "writable for a group with others", make: regular(0o664, staffGroup), want: "has other members"},
		{name: "writable for the user's own group", make: regular(0o664, 2002), to: "carol"},
		{name: "foreign", make: func(m *machine, path string) { m.own("mallory", path, "mallory\n", 0o644) }, want: "belongs to uid 2666"},
		{name: "64 KiB and an octet", make: content(strings.Repeat("#", 64<<10) + "\n"), want: "larger than"},
		{name: "a terabyte of nothing", make: func(m *machine, path string) {
			m.own("bob", path, "carol\n", 0o644)
			m.do(os.Truncate(path, 1<<40))
		}, want: "larger than"},
		{name: "NUL", make: content("carol\x00, \x00|id\n"), want: ".forward"},
		{name: "not text", make: content("\x7fELF\x02\x01\x01\x00\xff\xfe\x1b[2J"), want: ".forward"},
		{name: "comments alone", make: content("# nothing\n"), to: "bob"},
		{name: "more targets than there may be", make: content(manyTargets()), want: "more than"},
		{name: "includes another user's file", make: content(":include:/home/alice/private\n"), want: "private"},
		{name: "includes /etc/shadow", make: content(":include:/etc/shadow\n"), want: "/etc/shadow"},
		{name: "includes a FIFO that somebody holds open", make: func(m *machine, path string) {
			pipe := "/home/bob/pipe"
			node(unix.S_IFIFO|0o644, 0)(m, pipe)
			m.begin("bob", "fifo", pipe)
			content(":include:"+pipe+"\n")(m, path)
		}, want: "regular file"},
		{name: "includes itself", make: content(":include:/home/bob/.forward\n"), want: "loop"},
		{name: "home is 0777", make: home(func(m *machine, dir string) { m.do(os.Chmod(dir, 0o777)) }), want: "anybody may write"},
		{name: "home is sticky", make: home(func(m *machine, dir string) { m.do(os.Chmod(dir, 0o755|os.ModeSticky)) }), want: "sticky"},
		{name: "home is closed to its user", make: home(func(m *machine, dir string) { m.do(os.Chmod(dir, 0o000)) }), want: "permission denied"},
		{name: "home is another user's", make: home(func(m *machine, dir string) { m.do(os.Chown(dir, 2666, 2666)) }), want: "belongs to uid 2666"},
		{name: "home is root's", make: home(func(m *machine, dir string) { m.do(os.Chown(dir, 0, 0)) }), to: "carol"},
		{name: "home is missing", make: home(func(m *machine, dir string) { m.do(os.Rename(dir, "/home/.away")) }), to: "bob"},
		{name: "home is a link to nowhere", make: home(func(m *machine, dir string) {
			m.do(os.Rename(dir, "/home/.away"))
			m.do(os.Symlink("/nowhere", dir))
		}), want: "leads nowhere"},
		{name: "home is a file", make: home(func(m *machine, dir string) {
			m.do(os.Rename(dir, "/home/.away"))
			m.own("bob", dir, "no directory\n", 0o644)
		}), want: "not a directory"},
		{name: "a file of another user's", make: content("/home/alice/private\n"), want: "belongs to uid 2001"},
		{name: "another user's mailbox", make: content("/var/mail/alice\n"), want: "belongs to uid 2001"},
		{name: "a new file in /etc", make: content("/etc/dma/dma.conf.d\n"), want: "permission denied"},
		{name: "a Maildir of another user's", make: content("/home/alice/Maildir/\n"), want: "permission denied"},
		{name: "a device", make: content("/dev/zero\n"), want: "regular file"},
		{name: "the spool", make: content("/var/spool/dma/new/x\n"), want: "permission denied"},
		{name: "the service's lock", make: content("/run/dma/parent.lock\n"), want: "/run/dma/parent.lock: "},
		{name: "one's own name", make: content("bob\n"), to: "bob"},
	}
}

func manyTargets() string {
	var b strings.Builder
	for i := range 4000 {
		fmt.Fprintf(&b, "u%d\n", i)
	}
	return b.String()
}

// TestForwardAttack puts what a hostile user can think of in the place of a
// .forward. The mail waits with its reason or goes where the manual says, other
// users' mail flows on, nobody reads what he may not, and when all is well again
// the message is there once.
func TestForwardAttack(t *testing.T) {
	m := newMachine(t)
	m.own("alice", "private", secret+"\n", 0o600)
	m.write("/home/roots", secret+"\n", 0o600)
	v := m.start()
	a, b := lookup(t, "alice"), lookup(t, "bob")
	count := func(user, subject string) int {
		return strings.Count(m.mailbox(user), "\nSubject: "+subject+"\n")
	}
	for _, attack := range forwardAttacks() {
		path := "/home/bob/.forward"
		attack.make(m, path)
		before := m.files()
		m.submit("mallory", attack.name, "bob", "alice")
		v.await("alice's mail beside "+attack.name, func() bool { return count("alice", attack.name) == 1 })
		if attack.to != "" {
			v.await(attack.name+" to "+attack.to, func() bool { return count(attack.to, attack.name) == 1 && len(m.queued()) == 0 })
		} else {
			v.await(attack.name+" waits", func() bool { return len(m.in("tempfail")) == 1 && len(m.queued()) == 1 })
			why := m.root("", dmaFile, "-bp").want(t, 0).stdout
			if !strings.Contains(strings.ReplaceAll(why, "\n", " "), attack.want) {
				t.Errorf("%s: %q is not in what mailq says:\n%s", attack.name, attack.want, why)
			}
		}
		for _, changed := range m.changes(before) {
			if changed != "/var/mail" && !strings.HasPrefix(changed, "/var/mail/") {
				t.Errorf("%s: %s was changed: %s", attack.name, changed, m.owner(changed))
			}
		}
		// Back to what it was; then the message goes on.
		if _, err := os.Lstat("/home/.away"); err == nil {
			m.do(os.RemoveAll("/home/bob"))
			m.do(os.Rename("/home/.away", "/home/bob"))
		}
		m.do(os.Chown("/home/bob", b.uid, b.gid))
		m.do(os.Chmod("/home/bob", 0o755))
		m.do(os.RemoveAll(path))
		if attack.to == "" {
			m.retry()
			v.await(attack.name+" mended", func() bool { return count("bob", attack.name) > 0 && len(m.queued()) == 0 })
			if n := count("bob", attack.name); n != 1 {
				t.Errorf("%s, mended: bob has %d", attack.name, n)
			}
		}
		if n := count("bob", attack.name) + count("carol", attack.name); n != 1 {
			t.Errorf("%s: bob and carol have %d together", attack.name, n)
		}
	}
	for _, text := range []string{v.log(), m.mailbox("bob"), m.mailbox("carol"), m.mailbox("mallory")} {
		if strings.Contains(text, secret) || strings.Contains(text, "root:*") || strings.Contains(text, "root:!") || strings.Contains(text, "\x1b") {
			t.Errorf("somebody reads what he may not:\n%s", text)
		}
	}
	if got, want := m.owner("/home/alice/private"), ownerText(a.uid, a.gid, 0o600); got != want {
		t.Errorf("alice's file: %s, want %s", got, want)
	}
	v.stop()
	if p := m.processes(); len(p) != 0 {
		t.Errorf("left behind: %+v", p)
	}
}
