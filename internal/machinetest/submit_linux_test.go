package machinetest

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// submissions are messages to bob with numbers, and what their callers were
// told.
type submissions struct {
	m    *machine
	body string
	what []string
	must []bool // it was said to be queued
	may  []bool // it may be queued
}

// text returns the next message.
func (s *submissions) text() string {
	return fmt.Sprintf("Subject: submission %d\n\n%sthe end\n", len(s.what), s.body)
}

// told records how the last one went. Status 0 means queued, one of sysexits
// that nothing was; who was killed can't know.
func (s *submissions) told(what string, state *os.ProcessState) {
	s.what = append(s.what, fmt.Sprintf("%s: %v", what, state))
	code := state.ExitCode()
	s.must = append(s.must, code == 0)
	s.may = append(s.may, code == 0 || code < 0)
}

// check waits until the queue is empty and compares bob's mailbox with what the
// callers were told. It returns how many arrived.
func (s *submissions) check(v *service) int {
	t := s.m.t
	t.Helper()
	v.await("all delivered", func() bool {
		for _, name := range s.m.queued() {
			// What a killed submitter left is no message; it goes after a day.
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join(spoolDir, name), &st); err != nil || st.Mode&0o777 != 0o600 {
				return false // it waits, or moves on
			}
		}
		return true
	})
	if c := s.m.in("corrupt"); len(c) > 0 {
		t.Errorf("corrupt: %q", c)
	}
	box := s.m.mailbox("bob")
	arrived := 0
	for i, what := range s.what {
		head := fmt.Sprintf("\nSubject: submission %d\n", i)
		n := strings.Count(box, head)
		arrived += n
		switch {
		case n > 1:
			t.Errorf("%s: it arrived %d times", what, n)
		case n == 0 && s.must[i]:
			t.Errorf("%s: it did not arrive", what)
		case n == 1 && !s.may[i]:
			t.Errorf("%s: it arrived", what)
		}
		if n == 1 {
			_, rest, _ := strings.Cut(box, head)
			_, rest, _ = strings.Cut(rest, "\n\n")
			if !strings.HasPrefix(rest, s.body+"the end\n") {
				t.Errorf("%s: it arrived in part: %.100q", what, rest)
			}
		}
	}
	if n := strings.Count("\n"+box, "\nFrom "); n != arrived {
		t.Errorf("%d messages in the mailbox, %d are known", n, arrived)
	}
	return arrived
}

// shell runs dma as alice, behind shell commands that change what it inherits.
func (s *submissions) shell(before, after string) {
	s.m.t.Helper()
	cmd := s.m.command("alice", "/bin/sh", "-c", before+"\nexec "+dmaFile+" -f alice@host.example bob "+after)
	s.do("sh: "+before+" "+after, cmd)
}

func (s *submissions) do(what string, cmd *exec.Cmd) {
	s.m.t.Helper()
	cmd.Stdin = strings.NewReader(s.text())
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); cmd.ProcessState == nil {
		s.m.t.Fatalf("%s: %v", what, err)
	}
	s.told(what, cmd.ProcessState)
}

