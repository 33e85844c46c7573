package sendmail

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dma/spooldir"
)

// asCommand makes the test's own program the command: TestMain then calls Main.
const asCommand = "DMA_TEST_COMMAND"

func TestMain(m *testing.M) {
	switch spool := os.Getenv("DMA_TEST_SPOOL"); {
	case os.Getenv(asCommand) != "":
		os.Exit(Main())
	case spool != "":
		os.Exit(setgidMain(spool))
	}
	os.Exit(m.Run())
}

// host is the real command with a spool and a dma-runner of the test's own.
type host struct {
	dir    string
	spool  string
	config string
	report string   // a FIFO to which dma-runner writes what it was given
	reader *os.File // its other end
}

// runnerScript says what dma-runner was started with.
const runnerScript = `#!/bin/sh
{
	echo "args: $*"
	echo "cwd: $(pwd)"
	echo "env: $(env | grep -v -e ^PWD= -e ^_= -e ^SHLVL= -e ^OLDPWD= | tr '\n' ' ')"
	echo "fds: $(cd /proc/self/fd 2>/dev/null && echo *)"
	echo "umask: $(umask)"
	echo "stdin: $(head -c 5)"
	echo "ids: $(id -ru) $(id -u) $(id -rg) $(id -g)"
	echo "session: $(ps -o sid= -p $$ 2>/dev/null | tr -d ' ') $$"
	echo end
} >%s
exit 3
`

func newHost(t *testing.T) *host {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(asCommand, "1")
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h := &host{dir: dir, spool: filepath.Join(dir, "spool"), config: filepath.Join(dir, "dma.conf"), report: filepath.Join(dir, "report")}
	data, err := os.ReadFile(self)
	for _, err := range []error{
		err,
		os.Mkdir(filepath.Join(dir, "bin"), 0o755),
		os.WriteFile(h.program(), data, 0o755),
		os.WriteFile(filepath.Join(dir, "bin", "dma-runner"), fmt.Appendf(nil, runnerScript, h.report), 0o755),
		os.WriteFile(h.config, []byte("SPOOLDIR spool\nMAILNAME mail.example\n"), 0o644),
		syscall.Mkfifo(h.report, 0o600),
		os.Chmod(h.report, 0o666),
		spooldir.Init(h.spool),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	// With both ends open here nobody waits for the other.
	if h.reader, err = os.OpenFile(h.report, os.O_RDWR|syscall.O_NONBLOCK, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.reader.Close() })
	return h
}

func (h *host) program() string { return filepath.Join(h.dir, "bin", "dma") }

func (h *host) command(args ...string) *exec.Cmd {
	cmd := exec.Command(h.program(), append([]string{"-C", h.config}, args...)...)
	cmd.Dir = h.dir
	return cmd
}

// send runs the command with an input and returns its status and what it said.
func (h *host) send(t *testing.T, input string, args ...string) (status int, stderr string) {
	t.Helper()
	cmd := h.command(args...)
	cmd.Stdin = strings.NewReader(input)
	return finish(t, cmd)
}

func finish(t *testing.T, cmd *exec.Cmd) (int, string) {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), stderr.String()
}

