package machinetest

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

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
	// Who is in no file that changed a moment ago might be in it in a moment.
	old := time.Now().Add(-time.Hour)
	m.do(os.Chtimes("/etc/aliases", old, old))
	m.write("/etc/closed", "bob\n", 0o600)
	m.do(os.Chmod("/home/alice", 0o700))
	m.own("alice", ".forward", "\\alice\na@example.org\n", 0o600)
	m.own("bob", ".forward", "\\bob, \"|cat /home/bob/fifo - > /home/bob/copy\"\n", 0o644)
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

	smarthost := "remote, by way of the smarthost [127.0.0.1]:" + strings.TrimPrefix(m.smarthost, "127.0.0.1:") + "\n"
	alice := "user, /home/alice/.forward\n    \\alice (/home/alice/.forward:1): kept copy, mailbox /var/mail/alice\n    a@example.org (/home/alice/.forward:2): " + smarthost
	bob := "user, /home/bob/.forward\n    \\bob (/home/bob/.forward:1): kept copy, mailbox /var/mail/bob\n    \"|cat /home/bob/fifo - > /home/bob/copy\" (/home/bob/.forward:1): command, as bob\n"
	carol := "waits: /home/carol/.forward cannot be read: permission denied; let user carol read it\n"
	hidden := func(user string) string {
		return "user\n    (.forward of " + user + ": only " + user + " and root see it)\n"
	}
	outer := func(text string) string { return strings.ReplaceAll(text, "\n  ", "\n") }
	team := func(alice, bob, carol string) string {
		return "team: alias, owner owner-team\n  alice (/etc/aliases:2): " + alice + "  bob (/etc/aliases:2): " + bob + "  carol (/etc/aliases:2): " + carol
	}
	const noUser = "waits: it names a file or a command, and there is no user for that; set ALIASUSER in dma.conf\n"
	run := "  carol (/etc/aliases:4)\n  \"|/bin/cat\" (/etc/aliases:4)\n"
	closed := func(user string) string {
		return "/etc/aliases:5: :include: /etc/closed cannot be read: permission denied; let user " + user + " read it\n" +
			"  :include:/etc/closed (/etc/aliases:5): included file\n    (not shown: open /etc/closed: permission denied)\n"
	}
	const (
		lent       = "  :include:/home/mallory/list (/etc/aliases:6): included file\n"
		lentDoubt  = "    (cannot be told: user dma reads this file for mail, and by the owner of /home/mallory may not take its commands, files and includes as you would; root can tell)\n"
		mailSystem = "waits: user dma is the mail system; name a person in the aliases\n"
	)
	for _, tt := range []struct {
		conf, user, args string
		code             int
		stdout           string
	}{
		{"", "root", "team", 75, team(alice, bob, carol)},
		{"", "alice", "team", 0, team(alice, hidden("bob"), hidden("carol"))},
		{"", "mallory", "team", 0, team(hidden("alice"), hidden("bob"), hidden("carol"))},
		{"", "root", "alice,bob", 0, outer("alice: " + alice + "bob: " + bob)},
		{"", "carol", "carol", 75, "carol: " + carol},
		{"", "root", "run", 75, "run: " + noUser + run},
		{"", "alice", "run", 75, "run: " + noUser + run},
		{"ALIASUSER carol", "root", "run", 75, "run: alias\n  carol (/etc/aliases:4): " + carol + "  \"|/bin/cat\" (/etc/aliases:4): command, as carol\n"},
		{"ALIASUSER carol", "alice", "run", 0, "run: alias\n  carol (/etc/aliases:4): " + hidden("carol") + "  \"|/bin/cat\" (/etc/aliases:4): command, as carol\n"},
		{"ALIASUSER root", "alice", "run", 75, "run: alias\n  carol (/etc/aliases:4): " + hidden("carol") +
			"  \"|/bin/cat\" (/etc/aliases:4): waits: nothing is executed or written as root; give it to another user, with ALIASUSER\n"},
		{"ALIASUSER dma", "root", "run", 75, "run: alias\n  carol (/etc/aliases:4): " + carol + "  \"|/bin/cat\" (/etc/aliases:4): " + mailSystem},
		{"ALIASUSER nobody.here", "root", "run", 75, "run: waits: it names a file or a command, and ALIASUSER cannot be looked up: user \"nobody.here\": no such user\n" + run},
		{"", "root", "closed", 75, "closed: waits: " + closed("dma")},
		{"", "alice", "closed", 77, "closed: cannot be told: " + closed("alice")},
		{"", "root", "lent", 75, "lent: waits: /home/mallory/list:2: an included file may name commands, files and includes only if nobody else can change it: /home/mallory belongs to uid 2666, not to uid 990; chown it\n" +
			lent + "    carol (/home/mallory/list:1)\n    /home/mallory/copy (/home/mallory/list:2)\n"},
		{"ALIASUSER carol", "mallory", "lent", 77, "lent: alias\n" + lent + lentDoubt +
			"    carol (/home/mallory/list:1): " + strings.ReplaceAll(hidden("carol"), "\n ", "\n   ") + "    /home/mallory/copy (/home/mallory/list:2): file, as carol\n"},
		{"", "root", "robot,dma", 75, "robot: mailbox /var/mail/robot\ndma: " + mailSystem},
		{"", "alice", "robot,dma,nobody.here", 67, "robot: mailbox /var/mail/robot\ndma: " + mailSystem + "nobody.here: no such user\n"},
		{"FORWARDUSERS robot", "root", "robot", 75, "robot: user, /home/robot/.forward\n  carol (/home/robot/.forward:1): " + carol},
		{"", "root", "joe@example.org", 0, "joe@example.org: " + smarthost},
		{"SENDERRELAY /etc/closed", "root", "joe@example.org", 77, "joe@example.org: remote, cannot be told: SENDERRELAY: open /etc/closed: permission denied\n"},
	} {
		m.configure(tt.conf)
		r := m.as(tt.user, "", dmaFile, "-bv", "--", tt.args)
		if r.code != tt.code || r.stdout != tt.stdout || r.stderr != "" {
			t.Errorf("%q, %s, %s: exit %d, want %d:\n%s%s\nwant:\n%s", tt.conf, tt.user, tt.args, r.code, tt.code, r.stdout, r.stderr, tt.stdout)
		}
	}
	m.configure()

	// The aliases are read as user dma reads them.
	m.do(os.Chown("/etc/aliases", 0, staffGroup))
	m.do(os.Chmod("/etc/aliases", 0o640))
	for user, want := range map[string]result{
		"root":    {code: 75, stderr: "dma-runner: mail for this host waits: aliases: open /etc/aliases: permission denied; let user dma read it\n"},
		"alice":   {code: 77, stdout: "mallory: " + outer(hidden("mallory")), stderr: "dma-runner: /etc/aliases cannot be told for certain: user dma reads this file for mail, and may not by the owner and mode of /etc/aliases; root can tell\n"},
		"mallory": {code: 77, stderr: "dma-runner: aliases: open /etc/aliases: permission denied; let user mallory read it\n"},
	} {
		r := m.as(user, "", dmaFile, "-bv", "mallory")
		if want.what = r.what; r != want {
			t.Errorf("%s, with closed aliases:\n%+v\nwant:\n%+v", user, r, want)
		}
	}
	m.do(os.Chmod("/etc/aliases", 0o644))

	m.write("/root/.forward", "|touch /root/canary\n", 0o600)
	t.Cleanup(func() { os.Remove("/root/.forward") })
	for user, want := range map[string]string{
		"root": `the spool is on tmpfs: mail does not survive a restart of the machine; move SPOOLDIR to a disk
/etc/aliases:5: :include: /etc/closed cannot be read: permission denied; let user dma read it; mail for closed waits
/etc/aliases:8: nobody.here is no alias and no user, and mail for gone to it is returned; correct the name
/home/mallory/list:2: an included file may name commands, files and includes only if nobody else can change it: /home/mallory belongs to uid 2666, not to uid 990; chown it; mail for lent waits
/etc/aliases:4: "|/bin/cat" is nobody's, and mail for run waits; set ALIASUSER in dma.conf to the user whose the commands and files of the aliases are
/etc/aliases:7: mail for dma waits: user dma is the mail system; name a person in the aliases
/home/robot/.forward does not count, since robot (uid 150) is below MINUID 1000; name robot in FORWARDUSERS if it has to
mail for carol waits: /home/carol/.forward cannot be read: permission denied; let user carol read it
`,
		"alice": `spool /var/spool/dma: permission denied; the calling user may not enter it
/etc/closed: user dma reads this file for mail, and may not by the owner and mode of /etc/closed; root can tell
what becomes of mail for closed cannot be told: /etc/aliases:5: :include: /etc/closed cannot be read: permission denied; let user alice read it
/etc/aliases:8: nobody.here is no alias and no user, and mail for gone to it is returned; correct the name
/home/mallory/list:2: an included file may name commands, files and includes only if nobody else can change it: /home/mallory belongs to uid 2666, not to uid 2001; chown it; mail for lent waits
/etc/aliases:4: "|/bin/cat" is nobody's, and mail for run waits; set ALIASUSER in dma.conf to the user whose the commands and files of the aliases are
/etc/aliases:7: mail for dma waits: user dma is the mail system; name a person in the aliases
`,
	} {
		r := m.as(user, "", runnerBin, "check")
		if r.stdout != want || r.code != 78 {
			t.Errorf("check of %s: exit %d\n%s%s\nwant:\n%s", user, r.code, r.stdout, r.stderr, want)
		}
	}
	// Mended, but for root.
	m.write("/etc/aliases", "postmaster: root\nteam: alice, bob, carol\n", 0o644)
	m.do(os.Remove("/home/carol/.forward"))
	m.do(os.Remove("/home/robot/.forward"))
	const noMaildir = "mail for root waits: MAILBOX maildir:~/Maildir is not used for root; name a person for root in the aliases\n"
	for conf, want := range map[string][2]string{
		"":                          {"mailbox /var/mail/root\n", "/root/.forward does not count, since nothing is done as root; name a person for root in the aliases\n"},
		"MAILBOX maildir:~/Maildir": {"waits: " + noMaildir, "/etc/aliases:1: " + noMaildir},
	} {
		m.configure(conf)
		if r := m.root("", dmaFile, "-bv", "root"); r.stdout != "root: "+want[0] || r.code != map[bool]int{true: 0, false: 75}[conf == ""] {
			t.Errorf("%q: exit %d: %s%s, want %s", conf, r.code, r.stdout, r.stderr, want[0])
		}
		r := m.root("", runnerBin, "check")
		if _, mail, _ := strings.Cut(r.stdout, "\n"); mail != want[1] { // the first line is of the spool
			t.Errorf("%q: exit %d: %s%s, want %s", conf, r.code, r.stdout, r.stderr, want[1])
		}
	}
	m.configure()

	// When root's process is killed, the one that looks for it ends, and its agents.
	m.write("/etc/aliases", "big: alice, "+manyAddresses(4000)+"\n", 0o644)
	cmd := m.command("root", runnerBin, "verify", "big")
	out, err := cmd.StdoutPipe()
	m.do(err)
	m.do(cmd.Start())
	if line, err := bufio.NewReaderSize(out, 16).ReadString('\n'); line != "big: alias\n" {
		t.Errorf("%q, %v", line, err)
	}
	if _, ok := m.find("role-inspect"); !ok {
		t.Error("nobody looks for root")
	}
	m.do(cmd.Process.Kill())
	_ = cmd.Wait()
	v.await("the end of what looks for root", func() bool {
		_, looks := m.find("role-inspect")
		_, reads := m.findAgent("alice")
		return !looks && !reads
	})

	// Bob's agent was not in the way. Of alice, for whom there was no mail, no agent
	// of the service was started, and nobody has made her lock.
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

// manyAddresses are targets with so many octets that nobody prints them at once.
func manyAddresses(n int) string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("u%d@example.org", i)
	}
	return strings.Join(list, ", ")
}
