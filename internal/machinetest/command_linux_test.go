package machinetest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// script makes an executable of a user's, and a .forward that names it.
func (m *machine) script(user, text string) {
	m.t.Helper()
	m.own(user, "run", "#!/bin/sh\n"+text, 0o755)
	m.own(user, ".forward", "|/home/"+user+"/run\n", 0o644)
}

// mine lists the processes of a user.
func (m *machine) mine(user string) []string {
	m.t.Helper()
	uid := strconv.Itoa(lookup(m.t, user).uid)
	dirs, err := filepath.Glob("/proc/[0-9]*")
	m.do(err)
	var out []string
	for _, dir := range dirs {
		st := statusOf(dir + "/status")
		if f := strings.Fields(st["Uid"]); len(f) == 4 && slices.Contains(f, uid) && !strings.HasPrefix(st["State"], "Z") {
			out = append(out, filepath.Base(dir)+" "+st["Name"])
		}
	}
	return out
}

// TestCommandSees has a user's command tell what it is and what it has.
func TestCommandSees(t *testing.T) {
	m := newMachine(t)
	m.script("alice", `ls /proc/self/fd > fds
while read -r line; do echo "$line"; done < /proc/$$/status > status # the shell blocks signals while it starts a program
tr '\0' '\n' < /proc/$$/environ > environ
readlink /proc/$$/cwd > cwd
umask > mask
cat /proc/$$/limits > limits
cut -d' ' -f5-8 /proc/$$/stat > session
cat /proc/$$/oom_score_adj > oom
nice > nice
(: < /dev/tty) 2> tty || echo none >> tty
ls -R /var/spool/dma > spool 2>&1
for d in tmp new local forwarding remote sent log; do
	for f in /var/spool/dma/$d /var/spool/dma/$d/*; do cat "$f" >> spooled 2>> spooled.errors; done
	true 2>> made.errors > /var/spool/dma/$d/x && echo $d >> made
done
for p in /proc/[0-9]*; do [ $p = /proc/$$ ] || { cat $p/environ; ls -l $p/fd; cat $p/maps; } > others 2> /dev/null; done
cat > message
/opt/dma/sendmail -f alice carol <<END
Subject: from the command

from the command
END
echo $? > submitted
`)
	v := m.start("TZ=Europe/Oslo", "LANG=C.UTF-8", "SECRET=1")
	m.as("mallory", "Subject: to alice\nBcc: hidden@example.net\n\nthe text\n", dmaFile, "-f", "<>", "--", "Alice+De$tail@LOCAL.example", "bob").want(t, 0)
	v.empties(m)
	a := lookup(t, "alice")
	read := func(name string) string {
		text, err := os.ReadFile("/home/alice/" + name)
		if err != nil {
			t.Errorf("%v\n%s", err, v.log())
		}
		return string(text)
	}
	same := func(name, want string) {
		t.Helper()
		if got := strings.TrimSpace(read(name)); got != want {
			t.Errorf("%s:\n%s\nwant:\n%s", name, got, want)
		}
	}
	same("fds", "0\n1\n2\n3") // the last one is that of ls
	same("cwd", "/home/alice")
	same("mask", "0077")
	same("oom", "0")
	same("nice", "0")
	same("submitted", "0")
	same("environ", `USER=alice
LOGNAME=alice
HOME=/home/alice
SHELL=/bin/sh
PATH=/usr/local/bin:/usr/bin:/bin
SENDER=
RECIPIENT=Alice+De_tail@local.example
ORIGINAL_RECIPIENT=Alice+De_tail@local.example
LOCAL=Alice+De_tail
EXTENSION=De_tail
DOMAIN=local.example
TZ=Europe/Oslo
LANG=C.UTF-8`)
	var names []string
	for line := range strings.Lines(read("environ")) {
		name, _, _ := strings.Cut(line, "=")
		names = append(names, name)
	}
	_, page, _ := strings.Cut(string(m.read("../../docs/dma-runner.8")), "get an environment of their own:")
	page, _, _ = strings.Cut(page, ".\n")
	documented := regexp.MustCompile(`\b[A-Z_]{2,}\b`).FindAllString(page, -1)
	slices.Sort(names)
	slices.Sort(documented)
	if !slices.Equal(names, documented) {
		t.Errorf("the command has %q; dma-runner(8) says %q", names, documented)
	}
	st := statusOf("/home/alice/status")
	for key, want := range map[string]string{
		"Uid": "2001 2001 2001 2001", "Gid": "2001 2001 2001 2001",
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapAmb": "0000000000000000",
		"NoNewPrivs": "0", "Seccomp": "0", "SigBlk": "0000000000000000", "SigIgn": "0000000000000000", "TracerPid": "0",
	} {
		if got := st[key]; got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
	// As of a login, the user's own group is among them or not.
	if got := strings.TrimPrefix(st["Groups"], strconv.Itoa(a.gid)+" "); got != strconv.Itoa(staffGroup) {
		t.Errorf("Groups: %q", got)
	}
	if f := strings.Fields(read("session")); len(f) != 4 || f[0] == f[1] || f[2] != "0" || f[3] != "-1" {
		// A group of its own, in the session of the agent, without a terminal.
		t.Errorf("process group, session, terminal and its group: %q", f)
	}
	if tty := read("tty"); !strings.HasSuffix(tty, "none\n") {
		t.Errorf("/dev/tty: %q", tty)
	}
	var limit unix.Rlimit
	m.do(unix.Getrlimit(unix.RLIMIT_NPROC, &limit))
	for _, line := range strings.Split(strings.TrimSpace(read("limits")), "\n")[1:] {
		ours, _ := os.ReadFile(fmt.Sprintf("/proc/%d/limits", v.process.Pid))
		if strings.HasPrefix(line, "Max core file size") {
			if f := strings.Fields(line); f[4] != "0" {
				t.Errorf("limits: %s", line)
			}
			continue
		}
		if !strings.HasPrefix(line, "Max open files") && !strings.Contains(string(ours), line) {
			t.Errorf("limits: %q is not the service's:\n%s", line, ours)
		}
	}
	if _, err := os.Stat("/home/alice/made"); err == nil {
		t.Errorf("files were made in the spool: %s", read("made"))
	}
	for _, name := range []string{"spool", "spooled", "others"} {
		for _, word := range []string{"hidden", "bob", "the text", "mallory"} {
			if strings.Contains(read(name), word) {
				t.Errorf("%s tells of %s:\n%.500s", name, word, read(name))
			}
		}
	}
	message := read("message")
	if !strings.Contains(message, "\n\nthe text\n") || strings.Contains(message, "hidden") || strings.Contains(message, "bob") {
		t.Errorf("message:\n%s", message)
	}
	if !strings.Contains(m.mailbox("carol"), fmt.Sprintf("from userid %d", a.uid)) || m.subjects("carol", "from the command") != 1 {
		t.Errorf("what the command sent:\n%s", m.mailbox("carol"))
	}
	v.stop()
}

// TestCommandAttack runs commands that do not do what a command should. Others'
// mail flows on, what is delivered was delivered, and nothing stays behind.
func TestCommandAttack(t *testing.T) {
	body := "Subject: %s\n\n" + strings.Repeat("a line of five megabytes\n", 200_000)
	attacks := []struct {
		name  string
		text  string
		waits string // a part of why it waits; else it is delivered
	}{
		{"stops itself", "kill -STOP $$\n", "time limit"},
		{"stops its group", "kill -STOP 0\n", "time limit"},
		{"ignores all signals", "trap '' TERM HUP INT QUIT PIPE\nwhile :; do sleep 1; done\n", "time limit"},
		{"prints a gigabyte", "head -c 1000000000 /dev/zero; head -c 1000000 /dev/zero >&2\n", ""},
		{"prints without an end", "exec cat /dev/zero\n", "time limit"},
		{"closes its input and goes on", "exec <&-\nsleep 0.3\n", ""},
		{"closes everything", "exec <&- >&- 2>&-\nexit 0\n", ""},
		{"does not read", "exit 0\n", ""},
		{"does not read, and fails for now", "exit 75\n", "exit status 75"},
		{"kills itself", "kill -KILL $$\n", "killed"},
		{"kills its group", "kill -KILL 0\n", "killed"},
		{"forks and lingers", "(trap '' HUP TERM; exec > /dev/null 2>&1 < /dev/null; sleep 600) &\nexit 0\n", ""},
		{"forks and keeps the output", "sleep 600 &\nexit 0\n", ""},
		{"leaves for a session of its own", "setsid sleep 8 < /dev/null > /dev/null 2>&1 &\nexit 0\n", ""},
		{"many processes", "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 600 & done\nexit 0\n", ""},
		{"answers like an agent", "printf '\\000\\000\\000\\001ppppp'; cat > /dev/null; exit 75\n", "exit status 75"},
		{"escape sequences", "printf '\\033[2J\\r\\n4.0.0\\000\\377x\\n'; exit 75\n", "exit status 75"},
		{"a status that is not its own", "echo '2.0.0 fine'; exit 75\n", "exit status 75"},
	}
	for _, limit := range []string{"2s", "50s"} {
		m := newMachine(t, "COMMANDTIME "+limit, "RETRY_MIN 1h")
		v := m.start()
		for _, attack := range attacks {
			if (attack.waits == "time limit") == (limit == "2s") {
				commandAttack(t, m, v, attack.name, attack.text, attack.waits, fmt.Sprintf(body, attack.name))
			}
		}
		// The agent goes, and takes with it who is in its session.
		v.await("end of alice's processes", func() bool { return len(m.mine("alice")) == 0 })
		v.stop()
	}
}

// commandAttack has alice's mail go to a command, and others' beside it.
func commandAttack(t *testing.T, m *machine, v *service, name, text, waits, message string) {
	m.script("alice", text)
	m.as("mallory", message, dmaFile, "alice").want(t, 0)
	m.submit("mallory", name, "bob")
	v.await("bob's mail beside "+name, func() bool { return m.subjects("bob", name) == 1 })
	if waits == "" {
		v.await(name+" delivered", func() bool { return len(m.queued()) == 0 })
		return
	}
	v.await(name+" waits", func() bool { return len(m.in("tempfail")) == 1 && len(m.queued()) == 1 })
	why := m.root("", dmaFile, "-bp").want(t, 0).stdout
	if !strings.Contains(why, waits) || strings.ContainsAny(why, "\x1b\r\x00") {
		t.Errorf("%s: %q is not in what mailq says:\n%q", name, waits, why)
	}
	m.script("alice", "exec grep -c '^a line of five' >> /home/alice/lines\n")
	m.root("", dmaFile, "-q").want(t, 0)
	v.await(name+" delivered in the end", func() bool { return len(m.queued()) == 0 })
	if got, _ := os.ReadFile("/home/alice/lines"); string(got) != "200000\n" {
		t.Errorf("%s: then the command got %q lines", name, got)
	}
	m.do(os.Remove("/home/alice/lines"))
}

// TestCommandEnds ends the service while commands run, each of which would go on
// for long. None does, but what left the session.
func TestCommandEnds(t *testing.T) {
	m := newMachine(t)
	m.script("alice", "trap '' TERM HUP\ntouch /home/alice/began\nwhile :; do sleep 600; done\n")
	m.script("bob", "kill -STOP $$\n")
	for _, how := range []string{"stop", "kill"} {
		v := m.start()
		m.submit("mallory", "ends by "+how, "alice", "bob")
		v.await("commands", func() bool {
			_, err := os.Stat("/home/alice/began")
			return err == nil && slices.ContainsFunc(m.mine("bob"), func(s string) bool { return strings.HasSuffix(s, " run") })
		})
		if how == "stop" {
			v.stop()
		} else {
			v.kill()
		}
		deadline := time.Now().Add(30 * time.Second)
		for len(m.mine("alice"))+len(m.mine("bob"))+len(m.processes()) > 0 {
			if time.Now().After(deadline) {
				t.Fatalf("after %s: %q, %q, %+v", how, m.mine("alice"), m.mine("bob"), m.processes())
			}
			time.Sleep(20 * time.Millisecond)
		}
		m.do(os.Remove("/home/alice/began"))
	}
	// Nothing was lost: the commands are run again.
	m.script("alice", "cat >> /home/alice/got\n")
	m.script("bob", "cat >> /home/bob/got\n")
	v := m.start()
	m.root("", dmaFile, "-q").want(t, 0)
	v.empties(m)
	for _, user := range []string{"alice", "bob"} {
		text, _ := os.ReadFile("/home/" + user + "/got")
		for _, how := range []string{"stop", "kill"} {
			if n := strings.Count(string(text), "\nSubject: ends by "+how+"\n"); n != 1 {
				t.Errorf("%s got %d ends by %s", user, n, how)
			}
		}
	}
	v.stop()
}

// TestAgentAttack has users do to their own agents what the kernel lets them.
// Others' mail flows on, and in the end everything is there, in each mailbox
// once.
func TestAgentAttack(t *testing.T) {
	m := newMachine(t)
	m.installHasty()
	v := m.start()
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGUSR1} {
		word := unix.SignalName(sig)
		const messages = 30
		harass := m.begin("alice", "harass", strconv.Itoa(int(sig)), "60")
		for i := range messages {
			m.submit("mallory", fmt.Sprintf("%s %d", word, i), "alice", "carol")
			if i == messages/2 {
				m.retry()
			}
		}
		v.await("carol's mail beside "+word, func() bool { return strings.Count(m.mailbox("carol"), "\nSubject: "+word+" ") == messages })
		hits := harass.end()
		for _, p := range m.mine("alice") {
			pid, err := strconv.Atoi(strings.Fields(p)[0])
			m.do(err)
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
		// An agent that had to be killed has some time off.
		v.await("alice's mail delivered or waiting after "+word, func() bool { return len(m.queued()) == len(m.in("tempfail")) })
		m.retry()
		v.await("alice's mail after "+word, func() bool {
			if len(m.queued()) > 0 && len(m.queued()) == len(m.in("tempfail")) {
				m.retry()
			}
			return strings.Count(m.mailbox("alice"), "\nSubject: "+word+" ") >= messages && len(m.queued()) == 0
		})
		once(t, m.mailbox("alice"), word, messages)
		once(t, m.mailbox("carol"), word, messages)
		t.Logf("%s: %s", word, strings.TrimSpace(hits))
	}
	if got := m.owner("/var/mail/alice"); got != ownerText(2001, groupOf(t, "mail"), 0o660) {
		t.Errorf("alice's mailbox: %s", got)
	}
	v.stop()
}

// TestAgentStopped leaves an agent stopped. With the parent it ends all the same,
// and with its command; else it is found out and killed. The mail goes on.
func TestAgentStopped(t *testing.T) {
	m := newMachine(t)
	m.script("alice", "while ! kill -STOP $PPID; do :; done\nexec sleep 600\n")
	v := m.start()
	stopped := func() bool {
		return slices.ContainsFunc(m.processes(), func(p process) bool {
			return strings.Contains(p.name, ": agent alice") && strings.HasPrefix(p.status["State"], "T")
		})
	}
	m.submit("alice", "stopped", "alice")
	v.await("the stopped agent", stopped)
	v.kill()
	for end := time.Now().Add(30 * time.Second); len(m.processes())+len(m.mine("alice")) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("left behind by a killed parent: %+v, %q", m.processes(), m.mine("alice"))
		}
	}
	v = m.start()
	v.await("the stopped agent of the next service", stopped)
	for i := range 20 {
		m.submit("mallory", fmt.Sprintf("beside %d", i), "bob", "carol")
	}
	v.await("others' mail", func() bool { return strings.Count(m.mailbox("bob")+m.mailbox("carol"), "\nSubject: beside ") == 40 })
	m.script("alice", "cat >> /home/alice/got\n")
	v.await("end of the stopped agent", func() bool { return len(m.in("tempfail")) == 1 && len(m.mine("alice")) == 0 })
	if why := m.root("", dmaFile, "-bp").stdout; !strings.Contains(why, "stopped, or hanging") {
		t.Errorf("mailq: %s", why)
	}
	v.stop()
	v = m.start() // and a minute has not to be waited for
	m.root("", dmaFile, "-q").want(t, 0)
	v.empties(m)
	if text, _ := os.ReadFile("/home/alice/got"); strings.Count(string(text), "\nSubject: stopped\n") != 1 {
		t.Errorf("alice has:\n%s", text)
	}
	v.stop()
}

