package machinetest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"dma/parent"
	"dma/spooldir"
)

// hangup makes the service read its configuration again, and start without a
// pause what has ended.
func (v *service) hangup() {
	v.t.Helper()
	if err := v.process.Signal(syscall.SIGHUP); err != nil {
		v.t.Fatal(err)
	}
}

// uids returns who the processes of dma-runner are, by their titles.
func (m *machine) uids() map[string]string {
	out := make(map[string]string)
	for _, p := range m.processes() {
		title, _, _ := strings.Cut(p.name, " role-")
		out[title] = strings.Fields(p.status["Uid"])[0]
	}
	return out
}

// TestQueueSendsGarbage: a queue process that was taken over sends to the parent
// what is no request, or one that no queue process may make. It is killed, and
// nothing else happens: the parent and the net process are the same as before,
// nothing is executed but dma-runner, no file outside the spool changes.
func TestQueueSendsGarbage(t *testing.T) {
	m := newMachine(t)
	m.installEvil()
	next, release := m.takeOver(parent.RoleQueue)
	v := m.startUnready()
	e := next()
	before := m.files()
	x := m.watchExecutions()
	long := strings.Repeat("a", 500)
	for i, tt := range []struct {
		about string
		order evilOrder
	}{
		{"nothing of ours", evilOrder{Data: []byte("GET / HTTP/1.0\r\n\r\n")}},
		{"no message", evilOrder{Data: []byte{0, 0, 0, 0, 0}}},
		{"too long", evilOrder{Data: []byte{0xff, 0xff, 0xff, 0xff, 0}}},
		{"too long by one", evilOrder{Data: append([]byte{0, 0, 4, 1, 0}, make([]byte, 1025)...)}},
		{"unknown kind", evilOrder{Data: frame(1, 0, 'X', "alice")}},
		{"password, which is the net process's", evilOrder{Data: frame(1, 0, 'w', "login", "host")}},
		{"a path for a name", evilOrder{Data: frame(1, 0, 'l', "/etc/passwd")}},
		{"a way up for a name", evilOrder{Data: frame(1, 0, 'a', "../../alice", "user")}},
		{"a NUL in a name", evilOrder{Data: frame(1, 0, 'a', "alice\x00bob", "user")}},
		{"a path as a third field", evilOrder{Data: frame(1, 0, 'a', "alice", "user", "/bin/sh")}},
		{"a role that is a path", evilOrder{Data: frame(1, 0, 'a', "alice", "/bin/sh")}},
		{"the role of a worker", evilOrder{Data: frame(1, 0, 'a', "alice", "role-queue")}},
		{"no role", evilOrder{Data: frame(1, 0, 'a', "alice", "")}},
		{"an option", evilOrder{Data: frame(1, 0, 'a', "-s", "user")}},
		{"a line end", evilOrder{Data: frame(1, 0, 'a', "alice\nroot", "user")}},
		{"a long name", evilOrder{Data: frame(1, 0, 'a', long, "user")}},
		{"no name", evilOrder{Data: frame(1, 0, 'a', "", "user")}},
		{"a descriptor", evilOrder{Data: frame(1, 1, 'a', "alice", "user"), Kind: "pipe"}},
		{"a descriptor that is not announced", evilOrder{Data: frame(1, 0, 'a', "alice", "user"), Kind: "pipe"}},
		{"a descriptor with a lookup", evilOrder{Data: frame(1, 1, 'l', "alice"), Kind: "pipe"}},
		{"very many descriptors", evilOrder{Data: frame(1, 200, 'a', "alice", "user"), Kind: "file:/dev/null", N: 200}},
		{"a uid with a sign", evilOrder{Data: frame(1, 0, 'i', "-1")}},
		{"a uid beyond all", evilOrder{Data: frame(1, 0, 'i', "4294967296")}},
		{"a uid that means none", evilOrder{Data: frame(1, 0, 'i', "4294967295")}},
		{"a pong without its fields", evilOrder{Data: frame(1, 0, 'p')}},
		{"an answer", evilOrder{Data: frame(1, 0, '=', "ok")}},
	} {
		if i > 0 {
			old, _ := m.find(parent.RoleNet)
			v.hangup()
			e = next()
			v.await("the next net process", func() bool {
				p, ok := m.find(parent.RoleNet)
				return ok && p.pid != old.pid
			})
		}
		net, ok := m.find(parent.RoleNet)
		tt.order.Do = "send"
		if tt.order.Kind != "" {
			// The kernel may refuse what the parent does not want.
			if r := e.order(tt.order); r.Err == "EPERM" {
				tt.order.Kind, tt.order.Data = "", []byte("evil evil evil")
			} else if r.Err != "" {
				t.Fatalf("%s: %s", tt.about, r.Err)
			}
		}
		if tt.order.Kind == "" && !e.last(tt.order) || tt.order.Kind != "" && !e.ended() {
			t.Fatalf("%s: the process lives\n%s", tt.about, v.log())
		}
		// What did not run before the restart does not count.
		if now, found := m.find(parent.RoleNet); ok && (!found || now.pid != net.pid) {
			t.Errorf("%s: the net process is another", tt.about)
		}
		for title, uid := range m.uids() {
			if strings.Contains(title, "agent") {
				t.Errorf("%s: %s runs as %s", tt.about, title, uid)
			}
		}
	}
	if ran := slices.DeleteFunc(x.stop(), ours); len(ran) > 0 {
		t.Errorf("executed: %q", ran)
	}
	if changed := m.changes(before); len(changed) > 0 {
		t.Errorf("changed: %q", changed)
	}
	release()
	v.hangup()
	m.submit("alice", "after all", "bob", "friend@example.org")
	v.empties(m)
	if strings.Count(m.mailbox("bob"), "\nSubject: after all\n") != 1 || len(m.sink.Transactions()) != 1 {
		t.Errorf("mail was not delivered afterwards\n%s", v.log())
	}
	v.stop()
	m.nobodyLeft()
}

