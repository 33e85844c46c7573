package sendmail

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"dma/internal/config"
	"dma/spooldir"
)

// setgidMachine is a Machine whose spool the test names: a user who could name
// it with -C would lose the group.
type setgidMachine struct {
	Machine
	spool string
}

func (m setgidMachine) Load(string, bool) (*config.Config, []config.Problem, error) {
	c := config.Default()
	c.SpoolDir, c.MailName, c.Socket = m.spool, "mail.example", filepath.Join(filepath.Dir(m.spool), "door")
	return c, nil, nil
}

// setgidMain is what the test's own program does when TestSetgid has installed
// it in place of the command.
func setgidMain(spool string) int {
	p := &Process{
		Args: os.Args, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		UID: os.Getuid(), System: setgidMachine{spool: spool},
	}
	return p.Run()
}

// TestSetgid lets an ordinary user submit into a spool that only the group of
// the program opens. It needs root, and so runs only where the whole machine is
// the test's.
func TestSetgid(t *testing.T) {
	if os.Getuid() != 0 || os.Getenv("CI") != "true" {
		t.Skip("needs root and CI=true")
	}
	const owner, group, user = 64320, 64321, 64322
	h := newHost(t)
	for dir := h.dir; dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
		chmod(t, dir, 0o755)
	}
	chown(t, h.program(), 0, group)
	chmod(t, h.program(), 0o2755)
	chown(t, h.spool, owner, group)
	chmod(t, h.spool, 0o755)
	for _, name := range []string{"tmp", "new"} {
		chown(t, filepath.Join(h.spool, name), owner, group)
		chmod(t, filepath.Join(h.spool, name), 0o3730)
	}
	// That nobody serves the queue is there for all to see.
	chmod(t, filepath.Join(h.spool, string(spooldir.LockDir)), 0o755)
	as := func(prefix []string, stdin string, args ...string) (int, string) {
		words := append(append(prefix, h.program()), args...)
		cmd := exec.Command(words[0], words[1:]...)
		cmd.Dir = "/"
		cmd.Env = []string{"DMA_TEST_SPOOL=" + h.spool}
		cmd.Stdin = strings.NewReader(stdin)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
		return finish(t, cmd)
	}

	// The group opens the spool, also for a body that needs a scratch file; and
	// no drain is started on a spool of somebody else: with -odi it would be
	// waited for, and its status shown.
	long := strings.Repeat("some text\n", 200000)
	if status, stderr := as(nil, "\n"+long, "-odi", "bob", "carl"); status != 0 || stderr != "" {
		t.Fatalf("status %d: %s", status, stderr)
	}
	m, content := h.one(t)
	equal(t, "owner of the file", m.Submitter, user)
	equal(t, "uid", m.UID, user)
	if !strings.HasPrefix(content, fmt.Sprintf("Received: by mail.example (dma, from userid %d)\n", user)) || !strings.HasSuffix(content, "\n\n"+long) {
		t.Errorf("content %.300q", content)
	}

	denied := "dma: no way into the queue: writing in " + h.spool + "/tmp: permission denied; the spool's owner can, and everybody if dma is installed setgid and may use that" +
		"; nor by the socket of the service: connect " + h.dir + "/door: no such file or directory; start dma-runner, or the unit of its socket\n"
	status, stderr := as(nil, "\ntext\n", "-C", "/dev/null", "bob")
	equal(t, "-C: status", status, 75)
	equal(t, "-C: stderr", stderr, denied)
	status, stderr = as([]string{"/usr/bin/setpriv", "--no-new-privs"}, "\ntext\n", "bob")
	equal(t, "no_new_privs: status", status, 75)
	equal(t, "no_new_privs: stderr", stderr, denied)

	// Through the second door it is the same user: what the kernel says decides,
	// not a group or a file's owner.
	socket, stop := serve(t, h.spool)
	if socket != filepath.Join(h.dir, "door") {
		t.Fatalf("the socket is at %s", socket)
	}
	for i := range 2 {
		if status, stderr := as([]string{"/usr/bin/setpriv", "--no-new-privs"}, "Subject: by the second door\n\ntext\n", fmt.Sprintf("by-door-%d", i)); status != 0 || stderr != "" {
			t.Fatalf("no_new_privs, with a service: status %d: %s", status, stderr)
		}
	}
	stop()
	byDoor := 0
	for _, m := range h.messages(t) {
		if !strings.HasPrefix(m.Recipients[0].Address, "by-door-") {
			continue
		}
		byDoor++
		equal(t, "by the second door: uid", m.UID, user)
		equal(t, "by the second door: owner of the file", m.Submitter, 0)
	}
	equal(t, "messages by the second door", byDoor, 2)

	// What dma-runner gets has nothing of the group.
	if status, stderr := as(nil, "", "-bp"); status != 3 {
		t.Fatalf("-bp: status %d: %s", status, stderr)
	}
	equal(t, "ids of dma-runner", h.fields(t)["ids"], fmt.Sprintf("%d %d %d %d", user, user, user, user))

	if names, err := filepath.Glob(filepath.Join(h.spool, string(spooldir.New), "*")); err != nil || len(names) != 4 {
		t.Errorf("%q, %v", names, err)
	}
}

func chown(t *testing.T, path string, uid, gid int) {
	t.Helper()
	if err := os.Chown(path, uid, gid); err != nil {
		t.Fatal(err)
	}
}

// chmod sets a mode with the bits of chmod(2), which os.Chmod has elsewhere.
func chmod(t *testing.T, path string, mode uint32) {
	t.Helper()
	if err := syscall.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}