// TestSubmitLimits submits with limits, signals and descriptors as no caller
// should have them. What was said to be queued arrives whole, and nothing else
// arrives.
func TestSubmitLimits(t *testing.T) {
	for _, size := range []int{1, 40_000, 3_000_000} {
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			m := newMachine(t)
			v := m.start()
			s := &submissions{m: m, body: strings.Repeat("a line of text\n", size/15)}
			actor := m.actor()
			for _, blocks := range []string{"0", "1", "2", "4", "60", "100", "5000", "6500"} {
				s.shell("ulimit -f "+blocks, "")
				s.shell("trap '' XFSZ\nulimit -f "+blocks, "")
			}
			for n := range 14 {
				s.shell(fmt.Sprintf("ulimit -n %d", n), "")
			}
			for _, kib := range []string{"1000", "100000", "500000", "800000", "1000000", "1500000"} {
				s.shell("ulimit -v "+kib, "")
			}
			s.shell("ulimit -d 100", "")
			s.shell("ulimit -s 100", "")
			s.shell("ulimit -l 0", "")
			s.shell("ulimit -t 0", "")
			s.shell("ulimit -t 1", "")
			s.shell("trap '' HUP INT QUIT TERM PIPE ALRM USR1 USR2 XCPU XFSZ CHLD TSTP TTIN TTOU WINCH", "")
			s.shell("umask 0", "")
			s.shell("umask 777", "")
			s.do("all signals blocked", m.command("alice", actor, "block", dmaFile, "-f", "alice@host.example", "bob"))
			for _, after := range []string{"1>&-", "2>&-", "1>&- 2>&-", "1>/dev/full 2>/dev/full", "-v 2>/dev/full", "-v 1>&- 2>&-", "-v 2>&-", "3<&0 4<&0 9>/dev/null"} {
				s.shell("", after)
			}
			said := 0
			for _, ok := range s.must {
				if ok {
					said++
				}
			}
			if arrived := s.check(v); arrived < said || said < 20 {
				t.Errorf("%d said, %d arrived", said, arrived)
			}
			t.Logf("%d submissions, %d taken", len(s.what), said)

			// Without an input there is no message of it, and none of what stands
			// in the way.
			before := strings.Count(m.mailbox("bob"), "Return-Path:")
			for _, closed := range []string{"0<&-", "0<&- 1>&-", "0<&- 2>&-", "0<&- 1>&- 2>&-", "-v 0<&- 2>&-"} {
				r := m.as("alice", "", "/bin/sh", "-c", "exec "+dmaFile+" -f alice@host.example bob "+closed)
				if r.code == 0 {
					before++
				}
			}
			v.empties(m)
			if n := strings.Count(m.mailbox("bob"), "Return-Path:"); n != before {
				t.Errorf("without an input: %d messages, want %d", n, before)
			}
			if strings.Contains(m.mailbox("bob"), "queued as") {
				t.Error("what is said to the caller stands in a message")
			}
			v.stop()
		})
	}
}