// TestAgentTrace has a user look into the own agents. The one that writes the
// mailbox has a group that the user has not, and does not let itself be traced.
func TestAgentTrace(t *testing.T) {
	m := newMachine(t)
	m.script("bob", "touch /home/bob/began\nwhile [ ! -e /home/bob/go ]; do sleep 0.1; done\n")
	m.own("alice", "/var/mail/alice", "", 0o600)
	hold := m.begin("alice", "lock", "/var/mail/alice")
	v := m.start()
	m.submit("mallory", "traced", "alice", "bob")
	agentOf := func(user, gid string) string {
		for _, p := range m.processes() {
			if strings.Contains(p.name, ": agent "+user) && strings.HasPrefix(p.status["Gid"], gid+" ") {
				return strconv.Itoa(p.pid)
			}
		}
		return ""
	}
	mail := strconv.Itoa(groupOf(t, "mail"))
	v.await("both agents", func() bool {
		_, err := os.Stat("/home/bob/began")
		return err == nil && agentOf("alice", mail) != ""
	})
	actor := m.actor()
	if r := m.as("alice", "", actor, "ptrace", agentOf("alice", mail)); r.code == 0 || r.stdout != "" {
		t.Errorf("alice looks into the writer of her mailbox: %s%s", r.stdout, r.stderr)
	} else {
		t.Logf("the writer of the mailbox: %s", strings.TrimSpace(r.stderr))
	}
	// So that the check above can fail: bob's own agent is his.
	r := m.as("bob", "", actor, "ptrace", agentOf("bob", "2002"))
	if r.code != 0 || !strings.Contains(r.stdout, "traced") {
		t.Errorf("bob's own agent can't be traced: %s%s", r.stdout, r.stderr)
	}
	for user, other := range map[string]string{"mallory": "alice", "alice": "bob"} {
		for _, p := range m.processes() {
			if strings.Contains(p.name, ": agent "+user) {
				continue
			}
			if strings.Contains(p.name, ": agent "+other) || !strings.Contains(p.name, ": agent") {
				if r := m.as(user, "", actor, "ptrace", strconv.Itoa(p.pid)); r.code == 0 || r.stdout != "" {
					t.Errorf("%s looks into %s: %s", user, p.name, r.stdout)
				}
			}
		}
	}
	hold.end()
	m.own("bob", "go", "", 0o644)
	v.empties(m)
	if m.subjects("alice", "traced") != 1 {
		t.Error("alice's message is not there once")
	}
	v.stop()
}

