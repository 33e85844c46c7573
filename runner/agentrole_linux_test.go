package runner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dma/agent"
	"dma/internal/crashtest"
	"dma/internal/passwd"
	"dma/internal/wire"
	"dma/localwriter"
	"dma/spooldir"
)

// agentProcess in the environment makes the test binary an agent.
const agentProcess = "DMA_TEST_AGENT_PROCESS"

// TestAgentProcess is no test: it is the agent process of those below.
func TestAgentProcess(t *testing.T) {
	if os.Getenv(agentProcess) == "" {
		t.Skip("only as a process of another test")
	}
	os.Exit(runAgentRole())
}

// host is a root of users that exist by their numbers only, and starts agents
// as the parent does.
type host struct {
	t       *testing.T
	dir     string // everybody may enter it
	program string
	setup   agent.Setup
	account syscall.Credential
	caps    []uintptr // that are left to it
	mailbox *os.File  // opened, for root

	cmd  *exec.Cmd // started last
	life *os.File  // our end
}

// Numbers that no user of the machine has.
const (
	testUID   = 54321
	testGID   = 54322
	testGroup = 54323
	mailGID   = 54324
)

func newHost(t *testing.T) *host {
	t.Helper()
	var unavailable error
	if os.Geteuid() != 0 {
		unavailable = errors.New("only root starts agents")
	}
	crashtest.Need(t, unavailable)
	dir, err := os.MkdirTemp("", "dma-agent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &host{t: t, dir: dir, program: dir + "/program"}
	h.do(os.Chmod(dir, 0o755))
	binary, err := os.ReadFile("/proc/self/exe")
	h.do(err)
	h.do(os.WriteFile(h.program, binary, 0o755))
	h.mkdir("home", 0o700, testUID, testGID)
	h.mkdir("mail", 0o2775, 0, mailGID)
	h.account = syscall.Credential{Uid: testUID, Gid: testGID, Groups: []uint32{testGID, testGroup}}
	h.setup = agent.Setup{
		User: passwd.User{Name: "alice", UID: testUID, GID: testGID, Home: dir + "/home", Shell: "/bin/sh"},
		UID:  testUID, GID: testGID, Groups: []int{testGID, testGroup}, Role: agent.UserRole,
		HostName: "host.test", Mailbox: "mbox:" + dir + "/mail/%u", Forward: "~/.forward", CommandTime: time.Minute, MinUID: 1000,
	}
	return h
}

func (h *host) do(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) mkdir(name string, mode uint32, uid, gid int) {
	h.t.Helper()
	path := filepath.Join(h.dir, name)
	h.do(os.Mkdir(path, 0o700))
	h.do(os.Chown(path, uid, gid))
	h.do(syscall.Chmod(path, mode))
}

// writer makes the agent a mailbox writer.
func (h *host) writer() {
	h.setup.Role, h.setup.GID, h.setup.Groups = agent.MailboxRole, mailGID, nil
	h.account.Gid, h.account.Groups = mailGID, nil
}

// StartAgent implements agent.Starter.
func (h *host) StartAgent(_ context.Context, _ string, _ agent.Role) (*wire.Conn, error) {
	conn, theirs, err := wire.Pair()
	h.do(err)
	defer theirs.Close()
	setup, in, err := os.Pipe()
	h.do(err)
	defer setup.Close()
	h.do(agent.WriteSetup(in, h.setup))
	in.Close()
	life, ours, err := os.Pipe()
	h.do(err)
	defer life.Close()
	lock, err := os.Create(h.dir + "/lock")
	h.do(err)
	defer lock.Close()
	h.cmd, h.life = exec.Command(h.program, "-test.run=^TestAgentProcess$"), ours
	h.cmd.Env = []string{agentProcess + "=1", "PATH=/usr/bin:/bin"}
	h.cmd.Dir = "/"
	h.cmd.ExtraFiles = []*os.File{theirs, setup, life, lock}
	if h.mailbox != nil {
		h.cmd.ExtraFiles = append(h.cmd.ExtraFiles, h.mailbox)
	}
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &h.account, AmbientCaps: h.caps, Setsid: true}
	return wire.New(conn), h.cmd.Start()
}

// StopAgent implements agent.Starter.
func (h *host) StopAgent(context.Context, string, agent.Role) error {
	h.cmd.Process.Kill()
	h.cmd.Wait()
	return h.life.Close()
}

func (h *host) remote() *agent.Remote {
	r := agent.NewRemote(agent.RemoteOptions{Starter: h, Mailbox: h.setup.Mailbox, MinUID: 1000, Idle: time.Hour})
	h.t.Cleanup(r.Close)
	return r
}

