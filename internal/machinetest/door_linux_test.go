package machinetest

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// barred is a command of a user under no_new_privs, where the setgid bit of dma
// is dead.
func barred(args ...string) []string {
	return append([]string{"/usr/bin/setpriv", "--no-new-privs"}, args...)
}

// readOnly is a command of a user who sees the spool read-only, which only root
// can arrange: the first door is shut, and the setgid bit works.
func (m *machine) readOnly(user, stdin string, args ...string) result {
	m.t.Helper()
	a := lookup(m.t, user)
	id := func(n int) string { return strconv.Itoa(n) }
	script := `mount --bind ` + spoolDir + ` ` + spoolDir + ` && mount -o remount,bind,ro ` + spoolDir + ` && exec "$@"`
	all := append([]string{"/usr/bin/unshare", "--mount", "/bin/sh", "-c", script, "sh", "/usr/bin/setpriv", "--reuid", id(a.uid), "--regid", id(a.gid), "--clear-groups"}, args...)
	return m.root(stdin, all...)
}

// received returns the trace line of dma in the mail with a subject.
func received(mailbox, subject string) string {
	for mail := range strings.SplitSeq(mailbox, "\nFrom ") {
		if !strings.Contains(mail, "\nSubject: "+subject+"\n") {
			continue
		}
		_, after, _ := strings.Cut(mail, "\nReceived: ")
		var line strings.Builder
		for text := range strings.Lines(after) {
			if line.Len() > 0 && text[0] != ' ' && text[0] != '\t' {
				break
			}
			line.WriteString(strings.TrimRight(text, "\n"))
		}
		return line.String()
	}
	return ""
}

// TestDoors: mail comes in by the first door, and by the second where that is
// dead, and who submitted is true in the Received field and in the log whatever
// the sender says.
func TestDoors(t *testing.T) {
	m := newMachine(t)
	v := m.start()
	for _, tt := range []struct {
		subject, user string
		submit        func(stdin string, args ...string) result
	}{
		{"one", "mallory", func(in string, args ...string) result { return m.as("mallory", in, args...) }},
		{"two", "mallory", func(in string, args ...string) result { return m.as("mallory", in, barred(args...)...) }},
		{"three", "mallory", func(in string, args ...string) result { return m.readOnly("mallory", in, args...) }},
		{"four", "carol", func(in string, args ...string) result { return m.as("carol", in, barred(args...)...) }},
		{"five", "root", func(in string, args ...string) result { return m.root(in, args...) }},
		{"six", "root", func(in string, args ...string) result { return m.root(in, barred(args...)...) }},
	} {
		// The name of another, in the environment, the envelope and the header.
		in := "From: root@host.example\nReceived: by host.example (uid 0) id x; Thu, 1 Jan 2026 00:00:00 +0000\nSubject: " + tt.subject + "\n\nx\n"
		if r := tt.submit(in, "/usr/bin/env", "USER=alice", "LOGNAME=alice", "HOME=/home/alice", "UID=2001", dmaFile, "-f", "alice@host.example", "-F", "uid=2001", "bob"); r.code != 0 {
			t.Fatalf("%s: exit %d\n%s%s", tt.subject, r.code, r.stderr, v.log())
		}
		v.await("mail "+tt.subject, func() bool { return subjects(m.mailbox("bob"))[tt.subject] == 1 })
		uid := strconv.Itoa(lookup(t, tt.user).uid)
		line := received(m.mailbox("bob"), tt.subject)
		if !strings.Contains(line, "from userid "+uid+")") {
			t.Errorf("%s by %s: %q", tt.subject, uid, line)
		}
		_, id, _ := strings.Cut(line, "\tid ")
		id, _, _ = strings.Cut(id, ";")
		if got := lineOf(v.log(), id); !strings.Contains(got, "uid="+uid+" ") {
			t.Errorf("%s by %s: log %q", tt.subject, uid, got)
		}
	}
	v.stop()
	m.nobodyLeft()
}

// TestDoorsShut: where neither door is open the program says so at once, in one
// line, and nothing of the message is left.
func TestDoorsShut(t *testing.T) {
	m := newMachine(t)
	v := m.start()
	shut := func(about string) {
		t.Helper()
		for way, r := range map[string]result{
			"no_new_privs": m.as("alice", "Subject: x\n\n", barred(dmaFile, "bob")...),
			"read-only":    m.readOnly("alice", "Subject: x\n\n", dmaFile, "bob"),
		} {
			if r.code != 75 || strings.Count(r.stderr, "\n") != 1 || r.stdout != "" {
				t.Errorf("%s, %s: exit %d\n%s%s", about, way, r.code, r.stdout, r.stderr)
			}
			t.Logf("%s, %s: %s", about, way, strings.TrimSpace(r.stderr))
		}
	}
	v.stop()
	shut("no service")
	v = m.start()
	v.kill()
	shut("a service that was killed")
	m.do(os.RemoveAll("/run/dma"))
	shut("no socket")
	if q := m.queued(); len(q) > 0 {
		t.Errorf("queued: %q", q)
	}
	// And the first door needs no service.
	m.submit("alice", "later", "bob")
	v = m.start()
	v.await("mail", func() bool { return subjects(m.mailbox("bob"))["later"] == 1 })
	v.stop()
	m.nobodyLeft()
}

