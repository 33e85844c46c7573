package sendmail

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dma/internal/config"
	"dma/internal/door"
	"dma/spooldir"
)

// testTime is when every message of the tests arrives.
var testTime = time.Date(2026, time.March, 4, 5, 6, 7, 0, time.UTC)

const testID = "20260304T050607-0123456789abcdef"

// fakeSystem is a System whose queue is memory.
type fakeSystem struct {
	config   *config.Config
	problems []config.Problem
	loadErr  error
	account  Account
	openErr  error
	freeErr  error
	drain    bool // the caller may drain

	scratchErr error
	createErr  error
	writeErr   error
	commitErr  error
	execErr    error
	startErr   error
	onCreate   func()

	loaded    string
	dropped   bool
	executed  []string
	started   []string
	waited    bool
	scratches int
	opened    bool
	drafts    []*fakeDraft
}

func (s *fakeSystem) Load(path string, named bool) (*config.Config, []config.Problem, error) {
	s.loaded = path
	return s.config, s.problems, s.loadErr
}

func (s *fakeSystem) Account(*config.Config, int, ...string) Account { return s.account }

func (s *fakeSystem) Open(*config.Config) (Door, error) {
	if s.openErr != nil {
		return nil, s.openErr
	}
	s.opened = true
	return s, nil
}

func (s *fakeSystem) DropGroup() error {
	s.dropped = true
	return nil
}

func (s *fakeSystem) Exec(args []string) error {
	s.executed = args
	return s.execErr
}

func (s *fakeSystem) Start(args []string, wait bool, stop <-chan struct{}) error {
	s.started, s.waited = args, wait
	return s.startErr
}

func (s *fakeSystem) Free() error      { return s.freeErr }
func (s *fakeSystem) NeedsDrain() bool { return s.drain }

func (s *fakeSystem) Scratch() (Scratch, error) {
	if s.scratchErr != nil {
		return nil, s.scratchErr
	}
	s.scratches++
	return &memoryFile{}, nil
}

func (s *fakeSystem) Create(e *spooldir.Envelope, host string) (Draft, error) {
	if s.createErr != nil {
		return nil, s.createErr
	}
	if s.onCreate != nil {
		s.onCreate()
	}
	d := &fakeDraft{env: *e, system: s}
	d.content.WriteString(door.Received(host, e.UID, testID, testTime.Local()))
	s.drafts = append(s.drafts, d)
	return d, nil
}

type fakeDraft struct {
	env       spooldir.Envelope
	content   bytes.Buffer
	system    *fakeSystem
	committed bool
	aborted   bool
}

func (d *fakeDraft) ID() string         { return testID }
func (d *fakeDraft) Arrival() time.Time { return testTime }

func (d *fakeDraft) Write(p []byte) (int, error) {
	if d.system.writeErr != nil {
		return 0, d.system.writeErr
	}
	return d.content.Write(p)
}

func (d *fakeDraft) Commit() error {
	if d.system.commitErr != nil {
		return d.system.commitErr
	}
	d.committed = true
	return nil
}

func (d *fakeDraft) Abort() error {
	d.aborted = true
	return nil
}

// memoryFile is a Scratch.
type memoryFile struct {
	data []byte
	pos  int
}

func (f *memoryFile) Write(p []byte) (int, error) {
	f.data = append(f.data[:f.pos], p...)
	f.pos = len(f.data)
	return len(p), nil
}

func (f *memoryFile) Read(p []byte) (int, error) {
	if f.pos == len(f.data) {
		return 0, io.EOF
	}
	n := copy(p, f.data[f.pos:])
	f.pos += n
	return n, nil
}

func (f *memoryFile) Seek(offset int64, whence int) (int64, error) {
	if offset != 0 || whence != io.SeekStart {
		return 0, errors.New("memoryFile: only to the start")
	}
	f.pos = 0
	return 0, nil
}

func (f *memoryFile) Close() error { return nil }

// run is one run of the program.
type run struct {
	args      []string
	env       map[string]string
	stdin     io.Reader
	uid       int
	interrupt chan os.Signal
	system    fakeSystem

	status         int
	stdout, stderr string
}

// start returns a run of "sendmail args..." with a message as its input, by the
// user alice on the host mail.example.
func start(input string, args ...string) *run {
	c := config.Default()
	c.MailName = "mail.example"
	return &run{
		args:   append([]string{"/usr/sbin/sendmail"}, args...),
		stdin:  strings.NewReader(input),
		uid:    1001,
		system: fakeSystem{config: c, account: Account{Name: "alice", FullName: "Alice Example"}},
	}
}

func (r *run) run() *run {
	var stdout, stderr bytes.Buffer
	p := &Process{
		Args: r.args, Env: r.env, Stdin: r.stdin, Stdout: &stdout, Stderr: &stderr,
		UID: r.uid, Interrupt: r.interrupt, System: &r.system,
	}
	r.status = p.Run()
	r.stdout, r.stderr = stdout.String(), stderr.String()
	return r
}

// committed returns the one message that the run queued.
func (r *run) committed(t *testing.T) *fakeDraft {
	t.Helper()
	if r.status != 0 {
		t.Fatalf("status %d: %s", r.status, r.stderr)
	}
	if len(r.system.drafts) != 1 || !r.system.drafts[0].committed {
		t.Fatalf("%d drafts, want one that is committed", len(r.system.drafts))
	}
	return r.system.drafts[0]
}

// header returns the header of the queued message without its trace field.
func (d *fakeDraft) header(t *testing.T) string {
	t.Helper()
	_, rest, ok := strings.Cut(d.content.String(), ";")
	if !ok || !strings.HasPrefix(d.content.String(), "Received: ") {
		t.Fatalf("no trace field at the top of %q", d.content.String())
	}
	_, rest, _ = strings.Cut(rest, "\n")
	h, _, ok := strings.Cut("\n"+rest, "\n\n")
	if !ok {
		t.Fatalf("no end of the header in %q", d.content.String())
	}
	if h == "" {
		return ""
	}
	return h[1:] + "\n"
}

func (d *fakeDraft) body(t *testing.T) string {
	t.Helper()
	_, body, ok := strings.Cut(d.content.String(), "\n\n")
	if !ok {
		t.Fatalf("no end of the header in %q", d.content.String())
	}
	return body
}

func (d *fakeDraft) recipients() []string {
	var list []string
	for _, r := range d.env.Recipients {
		list = append(list, r.Address)
	}
	return list
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n got %#v\nwant %#v", what, got, want)
	}
}

func equalList(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

func abs(t *testing.T, file string) string {
	t.Helper()
	p, err := filepath.Abs(file)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
