package parent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"dma/agent"
	"dma/internal/crashtest"
	"dma/internal/maillog"
	"dma/internal/wire"
)

// parentEnv tells the test binary to be a parent for the folder that it names.
const parentEnv = "DMA_TEST_PARENT"

// TestMain also is the program that the parent of these tests starts.
func TestMain(m *testing.M) {
	role := ""
	if len(os.Args) > 1 && strings.HasPrefix(os.Args[0], "dma-runner: ") {
		role = os.Args[1]
	}
	var err error
	switch dir := os.Getenv(parentEnv); {
	case role == RoleQueue || role == RoleNet:
		err = testWorker(role)
	case role == RoleAgent:
		err = testAgent()
	case dir != "":
		err = testParent(dir)
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Args, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// testParent is the parent.
func testParent(dir string) error {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	door, err := net.Listen("unix", filepath.Join(dir, "door"))
	if err != nil {
		return err
	}
	file, err := door.(*net.UnixListener).File()
	if err != nil {
		return err
	}
	o := Options{
		Queue: Account{UID: queueUID, GID: mailGID, Groups: []int{mailGID}}, Net: Account{UID: netUID, GID: mailGID, Groups: []int{mailGID}},
		QueueSetup: []byte(dir), NetSetup: []byte(dir), Env: []string{"DMA_TEST=1"}, Door: file,
		RunDir: filepath.Join(dir, "run"), Users: users(), Grace: time.Second, Hangup: hangup,
		Agent:       agent.Setup{Mailbox: "mbox:" + dir + "/mail/%u", MinUID: 1000, HostName: dir},
		PasswordCmd: `read -r _ _ _ _ _ sid _ < /proc/$$/stat; echo "$LOGIN@$HOST $(id -u) $((sid == $$))"`, TokenUser: "ann",
		Log: maillog.New(slog.New(maillog.NewHandler(os.Stderr, nil))),
	}
	o.Reload = func() (Options, error) { return o, nil }
	deny := make(chan os.Signal, 1)
	signal.Notify(deny, syscall.SIGUSR1)
	go func() {
		<-deny
		if err := denyUsers(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}()
	// As if it were inherited: a descriptor beyond the limit.
	if err := unix.Dup3(0, 300, 0); err != nil {
		return err
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 256, Max: 256}); err != nil {
		return err
	}
	return Run(ctx, o)
}

// denyUsers makes every change of the uid fail from now on, in this process and its
// children.
func denyUsers() error {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}} // the number of the call
	for _, call := range []uint32{unix.SYS_SETUID, unix.SYS_SETREUID, unix.SYS_SETRESUID} {
		filter = append(filter,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: call, Jf: 1},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)})
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return errno
	}
	return nil
}

// descriptors writes down which descriptors this process was started with.
func descriptors(dir, name string, open []string) error {
	return os.WriteFile(filepath.Join(dir, "fds."+name), []byte(strings.Join(open, " ")), 0o666)
}

// openDescriptors leaves those out that the Go runtime opens.
func openDescriptors() (open []string) {
	for fd := range 1024 {
		if link, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); strings.HasPrefix(link, "anon_inode:") || strings.HasPrefix(link, "/sys/") {
			continue
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			open = append(open, strconv.Itoa(fd))
		}
	}
	return open
}

// testWorker does what it is told over a socket.
func testWorker(role string) error {
	open := openDescriptors()
	c, err := Connect()
	if err != nil {
		return err
	}
	setup, err := ReadSetup()
	if err != nil {
		return err
	}
	dir := string(setup)
	if err := descriptors(dir, role, open); err != nil {
		return err
	}
	path := filepath.Join(dir, role+".socket")
	os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			line, _ := bufio.NewReader(conn).ReadString('\n')
			fmt.Fprintln(conn, obey(c, strings.Fields(line)))
			conn.Close()
		}
	}()
	c.Ready(Work{})
	select {
	case <-c.Done():
	case <-Life():
	}
	return nil
}

var kept []*wire.Conn // our ends of the agents' connections