func (h *host) job(kind spooldir.RecipientKind, target string) *agent.Job {
	text := "Subject: test\n\nbody\n"
	j := &agent.Job{
		Kind: kind, Target: target, Recipient: "alice@host.test", Original: "alice", Domain: "host.test",
		Message: localwriter.Message{
			ID: "id", Recipient: 1, Sender: "s@remote.test", Arrival: time.Unix(2208988800, 0),
			Content: strings.NewReader(text), Size: int64(len(text)),
		},
	}
	if target != "" {
		j.Source = "forward"
	}
	return j
}

func deliver(r *agent.Remote, u passwd.User, j *agent.Job) error {
	r.Deliver(context.Background(), u, []*agent.Job{j}, func(*agent.Job) {})
	return j.Err
}

func (h *host) status(path string) *syscall.Stat_t {
	h.t.Helper()
	var st syscall.Stat_t
	h.do(syscall.Lstat(path, &st))
	return &st
}

// TestAgentCommand: a command has the descriptors 0 to 2, and is its user and
// nobody else.
func TestAgentCommand(t *testing.T) {
	h := newHost(t)
	line := `exec > seen; ls -1 /proc/self/fd; grep -E '^(Uid|Gid|Groups|CapEff|CapPrm):' /proc/self/status; umask; env | sort; cat`
	h.do(os.WriteFile(h.setup.User.Home+"/.forward", []byte(`"|`+line+`"`+"\n"), 0o644))
	h.do(os.Chown(h.setup.User.Home+"/.forward", testUID, testGID))
	r := h.remote()
	res, err := r.Forward(t.Context(), h.setup.User, "")
	if err != nil || len(res.Targets) != 1 {
		t.Fatalf("%+v, %v", res, err)
	}
	if err := deliver(r, h.setup.User, h.job(spooldir.Command, res.Targets[0].Value)); err != nil {
		t.Fatal(err)
	}
	seen, err := os.ReadFile(h.setup.User.Home + "/seen")
	h.do(err)
	// ls has one more for the directory that it lists.
	want := fmt.Sprintf("0\n1\n2\n3\nUid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d\nGid:\t%[2]d\t%[2]d\t%[2]d\t%[2]d\nGroups:\t%[2]d %[3]d \nCapPrm:\t%[4]s\nCapEff:\t%[4]s\n0077\n",
		testUID, testGID, testGroup, strings.Repeat("0", 16))
	if !strings.HasPrefix(string(seen), want) || !strings.HasSuffix(string(seen), "\nSubject: test\n\nbody\n") || bytes.Contains(seen, []byte(agentProcess)) {
		t.Errorf("the command saw %s\nwant %s", seen, want)
	}
	// A command that nobody lists does not run, whoever asks.
	if err := deliver(r, h.setup.User, h.job(spooldir.Command, "touch ran")); !errors.Is(err, agent.ErrUnlisted) {
		t.Errorf("not listed: %v", err)
	}
	if _, err := os.Lstat(h.setup.User.Home + "/ran"); err == nil {
		t.Error("it ran")
	}
}

// TestAgentMailbox: a mailbox comes into being with the right owner and mode,
// and its writer cannot be looked into.
func TestAgentMailbox(t *testing.T) {
	h := newHost(t)
	h.writer()
	r := h.remote()
	if err := deliver(r, h.setup.User, h.job(spooldir.Mailbox, "")); err != nil {
		t.Fatal(err)
	}
	st := h.status(h.dir + "/mail/alice")
	if st.Uid != testUID || st.Gid != mailGID || st.Mode&0o7777 != 0o660 {
		t.Errorf("uid %d, gid %d, mode %o", st.Uid, st.Gid, st.Mode)
	}
	if entries, err := os.ReadDir(h.dir + "/mail"); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	if st := h.status(fmt.Sprintf("/proc/%d/fd", h.cmd.Process.Pid)); st.Uid != 0 {
		t.Errorf("the descriptors of the mailbox writer are open to uid %d", st.Uid)
	}
	h.do(os.Chmod(h.dir+"/mail/alice", 0o600))
	j := h.job(spooldir.Mailbox, "")
	j.Message.Suspect = true
	if err := deliver(r, h.setup.User, j); err != nil || !j.Already {
		t.Errorf("again: %v, already %v", err, j.Already)
	}

	// Where only root can make names, the lock of the kernel has to do.
	h.do(os.Chown(h.dir+"/mail", 0, 0))
	h.do(os.Chmod(h.dir+"/mail", 0o755))
	h.do(os.Chown(h.dir+"/mail/alice", testUID, testGID))
	j = h.job(spooldir.Mailbox, "")
	j.Message.ID = "other"
	if err := deliver(r, h.setup.User, j); err != nil {
		t.Errorf("755: %v", err)
	}
	// Everybody's directory: the mailbox is made by its writer.
	h.do(os.Remove(h.dir + "/mail/alice"))
	h.do(syscall.Chmod(h.dir+"/mail", 0o1777))
	h.do(os.WriteFile(h.dir+"/mail/alice.lock", nil, 0o644)) // a stranger's
	h.do(os.Chown(h.dir+"/mail/alice.lock", testUID+1, testGID))
	if err := deliver(r, h.setup.User, h.job(spooldir.Mailbox, "")); err != nil {
		t.Errorf("1777: %v", err)
	}
	if st := h.status(h.dir + "/mail/alice"); st.Uid != testUID || st.Mode&0o7777 != 0o600 {
		t.Errorf("1777: uid %d, mode %o", st.Uid, st.Mode)
	}
}

