package machinetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dma/internal/crashtest"
	"dma/internal/smtptest"
	"dma/spooldir"
)

// Where dma stands on the machine.
const (
	spoolDir  = "/var/spool/dma"
	confFile  = "/etc/dma/dma.conf"
	libexec   = "/opt/dma"
	dmaFile   = libexec + "/dma"
	runnerBin = libexec + "/dma-runner"
	hostName  = "host.example"
)

// machine is a machine with dma installed and the accounts of the package.
type machine struct {
	t         testing.TB
	sink      *smtptest.Sink // the smarthost
	smarthost string         // its address
	confine   *confinement   // of its services; nil: unitConfinement
}

// newMachine makes the machine as new, with lines of dma.conf behind the usual
// ones.
func newMachine(t testing.TB, conf ...string) *machine {
	t.Helper()
	crashtest.Need(t, nil)
	m := &machine{t: t}
	for _, dir := range []string{"/home", "/var/mail", "/var/spool", "/run", "/opt", "/etc/dma"} {
		m.empty(dir)
	}
	m.do(addAccounts())
	m.do(os.Chown("/var/mail", 0, groupOf(t, "mail")))
	m.do(os.Chmod("/var/mail", 0o2775|os.ModeSetgid))
	for _, a := range accounts() {
		if strings.HasPrefix(a.home, "/home/") {
			m.do(os.MkdirAll(a.home, 0o755))
			m.do(os.Chown(a.home, a.uid, a.gid))
		}
	}
	m.install()
	m.sink = smtptest.NewSink(smtptest.SinkOptions{})
	addr, err := m.sink.Listen("127.0.0.1:0")
	m.do(err)
	m.smarthost = addr.String()
	t.Cleanup(func() { m.sink.Close() })
	m.configure(conf...)
	m.write("/etc/aliases", "root: alice\n", 0o644)
	m.root("", runnerBin, "init").want(t, 0)
	return m
}

func (m *machine) do(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// empty makes a directory that is empty.
func (m *machine) empty(dir string) {
	m.t.Helper()
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = os.Mkdir(dir, 0o755)
	}
	m.do(err)
	for _, e := range entries {
		m.do(os.RemoveAll(filepath.Join(dir, e.Name())))
	}
}

// install puts the programs where they belong, as scripts/install does.
func (m *machine) install() {
	m.t.Helper()
	m.do(os.MkdirAll(libexec, 0o755))
	for _, name := range []string{"dma", "dma-runner"} {
		text, err := os.ReadFile(filepath.Join(os.Getenv(dirEnv), "bin", name))
		m.do(err)
		m.write(filepath.Join(libexec, name), string(text), 0o755)
	}
	m.do(os.Chown(dmaFile, 0, submitGroup))
	m.do(os.Chmod(dmaFile, 0o755|os.ModeSetgid))
	for _, name := range []string{"sendmail", "mailq", "newaliases"} {
		m.do(os.Symlink("dma", filepath.Join(libexec, name)))
	}
}

// configure writes dma.conf: host.example with the sink as smarthost, and lines.
func (m *machine) configure(lines ...string) {
	m.t.Helper()
	text := fmt.Sprintf("MAILNAME %s\nSMARTHOST %s\nLOCALDOMAINS local.example\nMINFREE 0\n%s\n", hostName, m.smarthost, strings.Join(lines, "\n"))
	m.write(confFile, text, 0o644)
}

// write makes a file of root's, or replaces it.
func (m *machine) write(path, text string, mode fs.FileMode) {
	m.t.Helper()
	m.do(os.RemoveAll(path))
	m.do(os.WriteFile(path, []byte(text), mode))
	m.do(os.Chmod(path, mode))
}

// read returns what is in a file.
func (m *machine) read(path string) []byte {
	m.t.Helper()
	text, err := os.ReadFile(path)
	m.do(err)
	return text
}

// own writes a file of a user's.
func (m *machine) own(user, path, text string, mode fs.FileMode) {
	m.t.Helper()
	if !filepath.IsAbs(path) {
		path = filepath.Join("/home", user, path)
	}
	m.write(path, text, mode)
	a := lookup(m.t, user)
	m.do(os.Lchown(path, a.uid, a.gid))
}

// lookup returns an account of the package's, or root.
func lookup(t testing.TB, name string) account {
	t.Helper()
	if name == "root" {
		return account{"root", 0, 0, "/root"}
	}
	i := slices.IndexFunc(accounts(), func(a account) bool { return a.name == name })
	if i < 0 {
		t.Fatalf("no account %s", name)
	}
	return accounts()[i]
}

