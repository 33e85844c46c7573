package machinetest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dma/internal/smtptest"
)

// TestReload: SIGHUP makes the service work by what dma.conf says now; where that
// cannot be read, by what it said before.
func TestReload(t *testing.T) {
	m := newMachine(t)
	v := m.start()
	m.submit("alice", "first", "bob", "friend@example.org")
	v.empties(m)
	if subjects(m.mailbox("bob"))["first"] != 1 || len(m.sink.Transactions()) != 1 {
		t.Errorf("not delivered\n%s", v.log())
	}
	other := smtptest.NewSink(smtptest.SinkOptions{})
	addr, err := other.Listen("127.0.0.1:0")
	m.do(err)
	t.Cleanup(func() { other.Close() })
	m.smarthost = addr.String()
	m.configure("MAILBOX maildir:~/Maildir")
	old, _ := m.find("role-queue")
	v.hangup()
	v.await("other processes", func() bool {
		now, ok := m.find("role-queue")
		return ok && now.pid != old.pid
	})
	m.submit("alice", "second", "bob", "friend@example.org")
	v.empties(m)
	maildir := func() int {
		files, err := filepath.Glob("/home/bob/Maildir/new/*")
		m.do(err)
		return len(files)
	}
	if maildir() != 1 || len(other.Transactions()) != 1 || len(m.sink.Transactions()) != 1 {
		t.Errorf("the new configuration is not in force: %d, %d\n%s", maildir(), len(other.Transactions()), v.log())
	}
	// What cannot be read at all.
	m.do(os.Rename(confFile, confFile+".good"))
	m.do(os.Mkdir(confFile, 0o755))
	old, _ = m.find("role-queue")
	v.hangup()
	v.awaitLog("the old configuration stays")
	if now, ok := m.find("role-queue"); !ok || now.pid != old.pid {
		t.Errorf("a queue process %d instead of %d", now.pid, old.pid)
	}
	m.submit("root", "third", "-C", confFile+".good", "bob")
	v.empties(m)
	if maildir() != 2 {
		t.Errorf("not delivered by the old configuration\n%s", v.log())
	}
	m.do(os.Remove(confFile))
	m.do(os.Rename(confFile+".good", confFile))
	// Another spool: nobody holds the place of its parent.
	m.configure("SPOOLDIR /var/spool/other")
	v.hangup()
	v.awaitLog("SPOOLDIR is now /var/spool/other, and another spool needs a restart; the old configuration stays")
	if now, ok := m.find("role-queue"); !ok || now.pid != old.pid {
		t.Errorf("a queue process %d instead of %d", now.pid, old.pid)
	}
	v.stop()
	m.nobodyLeft()
}

// TestStopWhileCommandHangs: the service ends in good time, the command with it,
// and its message waits.
func TestStopWhileCommandHangs(t *testing.T) {
	m := newMachine(t)
	m.own("bob", ".forward", "\"|trap '' TERM HUP INT; echo x > /home/bob/begun; while :; do sleep 1000; done\"\n", 0o644)
	v := m.start()
	m.submit("alice", "x", "bob", "carol")
	v.await("command", func() bool { _, err := os.Stat("/home/bob/begun"); return err == nil })
	begun := time.Now()
	v.stop()
	t.Logf("stopped within %v", time.Since(begun).Round(time.Millisecond))
	m.nobodyLeft()
	if p := m.strangers(); len(p) > 0 {
		t.Errorf("left behind: %+v", p)
	}
	if len(m.queued()) == 0 {
		t.Error("the message is gone")
	}
	// With a command that ends it is delivered.
	m.own("bob", ".forward", "\"|cat > /home/bob/copy\"\n", 0o644)
	v = m.start()
	m.as("root", "", runnerBin, "flush").want(t, 0)
	v.empties(m)
	if subjects(m.mailbox("carol"))["x"] != 1 {
		t.Errorf("carol has %v", subjects(m.mailbox("carol")))
	}
	v.stop()
}

