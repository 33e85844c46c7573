package machinetest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unicode"

	"dma/spooldir"
)

// intruder is a program of a user who has the group of the setgid program, as
// one has who has taken that program over.
func (m *machine) intruder(user, stdin string, args ...string) result {
	m.t.Helper()
	cmd := m.command(user, args...)
	cmd.SysProcAttr.Credential.Groups = []uint32{submitGroup}
	return m.run(cmd, stdin)
}

// intrusion is what the program of testdata/evil puts into the spool.
type intrusion struct {
	Envelope spooldir.Envelope
	Content  string
	Tamper   string
	Lines    []string
	Names    []string
}

// intrude puts messages into the spool and returns their ids.
func (m *machine) intrude(user string, list ...intrusion) []string {
	m.t.Helper()
	text, err := json.Marshal(list)
	m.do(err)
	r := m.intruder(user, string(text), m.evilProgram(), "intrude", spoolDir).want(m.t, 0)
	return strings.Fields(r.stdout)
}

// intrudeAndStay puts messages into the spool as intrude does, and returns what ends
// the program that has done it.
func (m *machine) intrudeAndStay(user string, list ...intrusion) (end func()) {
	m.t.Helper()
	text, err := json.Marshal(list)
	m.do(err)
	cmd := m.command(user, m.evilProgram(), "intrude", spoolDir)
	cmd.SysProcAttr.Credential.Groups = []uint32{submitGroup}
	in, err := cmd.StdinPipe()
	m.do(err)
	out, err := cmd.StdoutPipe()
	m.do(err)
	m.do(cmd.Start())
	_, err = in.Write(text)
	m.do(err)
	lines := bufio.NewScanner(out)
	for range list {
		if !lines.Scan() {
			m.t.Fatalf("an intrusion failed: %v", cmd.Wait())
		}
	}
	return func() {
		m.t.Helper()
		in.Close()
		m.do(cmd.Wait())
	}
}

// bothGetMail has alice send to bob, and checks that it comes soon: within the
// minute that await has, while everything else is still there.
func (m *machine) bothGetMail(v *service, subject string) {
	m.t.Helper()
	m.submit("alice", subject, "bob")
	v.await("mail "+subject, func() bool { return subjects(m.mailbox("bob"))[subject] == 1 })
}