func groupOf(t testing.TB, name string) int {
	t.Helper()
	text, err := os.ReadFile("/etc/group")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Split(line, ":"); f[0] == name {
			gid, err := strconv.Atoi(f[2])
			if err != nil {
				t.Fatal(err)
			}
			return gid
		}
	}
	t.Fatalf("no group %s", name)
	return 0
}

// result is what a program did.
type result struct {
	what   string
	code   int
	stdout string
	stderr string
}

func (r result) want(t testing.TB, code int) result {
	t.Helper()
	if r.code != code {
		t.Fatalf("%s: exit %d, want %d\n%s%s", r.what, r.code, code, r.stdout, r.stderr)
	}
	return r
}

// command is a program run by a user, with the groups of that user.
func (m *machine) command(user string, args ...string) *exec.Cmd {
	m.t.Helper()
	a := lookup(m.t, user)
	cmd := exec.CommandContext(m.t.Context(), args[0], args[1:]...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "USER=" + a.name, "LOGNAME=" + a.name, "HOME=" + a.home}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if a.uid != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid), Groups: groupsOf(a.name)}
	}
	return cmd
}

func groupsOf(name string) []uint32 {
	if name == "alice" || name == "bob" {
		return []uint32{staffGroup}
	}
	return nil
}

// as runs a program as a user.
func (m *machine) as(user, stdin string, args ...string) result {
	m.t.Helper()
	return m.run(m.command(user, args...), stdin)
}

// root runs a program as root.
func (m *machine) root(stdin string, args ...string) result {
	m.t.Helper()
	return m.as("root", stdin, args...)
}

func (m *machine) run(cmd *exec.Cmd, stdin string) result {
	m.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	cmd.WaitDelay = 10 * time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		m.t.Fatalf("%q: %v", cmd.Args, err)
	}
	return result{strings.Join(cmd.Args, " "), cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// submit has a user send a message, which has to be taken.
func (m *machine) submit(user, body string, args ...string) {
	m.t.Helper()
	m.as(user, "Subject: "+body+"\n\n"+body+"\n", append([]string{dmaFile}, args...)...).want(m.t, 0)
}

// retry has the service try everything now, as sendmail -q does, which waits a
// second besides: the service might be ending.
func (m *machine) retry() {
	m.t.Helper()
	s, err := spooldir.Open(spoolDir)
	m.do(err)
	m.do(s.RequestFlush())
}

// service is a running dma-runner.
type service struct {
	t       testing.TB
	process *os.Process
	ended   chan struct{}
	state   *os.ProcessState

	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
}

// Write takes what the service logs.
func (v *service) Write(p []byte) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.text.Write(p)
	close(v.changed)
	v.changed = make(chan struct{})
	return len(p), nil
}

// log returns what the service has logged so far.
func (v *service) log() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.text.String()
}

// await waits until ok holds, a minute at most. It looks again at every line of
// the log, and 20 times a second for what changes without one.
func (v *service) await(what string, ok func() bool) {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.t.Context(), time.Minute)
	defer cancel()
	for {
		v.mu.Lock()
		changed := v.changed
		v.mu.Unlock()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-time.After(50 * time.Millisecond):
		case <-v.ended:
			if !ok() {
				v.t.Fatalf("the service ended before %s\n%s", what, v.log())
			}
			return
		case <-ctx.Done():
			v.t.Fatalf("no %s within a minute\n%s", what, v.log())
		}
	}
}

// awaitLog waits for a text in the log.
func (v *service) awaitLog(text string) {
	v.t.Helper()
	v.await(strconv.Quote(text), func() bool { return strings.Contains(v.log(), text) })
}

// start starts the service, with more in its environment, and returns when it says
// that it is ready. It is stopped when the test ends, at the latest.
func (m *machine) start(env ...string) *service {
	m.t.Helper()
	address := "@dma-machinetest-" + strconv.Itoa(os.Getpid()) + "-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	notify, err := net.ListenPacket("unixgram", address)
	m.do(err)
	defer notify.Close()
	v := m.launch(append(env, "NOTIFY_SOCKET="+address), "run")
	ready := make(chan struct{})
	go func() {
		buf := make([]byte, 4096)
		for {
			n, _, err := notify.ReadFrom(buf)
			if err != nil {
				return
			}
			if slices.Contains(strings.Split(string(buf[:n]), "\n"), "READY=1") {
				close(ready)
				return
			}
		}
	}()
	v.await("READY=1", func() bool {
		select {
		case <-ready:
			return true
		default:
			return false
		}
	})
	return v
}

// startUnready starts the service without waiting for it.
func (m *machine) startUnready() *service {
	m.t.Helper()
	return m.launch(nil, "run")
}