// TestOneService: a second service is refused, a drain leaves the work to the
// first one.
func TestOneService(t *testing.T) {
	m := newMachine(t)
	v := m.start()
	r := m.root("", runnerBin, "run").want(t, 75)
	if strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, "another dma-runner") {
		t.Errorf("%s", r.stderr)
	}
	m.root("", runnerBin, "run", "--on-demand").want(t, 75)
	m.root("", runnerBin, "drain").want(t, 0)
	m.submit("alice", "x", "bob")
	v.empties(m)
	if n := len(m.processes()); n > 5 {
		t.Errorf("%d processes", n)
	}
	v.stop()
	// Without a service a drain delivers, and ends.
	m.submit("alice", "y", "bob", "friend@example.org")
	m.root("", runnerBin, "drain").want(t, 0)
	if subjects(m.mailbox("bob"))["y"] != 1 || len(m.sink.Transactions()) != 1 {
		t.Errorf("the drain left %q", m.queued())
	}
	m.nobodyLeft()
}

// systemd stands for the service manager: it holds the socket of the door and
// starts the service for a connection, for a name in new, for a request to try
// all, and now and then for mail that waits, as the units in systemd/ say.
type systemd struct {
	m        *machine
	listener *os.File
	notify   *net.UnixConn
	address  string
	timer    time.Duration

	mu      sync.Mutex
	said    []string // what services told
	starts  []string // why services were started
	current *service // nil: none runs
	log     strings.Builder

	stopping chan struct{} // receives when a service says that it ends
}

// newSystemd starts it; it ends with the test.
func (m *machine) newSystemd(timer time.Duration) *systemd {
	m.t.Helper()
	m.do(os.MkdirAll("/run/dma", 0o755))
	l, err := net.Listen("unix", "/run/dma/submit.sock")
	m.do(err)
	m.do(os.Chmod("/run/dma/submit.sock", 0o666))
	s := &systemd{m: m, timer: timer, stopping: make(chan struct{}, 100)}
	s.listener, err = l.(*net.UnixListener).File()
	m.do(err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	s.address = fmt.Sprintf("@dma-systemd-%d", time.Now().UnixNano())
	s.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.address, Net: "unixgram"})
	m.do(err)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := s.notify.Read(buf)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.said = append(s.said, string(buf[:n]))
			s.mu.Unlock()
			if strings.Contains(string(buf[:n]), "STOPPING=1") {
				s.stopping <- struct{}{}
			}
		}
	}()
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { s.run(ctx) })
	m.t.Cleanup(func() {
		cancel()
		group.Wait()
		s.notify.Close()
		s.listener.Close()
	})
	return s
}