// TestDoorCrowd: clients that connect 200 times and say nothing, half of
// something, or ask and do not listen, keep no other user from the door.
func TestDoorCrowd(t *testing.T) {
	m := newMachine(t)
	v := m.start()
	for range 50 { // something to list
		m.submit("mallory", "x", "nobody@example.org", "nobody@example.net")
	}
	cmd := m.command("mallory", m.evilProgram(), "crowd", "/run/dma/submit.sock")
	in, err := cmd.StdinPipe()
	m.do(err)
	out, err := cmd.StdoutPipe()
	m.do(err)
	m.do(cmd.Start())
	buf := make([]byte, 100)
	n, err := out.Read(buf)
	m.do(err)
	if !strings.HasPrefix(string(buf[:n]), "begun 200") {
		t.Errorf("%q", buf[:n])
	}
	begun := time.Now()
	for _, user := range []string{"alice", "bob", "carol", "root"} {
		m.as(user, "Subject: by "+user+"\n\n", barred(dmaFile, "bob")...).want(t, 0)
	}
	t.Logf("four messages took %v", time.Since(begun).Round(time.Millisecond))
	for _, user := range []string{"alice", "bob", "carol", "root"} {
		v.await("mail by "+user, func() bool { return subjects(m.mailbox("bob"))["by "+user] == 1 })
	}
	m.as("alice", "", barred(libexec+"/mailq")...).want(t, 0)
	if queue, ok := m.find("role-queue"); !ok || descriptorsOf(t, queue.pid) > 200 {
		t.Errorf("queue process: %v", queue)
	}
	in.Close()
	_ = cmd.Wait()
	// The same user is welcome again.
	m.as("mallory", "Subject: by mallory\n\n", barred(dmaFile, "bob")...).want(t, 0)
	v.stop()
	m.nobodyLeft()
}

// TestDoorQueue: users see and run what is theirs to see and run.
func TestDoorQueue(t *testing.T) {
	m := newMachine(t, "RETRY_MIN 1h", "RETRY_MAX 2h")
	m.own("bob", ".forward", "\"|echo x >> /home/bob/tried; exit 75\"\n", 0o644)
	v := m.start()
	m.as("alice", "Subject: by alice\n\n", barred(dmaFile, "bob")...).want(t, 0)
	m.submit("mallory", "by mallory", "bob")
	v.await("mail that waits", func() bool { return len(m.in("tempfail")) == 2 })
	m.sink.Close() // what goes to other hosts waits too, under the ids that were given
	m.as("alice", "Subject: by alice\n\n", barred(dmaFile, "friend@example.org")...).want(t, 0)
	m.submit("mallory", "by mallory", "friend@example.org")
	v.await("mail that waits", func() bool { return len(m.in("tempfail")) == 4 })
	ids := make(map[string]string)
	for line := range strings.Lines(v.log()) {
		if strings.Contains(line, " queued ") {
			_, id, _ := strings.Cut(line, "id=")
			id, _, _ = strings.Cut(id, " ")
			for uid, user := range map[string]string{"uid=2001 ": "alice", "uid=2666 ": "mallory"} {
				if strings.Contains(line, uid) {
					ids[user] = id // the last one
				}
			}
		}
	}
	all := m.root("", libexec+"/mailq").want(t, 0).stdout
	if strings.Count(all, "\n") < 12 || !strings.Contains(all, ids["alice"]) || !strings.Contains(all, ids["mallory"]) {
		t.Errorf("root sees\n%s", all)
	}
	for _, user := range []string{"alice", "mallory", "carol"} {
		for _, args := range [][]string{{libexec + "/mailq"}, barred(libexec + "/mailq")} {
			got := m.as(user, "", args...).want(t, 0).stdout
			for other, id := range ids {
				if strings.Contains(got, id) != (other == user) {
					t.Errorf("%s sees, of the message of %s\n%s", user, other, got)
				}
			}
			if strings.Contains(got, "tried") {
				t.Errorf("%s sees the command of bob\n%s", user, got)
			}
		}
	}
	tried := func() int {
		text, _ := os.ReadFile("/home/bob/tried")
		return strings.Count(string(text), "x")
	}
	before := tried()
	m.as("carol", "", barred(libexec+"/sendmail", "-q")...).want(t, 0)
	v.await("another attempt", func() bool { return tried() >= before+2 })
	// Who may not is told so: -bi and hold are not a user's.
	waits := m.in("tempfail")
	v.await("mail that waits", func() bool { waits = m.in("tempfail"); return len(waits) == 4 })
	r := m.as("carol", "", runnerBin, "hold", waits[0][len("tempfail/"):])
	if r.code == 0 || !slices.Contains(m.queued(), waits[0]) {
		t.Errorf("carol holds mail of others: %+v", r)
	}
	v.stop()
	m.nobodyLeft()
}
