package machinetest

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestRootsMail is root's mail without an alias. It goes to root's mailbox,
// which stays root's and is written by a process that is not root; a .forward
// of root's is not looked at.
func TestRootsMail(t *testing.T) {
	m := newMachine(t)
	m.write("/etc/aliases", "\n", 0o644)
	m.write("/root/.forward", "|touch /root/canary\n", 0o644)
	t.Cleanup(func() { os.Remove("/root/.forward"); os.Remove("/root/canary") })
	m.write("/var/mail/root", "", 0o600)
	v := m.start()
	hold := m.begin("root", "lock", "/var/mail/root")
	m.submit("mallory", "to root", "root")
	var writer process
	v.await("who writes root's mailbox", func() bool {
		p, ok := m.findAgent("root")
		writer = p
		return ok && p.status["Uid"] != ""
	})
	nobody := uidOf(t, "nobody")
	v.await("the writer has dropped", func() bool {
		p, ok := m.findAgent("root")
		return ok && strings.HasPrefix(p.status["Uid"], strconv.Itoa(nobody))
	})
	if p, ok := m.findAgent("root"); ok {
		writer = p
	}
	ids := strings.Join(strings.Fields(strings.Repeat(strconv.Itoa(nobody)+" ", 4)), " ")
	if writer.status["Uid"] != ids || writer.status["CapEff"] != "0000000000000000" || writer.status["CapPrm"] != "0000000000000000" {
		t.Errorf("the writer of root's mailbox: uid %s, capabilities %s %s", writer.status["Uid"], writer.status["CapEff"], writer.status["CapPrm"])
	}
	hold.end()
	v.empties(m)
	for _, to := range []string{"postmaster", "MAILER-DAEMON", "Root", "root@host.example", "POSTMASTER@local.example", "root+detail"} {
		m.submit("mallory", "to "+to, "--", to)
	}
	v.empties(m)
	for _, to := range []string{"root", "postmaster", "MAILER-DAEMON", "Root", "root@host.example", "POSTMASTER@local.example", "root+detail"} {
		if n := m.subjects("root", "to "+to); n != 1 {
			t.Errorf("mail to %s is there %d times\n%s", to, n, v.log())
		}
	}
	if got := m.owner("/var/mail/root"); !strings.HasPrefix(got, "0:") || !strings.HasSuffix(got, " 600") {
		t.Errorf("root's mailbox: %s", got)
	}
	if _, err := os.Stat("/root/canary"); err == nil {
		t.Error("root's .forward was followed")
	}

	// Root's mailbox as an attack: nothing is written elsewhere.
	for name, put := range map[string]func(){
		"link to /etc/passwd": func() { m.do(os.Symlink("/etc/passwd", "/var/mail/root")) },
		"another's":           func() { m.own("mallory", "/var/mail/root", "", 0o666) },
		"two names": func() {
			m.write("/var/mail/root", "", 0o600)
			m.do(os.Link("/var/mail/root", "/var/mail/other"))
		},
		"directory": func() { m.do(os.Mkdir("/var/mail/root", 0o777)) },
	} {
		m.do(os.RemoveAll("/var/mail/root"))
		put()
		before := m.files()
		m.submit("mallory", "root's mailbox is "+name, "root", "carol")
		v.await("carol's", func() bool { return m.subjects("carol", "root's mailbox is "+name) == 1 })
		v.await(name+" waits", func() bool { return len(m.in("tempfail")) == 1 && len(m.queued()) == 1 })
		for _, changed := range m.changes(before) {
			if changed != "/var/mail" && changed != "/var/mail/carol" {
				t.Errorf("%s: %s was changed", name, changed)
			}
		}
		m.do(os.RemoveAll("/var/mail/root"))
		m.do(os.RemoveAll("/var/mail/other"))
		m.root("", dmaFile, "-q").want(t, 0)
		v.empties(m)
		if n := m.subjects("root", "root's mailbox is "+name); n != 1 {
			t.Errorf("%s: root has %d", name, n)
		}
	}
	v.stop()
}