// ours reports whether the parent executes a program in any case: itself, and
// what looks up users where /etc/passwd does not have them.
func ours(path string) bool {
	return path == runnerBin || path == "/usr/bin/getent" || path == "/usr/bin/id" || strings.Contains(path, "/ld-linux")
}

// nobodyLeft checks that no process of dma-runner is left.
func (m *machine) nobodyLeft() {
	m.t.Helper()
	if p := m.processes(); len(p) != 0 {
		m.t.Errorf("left behind: %+v", p)
	}
}

// TestQueueAsksForOthers: a queue process that was taken over makes requests in
// good form. It gets agents of users, and no other process.
func TestQueueAsksForOthers(t *testing.T) {
	m := newMachine(t)
	m.installEvil()
	m.own("bob", ".forward", "\\bob, \"|cat > /home/bob/copy\", /home/bob/file\n", 0o644)
	next, release := m.takeOver(parent.RoleQueue)
	v := m.startUnready()
	e := next()
	before := m.files()
	x := m.watchExecutions()
	number := uint32(100)
	for _, tt := range []struct {
		fields []string
		want   string // the beginning of the answer
	}{
		{[]string{"root", "user"}, "refused agent: "},
		{[]string{"dma", "user"}, "refused "},
		{[]string{"dma", "mailbox"}, "refused "},
		{[]string{"dmanet", "user"}, "refused "},
		{[]string{"dmanet", "mailbox"}, "refused "},
		{[]string{"robot", "user"}, "refused "},
		{[]string{"daemon", "user"}, "refused "},
		{[]string{"nosuchuser", "user"}, "refused "},
		{[]string{"2001", "user"}, "refused "},
		{[]string{"carol", "user"}, "ok"},
		{[]string{"carol", "user"}, "busy"},
		{[]string{"carol", "mailbox"}, "ok"},
		{[]string{"root", "mailbox"}, "ok"},
	} {
		number++
		want := strings.Replace(tt.want, "agent: ", "", 1)
		if got := e.ask(number, 'a', tt.fields...); !strings.HasPrefix(got, want) {
			t.Errorf("start %q: %q, want %q", tt.fields, got, want)
		}
	}
	if got := e.ask(number+1, 'k', "root", "user"); got != "ok" {
		t.Errorf("stop of an agent that is not there: %q", got)
	}
	// None of them is more than it should be.
	nobody := "65534"
	for title, uid := range m.uids() {
		want := map[string]string{"dma-runner: queue": "990", "dma-runner: net": "991", "dma-runner: agent carol mailbox": "2003", "dma-runner: agent carol user": "2003", "dma-runner: agent alice user": "2001", "dma-runner: agent root mailbox": nobody}[title]
		if strings.Contains(title, "run") && !strings.Contains(title, ": ") {
			want = "0"
		}
		if uid != want {
			t.Errorf("%s runs as uid %s, want %s", title, uid, want)
		}
	}
	for _, who := range []string{"carol", "root"} {
		if r := e.ask(number+2, 'k', who, "mailbox"); r != "ok" {
			t.Errorf("stop %s: %s", who, r)
		}
	}
	if r := e.ask(number+3, 'k', "carol", "user"); r != "ok" {
		t.Errorf("stop: %s", r)
	}
	// Requests without end: each is answered, and the parent is what it was.
	many := 100_000
	if testing.Short() {
		many = 10_000
	}
	r := e.order(evilOrder{Do: "flood", N: many, Data: frame(0, 0, 'l', "alice")})
	t.Logf("%d lookups: %s", many, r.Text)
	if r.Err != "" {
		t.Errorf("lookups: %s", r.Err)
	}
	r = e.order(evilOrder{Do: "flood", N: 2000, Data: frame(0, 0, 'a', "dma", "user")})
	t.Logf("2000 starts: %s", r.Text)
	if r.Err != "" {
		t.Errorf("starts: %s", r.Err)
	}
	if n := descriptorsOf(t, v.process.Pid); n > 40 {
		t.Errorf("the parent has %d descriptors", n)
	}
	if ran := slices.DeleteFunc(x.stop(), ours); len(ran) > 0 {
		t.Errorf("executed: %q", ran)
	}
	// The mailbox of root, which the parent opens, is the one file of ours.
	changed := slices.DeleteFunc(m.changes(before), func(path string) bool { return path == "/var/mail" || path == "/var/mail/root" })
	if len(changed) > 0 {
		t.Errorf("changed: %q", changed)
	}
	if got := m.owner("/var/mail/root"); !strings.HasPrefix(got, "0:") {
		t.Errorf("mailbox of root: %s", got)
	}
	release()
	e.conn.Close() // it ends
	m.submit("alice", "after all", "bob", "carol", "friend@example.org")
	v.empties(m)
	if strings.Count(m.mailbox("carol"), "\nSubject: after all\n") != 1 || len(m.sink.Transactions()) != 1 {
		t.Errorf("mail was not delivered afterwards\n%s", v.log())
	}
	v.stop()
	m.nobodyLeft()
}

