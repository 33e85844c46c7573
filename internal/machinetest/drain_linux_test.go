package machinetest

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDrain: a drain by root delivers what is due under all users' own uids, and
// leaves a folder behind that everybody can pass to the socket, whatever its
// umask.
func TestDrain(t *testing.T) {
	m := newMachine(t)
	for range 2 {
		m.submit("alice", "drained", "bob", "friend@example.org")
		m.root("", "/bin/sh", "-c", "umask 077; exec "+runnerBin+" drain").want(t, 0)
		if left := m.queued(); len(left) != 0 {
			t.Fatalf("left: %q", left)
		}
	}
	if got := strings.Count(m.mailbox("bob"), "\nSubject: drained\n"); got != 2 {
		t.Errorf("bob has %d messages", got)
	}
	// What another process keeps locked stays, which is said; nobody waits for it.
	m.submit("alice", "locked", "bob")
	locked := m.in("new")[0]
	f, err := os.Open(filepath.Join(spoolDir, locked))
	m.do(err)
	m.do(syscall.Flock(int(f.Fd()), syscall.LOCK_EX))
	m.submit("alice", "free", "bob")
	r := m.root("", runnerBin, "drain").want(t, 0)
	if got := m.queued(); len(got) != 1 || got[0] != locked || !strings.Contains(r.stderr, "another process holds the lock of the message") {
		t.Errorf("left: %q\n%s", got, r.stderr)
	}
	f.Close()
	m.root("", runnerBin, "drain").want(t, 0)
	if got := subjects(m.mailbox("bob")); got["locked"] != 1 || got["free"] != 1 || len(m.queued()) != 0 {
		t.Errorf("bob has %v; left: %q", got, m.queued())
	}
	if got, want := m.owner("/run/dma"), ownerText(0, 0, 0o755); got != want {
		t.Errorf("/run/dma: %s, want %s", got, want)
	}
	if p := m.processes(); len(p) != 0 {
		t.Errorf("left behind: %+v", p)
	}
}