// TestSubmitSignals sends signals to submissions: while they read, and at any
// moment.
func TestSubmitSignals(t *testing.T) {
	m := newMachine(t)
	v := m.start()
	s := &submissions{m: m, body: strings.Repeat("a line of text\n", 3000)}
	signals := []syscall.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGKILL, unix.SIGPIPE, unix.SIGALRM, unix.SIGUSR1, unix.SIGABRT,
		unix.SIGSEGV, unix.SIGBUS, unix.SIGXCPU, unix.SIGXFSZ, unix.SIGPROF, unix.SIGURG, unix.SIGCHLD, unix.SIGWINCH, unix.SIGSTOP,
	}
	for _, sig := range signals {
		cmd := m.command("alice", dmaFile, "-f", "alice@host.example", "bob")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		cmd.Env = append(cmd.Env, "GOTRACEBACK=crash")
		in, err := cmd.StdinPipe()
		m.do(err)
		m.do(cmd.Start())
		text := s.text()
		_, _ = io.WriteString(in, text[:len(text)/2])
		m.do(cmd.Process.Signal(sig))
		if sig == unix.SIGSTOP {
			m.do(cmd.Process.Signal(unix.SIGCONT))
		}
		_, _ = io.WriteString(in, text[len(text)/2:])
		in.Close()
		_ = cmd.Wait()
		s.told(unix.SignalName(sig)+" while it reads", cmd.ProcessState)
		for _, word := range []string{"rip ", "rsp ", "goroutine ", "0x"} {
			if strings.Contains(stderr.String(), word) {
				t.Errorf("%v: the program shows its inside: %.300s", sig, stderr.String())
				break
			}
		}
		if cmd.ProcessState.Sys().(syscall.WaitStatus).CoreDump() {
			t.Errorf("%v: the program leaves a core", sig)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 150 {
		sig := []syscall.Signal{unix.SIGKILL, unix.SIGTERM, unix.SIGINT}[i%3]
		cmd := m.command("alice", dmaFile, "-f", "alice@host.example", "bob")
		cmd.Stdin = strings.NewReader(s.text())
		m.do(cmd.Start())
		time.Sleep(time.Duration(random.IntN(40_000)) * time.Microsecond)
		_ = cmd.Process.Signal(sig)
		_ = cmd.Wait()
		s.told(unix.SignalName(sig), cmd.ProcessState)
	}
	said := 0
	for _, ok := range s.must {
		if ok {
			said++
		}
	}
	t.Logf("%d submissions, %d said to be taken, %d arrived", len(s.what), said, s.check(v))
	v.stop()
}

// spooled lists everything in the directories that submitters reach.
func (m *machine) spooled() []string {
	m.t.Helper()
	var out []string
	for _, dir := range []string{"tmp", "new"} {
		entries, err := os.ReadDir(filepath.Join(spoolDir, dir))
		m.do(err)
		for _, e := range entries {
			out = append(out, dir+"/"+e.Name())
		}
	}
	return out
}

// TestSubmitGroup has a user try to get at the spool's group, which the program
// lends: by a configuration, by hand, and through the running program.
func TestSubmitGroup(t *testing.T) {
	m := newMachine(t)
	m.own("alice", "real.conf", "SPOOLDIR "+spoolDir+"\nSOCKET /nonexistent\n", 0o644)
	m.own("alice", "links.conf", "SPOOLDIR /home/alice/spool\nSOCKET /nonexistent\n", 0o644)
	m.do(os.Mkdir("/home/alice/spool", 0o755))
	a := lookup(t, "alice")
	m.do(os.Chown("/home/alice/spool", a.uid, a.gid))
	for _, dir := range []string{"tmp", "new", "forwarding", "local", "remote", "tempfail", "permfail", "sent", "hold", "corrupt", "log"} {
		m.do(os.Symlink(filepath.Join(spoolDir, dir), "/home/alice/spool/"+dir))
	}
	before := m.spooled()
	const text = "Subject: by another way\n\ntext\n"
	for _, args := range [][]string{
		{"-C", "/home/alice/real.conf", "bob"}, {"-C/home/alice/real.conf", "bob"}, {"-C", "/home/alice/links.conf", "bob"},
		{"-C", "/dev/null", "-O", "QueueDirectory=" + spoolDir, "bob"},
	} {
		if r := m.as("alice", text, append([]string{dmaFile}, args...)...); r.code != 75 || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%s: exit %d: %s", r.what, r.code, r.stderr)
		}
	}
	for _, args := range [][]string{{"-C", "/home/alice/real.conf", "-q"}, {"-C", "/home/alice/links.conf", "-bp"}, {"-bs"}, {"-bi"}} {
		m.as("alice", "EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<bob>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n", append([]string{dmaFile}, args...)...)
	}
	if r := m.as("alice", "", dmaFile, "-bv", "bob"); r.code != 0 || r.stdout != "bob: user\n  (.forward of bob: only bob and root see it)\n" || r.stderr != "" {
		t.Errorf("%s: exit %d: %s%s", r.what, r.code, r.stdout, r.stderr)
	}
	for _, line := range []string{
		"ls %s/new", "ls %s/tmp", "touch %s/new/x", "touch %s/tmp/x", "mkdir %s/new/x", "ln /home/alice/real.conf %s/new/x", "ln -s /etc/shadow %s/tmp/x",
		"cat %s/log/*", "ls %s/local", "rm -rf %s", "mv %s /home/alice/x", "chmod 777 %s/new", "sg dmasubmit -c 'touch %[1]s/new/x'", "newgrp dmasubmit < /dev/null && touch %[1]s/new/x",
	} {
		if r := m.as("alice", "", "/bin/sh", "-c", fmt.Sprintf(line, spoolDir)); r.code == 0 {
			t.Errorf("alice: %s: %s%s", r.what, r.stdout, r.stderr)
		}
	}
	if after := m.spooled(); strings.Join(after, "\n") != strings.Join(before, "\n") {
		t.Errorf("in the spool: %q, before: %q", after, before)
	}

	// Under a tracer the kernel lends no group.
	traced := func() (code int) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd := m.command("alice", dmaFile, "bob")
		cmd.SysProcAttr.Ptrace = true
		cmd.Stdin = strings.NewReader(text)
		// A traced program is not the place for the pipes of os/exec.
		in, err := os.CreateTemp("", "dma-machine-input-")
		m.do(err)
		defer os.Remove(in.Name())
		_, err = in.WriteString(text)
		m.do(err)
		_, err = in.Seek(0, io.SeekStart)
		m.do(err)
		defer in.Close()
		cmd.Stdin = in
		m.do(cmd.Start())
		var status syscall.WaitStatus
		_, err = syscall.Wait4(cmd.Process.Pid, &status, 0, nil)
		m.do(err)
		m.do(unix.PtraceDetach(cmd.Process.Pid))
		_ = cmd.Wait()
		return cmd.ProcessState.ExitCode()
	}
	if code := traced(); code != 75 {
		t.Errorf("traced: exit %d", code)
	}

	// The running program: it waits for its input with the group lent.
	cmd := m.command("alice", dmaFile, "bob")
	in, err := cmd.StdinPipe()
	m.do(err)
	m.do(cmd.Start())
	_, err = io.WriteString(in, "Subject: x\n\n"+strings.Repeat("text\n", 100_000)) // it needs a scratch file
	m.do(err)
	pid := cmd.Process.Pid
	if egid := strings.Fields(statusOf(fmt.Sprintf("/proc/%d/status", pid))["Gid"]); len(egid) != 4 || egid[1] != strconv.Itoa(submitGroup) {
		t.Errorf("the program's groups: %q", egid)
	}
	if r := m.as("alice", "", m.actor(), "ptrace", strconv.Itoa(pid)); r.code == 0 || r.stdout != "" {
		t.Errorf("alice looks into the setgid program: %s", r.stdout)
	}
	for _, line := range []string{"ls /proc/%d/fd", "cat /proc/%d/environ", "ls /proc/%d/root/", "ls /proc/%d/cwd/", "cat /proc/%d/fd/* < /dev/null", "touch /proc/%d/root" + spoolDir + "/new/x"} {
		if r := m.as("alice", "", "/bin/sh", "-c", fmt.Sprintf(line, pid)); r.code == 0 && r.stdout != "" {
			t.Errorf("alice: %s: %s", r.what, r.stdout)
		}
	}
	_ = cmd.Process.Kill()
	in.Close()
	_ = cmd.Wait()
	for _, name := range m.spooled() {
		if strings.HasPrefix(name, "new/") {
			t.Errorf("left in the spool: %s", name)
		}
	}
}