// TestSpoolOddNames: what somebody with the group of submitters can put into new
// and tmp that is no message. None of it blocks the mail of others or leaks.
func TestSpoolOddNames(t *testing.T) {
	m := newMachine(t)
	m.own("alice", "secret", "canary-of-alice\n", 0o640)
	m.write("/etc/dma/secret", "canary-of-root\n", 0o640)
	v := m.start()
	const id = "20260101T000000-000000000000000"
	script := `cd /var/spool/dma || exit 1
for d in new tmp; do
	mkfifo -m 640 $d/` + id + `1.1-bob
	ln -s /home/alice/secret $d/` + id + `2.1-bob
	ln -s /etc/shadow $d/` + id + `3.1-bob
	ln -s /dev/zero $d/` + id + `4.1-bob
	mkdir -m 750 $d/` + id + `5.1-bob && touch $d/` + id + `5.1-bob/x
	touch $d/` + id + `6.1-bob && chmod 640 $d/` + id + `6.1-bob
	echo foreign > $d/` + id + `7.1-bob && chmod 640 $d/` + id + `7.1-bob
	head -c 100000 /dev/urandom > $d/` + id + `8.1-bob && chmod 777 $d/` + id + `8.1-bob
	echo x > $d/README && chmod 640 $d/README
	echo x > "$d/$(printf 'a\nb')" && chmod 640 "$d/$(printf 'a\nb')"
	echo x > "$d/` + id + `9.99999999999999999999-x"; chmod 640 "$d/` + id + `9.99999999999999999999-x"
	truncate -s 1T $d/` + id + `a.1-bob && chmod 640 $d/` + id + `a.1-bob
	ln /home/alice/secret $d/` + id + `b.1-bob
	ln -s ../.. $d/` + id + `c.1-bob
	echo x > $d/.hidden
	echo x > $d/..x && chmod 640 $d/..x
	l=$(printf '%0255d' 0) && echo x > $d/$l && chmod 640 $d/$l
	l=` + id + `e.1-$(printf '%0220d' 0) && echo x > $d/$l && chmod 640 $d/$l
done
ls new && echo LISTED
ls remote && echo LISTED
cat log/* && echo LISTED
mv new/` + id + `6.1-bob remote/ && echo MOVED
true
`
	listing := m.listAgain()
	r := m.intruder("mallory", script, "/bin/sh").want(t, 0)
	for i, dir := range []string{"new", "tmp"} { // a socket that somebody listens at
		made := filepath.Join(spoolDir, "socket") // where the service does not look
		l, err := net.Listen("unix", made)
		m.do(err)
		defer l.Close()
		m.do(os.Chown(made, 2666, submitGroup))
		m.do(os.Chmod(made, 0o640))
		m.do(os.Rename(made, filepath.Join(spoolDir, dir, fmt.Sprintf("%sf.%d-bob", id, i+1))))
	}
	if strings.Contains(r.stdout, "LISTED") || strings.Contains(r.stdout, "MOVED") {
		t.Errorf("%s", r.stdout)
	}
	// Hard links that the kernel may not keep users from making.
	for i, file := range []string{"/home/alice/secret", "/etc/dma/secret", "/etc/shadow"} {
		at := filepath.Join(spoolDir, "new", fmt.Sprintf("%sd.%d-bob", id, i+1))
		if err := os.Link(file, at); err != nil { // another file system: a copy of the same owner
			text, err := os.ReadFile(file)
			m.do(err)
			copied := filepath.Join(spoolDir, "copied")
			m.write(copied, string(text), 0o640)
			if i == 0 {
				m.do(os.Chown(copied, 2001, 2001))
			}
			m.do(os.Rename(copied, at))
		}
	}
	m.bothGetMail(v, "one")
	v.await("an end to what is odd", func() bool {
		left, err := os.ReadDir(filepath.Join(spoolDir, "new"))
		m.do(err)
		// What can't be taken away, or is not committed, stays.
		return !slices.ContainsFunc(left, func(e os.DirEntry) bool { return strings.HasSuffix(e.Name(), "7.1-bob") })
	})
	m.bothGetMail(v, "two")
	queue, _ := m.find("role-queue")
	// A new start meets them again.
	v.stop()
	v2 := m.start()
	m.bothGetMail(v2, "three")
	if n := listing(); n < 2 {
		t.Errorf("mailq was read %d times", n)
	}
	for _, canary := range []string{"canary-of", "root:", "foreign"} {
		for _, user := range []string{"alice", "bob", "mallory", "root"} {
			if strings.Contains(m.mailbox(user), canary) {
				t.Errorf("%q in the mailbox of %s", canary, user)
			}
		}
		if strings.Contains(v.log()+v2.log(), canary) {
			t.Errorf("%q in the log", canary)
		}
	}
	if n := len(m.sink.Transactions()); n != 0 {
		t.Errorf("%d messages at the smarthost", n)
	}
	if text, err := os.ReadFile("/home/alice/secret"); err != nil || string(text) != "canary-of-alice\n" {
		t.Errorf("alice's file: %q, %v", text, err)
	}
	if got := m.owner("/home/alice/secret"); got != ownerText(2001, 2001, 0o640) {
		t.Errorf("alice's file: %s", got)
	}
	if strings.Contains(v.log()+v2.log(), "role=queue error") || queue.pid == 0 {
		t.Errorf("the queue process has had trouble\n%s%s", v.log(), v2.log())
	}
	t.Logf("left: %q", m.queued())
	v2.stop()
	m.nobodyLeft()
}

// listAgain has root read the queue as JSON again and again, beside whatever is in
// the spool, until the function that it returns says how often that was done: each
// line has to be an object, and printable.
func (m *machine) listAgain() (end func() int) {
	ctx, cancel := context.WithCancel(m.t.Context())
	done := make(chan int)
	go func() {
		n := 0
		for ; ctx.Err() == nil; n++ {
			out, err := exec.CommandContext(ctx, runnerBin, "mailq", "--json").CombinedOutput()
			if ctx.Err() != nil {
				break
			}
			if err != nil {
				m.t.Errorf("mailq --json: %v\n%s", err, out)
				break
			}
			for line := range bytes.Lines(out) {
				var entry map[string]any
				if err := json.Unmarshal(line, &entry); err != nil || bytes.ContainsFunc(bytes.TrimSuffix(line, []byte("\n")), unicode.IsControl) {
					m.t.Errorf("mailq --json: %q: %v", line, err)
				}
			}
		}
		done <- n
	}()
	stop := sync.OnceValue(func() int {
		cancel()
		return <-done
	})
	m.t.Cleanup(func() { stop() })
	return stop
}