// TestRootSubmits: mail of root's is delivered by the service where somebody is at
// its socket, and else by a drain that the limits of root's job do not bind.
func TestRootSubmits(t *testing.T) {
	m := newMachine(t)
	m.own("alice", ".forward", "\"|nice > /home/alice/nice; ulimit -f >> /home/alice/nice\"\n", 0o644)
	m.own("bob", "/var/mail/bob", "From x Sat Jan  3 01:05:34 1998\n\n"+strings.Repeat("a line of before\n", 10_000)+"\n", 0o600)
	job := func() {
		m.root("Subject: job\n\n", "nice", "-n", "5", "/bin/sh", "-c", "ulimit -S -f 100; exec "+dmaFile+" -odi alice bob").want(t, 0)
	}
	m.do(os.MkdirAll("/run/dma", 0o755))
	l, err := net.Listen("unix", "/run/dma/submit.sock")
	m.do(err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	job()
	m.do(l.(*net.UnixListener).SetDeadline(time.Now().Add(10 * time.Second)))
	if conn, err := l.Accept(); err != nil {
		t.Errorf("nobody asks for the service: %v", err)
	} else {
		conn.Close()
	}
	if len(m.in("new")) != 2 {
		t.Errorf("beside the service is left %q", m.queued())
	}
	m.nobodyLeft()
	l.Close() // the socket stays
	job()
	if left := m.queued(); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
	if m.subjects("bob", "job") != 2 {
		t.Errorf("bob has %d messages", m.subjects("bob", "job"))
	}
	if got, err := os.ReadFile("/home/alice/nice"); err != nil || string(got) != "0\nunlimited\n" {
		t.Errorf("alice's command has the niceness and limit %q, %v", got, err)
	}
}

// holdParent takes the place of the parent, as another process for a purpose, and
// returns what gives it back.
func (m *machine) holdParent(purpose string) func() {
	m.t.Helper()
	f, err := os.OpenFile(spoolDir+"/lock/parent", os.O_RDWR|os.O_CREATE, 0o600)
	m.do(err)
	m.do(syscall.Flock(int(f.Fd()), syscall.LOCK_EX))
	_, err = f.WriteString(purpose + " 1\n")
	m.do(err)
	return func() { f.Close() }
}

// TestPlaces: a service and a drain wait for a drain, and not for a service.
func TestPlaces(t *testing.T) {
	m := newMachine(t)
	m.submit("alice", "waits", "bob")
	release := m.holdParent("service")
	m.root("", runnerBin, "run").want(t, 75)
	m.root("", runnerBin, "drain").want(t, 0)
	if left := m.in("new"); len(left) != 1 {
		t.Fatalf("who had no place worked: %q", m.queued())
	}
	release()

	release = m.holdParent("drain")
	ended := make(chan result, 1)
	cmd := m.command("root", runnerBin, "drain")
	go func() { ended <- m.run(cmd, "") }()
	m.awaitWaiter("drain", ended)
	if left := m.in("new"); len(left) != 1 {
		t.Errorf("who had no place worked: %q", m.queued())
	}
	release()
	(<-ended).want(t, 0)
	if left := m.queued(); len(left) != 0 {
		t.Errorf("left: %q", left)
	}

	release = m.holdParent("drain")
	go func() {
		m.awaitWaiter("run", nil)
		release()
	}()
	m.start().stop()
}

// awaitWaiter waits until a dma-runner with the given command has the lock of the
// parent open, which another one holds. Ended fails the test if it ends before.
func (m *machine) awaitWaiter(command string, ended <-chan result) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	for {
		if p, ok := m.find(command); ok {
			files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.pid))
			for _, f := range files {
				if to, err := os.Readlink(f); err == nil && to == spoolDir+"/lock/parent" {
					return
				}
			}
		}
		select {
		case r := <-ended:
			m.t.Errorf("%s did not wait: %+v", command, r)
			return
		case <-ctx.Done():
			m.t.Errorf("%s does not wait for the lock", command)
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// TestDrainWithoutWorker: a drain ends, with an error, where a worker cannot play
// its role.
func TestDrainWithoutWorker(t *testing.T) {
	m := newMachine(t)
	m.do(os.Remove(spoolDir + "/lock/net"))
	r := m.root("", runnerBin, "drain")
	if r.code == 0 || !strings.Contains(r.stderr, "net") {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
	m.root("", runnerBin, "init").want(t, 0)
	m.root("", runnerBin, "drain").want(t, 0)
}

// TestDrainOfOne: root's drain of the spool of one user becomes that user,
// whatever the mode of the spool.
func TestDrainOfOne(t *testing.T) {
	m := newMachine(t)
	m.own("alice", "dma.conf", "SPOOLDIR /home/alice/spool\nMAILBOX mbox:~/mbox\nMINFREE 0\n", 0o644)
	conf := "/home/alice/dma.conf"
	m.as("alice", "", runnerBin, "-C", conf, "init").want(t, 0)
	m.do(os.Chmod("/home/alice/spool", 0o710))
	m.as("alice", "Subject: own\n\nx\n", dmaFile, "-C", conf, "-odq", "alice").want(t, 0)
	m.root("", runnerBin, "-C", conf, "drain").want(t, 0)
	a := lookup(t, "alice")
	if got, want := m.owner("/home/alice/mbox"), ownerText(a.uid, a.gid, 0o600); got != want {
		t.Errorf("mailbox: %s, want %s", got, want)
	}
}

// TestSpoolIsLink: a spool that users share is not served through a symbolic link,
// and nothing runs there as anybody else instead.
func TestSpoolIsLink(t *testing.T) {
	m := newMachine(t)
	m.submit("alice", "waits", "bob")
	m.do(os.Symlink(spoolDir, "/var/spool/linked"))
	t.Cleanup(func() { os.Remove("/var/spool/linked") })
	m.write("/etc/dma/linked.conf", "SPOOLDIR /var/spool/linked\n", 0o644)
	for _, command := range []string{"run", "drain"} {
		r := m.root("", runnerBin, "-C", "/etc/dma/linked.conf", command)
		if r.code != 78 || !strings.Contains(r.stderr, "/var/spool/linked is a symbolic link") || !strings.Contains(r.stderr, "SPOOLDIR") {
			t.Errorf("%s: exit %d\n%s", command, r.code, r.stderr)
		}
	}
	if left := m.in("new"); len(left) != 1 {
		t.Errorf("it was served: %q", m.queued())
	}
	m.root("", runnerBin, "drain").want(t, 0)
}