// TestSubmitEnvironment submits with an environment that tells programs, their
// loader, the library or the runtime of Go what to do.
func TestSubmitEnvironment(t *testing.T) {
	m := newMachine(t)
	m.do(os.Mkdir("/home/alice/bin", 0o755))
	for _, name := range []string{"dma-runner", "getent", "id", "sh", "sendmail"} {
		m.own("alice", "bin/"+name, "#!/bin/sh\ntouch /home/alice/canary\n", 0o755)
	}
	m.do(os.Mkdir("/home/alice/tmp", 0o777))
	m.do(os.Chmod("/home/alice/tmp", 0o777))
	m.do(unix.Mknod("/home/alice/fifo", unix.S_IFIFO|0o666, 0))
	m.do(os.Chmod("/home/alice/fifo", 0o666))
	v := m.start()
	before := m.files()
	long := strings.Repeat("a line of text\n", 20_000)
	environments := [][]string{
		{"LD_PRELOAD=/home/alice/evil.so", "LD_LIBRARY_PATH=/home/alice", "LD_AUDIT=/home/alice/evil.so", "LD_DEBUG=all"},
		{"GODEBUG=inittrace=1"}, {"GODEBUG=gctrace=1,schedtrace=1,scheddetail=1"}, {"GODEBUG=execerrdot=0,netdns=go+9"},
		{"GODEBUG=dontfreezetheworld=1,invalidptr=0,asyncpreemptoff=1"},
		{"GODEBUG=sbrk=1,gcstoptheworld=2"},
		{"GOTRACEBACK=crash"}, {"GOGC=1"}, {"GOMEMLIMIT=1"}, {"GOMAXPROCS=1"}, {"GOCOVERDIR=/home/alice/tmp"},
		{"TMPDIR=/home/alice/tmp", "TEMP=/home/alice/tmp"}, {"PATH=/home/alice/bin"}, {"PATH="}, {},
		{"LOGNAME=root", "USER=root", "HOME=/root"}, {"LOGNAME=bob", "USER=bob"}, {"LOGNAME=nobody-of-that-name", "USER=nobody-of-that-name"},
		{"TZ=/home/alice/fifo"}, {"TZ=:/etc/shadow"}, {"TZ=../../../../home/alice/fifo", "ZONEINFO=/home/alice/fifo"},
		{"LOCALDOMAIN=evil.example", "HOSTALIASES=/home/alice/fifo", "RES_OPTIONS=debug", "NLSPATH=/home/alice/%N", "LC_ALL=/home/alice/fifo"},
		{"IFS=/", "ENV=/home/alice/bin/sh", "BASH_ENV=/home/alice/bin/sh", "SHELL=/home/alice/bin/sh"},
		{"MAILNAME=evil.example", "SPOOLDIR=/home/alice/tmp", "DMA_CONFIG=/home/alice/bin/sh", "NOTIFY_SOCKET=/home/alice/fifo", "LISTEN_FDS=3", "LISTEN_PID=1"},
		{strings.Repeat("X", 100_000) + "=" + strings.Repeat("y", 20_000)},
	}
	for i, env := range environments {
		subject := fmt.Sprintf("environment %d", i)
		cmd := m.command("alice", dmaFile, "bob")
		cmd.Env = env
		r := m.run(cmd, "Subject: "+subject+"\n\n"+long)
		if r.code != 0 || r.stdout != "" {
			t.Errorf("%.80q: exit %d: %.300s%.300s", env, r.code, r.stdout, r.stderr)
		}
		if r.stderr != "" {
			t.Logf("%.80q: it says: %.200q", env, r.stderr)
		}
		for _, mode := range []string{"-bp", "-q"} {
			cmd := m.command("alice", dmaFile, mode)
			cmd.Env = env
			if r := m.run(cmd, ""); r.code != 0 || r.stderr != "" && !strings.HasPrefix(env[0], "GO") {
				t.Errorf("%s %.80q: exit %d: %.300s", mode, env, r.code, r.stderr)
			}
		}
		v.await(subject, func() bool { return m.subjects("bob", subject) == 1 })
	}
	v.empties(m)
	box := m.mailbox("bob")
	if n := strings.Count(box, "from userid 2001)"); n != len(environments) {
		t.Errorf("the submitter is alice in %d of %d", n, len(environments))
	}
	if n := strings.Count(box, "\nFrom: Alice <alice@host.example>\n"); n != len(environments) {
		t.Errorf("From is alice in %d of %d", n, len(environments))
	}
	for _, line := range []string{"evil.example", "root@"} {
		if strings.Contains(box, line) {
			t.Errorf("%s is in a message", line)
		}
	}
	for _, changed := range m.changes(before) {
		if changed != "/var/mail" && changed != "/var/mail/bob" {
			t.Errorf("%s was changed", changed)
		}
	}
	v.stop()
}
