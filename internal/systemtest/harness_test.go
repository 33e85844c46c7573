// Package systemtest tests the built programs dma and dma-runner: real
// processes, files and sockets, on private spools with private users.
package systemtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dma/internal/crashtest"
	_ "dma/internal/sendmail" // so that the test cache knows what the programs are made of
	"dma/internal/smtptest"
	_ "dma/runner"
	"dma/spooldir"
)

// programsEnv names the folder that the programs are built in. The first start
// of the test binary makes it and removes it when the second one has ended.
const programsEnv = "DMA_TEST_PROGRAMS"

func TestMain(m *testing.M) {
	if os.Getenv(programsEnv) != "" {
		crashtest.Main(m)
		return
	}
	os.Exit(again())
}

// again runs the tests in a second start of the test binary.
func again() int {
	dir, err := os.MkdirTemp("", "dma-programs-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), programsEnv+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGINT)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s) // fails only when it has ended
		}
	}()
	if err := cmd.Wait(); err != nil {
		if code := cmd.ProcessState.ExitCode(); code > 0 {
			return code
		}
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

var build struct {
	once sync.Once
	dir  string
	err  error
}

// program returns the path of dma or dma-runner, which stand beside each other
// and are built once, as they are installed.
func program(t testing.TB, name string) string {
	t.Helper()
	build.once.Do(func() {
		build.dir = os.Getenv(programsEnv)
		cmd := exec.Command("go", "build", "-o", build.dir, "dma/cmd/dma", "dma/cmd/dma-runner")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			build.err = fmt.Errorf("go build: %w\n%s", err, out)
		}
	})
	if build.err != nil {
		t.Fatal(build.err)
	}
	return filepath.Join(build.dir, name)
}

// siteOptions say how a site differs from the usual one.
type siteOptions struct {
	dir       string   // everything lies here; empty: a folder of the test's own
	boxes     string   // homes and mailboxes lie here; empty: dir
	spool     string   // SPOOLDIR; empty: DIR/spool
	rules     []string // of the sink, as smtptest.ParseRule has them
	sink      *smtptest.Sink
	smarthost string // address; empty: the sink's
	direct    bool   // no SMARTHOST
	resolver  string // RESOLVER; empty: a port that nobody listens on
	mailbox   string // MAILBOX; empty: mbox:DIR/mail/%u
	conf      string // more lines of dma.conf
	noInit    bool   // leave the spool to the test
}

// site is a private spool with users, homes, configuration and a smarthost.
// The host is host.example; the users are alice, bob, carol and dave, with
// alice for root and postmaster.
type site struct {
	t        testing.TB
	dir      string
	boxes    string
	queue    string         // the spool
	maildirs bool           // MAILBOX names the Maildir of a user
	sink     *smtptest.Sink // nil if a smarthost was given
	env      []string       // further environment of the programs
}

// newSite makes a site with the usual options.
func newSite(t testing.TB) *site { return newSiteWith(t, siteOptions{}) }

func newSiteWith(t testing.TB, o siteOptions) *site {
	t.Helper()
	s := &site{t: t, dir: o.dir, boxes: o.boxes, queue: o.spool, sink: o.sink}
	if s.dir == "" {
		s.dir = t.TempDir()
	}
	if s.boxes == "" {
		s.boxes = s.dir
	}
	if s.queue == "" {
		s.queue = s.path("spool")
	}
	smarthost := o.smarthost
	if smarthost == "" && s.sink == nil && !o.direct {
		s.sink = smtptest.NewSink(smtptest.SinkOptions{Rules: parseRules(t, o.rules...)})
	}
	if s.sink != nil && smarthost == "" {
		addr, err := s.sink.Listen("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.sink.Close() })
		smarthost = addr.String()
	}
	var users strings.Builder
	for i, name := range []string{"alice", "bob", "carol", "dave"} {
		if err := os.MkdirAll(filepath.Join(s.boxes, "home", name), 0o755); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&users, "%s:x:%d:%d:%s Example,,,:%s:/bin/sh\n", name, 2001+i, 2001+i,
			strings.ToUpper(name[:1])+name[1:], filepath.Join(s.boxes, "home", name))
	}
	if err := os.MkdirAll(filepath.Join(s.boxes, "mail"), 0o755); err != nil {
		t.Fatal(err)
	}
	mailbox := o.mailbox
	s.maildirs = strings.HasPrefix(mailbox, "maildir:")
	if mailbox == "" {
		mailbox = "mbox:" + filepath.Join(s.boxes, "mail") + "/%u"
	}
	s.write("passwd", users.String())
	s.write("aliases", "postmaster: alice\nroot: alice\n")
	// No test asks a DNS server of the real world.
	resolver := o.resolver
	if resolver == "" {
		resolver = "127.0.0.1:1"
	}
	if smarthost != "" {
		smarthost = "SMARTHOST " + smarthost + "\n"
	}
	s.write("dma.conf", "SPOOLDIR "+s.queue+"\n"+smarthost+"RESOLVER "+resolver+"\nMAILNAME host.example\nALIASES "+
		s.path("aliases")+"\nUSERS "+s.path("passwd")+"\nMAILBOX "+mailbox+"\n"+o.conf)
	if !o.noInit {
		s.init()
	}
	return s
}