// why returns why the service has to be started now, "" if there is no reason.
func (s *systemd) why(since time.Time) string {
	if s.m.condition("dma-runner.path", "DirectoryNotEmpty=", "PathExistsGlob=") {
		return "new"
	}
	if s.m.condition("dma-runner.path", "PathExists=") {
		return "flush"
	}
	if time.Since(since) >= s.timer && s.m.condition("dma-retry.service", "ConditionDirectoryNotEmpty=|", "ConditionPathExistsGlob=|") {
		return "timer"
	}
	fds := []unix.PollFd{{Fd: int32(s.listener.Fd()), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, 20); n == 1 && err == nil {
		return "socket"
	}
	return ""
}

// condition reports whether one of the conditions of a unit holds that begin with
// one of keys.
func (m *machine) condition(unit string, keys ...string) bool {
	text, err := os.ReadFile("../../systemd/" + unit)
	m.do(err)
	for line := range strings.Lines(string(text)) {
		for _, key := range keys {
			value, ok := strings.CutPrefix(strings.TrimSpace(line), key)
			switch {
			case !ok:
			case strings.Contains(key, "DirectoryNotEmpty"):
				if names, err := os.ReadDir(value); err == nil && slices.ContainsFunc(names, func(e os.DirEntry) bool { return !backup(e.Name()) }) {
					return true
				}
			default:
				for _, pattern := range braces(value) {
					if found, err := filepath.Glob(pattern); err == nil && len(found) > 0 {
						return true
					}
				}
			}
		}
	}
	return false
}

// backup reports whether systemd takes a directory for empty that holds nothing but
// such names (hidden_or_backup_file).
func backup(name string) bool {
	switch strings.TrimPrefix(filepath.Ext(name), ".") {
	case "rpmnew", "rpmsave", "rpmorig", "dpkg-old", "dpkg-new", "dpkg-tmp", "dpkg-dist", "dpkg-bak", "dpkg-backup", "dpkg-remove",
		"ucf-new", "ucf-old", "ucf-dist", "swp", "bak", "old", "new":
		return true
	}
	return strings.HasPrefix(name, ".") || strings.HasSuffix(name, "~")
}

// braces expands what glob(3) expands and filepath.Glob does not.
func braces(pattern string) []string {
	before, rest, ok := strings.Cut(pattern, "{")
	list, after, ok2 := strings.Cut(rest, "}")
	if !ok || !ok2 {
		return []string{pattern}
	}
	var out []string
	for word := range strings.SplitSeq(list, ",") {
		out = append(out, braces(before+word+after)...)
	}
	return out
}

// run starts services one after another.
func (s *systemd) run(ctx context.Context) {
	ended := time.Now()
	for ctx.Err() == nil {
		why := s.why(ended)
		if why == "" {
			continue
		}
		v := &service{t: s.m.t, ended: make(chan struct{}), changed: make(chan struct{})}
		cmd := s.m.command("root", append([]string{"/bin/sh", "-c", `LISTEN_PID=$$ WATCHDOG_PID=$$ exec "$@"`, "sh"}, s.m.service("run", "--on-demand")...)...)
		cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+s.address, "WATCHDOG_USEC=120000000", "LISTEN_FDS=1", "LISTEN_FDNAMES=submit")
		cmd.Stderr = v
		cmd.ExtraFiles = []*os.File{s.listener}
		cmd.WaitDelay = 10 * time.Second
		if err := cmd.Start(); err != nil {
			s.m.t.Error(err)
			return
		}
		v.process = cmd.Process
		s.mu.Lock()
		s.starts, s.current = append(s.starts, why), v
		s.mu.Unlock()
		go func() {
			<-ctx.Done()
			_ = v.process.Signal(syscall.SIGTERM)
		}()
		err := cmd.Wait()
		s.mu.Lock()
		s.current = nil
		s.log.WriteString(v.log())
		s.mu.Unlock()
		if err != nil && ctx.Err() == nil && !errors.Is(err, context.Canceled) {
			s.m.t.Errorf("the service ended with %v\n%s", err, v.log())
			return
		}
		ended = time.Now()
	}
}

// snapshot returns whether a service runs, why all were started, and their log.
func (s *systemd) snapshot() (running bool, starts []string, log string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	log = s.log.String()
	if s.current != nil {
		log += s.current.log()
	}
	return s.current != nil, append([]string(nil), s.starts...), log
}

// await waits until ok holds, two minutes at most.
func (s *systemd) await(what string, ok func() bool) {
	s.m.t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(30 * time.Millisecond) {
		if time.Now().After(end) {
			_, starts, log := s.snapshot()
			s.m.t.Fatalf("no %s; started for %q, queued %q\n%s", what, starts, s.m.queued(), log)
		}
	}
}

// idles waits until no process of dma runs.
func (s *systemd) idles() {
	s.m.t.Helper()
	s.await("end of the service", func() bool { running, _, _ := s.snapshot(); return !running })
	s.m.nobodyLeft()
}

// drainChannel takes out what is in a channel.
func drainChannel(c <-chan struct{}) {
	for {
		select {
		case <-c:
		default:
			return
		}
	}
}