// TestSpoolManyNames: 20,000 names of no use, half of them committed, do not keep the
// mail of others.
func TestSpoolManyNames(t *testing.T) {
	m := newMachine(t)
	v := m.start()
	const script = `umask 077 && cd /var/spool/dma/new && i=0
while [ $i -lt 100 ]; do
	j=100
	names=
	while [ $j -lt 1100 ]; do names="$names 20260101T000000-00000000000$((10000+i)).$j-x"; j=$((j+1)); done
	touch $names
	[ $i -lt 50 ] || chmod 640 $names 2>/dev/null # the service may have taken some away
	i=$((i+1))
done
true
`
	m.intruder("mallory", script, "/bin/sh").want(t, 0)
	m.bothGetMail(v, "one")
	v.stop()
	v = m.start()
	m.bothGetMail(v, "two")
	// Through the second door too, and mailq answers.
	m.as("carol", "Subject: door\n\n", "/usr/bin/setpriv", "--no-new-privs", dmaFile, "bob").want(t, 0)
	v.await("mail by the door", func() bool { return subjects(m.mailbox("bob"))["door"] == 1 })
	m.as("carol", "", libexec+"/mailq").want(t, 0)
	v.await("what was committed in corrupt", func() bool { return len(m.in("corrupt")) >= 50 })
	for _, name := range m.in("corrupt") {
		if name < "corrupt/20260101T000000-0000000000010050." {
			t.Errorf("%s was never committed", name)
		}
	}
	v.stop()
	m.nobodyLeft()
}