func obey(c *Client, words []string) string {
	ctx := context.Background()
	var err error
	text := "ok"
	switch words[0] {
	case "start":
		var conn *wire.Conn
		if conn, err = c.StartAgent(ctx, words[1], agent.Role(words[2])); err == nil {
			kept = append(kept, conn)
		}
	case "stop":
		err = c.StopAgent(ctx, words[1], agent.Role(words[2]))
	case "close":
		for _, f := range kept {
			f.Close()
		}
		kept = nil
	case "password":
		text, err = c.Password(ctx, "joe", "host")
	case "garbage":
		err = c.conn.Send([]byte("garbage"))
	}
	if err != nil {
		return err.Error()
	}
	return text
}

// testAgent lives until its connection or its life ends. For ann it runs a
// command in a process group of its own.
func testAgent() error {
	open := openDescriptors()
	conn, err := wire.Inherited(3)
	if err != nil {
		return err
	}
	setup, err := agent.ReadSetup(os.NewFile(4, "setup"))
	if err != nil {
		return err
	}
	for fd := 5; fd < 8; fd++ {
		unix.CloseOnExec(fd)
	}
	life := Life()
	if setup.MailFile {
		if _, err := os.NewFile(7, "mail").WriteString("for root\n"); err != nil {
			return err
		}
	}
	var cmd *exec.Cmd
	if setup.User.Name == "ann" && setup.Role == agent.UserRole {
		cmd = exec.Command("/bin/sleep", "1000")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			return err
		}
	}
	if err := descriptors(setup.HostName, setup.User.Name+"."+string(setup.Role), open); err != nil {
		return err
	}
	gone := make(chan struct{})
	go func() { conn.Receive(1, 0); close(gone) }()
	select {
	case <-gone:
	case <-life:
	}
	if cmd != nil {
		cmd.Process.Kill()
	}
	return nil
}

// site is a parent that runs, seen from outside.
type site struct {
	t   *testing.T
	dir string
	cmd *exec.Cmd
}

func newSite(t *testing.T, mailMode uint32, mailGID int) *site {
	t.Helper()
	var unavailable error
	if os.Geteuid() != 0 {
		unavailable = errors.New("not root")
	}
	crashtest.Need(t, unavailable)
	dir, err := os.MkdirTemp("/var/tmp", "dma-parent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &site{t: t, dir: dir}
	mail := filepath.Join(dir, "mail")
	for _, err := range []error{unix.Chmod(dir, 0o1777), os.Mkdir(mail, 0o755), os.Chown(mail, 0, mailGID), unix.Chmod(mail, mailMode)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s.cmd = exec.Command(testProgram(t))
	s.cmd.Env = append(os.Environ(), parentEnv+"="+dir, "TZ=Europe/Oslo", "LANG=C.UTF-8", "SECRET=1")
	s.cmd.Stderr = terminal(t)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		pids := s.processes()
		s.cmd.Process.Kill()
		s.cmd.Wait()
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	s.until("both workers", func() bool { return s.ask(RoleQueue, "x") == "ok" && s.ask(RoleNet, "x") == "ok" })
	return s
}

// terminal returns a terminal that shows what is written to it on our standard
// error.
func terminal(t *testing.T) *os.File {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	go func() {
		defer master.Close()
		io.Copy(os.Stderr, master) // until nobody has the other side open
	}()
	return slave
}

// testProgram returns the program of these tests, without cgo, as it is
// installed: with cgo nothing can be given up on all threads.
func testProgram(t *testing.T) string {
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_GETPID, 0, 0, 0); errno == 0 {
		return "/proc/self/exe"
	}
	program := filepath.Join(t.TempDir(), "parent.test")
	build := exec.Command("go", "test", "-c", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return program
}

// until waits until something is true.
func (s *site) until(what string, f func() bool) {
	s.t.Helper()
	for end := time.Now().Add(limit); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("never: %s; %v", what, s.processes())
		}
	}
}