func parseRules(t testing.TB, texts ...string) []smtptest.Rule {
	t.Helper()
	var rules []smtptest.Rule
	for _, text := range texts {
		r, err := smtptest.ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		rules = append(rules, r)
	}
	return rules
}

func (s *site) path(elem ...string) string { return filepath.Join(append([]string{s.dir}, elem...)...) }

// home is the home of a user.
func (s *site) home(user string, elem ...string) string {
	return filepath.Join(append([]string{s.boxes, "home", user}, elem...)...)
}

// write writes a file of the site; a relative path counts from its folder. The
// aliases are an hour old: of just now they would not be the last word.
func (s *site) write(path, text string) {
	s.t.Helper()
	aliases := path == "aliases"
	if !filepath.IsAbs(path) {
		path = s.path(path)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
	if old := time.Now().Add(-time.Hour); aliases {
		s.check(os.Chtimes(path, old, old))
	}
}

// place makes an executable file. Another process writes it: what a process has
// open for writing is open for a moment in whatever it starts meanwhile, and
// cannot be executed as long (text file busy).
func place(t testing.TB, path string, content []byte) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", `cat >"$1" && chmod 755 "$1"`, "sh", path)
	cmd.Stdin = bytes.NewReader(content)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v, %s", path, err, out)
	}
}

// placeProgram makes a copy of one of the programs.
func placeProgram(t testing.TB, path, name string) {
	t.Helper()
	data, err := os.ReadFile(program(t, name))
	if err != nil {
		t.Fatal(err)
	}
	place(t, path, data)
}

// forward writes the .forward of a user.
func (s *site) forward(user, text string) {
	s.t.Helper()
	s.write(s.home(user, ".forward"), text)
}

// result is how a program ended.
type result struct {
	code   int // -1: killed
	stdout string
	stderr string
}

// command is dma (or sendmail, mailq ...) or dma-runner with the site's
// configuration, not started.
func (s *site) command(name string, args ...string) *exec.Cmd {
	s.t.Helper()
	cmd := exec.Command(program(s.t, name), append([]string{"-C", s.path("dma.conf")}, args...)...)
	cmd.Dir = "/"
	cmd.Env = append([]string{"PATH=/usr/bin:/bin", "LOGNAME=alice", "USER=alice"}, s.env...)
	return cmd
}