// TestAgentRoot: root's mailbox is written by somebody else, through an open
// file.
func TestAgentRoot(t *testing.T) {
	h := newHost(t)
	h.writer()
	h.setup.User = passwd.User{Name: "root", Home: "/root"}
	h.setup.MailFile = true
	var err error
	h.mailbox, err = os.OpenFile(h.dir+"/mail/root", os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
	h.do(err)
	defer h.mailbox.Close()
	r := h.remote()
	for i, want := range []bool{false, false, true} {
		j := h.job(spooldir.Mailbox, "")
		j.Message.ID = fmt.Sprint("id", min(i, 1))
		j.Message.Suspect = i == 2
		if err := deliver(r, h.setup.User, j); err != nil || j.Already != want {
			t.Errorf("message %d: %v, already %v", i, err, j.Already)
		}
	}
	text, err := os.ReadFile(h.dir + "/mail/root")
	h.do(err)
	if n := bytes.Count(text, []byte("\nbody\n")); n != 2 {
		t.Errorf("%d messages", n)
	}
	// Another file in its place is not written, and not waited for.
	h.do(os.Rename(h.dir+"/mail/root", h.dir+"/mail/moved"))
	h.do(os.WriteFile(h.dir+"/mail/root", nil, 0o600))
	if err := deliver(r, h.setup.User, h.job(spooldir.Mailbox, "")); err == nil {
		t.Error("a file that was replaced was written")
	}
}

// TestAgentRefuses: a process that is not what it should be does nothing.
func TestAgentRefuses(t *testing.T) {
	for name, change := range map[string]func(*host){
		"root":             func(h *host) { h.account = syscall.Credential{}; h.setup.GID, h.setup.Groups = 0, nil },
		"can be root":      func(h *host) { h.caps = []uintptr{7} }, // CAP_SETUID
		"capable":          func(h *host) { h.caps = []uintptr{1} }, // CAP_DAC_OVERRIDE
		"another uid":      func(h *host) { h.account.Uid++ },
		"another gid":      func(h *host) { h.account.Gid = mailGID },
		"one group more":   func(h *host) { h.account.Groups = append(h.account.Groups, mailGID) },
		"one group less":   func(h *host) { h.account.Groups = nil },
		"to be root":       func(h *host) { h.setup.UID, h.setup.User.UID = 0, 0 },
		"role":             func(h *host) { h.setup.Role = "x" },
		"mailbox of other": func(h *host) { h.setup.User.UID = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			change(h)
			u := h.setup.User
			u.UID = testUID
			_, err := h.remote().Forward(t.Context(), u, "")
			if err == nil {
				t.Fatal("it works")
			}
			if !strings.HasPrefix(err.Error(), "the agent of alice: ") || strings.Contains(err.Error(), "EOF") {
				t.Errorf("%v does not say why", err)
			}
		})
	}
}

// TestAgentOrphan: when the parent has gone, the running command is killed and
// the agent ends.
func TestAgentOrphan(t *testing.T) {
	h := newHost(t)
	fifo := h.dir + "/fifo"
	h.do(syscall.Mkfifo(fifo, 0o666))
	h.do(os.Chmod(fifo, 0o666))
	line := "exec > " + fifo + "; echo started; sleep 1000 & sleep 1000"
	h.do(os.WriteFile(h.setup.User.Home+"/.forward", []byte(`"|`+line+`"`+"\n"), 0o600))
	h.do(os.Chown(h.setup.User.Home+"/.forward", testUID, testGID))
	r := h.remote()
	delivered := make(chan error)
	go func() { delivered <- deliver(r, h.setup.User, h.job(spooldir.Command, line)) }()
	f, err := os.Open(fifo) // waits for the command
	h.do(err)
	defer f.Close()
	started := make([]byte, 8)
	if _, err := io.ReadFull(f, started); err != nil {
		t.Fatal(err)
	}
	h.life.Close()
	// The command and what it started held the other end.
	if rest, err := io.ReadAll(f); err != nil || len(rest) > 0 {
		t.Errorf("%q, %v", rest, err)
	}
	if err := <-delivered; err == nil {
		t.Error("delivered")
	}
}