// ask has a worker do something.
func (s *site) ask(role, line string) string {
	conn, err := net.Dial("unix", filepath.Join(s.dir, role+".socket"))
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(limit))
	fmt.Fprintln(conn, line)
	answer, err := io.ReadAll(conn)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(answer))
}

func (s *site) expect(line, want string) {
	s.t.Helper()
	if got := s.ask(RoleQueue, line); got != want {
		s.t.Errorf("%s: %s; want %s", line, got, want)
	}
}

// processes returns the children of the parent by their titles, and what they
// run.
func (s *site) processes() map[string]int {
	found := map[string]int{}
	for _, pid := range processes() {
		title, _, _ := strings.Cut(read(fmt.Sprintf("/proc/%d/cmdline", pid)), "\x00")
		state := fields(pid)
		if state["PPid"] == strconv.Itoa(s.cmd.Process.Pid) && !strings.HasPrefix(state["State"], "Z") {
			found[title] = pid
		}
	}
	return found
}

func read(path string) string {
	b, _ := os.ReadFile(path)
	return string(b)
}

// fields are the lines of /proc/PID/status.
func fields(pid int) map[string]string {
	f := map[string]string{}
	for line := range strings.Lines(read(fmt.Sprintf("/proc/%d/status", pid))) {
		key, value, _ := strings.Cut(line, ":")
		f[key] = strings.Join(strings.Fields(value), " ")
	}
	return f
}

func alive(pid int) bool {
	state := fields(pid)["State"]
	return state != "" && !strings.HasPrefix(state, "Z")
}

// TestSystemProcesses reads from /proc what the processes are.
func TestSystemProcesses(t *testing.T) {
	s := newSite(t, 0o2775, 8)
	for _, line := range []string{"start ann user", "start ann mailbox", "start bob mailbox", "start root mailbox"} {
		s.expect(line, "ok")
	}
	for _, name := range []string{"ann.user", "ann.mailbox", "bob.mailbox", "root.mailbox"} {
		s.until("fds of "+name, func() bool { return read(filepath.Join(s.dir, "fds."+name)) != "" })
	}
	const path = "PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin\x00TZ=Europe/Oslo\x00LANG=C.UTF-8\x00"
	all := s.processes()
	for _, tt := range []struct {
		title, fds, open string
		uid, gid, groups string
		env              string
	}{
		{"dma-runner: queue", RoleQueue, "0 1 2 3 4 5 6 7 8", "601", "603", "603", path + "DMA_TEST=1\x00"},
		{"dma-runner: net", RoleNet, "0 1 2 3 4 5 6 7 8", "602", "603", "603", path + "DMA_TEST=1\x00"},
		{"dma-runner: agent bob mailbox", "bob.mailbox", "0 1 2 3 4 5 6", "5001", "8", "", path},
		{"dma-runner: agent root mailbox", "root.mailbox", "0 1 2 3 4 5 6 7", "65534", "8", "", path},
		{"dma-runner: agent ann user", "ann.user", "0 1 2 3 4 5 6", "5000", "5000", "5000 7000", path},
	} {
		pid := all[tt.title]
		f := fields(pid)
		ids := func(id string) string { return strings.Join([]string{id, id, id, id}, " ") }
		if f["Uid"] != ids(tt.uid) || f["Gid"] != ids(tt.gid) || f["Groups"] != tt.groups {
			t.Errorf("%s: uid %s, gid %s, groups %s", tt.title, f["Uid"], f["Gid"], f["Groups"])
		}
		for _, c := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
			if f[c] != "0000000000000000" {
				t.Errorf("%s: %s %s", tt.title, c, f[c])
			}
		}
		if f["CapBnd"] != "00000000000000e0" && f["CapBnd"] != "00000000000000e1" {
			t.Errorf("%s: CapBnd %s", tt.title, f["CapBnd"])
		}
		if f["Umask"] != "0077" {
			t.Errorf("%s: umask %s", tt.title, f["Umask"])
		}
		if open := read(filepath.Join(s.dir, "fds."+tt.fds)); open != tt.open {
			t.Errorf("%s: descriptors %s; want %s", tt.title, open, tt.open)
		}
		// Of the terminal of root workers have the end to write to.
		if flags := read(fmt.Sprintf("/proc/%d/fdinfo/2", pid)); !strings.Contains(tt.title, "agent") && !regexp.MustCompile(`(?m)^flags:\t0[0-7]*1$`).MatchString(flags) {
			t.Errorf("%s: standard error is open as %s", tt.title, flags)
		}
		// The lock of a user is not to be written to.
		if flags := read(fmt.Sprintf("/proc/%d/fdinfo/6", pid)); strings.Contains(tt.title, "agent") && !regexp.MustCompile(`(?m)^flags:\t0[0-7]*0$`).MatchString(flags) {
			t.Errorf("%s: the lock is open as %s", tt.title, flags)
		}
		if env := read(fmt.Sprintf("/proc/%d/environ", pid)); env != tt.env {
			t.Errorf("%s: environment %q", tt.title, env)
		}
		if cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); cwd != "/" {
			t.Errorf("%s: in %s", tt.title, cwd)
		}
		if sid, _ := unix.Getsid(pid); sid != pid {
			t.Errorf("%s: session %d of %d", tt.title, sid, pid)
		}
		if !strings.Contains(read(fmt.Sprintf("/proc/%d/limits", pid)), "Max core file size        0                    0") {
			t.Errorf("%s: cores", tt.title)
		}
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", s.cmd.Process.Pid))
	if err != nil || len(tasks) < 3 {
		t.Fatal(len(tasks), err)
	}
	for _, task := range tasks {
		tid, _ := strconv.Atoi(task.Name())
		f := fields(tid)
		if f["Uid"] != "0 0 0 0" || f["CapEff"] != "00000000000000e1" || f["CapPrm"] != f["CapEff"] || f["CapBnd"] != f["CapEff"] || f["CapInh"] != "0000000000000000" {
			t.Errorf("thread %d of the parent: %s %s %s", tid, f["Uid"], f["CapEff"], f["CapBnd"])
		}
	}
	if mail := read(filepath.Join(s.dir, "mail/root")); mail != "for root\n" {
		t.Errorf("root's mailbox: %q", mail)
	}
	if got := s.ask(RoleNet, "password"); got != "joe@host 5000 1" { // in a session of its own
		t.Errorf("password: %s", got)
	}
}

