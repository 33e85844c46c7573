package systemtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"dma/internal/crashtest"
	"dma/internal/crashtest/tinyfs"
	"dma/spooldir"

	"golang.org/x/sys/unix"
)

// newRoot mounts a view of this machine's root in which nothing that is changed
// changes the machine, and returns its path. There is no dma in it, and no
// other mailer.
func newRoot(t testing.TB) string {
	t.Helper()
	crashtest.Need(t, crashtest.Private())
	layers := tinyfs.New(t, tinyfs.Limits{})
	for _, dir := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(layers, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root := filepath.Join(layers, "root")
	mount := func(source, target, kind string, flags uintptr, options string) {
		t.Helper()
		if err := os.MkdirAll(target, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(source, target, kind, flags, options); err != nil {
			t.Fatalf("mount %s: %v", target, err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", target, err)
			}
		})
	}
	mount("overlay", root, "overlay", 0, fmt.Sprintf("lowerdir=/,upperdir=%s/upper,workdir=%s/work", layers, layers))
	mount("/dev", filepath.Join(root, "dev"), "", unix.MS_BIND|unix.MS_REC, "")
	mount("/proc", filepath.Join(root, "proc"), "", unix.MS_BIND|unix.MS_REC, "")
	// The scripts and the programs, where these tests have them.
	scripts, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{scripts, filepath.Dir(program(t, "dma"))} {
		mount(dir, filepath.Join(root, dir), "", unix.MS_BIND, "")
	}
	for _, path := range []string{"/usr/sbin/dma", "/usr/sbin/dma-runner", "/usr/sbin/sendmail", "/usr/lib/sendmail", "/usr/bin/mailq", "/usr/bin/newaliases", "/etc/dma", "/var/spool/dma"} {
		if err := os.RemoveAll(filepath.Join(root, path)); err != nil {
			t.Fatal(err)
		}
	}
	for _, account := range []string{"dma", "dmanet"} {
		_ = inRoot(root, "userdel", account).Run() // there is none, as a rule
	}
	_ = inRoot(root, "groupdel", "dmasubmit").Run()
	return root
}

// inRoot is a program in another root, as root.
func inRoot(root, name string, args ...string) *exec.Cmd {
	cmd := exec.Command("/usr/bin/env", append([]string{name}, args...)...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	return cmd
}

// exitCode is the exit code of a program that has ended with err.
func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}

// TestInstallMachine installs on a machine, twice, submits mail as an ordinary
// user, and uninstalls.
func TestInstallMachine(t *testing.T) {
	root := newRoot(t)
	i := &installation{t: t, root: root, bin: filepath.Dir(program(t, "dma"))}
	at := func(path string) string { return filepath.Join(root, path) }
	// /var/log and caches change when accounts are made.
	folders := []string{"/usr/sbin", "/usr/bin", "/usr/lib/sendmail", "/usr/lib/dma", "/usr/lib/systemd/system", "/usr/share/man", "/etc/dma", "/var/spool", "/etc/passwd", "/etc/group"}
	before := tree(t, root, folders...)
	// Without the users there is no spool for all of them, and it is said how to
	// get there.
	out, err := inRoot(root, program(t, "dma-runner"), "init").CombinedOutput()
	if code := exitCode(err); code != 77 || !strings.Contains(string(out), "useradd --system") {
		t.Errorf("init: %d\n%s", code, out)
	}
	t.Log(i.must("install"))
	first := tree(t, root, folders...)
	if wrong := spooldir.CheckShared(at("/var/spool/dma"), idsIn(t, root)); len(wrong) > 0 {
		t.Errorf("the spool: %v", wrong)
	}
	submit := groupIn(t, root, "dmasubmit")
	for path, want := range map[string]string{
		"/usr/sbin/dma":        fmt.Sprintf("grwxr-xr-x 0:%d ", submit),
		"/usr/sbin/dma-runner": "-rwxr-xr-x 0:0 ",
		"/etc/dma/dma.conf":    "-rw-r--r-- 0:0 ",
		"/etc/dma/auth.conf":   fmt.Sprintf("-rw-r----- 0:%d ", groupIn(t, root, "dmanet")),
	} {
		if !strings.Contains(first[path], want) {
			t.Errorf("%s: %q; want %q", path, first[path], want)
		}
	}
	setgid := 0
	for path, is := range first {
		if _, was := before[path]; was {
			continue
		}
		mode, _, _ := strings.Cut(is, " ") // as fs.FileMode writes it
		switch {
		case strings.HasPrefix(mode, "u"):
			t.Errorf("%s is setuid: %s", path, is)
		case strings.HasPrefix(mode, "g"):
			setgid++
			if path != "/usr/sbin/dma" {
				t.Errorf("%s is setgid: %s", path, is)
			}
		}
	}
	if setgid != 1 {
		t.Errorf("%d files are setgid, want dma alone", setgid)
	}
	// A spool that a user serves alone is left to that user.
	if err := errors.Join(os.Mkdir(at("/var/alone"), 0o700), os.Chown(at("/var/alone"), 4322, 4322), os.WriteFile(at("/var/alone.conf"), []byte("SPOOLDIR /var/alone\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	out, err = inRoot(root, "/usr/sbin/dma-runner", "-C", "/var/alone.conf", "init").CombinedOutput()
	if code := exitCode(err); code != 77 || !strings.Contains(string(out), "uid 4322") {
		t.Errorf("init: %d\n%s", code, out)
	}
	i.must("install")
	if d := difference(first, tree(t, root, folders...)); len(d) > 0 {
		t.Errorf("a second run changes %v", d)
	}

	// Anybody can submit, and nobody but the processes of dma can read it.
	cmd := inRoot(root, "/usr/sbin/sendmail", "-odq", "bob@example.org")
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	cmd.Stdin = strings.NewReader("Subject: x\n\nx\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sendmail: %v\n%s", err, out)
	}
	names, err := os.ReadDir(at("/var/spool/dma/new"))
	if err != nil || len(names) != 1 {
		t.Fatalf("new has %v, %v", names, err)
	}
	info, err := names[0].Info()
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != 65534 || int(st.Gid) != submit || info.Mode() != 0o640 {
		t.Errorf("the message is %v %d:%d", info.Mode(), st.Uid, st.Gid)
	}
	cmd = inRoot(root, "cat", "/var/spool/dma/new/"+names[0].Name())
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("its submitter can reach the file:\n%s", out)
	}

	i.must("uninstall")
	for _, d := range difference(before, tree(t, root, folders...)) {
		_, path, _ := strings.Cut(d, " ")
		path, _, _ = strings.Cut(path, " ")
		// Users and groups stay with the spool.
		if path != "/etc/passwd" && path != "/etc/group" && !strings.HasPrefix(path, "/var/spool/dma") {
			t.Errorf("uninstall: %s", d)
		}
	}
	if _, err := os.Stat(filepath.Join(at("/var/spool/dma/new"), names[0].Name())); err != nil {
		t.Errorf("uninstall and the mail: %v", err)
	}

	// Without a spool they go as well.
	if err := os.RemoveAll(at("/var/spool/dma")); err != nil {
		t.Fatal(err)
	}
	for _, account := range []string{"dma", "dmanet"} {
		if out, err := inRoot(root, "userdel", account).CombinedOutput(); err != nil {
			t.Fatalf("userdel: %v\n%s", err, out)
		}
	}
	if out, err := inRoot(root, "groupdel", "dmasubmit").CombinedOutput(); err != nil {
		t.Fatalf("groupdel: %v\n%s", err, out)
	}
	i.must("install")
	if err := os.RemoveAll(at("/var/spool/dma")); err != nil {
		t.Fatal(err)
	}
	i.must("uninstall")
	for _, file := range []string{"/etc/passwd", "/etc/group"} {
		text, err := os.ReadFile(at(file))
		if err != nil || strings.Contains(string(text), "\ndma") {
			t.Errorf("%v; %s still has\n%s", err, file, text)
		}
	}

	// A person called dma is not made a process.
	if out, err := inRoot(root, "useradd", "--uid", "4321", "--user-group", "dma").CombinedOutput(); err != nil {
		t.Fatalf("useradd: %v\n%s", err, out)
	}
	if out, code := i.script("install"); code != 77 {
		t.Errorf("%d\n%s", code, out)
	}
}

// fields returns the line of a name in a file like passwd(5).
func fields(t testing.TB, file, name string) []string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, name+":") })
	if i < 0 {
		t.Fatalf("%s has no %s", file, name)
	}
	return strings.Split(lines[i], ":")
}

func number(t testing.TB, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func groupIn(t testing.TB, root, name string) int {
	t.Helper()
	return number(t, fields(t, filepath.Join(root, "/etc/group"), name)[2])
}

// idsIn returns the ids of a shared spool in another root.
func idsIn(t testing.TB, root string) spooldir.Identities {
	t.Helper()
	queue, net := fields(t, filepath.Join(root, "/etc/passwd"), "dma"), fields(t, filepath.Join(root, "/etc/passwd"), "dmanet")
	return spooldir.Identities{
		QueueUID: number(t, queue[2]), QueueGID: number(t, queue[3]),
		NetUID: number(t, net[2]), NetGID: number(t, net[3]), SubmitGID: groupIn(t, root, "dmasubmit"),
	}
}