// TestSpoolForgery: what only dma itself writes has no effect in a file of a
// user's: no command, no file, no other submitter, no parent.
func TestSpoolForgery(t *testing.T) {
	m := newMachine(t, "RETRY_MIN 1s", "RETRY_MAX 2s")
	m.own("bob", ".forward", "\\bob, \"|cat > /home/bob/copy\", /home/bob/file\n", 0o644)
	m.own("alice", ".forward", "\"|exit 75\"\n", 0o644)
	v := m.start()
	m.submit("carol", "waits", "alice") // a message whose parts can be named
	v.await("mail that waits", func() bool { return len(m.in("tempfail")) == 1 })
	waits := filepath.Base(m.in("tempfail")[0])
	victim, _, _ := strings.Cut(waits, ".")
	m.evilProgram()
	x := m.watchExecutions()
	before := m.files()
	to := func(kind spooldir.RecipientKind, user, target, source string) []spooldir.Recipient {
		return []spooldir.Recipient{{Kind: kind, Address: user + "@host.example", User: user, Target: target, Source: source}}
	}
	parentName := func(name string) []spooldir.Parent {
		n, err := spooldir.ParseName(name)
		m.do(err)
		return []spooldir.Parent{{Name: n}}
	}
	const content = "Subject: forged\n\nforged\n"
	mallorys := spooldir.NewID(spooldir.IDTime(victim)) // a message that is not there
	child := func(letter string, e spooldir.Envelope) intrusion {
		e.ID, e.Sender = mallorys[:len(mallorys)-1]+"0"+letter, "x@host.example"
		return intrusion{Envelope: e, Content: content}
	}
	var list []intrusion
	for i, e := range []spooldir.Envelope{
		{Recipients: to(spooldir.Command, "bob", "cat > /home/bob/copy", "forward")},
		{Recipients: to(spooldir.Command, "root", "touch /canary", "aliases")},
		{Recipients: to(spooldir.File, "bob", "/home/bob/file", "forward")},
		{Recipients: to(spooldir.Mailbox, "bob", "", "")},
		{Recipients: to(spooldir.LocalUser, "bob", "", "")},
	} {
		e.Parents = parentName(waits)
		c := child("c", e)
		c.Envelope.ID = fmt.Sprintf("%s%d%s", c.Envelope.ID[:len(c.Envelope.ID)-2], i, "c")
		list = append(list, c)
	}
	for i, letter := range []string{"b", "s", "d"} {
		c := child(letter, spooldir.Envelope{Parents: parentName(waits), UID: -1, Recipients: []spooldir.Recipient{{Address: "bob@host.example"}}})
		c.Envelope.ID = fmt.Sprintf("%s%d%s", c.Envelope.ID[:len(c.Envelope.ID)-2], i, letter)
		list = append(list, c)
	}
	// The id of a message that is there, and another submitter.
	list = append(list,
		intrusion{Envelope: spooldir.Envelope{ID: victim, Parents: parentName(waits), Sender: "x@host.example", Recipients: []spooldir.Recipient{{Address: "bob@host.example"}}}, Content: content},
		intrusion{Envelope: spooldir.Envelope{UID: 0, Sender: "root@host.example", Recipients: []spooldir.Recipient{{Address: "carol@host.example"}, {Address: "root@host.example"}}}, Content: "Subject: by root\n\nx\n"},
		intrusion{Envelope: spooldir.Envelope{UID: 2001, Sender: "alice@host.example", Recipients: []spooldir.Recipient{{Address: "alice@host.example"}}}, Content: "Subject: by alice\n\nx\n"},
	)
	ids := m.intrude("mallory", list...)
	if len(ids) != len(list) {
		t.Fatalf("%q", ids)
	}
	v.await("an end", func() bool { return len(m.in("new")) == 0 && len(m.in("local")) == 0 && len(m.in("forwarding")) == 0 })
	v.await("carol's mail", func() bool { return subjects(m.mailbox("carol"))["by root"] == 1 })
	m.bothGetMail(v, "after")
	for _, path := range []string{"/home/bob/copy", "/home/bob/file"} {
		v.await(path, func() bool { _, err := os.Stat(path); return err == nil })
	}
	ran := slices.DeleteFunc(x.stop(), ours)
	for _, path := range ran {
		if path != "/usr/bin/dash" && path != "/bin/dash" && path != dmaFile && path != "/usr/bin/cat" && !strings.HasSuffix(path, "/evil") {
			t.Errorf("executed: %s", path)
		}
	}
	if n := strings.Count(m.mailbox("bob"), "forged"); n != 0 {
		t.Errorf("bob has forged mail: %d\n%s", n, v.log())
	}
	for _, path := range m.changes(before) {
		switch path {
		case "/var/mail", "/var/mail/bob", "/var/mail/carol", "/home/bob", "/home/bob/copy", "/home/bob/file":
		default:
			t.Errorf("changed: %s", path)
		}
	}
	for _, path := range []string{"/home/bob/copy", "/home/bob/file"} { // what the mail "after" made
		if text, err := os.ReadFile(path); err != nil || strings.Contains(string(text), "forged") {
			t.Errorf("%s: %q, %v", path, text, err)
		}
	}
	// The message that was there still waits, and who submitted is who owns the file.
	if !slices.ContainsFunc(m.queued(), func(name string) bool {
		return strings.HasSuffix(name, "/"+waits) && !strings.HasPrefix(name, "corrupt/") // it is tried each second
	}) {
		t.Errorf("%s is gone: %q", waits, m.queued())
	}
	// That of what comes of it by an alias, too, which dma writes.
	expanded := spooldir.DeriveID(ids[len(ids)-2], 2, spooldir.Child)
	v.await("child", func() bool { return lineOf(v.log(), expanded) != "" })
	for _, id := range append(ids[len(ids)-2:], expanded) {
		if !strings.Contains(v.log(), "id="+id) || !strings.Contains(lineOf(v.log(), id), "uid=2666") {
			t.Errorf("submitter of %s: %s", id, lineOf(v.log(), id))
		}
	}
	if r := m.as("alice", "", libexec+"/mailq").want(t, 0); strings.Contains(r.stdout, ids[len(ids)-1]) {
		t.Errorf("alice sees mallory's message as hers\n%s", r.stdout)
	}
	t.Logf("in corrupt: %d", len(m.in("corrupt")))
	v.stop()
	m.nobodyLeft()
}

// lineOf returns the first line of a log that has an id and a uid.
func lineOf(log, id string) string {
	for line := range strings.Lines(log) {
		if strings.Contains(line, "id="+id) && strings.Contains(line, "uid=") {
			return line
		}
	}
	return ""
}