// TestRootsWriter is who writes root's mailbox where the mail directory has no
// group for that: another process of nobody's does not get at it. It locks as
// MBOXLOCK says.
func TestRootsWriter(t *testing.T) {
	m := newMachine(t, "MBOXLOCK flock")
	m.write("/etc/aliases", "\n", 0o644)
	m.do(os.Chown("/var/mail", 0, 0))
	m.do(os.Chmod("/var/mail", 0o755))
	m.write("/var/mail/root", "", 0o600)
	v := m.start()
	hold := m.begin("root", "lock", "/var/mail/root", "flock")
	m.submit("mallory", "to root", "root")
	nobody := uidOf(t, "nobody")
	var writer process
	v.await("who writes root's mailbox", func() bool {
		p, ok := m.findAgent("root")
		writer = p
		return ok && strings.HasPrefix(p.status["Uid"], strconv.Itoa(nobody)+" ")
	})
	for _, gid := range []uint32{65534, uint32(nobody)} {
		// Not even before it has made itself untraceable: the group alone decides.
		if f := strings.Fields(writer.status["Gid"]); f[0] == strconv.Itoa(int(gid)) {
			t.Errorf("the writer has the group %d, as other processes of nobody's", gid)
		}
		cmd := m.command("root", m.actor(), "ptrace", strconv.Itoa(writer.pid))
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(nobody), Gid: gid}
		if r := m.run(cmd, ""); r.code == 0 || r.stdout != "" {
			t.Errorf("a process of nobody's looks into the writer: %s", r.stdout)
		}
	}
	if n := m.subjects("root", "to root"); n != 0 {
		t.Error("the writer did not wait for a lock of flock(2)")
	}
	hold.end()
	v.empties(m)
	if n := m.subjects("root", "to root"); n != 1 {
		t.Errorf("root has %d", n)
	}
	v.stop()
}

// uidOf returns the uid of a user of /etc/passwd.
func uidOf(t testing.TB, name string) int {
	t.Helper()
	text, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Split(line, ":"); f[0] == name {
			uid, err := strconv.Atoi(f[2])
			if err != nil {
				t.Fatal(err)
			}
			return uid
		}
	}
	t.Fatalf("no user %s", name)
	return 0
}

// findAgent returns the agent of a user.
func (m *machine) findAgent(user string) (process, bool) {
	m.t.Helper()
	for _, p := range m.processes() {
		if strings.Contains(p.name, ": agent "+user+" ") {
			return p, true
		}
	}
	return process{}, false
}

// TestSystemAccount is mail for an account below MINUID: it has a mailbox and
// nothing else.
func TestSystemAccount(t *testing.T) {
	m := newMachine(t)
	m.own("robot", ".forward", "|touch /home/robot/canary, carol\n", 0o644)
	m.write("/etc/aliases", "root: alice\nbot: robot\n", 0o644)
	v := m.start()
	m.submit("mallory", "to robot", "robot")
	m.submit("mallory", "to bot", "bot")
	v.empties(m)
	for _, subject := range []string{"to robot", "to bot"} {
		if n := m.subjects("robot", subject); n != 1 {
			t.Errorf("%s: robot has %d\n%s", subject, n, v.log())
		}
	}
	if m.mailbox("carol") != "" {
		t.Error("robot's .forward was followed")
	}
	if _, err := os.Stat("/home/robot/canary"); err == nil {
		t.Error("robot's command ran")
	}
	r := lookup(t, "robot")
	if got, want := m.owner("/var/mail/robot"), ownerText(r.uid, groupOf(t, "mail"), 0o660); got != want {
		t.Errorf("robot's mailbox: %s, want %s", got, want)
	}
	v.stop()

	// Unless it is listed; then it runs with what the account has, and the
	// others of its kind are as before.
	m.write("/etc/passwd", string(m.read("/etc/passwd"))+"other:x:151:151::/home/other:/bin/sh\n", 0o644)
	m.do(os.Mkdir("/home/other", 0o755))
	m.write("/home/other/.forward", "carol\n", 0o644)
	m.do(os.Chown("/home/other", 151, 151))
	m.do(os.Chown("/home/other/.forward", 151, 151))
	m.own("robot", ".forward", "\"|id > /home/robot/canary\", carol\n", 0o644)
	m.configure("FORWARDUSERS robot")
	v = m.start()
	m.submit("mallory", "listed", "robot", "other")
	v.empties(m)
	if got := string(m.read("/home/robot/canary")); got != "uid=150(robot) gid=150(robot) groups=150(robot)\n" {
		t.Errorf("robot's command ran as %q", got)
	}
	if r, o, c := m.subjects("robot", "listed"), m.subjects("other", "listed"), m.subjects("carol", "listed"); r != 0 || o != 1 || c != 1 {
		t.Errorf("robot has %d, other %d, carol %d", r, o, c)
	}
	v.stop()
}