// service is the command line of a service, which has no more than the unit
// leaves to it.
func (m *machine) service(args ...string) []string {
	m.t.Helper()
	if m.confine == nil {
		c := unitConfinement(m.t)
		m.confine = &c
	}
	return m.confined(*m.confine, append([]string{runnerBin}, args...)...)
}

// launch starts dma-runner as root with an addition to its environment.
func (m *machine) launch(env []string, args ...string) *service {
	m.t.Helper()
	v := &service{t: m.t, ended: make(chan struct{}), changed: make(chan struct{})}
	cmd := m.command("root", m.service(args...)...)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stderr = v
	cmd.WaitDelay = 10 * time.Second
	m.do(cmd.Start())
	v.process = cmd.Process
	go func() {
		_ = cmd.Wait()
		v.state = cmd.ProcessState
		close(v.ended)
	}()
	m.t.Cleanup(v.kill)
	return v
}

// stop ends the service in good order, which has to succeed and leave no
// process of dma's behind.
func (v *service) stop() {
	v.t.Helper()
	_ = v.process.Signal(syscall.SIGTERM)
	select {
	case <-v.ended:
	case <-time.After(time.Minute):
		v.t.Fatalf("the service did not stop\n%s", v.log())
	}
	if code := v.state.ExitCode(); code != 0 {
		v.t.Errorf("the service ended with %d\n%s", code, v.log())
	}
}

// kill ends the service with SIGKILL, if it runs.
func (v *service) kill() {
	select {
	case <-v.ended:
		return
	default:
	}
	_ = v.process.Kill()
	<-v.ended
}

// process is a running process of dma-runner.
type process struct {
	pid    int
	name   string            // its first argument
	status map[string]string // /proc/PID/status
}

// processes lists the running processes of dma-runner.
func (m *machine) processes() []process {
	m.t.Helper()
	self, err := os.Stat(runnerBin)
	m.do(err)
	dirs, err := filepath.Glob("/proc/[0-9]*")
	m.do(err)
	var out []process
	for _, dir := range dirs {
		exe, err := os.Stat(dir + "/exe")
		if err != nil || !os.SameFile(exe, self) {
			continue // ended meanwhile, or another program
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		m.do(err)
		cmdline, _ := os.ReadFile(dir + "/cmdline")
		p := process{pid: pid, name: strings.TrimRight(strings.ReplaceAll(string(cmdline), "\x00", " "), " "), status: statusOf(dir + "/status")}
		if p.status["State"] == "" || strings.HasPrefix(p.status["State"], "Z") {
			continue
		}
		out = append(out, p)
	}
	return out
}

// statusOf reads a status file of /proc.
func statusOf(path string) map[string]string {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	out := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		out[key] = strings.Join(strings.Fields(value), " ")
	}
	return out
}

// find returns the process whose command line has the given word.
func (m *machine) find(word string) (process, bool) {
	m.t.Helper()
	for _, p := range m.processes() {
		if slices.Contains(strings.Fields(p.name), word) {
			return p, true
		}
	}
	return process{}, false
}

// queued returns the names in the states where mail waits or is under way.
func (m *machine) queued() []string {
	m.t.Helper()
	var out []string
	for _, state := range []string{"new", "forwarding", "local", "remote", "tempfail", "permfail", "sent", "hold", "corrupt"} {
		entries, err := os.ReadDir(filepath.Join(spoolDir, state))
		m.do(err)
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), ".") {
				out = append(out, state+"/"+e.Name())
			}
		}
	}
	return out
}

// in returns the names in one state.
func (m *machine) in(state string) []string {
	m.t.Helper()
	return slices.DeleteFunc(m.queued(), func(s string) bool { return !strings.HasPrefix(s, state+"/") })
}

// empties waits until the queue is empty.
func (v *service) empties(m *machine) {
	v.t.Helper()
	v.await("empty queue", func() bool {
		// Twice: a child may have come where the first look had already been.
		for range 2 {
			if len(m.queued()) > 0 {
				return false
			}
		}
		return true
	})
}

// mailbox returns the text of a user's mailbox in /var/mail.
func (m *machine) mailbox(user string) string {
	m.t.Helper()
	text, err := os.ReadFile("/var/mail/" + user)
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	m.do(err)
	return string(text)
}

// owner tells uid, gid and mode of a file.
func (m *machine) owner(path string) string {
	m.t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d:%d %o", st.Uid, st.Gid, st.Mode&0o7777)
}

func ownerText(uid, gid int, mode fs.FileMode) string {
	return fmt.Sprintf("%d:%d %o", uid, gid, mode)
}