// TestOnDemand: a service that is started when there is something to do ends by
// itself when there is not, and no mail is overlooked at the moment when it ends.
func TestOnDemand(t *testing.T) {
	m := newMachine(t, "RETRY_MIN 20s", "RETRY_MAX 30s") // longer than a service waits for more
	m.own("carol", ".forward", "\"|test -e /home/carol/ready || exit 75; cat > /home/carol/copy.old\"\n", 0o644)
	s := m.newSystemd(3 * time.Second)
	got := func(subject string) func() bool {
		return func() bool { return subjects(m.mailbox("bob"))[subject] == 1 }
	}
	m.nobodyLeft()
	m.submit("alice", "door 1", "bob", "friend@example.org")
	s.await("mail by the first door", got("door 1"))
	s.idles()
	m.as("alice", "Subject: door 2\n\n", barred(dmaFile, "bob")...).want(t, 0)
	s.await("mail by the second door", got("door 2"))
	// At the moment when it ends: as its processes go, and when it says so.
	for i := range 4 {
		drainChannel(s.stopping)
		s.await("service", func() bool { running, _, _ := s.snapshot(); return running })
		if i%2 == 0 {
			s.await("end of the queue process", func() bool {
				_, found := m.find("role-queue")
				running, _, _ := s.snapshot()
				return !found || !running
			})
		} else {
			select {
			case <-s.stopping:
			case <-time.After(time.Minute):
				_, starts, log := s.snapshot()
				t.Fatalf("%d: the service does not say that it ends; started for %q\n%s", i, starts, log)
			}
		}
		m.submit("alice", fmt.Sprint("late 1 ", i), "bob")
		m.as("alice", fmt.Sprintf("Subject: late 2 %d\n\n", i), barred(dmaFile, "bob")...).want(t, 0)
		s.await("late mail", func() bool { return got(fmt.Sprint("late 1 ", i))() && got(fmt.Sprint("late 2 ", i))() })
	}
	s.idles()
	// A retry that is due when nothing runs.
	m.submit("alice", "waits", "carol+x.new")
	s.await("mail that waits", func() bool { return len(m.in("tempfail")) == 1 })
	if name := m.in("tempfail")[0]; !backup(name) {
		t.Errorf("%s would not be overlooked", name)
	}
	s.idles()
	m.own("carol", "ready", "", 0o644)
	s.await("delivery of mail that waited", func() bool { _, err := os.Stat("/home/carol/copy.old"); return err == nil && len(m.queued()) == 0 })
	s.idles()
	// What a submitter leaves in new that was killed has the service stay, instead
	// of being started again and again, and end when it has gone.
	left := filepath.Join(spoolDir, "new", "20260101T000000-0123456789abcdef.1-bob")
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.await("service", func() bool { running, _, _ := s.snapshot(); return running })
	_, before, _ := s.snapshot()
	for i := range 3 {
		m.submit("alice", fmt.Sprint("beside ", i), "bob")
		s.await("mail beside it", got(fmt.Sprint("beside ", i)))
	}
	if err := os.Remove(left); err != nil {
		t.Fatal(err)
	}
	s.idles()
	_, starts, log := s.snapshot()
	if len(starts) != len(before) {
		t.Errorf("started for %q beside what was left in new", starts[len(before):])
	}
	t.Logf("started for %q", starts)
	reasons := strings.Join(starts, " ")
	if !strings.Contains(reasons, "new") || !strings.Contains(reasons, "socket") || !strings.Contains(reasons, "timer") {
		t.Errorf("started for %q", starts)
	}
	s.mu.Lock()
	count := make(map[string]int)
	for _, line := range strings.Split(strings.Join(s.said, "\n"), "\n") {
		if key, _, ok := strings.Cut(line, "="); ok {
			count[key]++
		}
	}
	s.mu.Unlock()
	t.Logf("the manager was told %v", count)
	if count["READY"] != len(starts) || count["STOPPING"] != len(starts) {
		t.Errorf("%d starts, and the manager was told %v", len(starts), count)
	}
	if count["WATCHDOG"] == 0 || count["WATCHDOG"] > 10*len(starts) {
		t.Errorf("the watchdog was fed %d times in %d starts", count["WATCHDOG"], len(starts))
	}
	if strings.Contains(log, "worker-trouble") {
		t.Errorf("trouble\n%s", log)
	}
	if len(m.sink.Transactions()) != 1 {
		t.Errorf("%d messages at the smarthost", len(m.sink.Transactions()))
	}
}