// TestMailSystemAccounts sends mail to the users of the mail system itself.
// Nothing runs as them for that: it waits and says what to do.
func TestMailSystemAccounts(t *testing.T) {
	m := newMachine(t)
	v := m.start()
	m.submit("mallory", "to the mail system", "dma", "dmanet", "bob")
	v.await("both wait", func() bool { return len(m.in("tempfail")) == 2 && len(m.queued()) == 2 })
	why := m.root("", dmaFile, "-bp").want(t, 0).stdout
	if n := strings.Count(why, "is the mail system; name a person in the aliases"); n != 2 {
		t.Errorf("mailq gives the reason %d times:\n%s", n, why)
	}
	if m.subjects("bob", "to the mail system") != 1 {
		t.Error("bob's message is not there")
	}
	for _, user := range []string{"dma", "dmanet"} {
		if _, err := os.Lstat("/var/mail/" + user); err == nil {
			t.Errorf("%s has a mailbox", user)
		}
		if p, ok := m.findAgent(user); ok {
			t.Errorf("an agent of %s: %+v", user, p)
		}
	}
	m.write("/etc/aliases", "root: alice\ndma: bob\ndmanet: carol\n", 0o644)
	m.root("", dmaFile, "-q").want(t, 0)
	v.empties(m)
	if m.subjects("carol", "to the mail system") != 1 || m.subjects("bob", "to the mail system") != 2 {
		t.Errorf("with aliases:\n%s", v.log())
	}

	// The mail system reads included files as itself, and says so.
	m.write("/etc/aliases", "root: alice\ncrew: :include:/etc/crew\n", 0o644)
	m.write("/etc/crew", "carol\n", 0o600)
	t.Cleanup(func() { os.Remove("/etc/crew") })
	m.submit("mallory", "to the crew", "crew")
	v.await("it waits", func() bool { return len(m.in("tempfail")) == 1 && len(m.queued()) == 1 })
	const remedy = "/etc/aliases:2: :include: /etc/crew cannot be read: permission denied; let user dma read it"
	for what, said := range map[string]string{
		"mailq": m.root("", dmaFile, "-bp").want(t, 0).stdout, "newaliases": m.root("", libexec+"/newaliases").want(t, 78).stderr,
	} {
		if !strings.Contains(said, remedy) {
			t.Errorf("%s does not say %q:\n%s", what, remedy, said)
		}
	}
	m.do(os.Chmod("/etc/crew", 0o644))
	m.root("", libexec+"/newaliases").want(t, 0)
	m.root("", dmaFile, "-q").want(t, 0)
	v.empties(m)
	if m.subjects("carol", "to the crew") != 1 {
		t.Errorf("carol is not of the crew:\n%s", v.log())
	}
	v.stop()
}