// run runs a command to its end, a minute at most.
func (s *site) run(cmd *exec.Cmd, stdin string) result {
	s.t.Helper()
	var stdout, stderr bytes.Buffer
	if cmd.Stdin == nil {
		cmd.Stdin = strings.NewReader(stdin)
	}
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	timer := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	if !timer.Stop() {
		s.t.Fatalf("%v did not end within a minute\n%s", cmd.Args, &stderr)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// dma runs dma, dmaRunner runs dma-runner.
func (s *site) dma(stdin string, args ...string) result {
	s.t.Helper()
	return s.run(s.command("dma", args...), stdin)
}

func (s *site) dmaRunner(args ...string) result {
	s.t.Helper()
	return s.run(s.command("dma-runner", args...), "")
}

// must runs dma-runner, which has to succeed.
func (s *site) must(args ...string) result {
	s.t.Helper()
	r := s.dmaRunner(args...)
	if r.code != 0 {
		s.t.Fatalf("dma-runner %v: exit %d\n%s", args, r.code, r.stderr)
	}
	return r
}

// init makes the spool.
func (s *site) init() {
	s.t.Helper()
	args := []string{"init"}
	if os.Geteuid() == 0 {
		args = append(args, "--one-uid")
	}
	s.must(args...)
}

// submit hands a message in with "dma -odq" and returns the exit code.
func (s *site) submit(args []string, stdin string) int {
	s.t.Helper()
	return s.dma(stdin, append([]string{"-odq"}, args...)...).code
}

// drain delivers what is due; flush everything that waits.
func (s *site) drain() result { s.t.Helper(); return s.must("drain") }
func (s *site) flush() result { s.t.Helper(); return s.must("flush") }

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

// await waits until ok holds for the log, a minute at most. It looks again at
// every line, and 20 times a second for what changes without one.
func (v *service) await(what string, ok func(log string) bool) {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.t.Context(), time.Minute)
	defer cancel()
	for {
		v.mu.Lock()
		text, changed := v.text.String(), v.changed
		v.mu.Unlock()
		if ok(text) {
			return
		}
		select {
		case <-changed:
		case <-time.After(50 * time.Millisecond):
		case <-v.ended:
			if !ok(v.log()) {
				v.t.Fatalf("the service ended before %s\n%s", what, v.log())
			}
			return
		case <-ctx.Done():
			v.t.Fatalf("no %s within a minute\n%s", what, v.log())
		}
	}
}

// start starts the service and returns when it serves the spool. It is stopped
// when the test ends, at the latest.
func (s *site) start() *service {
	s.t.Helper()
	v := &service{t: s.t, ended: make(chan struct{}), changed: make(chan struct{})}
	cmd := s.command("dma-runner")
	cmd.Stderr = v
	cmd.WaitDelay = 10 * time.Second // a command of a user may hold the pipe
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	v.process = cmd.Process
	go func() {
		_ = cmd.Wait()
		v.state = cmd.ProcessState
		close(v.ended)
	}()
	s.t.Cleanup(v.kill)
	v.await("start", func(log string) bool { return strings.Contains(log, " started ") })
	return v
}

// stop ends the service in good order, which has to succeed.
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

// kill ends the service with SIGKILL, and its commands with it.
func (v *service) kill() {
	select {
	case <-v.ended:
		return
	default:
	}
	_ = v.process.Kill()
	<-v.ended
}

// mail is one message in a mailbox.
type mail struct {
	key  string // of the X-Dma-Delivery field: "<id>.<n>"
	text string // header and content as they stand there
}

// id is the message's id.
func (m mail) id() string { id, _, _ := strings.Cut(m.key, "."); return id }

// contains reports whether a line of the message is the given one.
func (m mail) hasLine(line string) bool { return strings.Contains("\n"+m.text, "\n"+line+"\n") }

// mailbox returns what is in a user's mbox, or in the user's Maildir where that
// is the mailbox; a file that is torn fails the test.
func (s *site) mailbox(user string) []mail {
	s.t.Helper()
	read, path := readMbox, filepath.Join(s.boxes, "mail", user)
	if s.maildirs {
		read, path = readMaildir, s.home(user, "Maildir")
	}
	list, err := read(path)
	if err != nil {
		s.t.Error(err)
	}
	return list
}

// readMbox reads an mbox in which only dma has written.
func readMbox(path string) ([]mail, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil || len(data) == 0 {
		return nil, err
	}
	text := string(data)
	if strings.Contains(text, "\x00") || !strings.HasPrefix(text, "From ") || !strings.HasSuffix(text, "\n\n") {
		return nil, fmt.Errorf("%s is torn:\n%q", path, text)
	}
	var list []mail
	for i, part := range strings.Split("\n\n"+text, "\n\nFrom ") {
		if i == 0 {
			continue
		}
		_, body, _ := strings.Cut(part, "\n")
		m, err := readMail(strings.TrimRight(body, "\n") + "\n")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		list = append(list, m)
	}
	return list, nil
}

func readMail(text string) (mail, error) {
	key, ok := strings.CutPrefix(text, "X-Dma-Delivery: ")
	if !ok {
		return mail{}, fmt.Errorf("a message that does not begin with X-Dma-Delivery:\n%s", text)
	}
	key, _, _ = strings.Cut(key, "\n")
	return mail{key, text}, nil
}

// readMaildir reads new and cur of a Maildir.
func readMaildir(path string) ([]mail, error) {
	var list []mail
	for _, sub := range []string{"new", "cur"} {
		entries, err := os.ReadDir(filepath.Join(path, sub))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			data, err := os.ReadFile(filepath.Join(path, sub, e.Name()))
			if err != nil {
				return nil, err
			}
			m, err := readMail(string(data))
			if err != nil {
				return nil, fmt.Errorf("%s/%s: %w", path, e.Name(), err)
			}
			list = append(list, m)
		}
	}
	return list, nil
}

// open opens the spool.
func (s *site) open() *spooldir.Spool {
	s.t.Helper()
	sp, err := spooldir.Open(s.queue)
	if err != nil {
		s.t.Fatal(err)
	}
	return sp
}

// spool lists the names in the spool as "state/name", sorted: recipients,
// temporary files ("tmp/..."), journals ("log/...") and what is in corrupt.
func (s *site) spool() []string {
	s.t.Helper()
	return listSpool(s.t, s.queue)
}

func listSpool(t testing.TB, dir string) []string {
	t.Helper()
	dirs := []string{string(spooldir.Tmp), string(spooldir.Corrupt), spooldir.LogDir}
	for _, state := range spooldir.States() {
		dirs = append(dirs, string(state))
	}
	var list []string
	for _, d := range dirs {
		entries, err := os.ReadDir(filepath.Join(dir, d))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			list = append(list, d+"/"+e.Name())
		}
	}
	sort.Strings(list)
	return list
}

// in lists the names that stand in one directory of the spool.
func (s *site) in(state spooldir.State) []string {
	s.t.Helper()
	var list []string
	for _, name := range s.spool() {
		if rest, ok := strings.CutPrefix(name, string(state)+"/"); ok {
			list = append(list, rest)
		}
	}
	return list
}

// relayed returns the addresses that the sink has accepted messages for, one
// for each time, sorted.
func (s *site) relayed() []string {
	var list []string
	for _, t := range s.sink.Transactions() {
		if t.Accepted {
			list = append(list, t.To...)
		}
	}
	slices.Sort(list)
	return list
}