// TestSystemMailbox: where a user cannot make a mailbox, it is made.
func TestSystemMailbox(t *testing.T) {
	s := newSite(t, 0o755, 0)
	mail := func(name string) string { return filepath.Join(s.dir, "mail", name) }
	if err := os.WriteFile(mail("bob"), nil, 0o600); err != nil { // what a killed parent leaves
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/shadow", mail("daemon")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(mail("list"), []byte("x"), 0o600); err != nil { // not ours to give away
		t.Fatal(err)
	}
	shadow, err := os.Stat("/etc/shadow")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ann", "bob", "daemon", "list"} {
		s.expect("start "+name+" mailbox", "ok")
	}
	for name, uid := range map[string]uint32{"ann": 5000, "bob": 5001, "list": 0, "daemon": 0} {
		var st unix.Stat_t
		if err := unix.Lstat(mail(name), &st); err != nil || st.Uid != uid {
			t.Errorf("%s: uid %d, mode %o, %v", name, st.Uid, st.Mode, err)
		} else if name == "ann" && (st.Gid != 5000 || st.Mode != unix.S_IFREG|0o600) {
			t.Errorf("%s: gid %d, mode %o", name, st.Gid, st.Mode)
		}
	}
	after, err := os.Stat("/etc/shadow")
	if err != nil || after.Sys().(*syscall.Stat_t).Uid != shadow.Sys().(*syscall.Stat_t).Uid || after.Size() != shadow.Size() {
		t.Error("/etc/shadow has changed")
	}
	// Root's mailbox is a file of root with one name, or there is no writer.
	for _, make := range []func(string) error{
		func(p string) error { return os.Symlink("/etc/shadow", p) },
		func(p string) error { return os.Link(mail("list"), p) },
		func(p string) error { return unix.Mkfifo(p, 0o600) },
		func(p string) error { return os.Mkdir(p, 0o700) },
		func(p string) error {
			return errors.Join(os.WriteFile(p, nil, 0o600), os.Chown(p, 5000, 0))
		},
	} {
		if err := make(mail("root")); err != nil {
			t.Fatal(err)
		}
		if got := s.ask(RoleQueue, "start root mailbox"); !strings.HasSuffix(got, "mail/root: not a regular file of root with one name") {
			t.Errorf("root: %s", got)
		}
		if err := os.RemoveAll(mail("root")); err != nil {
			t.Fatal(err)
		}
	}
	s.expect("start root mailbox", "ok")
	s.expect("start root user", "not served: nothing runs as root; name a person in the aliases")
	s.until("root's mail", func() bool { return read(mail("root")) == "for root\n" })
	// A directory that somebody else decides about.
	if err := os.Chmod(filepath.Dir(mail("x")), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Dir(mail("x")), 5001, 0); err != nil {
		t.Fatal(err)
	}
	s.expect("stop root mailbox", "ok")
	if got := s.ask(RoleQueue, "start root mailbox"); !strings.Contains(got, "is not in root's hands") {
		t.Errorf("root: %s", got)
	}
	s.expect("start user1 mailbox", "ok")
}