// TestAgentSteal has a user take the descriptors of the own agent, among them
// its lock and its connection, and hold them beyond its end. That keeps back the
// mail of that user alone, and until they are given back.
func TestAgentSteal(t *testing.T) {
	m := newMachine(t, "COMMANDTIME 5s")
	m.installHasty()
	m.script("bob", "touch /home/bob/began\nwhile [ ! -e /home/bob/go ]; do sleep 0.1; done\n")
	v := m.start()
	m.submit("mallory", "first", "bob")
	v.await("bob's command", func() bool { _, err := os.Stat("/home/bob/began"); return err == nil })
	agent, ok := m.findAgent("bob")
	if !ok {
		t.Fatal("no agent")
	}
	steal := m.begin("bob", "steal", strconv.Itoa(agent.pid))
	m.do(syscall.Kill(agent.pid, syscall.SIGKILL))
	m.own("bob", "go", "", 0o644)
	m.script("bob", "cat >> /home/bob/got\n")
	for i := range 10 {
		m.submit("mallory", fmt.Sprintf("stolen %d", i), "alice", "carol")
	}
	m.submit("mallory", "second", "bob")
	v.await("others' mail", func() bool {
		return strings.Count(m.mailbox("alice")+m.mailbox("carol"), "\nSubject: stolen ") == 20
	})
	v.await("bob's mail waits", func() bool { return len(m.in("tempfail")) == len(m.queued()) && len(m.queued()) == 2 })
	if got, err := os.ReadFile("/home/bob/got"); err == nil {
		t.Errorf("a second agent worked beside the lock: %s", got)
	}
	t.Log(strings.TrimSpace(m.root("", dmaFile, "-bp").stdout))
	steal.end()
	v.stop() // a restart does not wait out what the user has to
	v = m.start()
	m.root("", dmaFile, "-q").want(t, 0)
	v.empties(m)
	got, _ := os.ReadFile("/home/bob/got")
	for _, subject := range []string{"first", "second"} {
		if n := strings.Count(string(got), "\nSubject: "+subject+"\n"); n != 1 {
			t.Errorf("bob has %s %d times", subject, n)
		}
	}
	v.stop()
}