func descriptorsOf(t testing.TB, pid int) int {
	t.Helper()
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// TestQueueAsksAgents: a queue process that was taken over asks agents in good
// form for files and commands. It gets what the user lists now, and nothing else,
// whatever it says of the user.
func TestQueueAsksAgents(t *testing.T) {
	m := newMachine(t, "ALIASUSER carol")
	m.installEvil()
	m.own("bob", ".forward", "\\bob, \"|cat > /home/bob/copy\", /home/bob/file\n", 0o644)
	next, _ := m.takeOver(parent.RoleQueue)
	v := m.startUnready()
	e := next()
	before := m.files()
	for _, tt := range []struct{ user, kind, target, source, want string }{
		{"alice", "command", "cat > /home/bob/copy", "forward", "unlisted"}, // bob's, and alice has none
		{"alice", "command", "touch /home/alice/canary", "forward", "unlisted"},
		{"alice", "command", "touch /home/alice/canary", "aliases", "no"},
		{"alice", "file", "/home/alice/.bashrc", "forward", "unlisted"},
		{"alice", "file", "/home/alice/.ssh/authorized_keys", "aliases", "no"},
		{"bob", "command", "cat > /home/bob/copy;id", "forward", "unlisted"},
		{"bob", "file", "/home/bob/file/../.profile", "forward", "unlisted"},
		{"bob", "command", "cat > /home/bob/copy", "aliases", "no"},
		{"carol", "command", "touch /home/carol/canary", "aliases", "unlisted"},
		{"carol", "file", "/etc/passwd", "aliases", "unlisted"},
		{"root", "command", "id", "forward", "error"},
		{"root", "command", "id", "aliases", "error"},
		{"dma", "command", "id", "forward", "error"},
	} {
		r := e.order(evilOrder{Do: "deliver", Args: []string{tt.user, tt.kind, tt.target, tt.source}})
		bad := r.Text != "unlisted" && r.Err == ""
		if bad || tt.want == "unlisted" && r.Text != "unlisted" || tt.want == "error" && r.Err == "" {
			t.Errorf("%s %s %q of %s: %+v, want %s", tt.user, tt.kind, tt.target, tt.source, r, tt.want)
		}
	}
	if changed := m.changes(before); len(changed) > 0 {
		t.Errorf("changed: %q", changed)
	}
	// And what is listed works: the checks above can fail.
	if r := e.order(evilOrder{Do: "deliver", Args: []string{"bob", "command", "cat > /home/bob/copy", "forward"}}); r.Err != "" {
		t.Errorf("%+v\n%s", r, v.log())
	}
	if got, want := m.owner("/home/bob/copy"), ownerText(2002, 2002, 0o600); got != want {
		t.Errorf("what bob's command made: %s, want %s", got, want)
	}
	e.conn.Close()
	v.kill()
}

// TestQueueIsSilent: a queue process that sends half a request, or takes no
// answers, holds up nobody: the net process goes on, and the service ends when
// it is told to.
func TestQueueIsSilent(t *testing.T) {
	for _, about := range []string{"half a frame", "no answers read"} {
		t.Run(about, func(t *testing.T) {
			m := newMachine(t)
			m.installEvil()
			next, _ := m.takeOver(parent.RoleQueue)
			v := m.startUnready()
			e := next()
			if about == "half a frame" {
				e.order(evilOrder{Do: "send", Data: frame(1, 0, 'l', "alice")[:7]})
			} else {
				var frames []byte
				for range 50_000 {
					frames = append(frames, frame(1, 0, 'l', "alice")...)
				}
				text, err := json.Marshal(evilOrder{Do: "send", Data: frames})
				m.do(err)
				go func() { // it can't send all of it, and is killed over it
					_, _ = fmt.Fprintln(e.conn, string(text))
				}()
			}
			net, ok := m.find(parent.RoleNet)
			v.await("net process", func() bool { net, ok = m.find(parent.RoleNet); return ok })
			if about != "half a frame" {
				if !e.ended() {
					t.Errorf("it lives, and takes no answers")
				}
			}
			if now, ok := m.find(parent.RoleNet); !ok || now.pid != net.pid {
				t.Errorf("the net process is another")
			}
			v.stop()
			m.nobodyLeft()
		})
	}
}

// outside tries files that no worker may touch, in every way.
func outside(paths ...string) []attempt {
	var list []attempt
	for _, path := range paths {
		list = append(list,
			attempt{evilOrder{Do: "open", Args: []string{path}}, "EACCES"},
			attempt{evilOrder{Do: "open", Args: []string{path}, N: unix.O_WRONLY, Data: []byte("evil")}, "EACCES EPERM"},
			attempt{evilOrder{Do: "remove", Args: []string{path}}, "EACCES EPERM EXDEV"},
			attempt{evilOrder{Do: "chown", Args: []string{path}, N: 990}, "EPERM EACCES"},
			attempt{evilOrder{Do: "chmod", Args: []string{path}, N: 0o777}, "EPERM EACCES"},
			attempt{evilOrder{Do: "truncate", Args: []string{path}}, "EACCES"},
			attempt{evilOrder{Do: "link", Args: []string{path, spoolDir + "/new/x"}}, "EPERM EACCES EXDEV"},
			attempt{evilOrder{Do: "rename", Args: []string{path, spoolDir + "/new/x"}}, "EPERM EACCES EXDEV"},
		)
	}
	return list
}

// inhuman is what no worker may do to processes, the network and the machine.
func (m *machine) inhuman(v *service, other int) []attempt {
	list := []attempt{
		{evilOrder{Do: "spawn", Args: []string{"/bin/true"}}, "EPERM EACCES"},
		{evilOrder{Do: "spawn", Args: []string{dmaFile, "alice"}}, "EPERM EACCES"},
		{evilOrder{Do: "exec", Args: []string{"/bin/true"}}, "EPERM EACCES"},
		{evilOrder{Do: "bind", Args: []string{"tcp"}, N: 0}, "EPERM EACCES"},
		{evilOrder{Do: "bind", Args: []string{"@dma-evil"}}, "EPERM EACCES"},
		{evilOrder{Do: "bind", Args: []string{spoolDir + "/new/socket"}}, "EPERM EACCES"},
		{evilOrder{Do: "setuid", N: 0}, "EPERM"},
		{evilOrder{Do: "setuid", N: 2001}, "EPERM"},
		{evilOrder{Do: "unshare"}, "EPERM"},
		{evilOrder{Do: "mount"}, "EPERM"},
		{evilOrder{Do: "map"}, "EPERM"},
	}
	for _, pid := range []int{v.process.Pid, other, os.Getpid(), -1} {
		list = append(list,
			attempt{evilOrder{Do: "kill", N: pid}, "EPERM"},
			attempt{evilOrder{Do: "signal", N: pid}, "EPERM"},
			attempt{evilOrder{Do: "ptrace", N: pid}, "EPERM ESRCH"},
			attempt{evilOrder{Do: "open", Args: []string{fmt.Sprintf("/proc/%d/mem", pid)}}, "EACCES ENOENT"},
			attempt{evilOrder{Do: "open", Args: []string{fmt.Sprintf("/proc/%d/environ", pid)}}, "EACCES ENOENT"},
			attempt{evilOrder{Do: "list", Args: []string{fmt.Sprintf("/proc/%d/fd", pid)}}, "EACCES ENOENT"},
		)
	}
	return list
}

// prey makes what a worker that is taken over would like to have.
func (m *machine) prey() {
	m.t.Helper()
	m.do(os.Mkdir("/home/alice/.ssh", 0o777)) // open to everybody by mistake
	m.do(os.Chmod("/home/alice/.ssh", 0o777))
	m.own("alice", ".ssh/id", "secret\n", 0o666)
	m.own("alice", ".forward", "\\alice\n", 0o644)
	m.write("/var/mail/alice", "From secret\n", 0o666)
	a := lookup(m.t, "alice")
	m.do(os.Chown("/var/mail/alice", a.uid, groupOf(m.t, "mail")))
	m.write("/etc/dma/auth.conf", "joe|smart.example:secret\n", 0o640)
	m.do(os.Chown("/etc/dma/auth.conf", 0, lookup(m.t, "dmanet").gid))
}

// TestQueueSandbox: what a queue process that was taken over meets.
func TestQueueSandbox(t *testing.T) {
	m := newMachine(t)
	m.installEvil()
	m.prey()
	next, _ := m.takeOver(parent.RoleQueue)
	v := m.startUnready()
	e := next()
	t.Log(e.said)
	var net process
	v.await("net process", func() (ok bool) { net, ok = m.find(parent.RoleNet); return ok })
	e.tries(outside("/home/alice/.ssh/id", "/home/alice/.forward", "/var/mail/alice", "/etc/shadow", "/root/x", runnerBin))
	e.tries(m.inhuman(v, net.pid))
	at := func(name string) string { return filepath.Join(spoolDir, name) }
	m.write(at("new/mine"), "x", 0o640)
	m.do(os.Chown(at("new/mine"), 990, 990))
	m.do(os.Symlink("/home/alice/.ssh/id", at("new/link")))
	e.tries([]attempt{
		{evilOrder{Do: "list", Args: []string{"/home"}}, "EACCES"},
		{evilOrder{Do: "list", Args: []string{"/var/mail"}}, "EACCES"},
		{evilOrder{Do: "list", Args: []string{"/"}}, "EACCES"},
		{evilOrder{Do: "open", Args: []string{"/etc/dma/auth.conf"}}, "EACCES"},
		{evilOrder{Do: "open", Args: []string{"/tmp/x"}, N: unix.O_WRONLY | unix.O_CREAT}, "EACCES ENOENT"},
		{evilOrder{Do: "open", Args: []string{"/dev/shm/x"}, N: unix.O_WRONLY | unix.O_CREAT}, "EACCES ENOENT"},
		{evilOrder{Do: "symlink", Args: []string{"/etc/shadow", "/run/dma/x"}}, "EPERM EACCES"},
		{evilOrder{Do: "open", Args: []string{spoolDir + "/lock/parent"}}, "EACCES"},
		{evilOrder{Do: "list", Args: []string{"/run/dma/agents"}}, "EACCES"},
		{evilOrder{Do: "connect", Args: []string{"tcp", m.smarthost}}, "EPERM EACCES"},
		{evilOrder{Do: "connect", Args: []string{"udp", "127.0.0.1:53"}}, "EPERM EACCES"},
		// And what it is there for works: the checks above can fail.
		{evilOrder{Do: "list", Args: []string{at("new")}}, "ok"},
		{evilOrder{Do: "open", Args: []string{at("new/mine")}}, "ok"},
		{evilOrder{Do: "rename", Args: []string{at("new/mine"), at("corrupt/mine")}}, "ok"},
		{evilOrder{Do: "remove", Args: []string{at("corrupt/mine")}}, "ok"},
		// A link out of the spool leads nowhere.
		{evilOrder{Do: "symlink", Args: []string{"/home/alice/.ssh/id", at("new/x")}}, "EPERM"},
		{evilOrder{Do: "open", Args: []string{at("new/link")}}, "EACCES"},
		{evilOrder{Do: "remove", Args: []string{at("new/link")}}, "ok"},
	})
	e.conn.Close()
	v.kill()
}

// TestNetSandbox: what a net process that was taken over meets. The messages are
// those of others: it sees those that go to other hosts, and no more.
func TestNetSandbox(t *testing.T) {
	m := newMachine(t)
	m.prey()
	m.own("bob", ".forward", "\"|exit 75\"\n", 0o644)
	m.own("carol", ".forward", "alice\n", 0o666) // mail waits for it to be mended
	m.installEvil()
	next, _ := m.takeOver(parent.RoleNet)
	v := m.startUnready()
	e := next()
	t.Log(e.said)
	var queue process
	v.await("queue process", func() (ok bool) { queue, ok = m.find(parent.RoleQueue); return ok })
	m.submit("alice", "out", "friend@example.org")
	m.submit("alice", "waits", "bob")
	v.await("mail on its way", func() bool { return len(m.in("remote")) == 1 && len(m.in("tempfail")) == 1 })
	at := func(name string) string { return filepath.Join(spoolDir, name) }
	// Where outcomes are synced by files, the targets can be read, by who knows a name.
	closed := "EACCES"
	var fs unix.Statfs_t
	m.do(unix.Statfs(spoolDir, &fs))
	if fs.Type != unix.EXT4_SUPER_MAGIC && fs.Type != unix.XFS_SUPER_MAGIC {
		closed = "EACCES ok"
	}
	name := filepath.Base(m.in("remote")[0])
	id, _, _ := strings.Cut(name, ".")
	waits := filepath.Base(m.in("tempfail")[0])
	otherID, _, _ := strings.Cut(waits, ".")
	for _, state := range []string{"new", "forwarding", "local", "hold", "tmp", "sent", "permfail"} {
		read := "EACCES"
		if state == "sent" || state == "permfail" {
			read = closed
		}
		path := at(state + "/.secret") // a name that the queue process passes over
		m.write(path, "secret", 0o640)
		m.do(os.Chown(path, 990, submitGroup))
		e.tries([]attempt{
			{evilOrder{Do: "list", Args: []string{at(state)}}, "EACCES"},
			{evilOrder{Do: "open", Args: []string{path}}, read},
			{evilOrder{Do: "open", Args: []string{path}, N: unix.O_WRONLY}, "EACCES"},
			{evilOrder{Do: "remove", Args: []string{path}}, "EACCES EPERM"},
			{evilOrder{Do: "rename", Args: []string{path, at("remote/x")}}, "EACCES EPERM EXDEV"},
			{evilOrder{Do: "truncate", Args: []string{path}}, "EACCES"},
			{evilOrder{Do: "chmod", Args: []string{path}, N: 0o666}, "EPERM EACCES"},
		})
		m.do(os.Remove(path))
	}
	e.tries(outside("/home/alice/.ssh/id", "/home/alice/.forward", "/var/mail/alice", "/etc/shadow", "/root/x"))
	e.tries(m.inhuman(v, queue.pid))
	e.tries([]attempt{
		// What waits, is done or has failed stays where it is.
		{evilOrder{Do: "list", Args: []string{at("tempfail")}}, "EACCES"},
		{evilOrder{Do: "open", Args: []string{at("tempfail/" + waits)}}, closed},
		{evilOrder{Do: "rename", Args: []string{at("tempfail/" + waits), at("sent/" + waits)}}, "EACCES EPERM EXDEV"},
		{evilOrder{Do: "rename", Args: []string{at("tempfail/" + waits), at("remote/" + waits)}}, "EACCES EPERM EXDEV"},
		{evilOrder{Do: "remove", Args: []string{at("tempfail/" + waits)}}, "EACCES EPERM"},
		{evilOrder{Do: "link", Args: []string{at("tempfail/" + waits), at("sent/" + waits)}}, "EACCES EPERM EXDEV"},
		{evilOrder{Do: "rename", Args: []string{at("remote/" + name), at("tempfail/" + waits)}}, "EACCES EPERM EXDEV"}, // over another's
		// Journals stay, whole.
		{evilOrder{Do: "list", Args: []string{at("log")}}, "EACCES"},
		{evilOrder{Do: "remove", Args: []string{at("log/" + id)}}, "EACCES EPERM"},
		{evilOrder{Do: "remove", Args: []string{at("log/" + otherID)}}, "EACCES EPERM"},
		{evilOrder{Do: "truncate", Args: []string{at("log/" + otherID)}}, "EACCES"},
		{evilOrder{Do: "open", Args: []string{at("log/" + id)}, N: unix.O_WRONLY | unix.O_TRUNC}, "EACCES"},
		{evilOrder{Do: "open", Args: []string{at("log/new")}, N: unix.O_WRONLY | unix.O_CREAT}, "EACCES"},
		{evilOrder{Do: "rename", Args: []string{at("log/" + otherID), at("log/" + id)}}, "EACCES EPERM"},
		// Nor is the queue process held up.
		{evilOrder{Do: "lock", Args: []string{at("lock/queue")}}, "EACCES"},
		{evilOrder{Do: "remove", Args: []string{at("lock/queue")}}, "EACCES EPERM"},
		{evilOrder{Do: "remove", Args: []string{at("lock/net")}}, "EACCES EPERM"},
		{evilOrder{Do: "remove", Args: []string{at("ballast")}}, "EACCES EPERM"},
		{evilOrder{Do: "truncate", Args: []string{at("ballast")}}, "EACCES EPERM"},
		{evilOrder{Do: "open", Args: []string{at("sent/new")}, N: unix.O_WRONLY | unix.O_CREAT}, "EACCES"},
		{evilOrder{Do: "mkdir", Args: []string{at("remote/new")}}, "EPERM EACCES"},
		{evilOrder{Do: "symlink", Args: []string{"/etc/shadow", at("sent/new")}}, "EPERM EACCES"},
		{evilOrder{Do: "open", Args: []string{at("remote/" + name)}, N: unix.O_WRONLY}, "EACCES"},
		{evilOrder{Do: "truncate", Args: []string{at("remote/" + name)}}, "EACCES"},
		{evilOrder{Do: "chmod", Args: []string{at("remote/" + name)}, N: 0o600}, "EPERM"},
		{evilOrder{Do: "list", Args: []string{"/home"}}, "EACCES"},
		{evilOrder{Do: "list", Args: []string{"/var/mail"}}, "EACCES"},
		{evilOrder{Do: "open", Args: []string{spoolDir + "/lock/parent"}}, "EACCES"},
		{evilOrder{Do: "list", Args: []string{"/run/dma/agents"}}, "EACCES"},
		{evilOrder{Do: "open", Args: []string{"/tmp/x"}, N: unix.O_WRONLY | unix.O_CREAT}, "EACCES"},
		// What it is there for works: the checks above can fail.
		{evilOrder{Do: "list", Args: []string{at("remote")}}, "ok"},
		{evilOrder{Do: "open", Args: []string{at("remote/" + name)}}, "ok"},
		{evilOrder{Do: "open", Args: []string{at("log/" + id)}}, "ok"},
		{evilOrder{Do: "append", Args: []string{at("log/" + id)}, Data: []byte("evil\n")}, "ok"},
		{evilOrder{Do: "open", Args: []string{"/etc/dma/auth.conf"}}, "ok"},
		{evilOrder{Do: "connect", Args: []string{"tcp", m.smarthost}}, "ok"},
		{evilOrder{Do: "rename", Args: []string{at("remote/" + name), at("tempfail/" + name)}}, "ok"},
	})
	// It keeps messages locked that it may read, and which others' workers need.
	const many = 20
	for range many {
		m.submit("alice", "both", "carol", "friend@example.org")
	}
	v.await("mail on its way and mail that waits", func() bool {
		return len(m.in("new")) == 0 && len(m.in("remote")) >= many && strings.Count(strings.Join(m.in("tempfail"), "\n"), "-carol") == many
	})
	for _, name := range m.in("remote") {
		v.await("lock of "+name, func() bool { // which the queue process has at times
			return e.order(evilOrder{Do: "lock", Args: []string{at(name)}}).Err == ""
		})
	}
	spool, err := spooldir.Open(spoolDir)
	m.do(err)
	tried := func() int { return strings.Count(v.log(), "delivery id="+otherID) }
	for range 2 { // the first time some may have had their turn before
		before := tried()
		m.do(spool.RequestFlush())
		v.await("another attempt at mail that waits", func() bool { return tried() > before })
		v.await("mail that waits again", func() bool { return slices.Contains(m.in("tempfail"), "tempfail/"+waits) })
	}
	// It asks the parent for what only the queue process may.
	for i, bytes := range [][]byte{frame(1, 0, 'l', "alice"), frame(1, 0, 'a', "alice", "user"), []byte("evil evil evil")} {
		if !e.last(evilOrder{Do: "send", Data: bytes}) {
			t.Fatalf("request %d: it lives", i)
		}
		if now, ok := m.find(parent.RoleQueue); !ok || now.pid != queue.pid {
			t.Errorf("request %d: the queue process is another", i)
		}
		if i < 2 {
			e = next()
		}
	}
	if p, ok := m.find("alice"); ok {
		t.Errorf("there is %+v", p)
	}
	v.stop()
	m.nobodyLeft()
}