// TestSystemKill kills one process after the other.
func TestSystemKill(t *testing.T) {
	s := newSite(t, 0o1777, 0)
	queue, net := s.processes()["dma-runner: queue"], s.processes()["dma-runner: net"]
	s.expect("start ann user", "ok")
	s.expect("start ann user", agent.ErrBusy.Error())
	s.until("command", func() bool { return read(filepath.Join(s.dir, "fds.ann.user")) != "" })
	ann := s.processes()["dma-runner: agent ann user"]
	command := children(ann)
	if len(command) != 1 {
		t.Fatalf("the agent runs %v", command)
	}
	s.expect("stop ann user", "ok")
	if alive(ann) {
		t.Error("the agent lives")
	}
	s.until("end of the command of a killed agent", func() bool { return !alive(command[0]) })

	s.expect("start bob user", "ok")
	bob := s.processes()["dma-runner: agent bob user"]
	syscall.Kill(bob, syscall.SIGSTOP)
	s.expect("stop bob user", "ok")
	s.expect("start bob user", "ok")
	bob = s.processes()["dma-runner: agent bob user"]
	syscall.Kill(bob, syscall.SIGSTOP)
	syscall.Kill(queue, syscall.SIGKILL)
	s.until("end of the agents of a killed queue process", func() bool { return !alive(bob) })
	s.until("another queue process", func() bool { p := s.processes()["dma-runner: queue"]; return p != 0 && p != queue })
	if s.processes()["dma-runner: net"] != net {
		t.Error("the net process was restarted")
	}
	s.until("an answer", func() bool { return s.ask(RoleQueue, "x") == "ok" })

	syscall.Kill(net, syscall.SIGKILL)
	s.until("another net process", func() bool { p := s.processes()["dma-runner: net"]; return p != 0 && p != net })
	s.until("an answer", func() bool { return s.ask(RoleNet, "x") == "ok" })
	s.ask(RoleNet, "garbage")
	net = s.processes()["dma-runner: net"]
	s.until("another net process", func() bool { p := s.processes()["dma-runner: net"]; return p != 0 && p != net })
	s.until("an answer", func() bool { return s.ask(RoleNet, "x") == "ok" })

	queue = s.processes()["dma-runner: queue"]
	s.cmd.Process.Signal(syscall.SIGHUP)
	s.until("another queue process", func() bool { p := s.processes()["dma-runner: queue"]; return p != 0 && p != queue })
	s.until("an answer", func() bool { return s.ask(RoleQueue, "x") == "ok" })

	os.Remove(filepath.Join(s.dir, "fds.ann.user"))
	s.expect("start ann user", "ok")
	s.until("command", func() bool { return read(filepath.Join(s.dir, "fds.ann.user")) != "" })
	all := s.processes()
	all["command"] = children(all["dma-runner: agent ann user"])[0]
	s.cmd.Process.Kill()
	s.cmd.Wait()
	for title, pid := range all {
		s.until("end of "+title, func() bool { return !alive(pid) })
	}
}