// messages opens the first recipient's name of each message in new, and makes
// sure that nothing is left in tmp.
func (h *host) messages(t *testing.T) []*spooldir.Message {
	t.Helper()
	if left, err := os.ReadDir(filepath.Join(h.spool, "tmp")); err != nil || len(left) != 0 {
		t.Fatalf("tmp: %v, %v", left, err)
	}
	s, err := spooldir.Open(h.spool)
	if err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(filepath.Join(h.spool, "new"))
	if err != nil {
		t.Fatal(err)
	}
	var list []*spooldir.Message
	for _, entry := range names {
		name, err := spooldir.ParseName(entry.Name())
		if err != nil {
			t.Fatal(err)
		}
		if name.N != 1 {
			continue
		}
		m, err := s.Open(spooldir.New, name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		if err := m.Verify(t.Context()); err != nil {
			t.Fatal(err)
		}
		list = append(list, m)
	}
	return list
}

// one returns the one message in new and its content.
func (h *host) one(t *testing.T) (*spooldir.Message, string) {
	t.Helper()
	list := h.messages(t)
	if len(list) != 1 {
		t.Fatalf("%d messages", len(list))
	}
	content, err := io.ReadAll(list[0].Content())
	if err != nil {
		t.Fatal(err)
	}
	return list[0], string(content)
}

func TestQueue(t *testing.T) {
	h := newHost(t)
	long := strings.Repeat("a line of text\n", 200000)
	status, stderr := h.send(t, "To: bob\nBcc: carl\n\n"+long, "-t", "-v", "-odq", "-f", "<>")
	if status != 0 {
		t.Fatalf("status %d: %s", status, stderr)
	}
	m, content := h.one(t)
	equal(t, "stderr", stderr, "dma: queued as "+m.ID+"\n")
	equal(t, "sender", m.Sender, "")
	equal(t, "uid", m.UID, os.Getuid())
	equal(t, "recipients", fmt.Sprintf("%d %s %s", len(m.Recipients), m.Recipients[0].Address, m.Recipients[1].Address), "2 bob carl")
	header, body, _ := strings.Cut(content, "\n\n")
	if !strings.HasPrefix(header, fmt.Sprintf("Received: by mail.example (dma, from userid %d)\n\tid %s; ", os.Getuid(), m.ID)) || strings.Contains(header, "Bcc") {
		t.Errorf("header %q", header)
	}
	if body != long {
		t.Error("the body is not what went in")
	}
	if links, err := m.Links(); err != nil || links != 2 {
		t.Errorf("%d names, %v", links, err)
	}
}

// fields waits for dma-runner and reads what it reports.
func (h *host) fields(t *testing.T) map[string]string {
	t.Helper()
	if err := h.reader.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	m := make(map[string]string)
	for lines := bufio.NewScanner(h.reader); lines.Scan(); {
		if lines.Text() == "end" {
			return m
		}
		key, value, _ := strings.Cut(lines.Text(), ":")
		m[key] = strings.TrimSpace(value)
	}
	t.Fatalf("dma-runner said only %q", m)
	return nil
}

// TestBackgroundDrain looks at what the process has that a submission starts.
func TestBackgroundDrain(t *testing.T) {
	h := newHost(t)
	cmd := h.command("bob")
	cmd.Stdin = strings.NewReader("\ntext\n")
	cmd.Env = append(os.Environ(), "SECRET=x", "LD_PRELOAD=", "TZ=/etc/shadow", "PATH=/nowhere")
	extra, err := os.Open(h.dir) // a descriptor that the caller left open
	if err != nil {
		t.Fatal(err)
	}
	defer extra.Close()
	cmd.ExtraFiles = []*os.File{extra, extra, extra}
	if status, stderr := finish(t, cmd); status != 0 || stderr != "" {
		t.Fatalf("status %d: %s", status, stderr)
	}
	got := h.fields(t)
	equal(t, "args", got["args"], "-C "+h.config+" drain")
	equal(t, "cwd", got["cwd"], "/")
	equal(t, "env", got["env"], safePath)
	equal(t, "umask", got["umask"], "0077")
	equal(t, "stdin", got["stdin"], "")
	if got["session"] != "" {
		sid, pid, _ := strings.Cut(got["session"], " ")
		equal(t, "session", sid, pid)
	}
	if got["fds"] != "*" && strings.Contains(got["fds"], " 5") {
		t.Errorf("descriptors %s", got["fds"])
	}
	h.one(t)
}

// TestForegroundDrain: -odi ends after the drain, and says how it ended; but
// the message is queued all the same.
func TestForegroundDrain(t *testing.T) {
	h := newHost(t)
	status, stderr := h.send(t, "\ntext\n", "-odi", "bob")
	m, _ := h.one(t)
	equal(t, "status", status, 0)
	equal(t, "stderr", stderr, "dma: warning: message "+m.ID+" is queued, but its delivery could not be started: "+h.dir+"/bin/dma-runner: exit status 3\n")
	equal(t, "args", h.fields(t)["args"], "-C "+h.config+" drain")
}

// TestNoDrain: where somebody serves the queue, nothing is started.
func TestNoDrain(t *testing.T) {
	h := newHost(t)
	s, err := spooldir.Open(h.spool)
	if err != nil {
		t.Fatal(err)
	}
	lock, err := s.Lock(spooldir.QueueRole, "service")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	// With -odi a dma-runner that is started is waited for, and says status 3.
	status, stderr := h.send(t, "\ntext\n", "-odi", "bob")
	if status != 0 || stderr != "" {
		t.Errorf("status %d: %s", status, stderr)
	}
}

func TestExecRunner(t *testing.T) {
	h := newHost(t)
	cmd := h.command("-bs")
	cmd.Stdin = strings.NewReader("QUIT\r\n")
	cmd.Args[0] = "/nowhere/sendmail"
	cmd.Env = []string{asCommand + "=1", "PATH=/nowhere", "SECRET=x"}
	if status, stderr := finish(t, cmd); status != 3 {
		t.Fatalf("status %d: %s", status, stderr)
	}
	got := h.fields(t)
	equal(t, "args", got["args"], "-C "+h.config+" smtp")
	equal(t, "cwd", got["cwd"], h.dir)
	equal(t, "env", got["env"], safePath)
	equal(t, "stdin", got["stdin"], "QUIT")

	if err := os.Remove(filepath.Join(h.dir, "bin", "dma-runner")); err != nil {
		t.Fatal(err)
	}
	status, stderr := h.send(t, "", "-bp")
	equal(t, "status", status, 75)
	equal(t, "stderr", stderr, "dma: "+h.dir+"/bin/dma-runner: no such file or directory; dma-runner has to be installed beside dma\n")
}

// TestSpoolTrouble: each trouble with the spool is one line and status 75.
func TestSpoolTrouble(t *testing.T) {
	h := newHost(t)
	configure := func(text string) {
		if err := os.WriteFile(h.config, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ config, want string }{
		{"SPOOLDIR missing\n", "no way into the queue: spool " + h.dir + "/missing: no such file or directory; create it with \"dma-runner init\""},
		{"SPOOLDIR dma.conf\n", "no way into the queue: spool " + h.dir + "/dma.conf: not a directory"},
		{"SPOOLDIR spool\nMINFREE 1000T\n", "no mail is taken now: the disk of spool " + h.spool + " is full"},
	} {
		configure(tt.config)
		status, stderr := h.send(t, "\ntext\n", "bob")
		if status != 75 || !strings.HasPrefix(stderr, "dma: "+tt.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: status %d: %s", tt.config, status, stderr)
		}
	}
	configure("SPOOLDIR spool\n")
	if os.Getuid() != 0 {
		if err := os.Chmod(filepath.Join(h.spool, "new"), 0o500); err != nil {
			t.Fatal(err)
		}
		status, stderr := h.send(t, "\ntext\n", "bob")
		if status != 75 || !strings.HasPrefix(stderr, "dma: no way into the queue: writing in "+h.spool+"/new: permission denied; ") {
			t.Errorf("new is read-only: status %d: %s", status, stderr)
		}
		if err := os.Chmod(filepath.Join(h.spool, "new"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(h.config); err != nil {
		t.Fatal(err)
	}
	status, stderr := h.send(t, "\ntext\n", "bob")
	if status != 78 || !strings.HasPrefix(stderr, "dma: -C: ") {
		t.Errorf("no configuration: status %d: %s", status, stderr)
	}
	if list := h.messages(t); len(list) != 0 {
		t.Errorf("%d messages", len(list))
	}
}

// TestFileSizeLimit: the caller's limit makes the submission fail and leaves
// nothing, with a short message and one that goes through a scratch file.
func TestFileSizeLimit(t *testing.T) {
	h := newHost(t)
	for _, size := range []int{300 << 10, 4 << 20} {
		// In units of 512 or 1,024 octets, below either size.
		cmd := exec.Command("/bin/sh", "-c", `ulimit -f 200; exec "$@"`, "sh", h.program(), "-C", h.config, "-odq", "bob")
		cmd.Stdin = strings.NewReader("\n" + strings.Repeat("x", size))
		status, stderr := finish(t, cmd)
		if status != 75 || !strings.HasSuffix(stderr, "file too large\n") || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%d octets: status %d: %s", size, status, stderr)
		}
		if list := h.messages(t); len(list) != 0 {
			t.Errorf("%d octets: %d messages", size, len(list))
		}
	}
}

// TestSignals sends signals while the input is open.
func TestSignals(t *testing.T) {
	h := newHost(t)
	// What is caught here is at its default in the command, also where the tests run
	// under nohup.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(caught)
	for _, tt := range []struct {
		signal syscall.Signal
		name   string
	}{{syscall.SIGINT, "interrupt"}, {syscall.SIGTERM, "terminated"}, {syscall.SIGHUP, "hangup"}, {syscall.SIGQUIT, "quit"}} {
		status, stderr := h.signalled(t, tt.signal, "exec \"$@\"", false)
		equal(t, tt.name+": status", status, 75)
		equal(t, tt.name+": stderr", stderr, "dma: "+tt.name+": nothing was queued\n")
		if list := h.messages(t); len(list) != 0 {
			t.Errorf("%s: %d messages", tt.name, len(list))
		}
	}
	// nohup: a signal that the caller ignores is ignored.
	status, stderr := h.signalled(t, syscall.SIGHUP, "trap '' HUP; exec \"$@\"", true)
	if status != 0 {
		t.Errorf("ignored hangup: status %d: %s", status, stderr)
	}
	h.one(t)
}

// signalled starts the command by a shell, sends a signal while it waits for
// the rest of its input and, if goOn says so, ends the input then.
func (h *host) signalled(t *testing.T, s syscall.Signal, script string, goOn bool) (int, string) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script, "sh", h.program(), "-C", h.config, "-odq", "bob")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// More than a pipe holds: when it is written, the command is reading, and
	// so its handlers are in place.
	if _, err := in.Write([]byte("\n" + strings.Repeat("some text\n", 100000))); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
	if goOn {
		in.Close()
	}
	_ = cmd.Wait()
	in.Close()
	return cmd.ProcessState.ExitCode(), stderr.String()
}

// TestTimeZone: a file that the caller names as TZ is not read.
func TestTimeZone(t *testing.T) {
	h := newHost(t)
	// The least file of RFC 9636: one zone, 5:30 h east, called XYZ.
	zone := "TZif" + strings.Repeat("\x00", 16) +
		"\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x01" + "\x00\x00\x00\x04" +
		"\x00\x00\x4d\x58" + "\x00\x00" + "XYZ\x00"
	file := filepath.Join(h.dir, "zone")
	if err := os.WriteFile(file, []byte(zone), 0o644); err != nil {
		t.Fatal(err)
	}
	loc, err := time.LoadLocationFromTZData("zone", []byte(zone))
	if err != nil || time.Now().In(loc).Format("-0700") != "+0530" {
		t.Fatalf("the test's zone is not one: %v", err)
	}
	cmd := h.command("-odq", "bob")
	cmd.Env = append(os.Environ(), "TZ="+file)
	cmd.Stdin = strings.NewReader("\ntext\n")
	if status, stderr := finish(t, cmd); status != 0 {
		t.Fatalf("status %d: %s", status, stderr)
	}
	if _, content := h.one(t); strings.Contains(content, "+0530") {
		t.Errorf("content %q", content)
	}
}

// TestClosedOutput: nobody who reads the standard error is no reason to fail
// after the commit.
func TestClosedOutput(t *testing.T) {
	h := newHost(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	cmd := h.command("-v", "-odq", "bob")
	cmd.Stdin = strings.NewReader("\ntext\n")
	cmd.Stderr = w
	if err := cmd.Run(); err != nil {
		t.Errorf("-v with a closed pipe: %v", err)
	}
	h.one(t)

	// The same for descriptors that are not there at all.
	sh := exec.Command("/bin/sh", "-c", `exec "$@" <&- >&- 2>&-`, "sh", h.program(), "-C", h.config, "-v", "-odq", "bob")
	if err := sh.Run(); err != nil {
		t.Errorf("without descriptors: %v", err)
	}
	if list := h.messages(t); len(list) != 2 {
		t.Errorf("%d messages", len(list))
	}
}

// TestLight keeps out of the setgid program what makes it heavy to start.
func TestLight(t *testing.T) {
	if testing.Short() {
		t.Skip("asks the go command")
	}
	out, err := exec.Command("go", "list", "-deps", "dma/cmd/dma").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	for _, dep := range deps {
		switch dep {
		case "net", "net/mail", "crypto/tls", "log", "log/slog", "log/syslog", "regexp", "encoding/json", "os/user", "text/template", "flag":
			t.Errorf("%s is linked in", dep)
		}
	}
	if len(deps) < 10 {
		t.Errorf("only %d packages", len(deps))
	}
}