// TestSpoolTampering: a submitter who keeps a descriptor changes the message
// after it was committed. That is that one's own mail; nobody else's suffers.
func TestSpoolTampering(t *testing.T) {
	m := newMachine(t, "RETRY_MIN 1s", "RETRY_MAX 2s")
	v := m.start()
	// While it is looked at, and while it waits: the queue process stands still.
	for _, still := range []bool{false, true} {
		queue, ok := m.find("role-queue")
		if !ok {
			t.Fatal("no queue process")
		}
		if still {
			m.do(syscall.Kill(queue.pid, syscall.SIGSTOP))
		}
		var list []intrusion
		for _, how := range []string{"append", "truncate", "empty", "closed", "open", "rewrite", "grow"} {
			list = append(list, intrusion{
				Envelope: spooldir.Envelope{UID: 2666, Sender: "mallory@host.example", Recipients: []spooldir.Recipient{{Address: "carol@host.example"}, {Address: "friend@example.org"}}},
				Content:  fmt.Sprintf("Subject: %s %v\n\n%s\n", how, still, strings.Repeat("text\n", 100)), Tamper: how,
			})
		}
		m.intrude("mallory", list...)
		if still {
			m.do(syscall.Kill(queue.pid, syscall.SIGCONT))
		}
		m.bothGetMail(v, fmt.Sprint("still ", still))
	}
	// Messages that one keeps locked, and some that state a terabyte, which is a hole.
	mallorys := func(how string, n int) (list []intrusion) {
		for i := range n {
			list = append(list, intrusion{
				Envelope: spooldir.Envelope{UID: 2666, Sender: "mallory@host.example", Recipients: []spooldir.Recipient{{Address: "carol@host.example"}, {Address: "friend@example.org"}}},
				Content:  fmt.Sprintf("Subject: %s %d\n\n%s\n", how, i, strings.Repeat("text\n", 100)), Tamper: how,
			})
		}
		return list
	}
	queue, ok := m.find("role-queue")
	if !ok {
		t.Fatal("no queue process")
	}
	m.do(syscall.Kill(queue.pid, syscall.SIGSTOP))
	sparse := m.intrude("mallory", mallorys("sparse", 10)...)
	unlock := m.intrudeAndStay("mallory", mallorys("lock", 20)...)
	m.do(syscall.Kill(queue.pid, syscall.SIGCONT))
	m.bothGetMail(v, "locked and sparse")
	v.hangup() // the new processes look at everything
	v.await("another queue process", func() bool {
		p, ok := m.find("role-queue")
		return ok && p.pid != queue.pid
	})
	m.bothGetMail(v, "locked and sparse at start")
	if got := subjects(m.mailbox("carol")); got["lock 0"] != 0 {
		t.Errorf("carol has %v, while it is locked", got)
	}
	unlock()
	v.await("what was locked", func() bool {
		got := subjects(m.mailbox("carol"))
		for i := range 20 {
			if got[fmt.Sprint("lock ", i)] != 1 {
				return false
			}
		}
		return true
	})
	v.await("an end", func() bool {
		for _, name := range m.queued() {
			if slices.ContainsFunc(sparse, func(id string) bool { return strings.HasPrefix(name, "new/"+id) }) {
				continue
			}
			// What its owner has made uncommitted again stays where it is.
			info, err := os.Lstat(filepath.Join(spoolDir, name))
			if err != nil || info.Mode()&0o040 != 0 && !strings.HasPrefix(name, "corrupt/") && !strings.HasPrefix(name, "tempfail/") {
				return false
			}
		}
		return true
	})
	for subject, n := range subjects(m.mailbox("carol")) {
		if n != 1 {
			t.Errorf("carol has %q %d times", subject, n)
		}
	}
	got := make(map[string]int)
	for _, transaction := range m.sink.Transactions() {
		for subject := range subjects(strings.ReplaceAll(string(transaction.Content), "\r\n", "\n")) {
			got[subject]++
		}
	}
	for subject, n := range got {
		if n != 1 {
			t.Errorf("the smarthost has %q %d times", subject, n)
		}
	}
	if n := len(m.in("new")); n < 2*len(sparse) {
		t.Errorf("%d names are left in new, and what states a terabyte has %d", n, 2*len(sparse))
	}
	t.Logf("carol has %v, the smarthost %v, left %q", subjects(m.mailbox("carol")), got, m.queued())
	if strings.Contains(v.log(), "panic") || strings.Contains(v.log(), "worker-trouble role=queue error=\"ended") {
		t.Errorf("a worker has ended\n%s", v.log())
	}
	v.stop()
	m.nobodyLeft()
}