func children(pid int) (found []int) {
	for _, p := range processes() {
		if fields(p)["PPid"] == strconv.Itoa(pid) {
			found = append(found, p)
		}
	}
	return found
}

// TestSystemStop: processes that do not heed the end are killed.
func TestSystemStop(t *testing.T) {
	s := newSite(t, 0o1777, 0)
	s.expect("start ann user", "ok")
	s.expect("start bob mailbox", "ok")
	all := s.processes()
	if len(all) != 4 {
		t.Errorf("%v", all)
	}
	for _, title := range []string{"dma-runner: net", "dma-runner: agent bob mailbox"} {
		syscall.Kill(all[title], syscall.SIGSTOP)
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	if err := s.cmd.Wait(); err != nil {
		t.Error(err)
	}
	for title, pid := range all {
		if alive(pid) {
			t.Errorf("%s lives", title)
		}
	}
}

// TestSystemRefused: where the kernel does not let a process become its user, or not
// be one process more of that user, nothing runs, it is trouble for now, and the
// place of the agent is free.
func TestSystemRefused(t *testing.T) {
	s := newSite(t, 0o1777, 0)
	pid := s.cmd.Process.Pid
	refused := func(why string) {
		t.Helper()
		for range 2 {
			if got := s.ask(RoleQueue, "start ann user"); !strings.HasSuffix(got, why) || strings.HasPrefix(got, agent.ErrNotServed.Error()) {
				t.Errorf("%s; want %s", got, why)
			}
		}
		for title, pid := range s.processes() {
			if strings.Contains(title, "agent") || fields(pid)["Uid"] == fields(s.cmd.Process.Pid)["Uid"] {
				t.Errorf("%s: %s runs, %s", why, title, fields(pid)["Uid"])
			}
		}
	}
	for range 2 { // the kernel counts those that are there before
		other := exec.Command("/bin/sleep", "1000")
		other.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 5000, Gid: 5000}}
		if err := other.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			other.Process.Kill()
			other.Wait()
		}()
	}
	var before unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NPROC, nil, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NPROC, &unix.Rlimit{Cur: 1, Max: before.Max}, nil); err != nil {
		t.Fatal(err)
	}
	refused(unix.EAGAIN.Error())
	if err := unix.Prlimit(pid, unix.RLIMIT_NPROC, &before, nil); err != nil {
		t.Fatal(err)
	}
	s.expect("start ann user", "ok")
	s.expect("stop ann user", "ok")
	s.cmd.Process.Signal(syscall.SIGUSR1)
	s.until("filter", func() bool { return fields(pid)["Seccomp"] == "2" })
	refused(unix.EPERM.Error())
}

// TestSystemStarts starts many agents, and looks for what is left.
func TestSystemStarts(t *testing.T) {
	s := newSite(t, 0o1777, 0)
	open := func() []string {
		dir, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		var links []string
		for _, e := range dir {
			link, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", s.cmd.Process.Pid, e.Name()))
			link, _, _ = strings.Cut(link, ":")
			links = append(links, link)
		}
		slices.Sort(links)
		return links
	}
	s.expect("start ann mailbox", "ok")
	s.expect("stop ann mailbox", "ok")
	before := open()
	for i := range 100 {
		role := []string{"user", "mailbox"}[i%2]
		user := fmt.Sprintf("user%d", i%20)
		s.expect("start "+user+" "+role, "ok")
		s.expect("stop "+user+" "+role, "ok")
	}
	s.until("no more descriptors", func() bool { return len(open()) <= len(before) })
	if all := s.processes(); len(all) != 2 {
		t.Errorf("%v", all)
	}
}