// TestAliasUser shows as whom the commands and the files of the aliases are run
// and written: as ALIASUSER and nobody else.
func TestAliasUser(t *testing.T) {
	const aliases = "root: alice\nrun: \"|/usr/bin/id > /tmp/dma-alias-PID\"\nfile: /home/carol/list\nmaildir: /home/carol/Maildir/\nsteal: /home/bob/stolen\nrooted: /root/stolen\nvia: bob\nwhere: \"|(/usr/bin/id; pwd; echo $HOME) > /tmp/dma-alias-PID\"\n"
	out := "/tmp/dma-alias-" + strconv.Itoa(os.Getpid())
	t.Cleanup(func() { os.Remove(out) })
	text := strings.ReplaceAll(aliases, "/tmp/dma-alias-PID", out)
	ready := func(t *testing.T, conf ...string) (*machine, *service) {
		os.Remove(out)
		m := newMachine(t, conf...)
		m.write("/etc/aliases", text, 0o644)
		m.own("bob", ".forward", "\"|/usr/bin/id > "+out+"\"\n", 0o644)
		return m, m.start()
	}
	t.Run("none", func(t *testing.T) {
		m, v := ready(t)
		for _, to := range []string{"run", "file", "maildir"} {
			m.submit("mallory", "to "+to, to)
		}
		v.await("all wait", func() bool { return len(m.in("tempfail")) == 3 && len(m.queued()) == 3 })
		if why := m.root("", dmaFile, "-bp").stdout; strings.Count(why, "ALIASUSER") != 3 {
			t.Errorf("mailq does not name ALIASUSER three times:\n%s", why)
		}
		if _, err := os.Stat(out); err == nil {
			t.Errorf("the command ran: %s", m.owner(out))
		}
		// Then it is set.
		m.configure("ALIASUSER carol")
		v.stop()
		v = m.start()
		m.root("", dmaFile, "-q").want(t, 0)
		v.empties(m)
		if id, _ := os.ReadFile(out); !strings.HasPrefix(string(id), "uid=2003(carol) gid=2003(carol)") {
			t.Errorf("the command ran as %s\n%s", id, v.log())
		}
		v.stop()
	})
	t.Run("carol", func(t *testing.T) {
		m, v := ready(t, "ALIASUSER carol")
		for _, to := range []string{"run", "file", "maildir"} {
			m.submit("mallory", "to "+to, to)
		}
		v.empties(m)
		if id, _ := os.ReadFile(out); string(id) != "uid=2003(carol) gid=2003(carol) groups=2003(carol)\n" {
			t.Errorf("the command ran as %s", id)
		}
		if got := m.owner("/home/carol/list"); got != ownerText(2003, 2003, 0o600) {
			t.Errorf("the file: %s", got)
		}
		before := m.files()
		m.submit("mallory", "stolen", "steal", "rooted")
		v.await("both wait", func() bool { return len(m.in("tempfail")) == 2 && len(m.queued()) == 2 })
		if changed := m.changes(before); len(changed) != 0 {
			t.Errorf("changed: %q", changed)
		}
		// Bob's command is bob's, whatever way the mail came.
		m.do(os.Remove(out))
		m.submit("mallory", "via", "via")
		v.await("bob's command", func() bool { return len(m.queued()) == 2 })
		if id, _ := os.ReadFile(out); !strings.HasPrefix(string(id), "uid=2002(bob) gid=2002(bob)") {
			t.Errorf("bob's command ran as %s", id)
		}
		v.stop()
	})
	t.Run("nobody", func(t *testing.T) { // who has no home directory
		m, v := ready(t, "ALIASUSER nobody")
		m.submit("mallory", "to where", "where")
		v.empties(m)
		uid := strconv.Itoa(uidOf(t, "nobody"))
		if got, _ := os.ReadFile(out); !strings.HasPrefix(string(got), "uid="+uid+"(nobody) ") || !strings.HasSuffix(string(got), "\n/\n/nonexistent\n") {
			t.Errorf("the command ran as %s", got)
		}
		v.stop()
	})
	for _, user := range []string{"root", "dma", "dmanet", "nobody-of-that-name"} {
		t.Run(user, func(t *testing.T) {
			m, v := ready(t, "ALIASUSER "+user)
			m.submit("mallory", "to run", "run", "carol")
			v.await("it waits", func() bool { return len(m.in("tempfail")) == 1 && len(m.queued()) == 1 })
			if _, err := os.Stat(out); err == nil {
				t.Errorf("the command ran: %s", m.owner(out))
			}
			t.Log(strings.TrimSpace(m.root("", dmaFile, "-bp").stdout))
			v.stop()
		})
	}
}
