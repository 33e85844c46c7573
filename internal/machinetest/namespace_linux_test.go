package machinetest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"dma/internal/crashtest"
	_ "dma/internal/sendmail" // so that the test cache knows what the programs are made of
	_ "dma/runner"
)

// The stages of the test binary: started by go test; the first process of the
// namespaces; the tests.
const (
	stageEnv  = "DMA_MACHINE_STAGE"
	dirEnv    = "DMA_MACHINE_DIR" // the folder where what is mounted lies
	stageInit = "init"
	stageTest = "test"
)

func TestMain(m *testing.M) {
	var err error
	switch stage := os.Getenv(stageEnv); {
	case filepath.Base(os.Args[0]) == actorName && len(os.Args) > 1:
		os.Exit(actorMain(os.Args[1:]))
	case stage == stageTest:
		os.Exit(m.Run())
	case stage == stageInit:
		err = initialize()
	case crashtest.Enabled() && os.Geteuid() == 0:
		err = separate()
	default:
		os.Exit(m.Run())
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "machinetest:", err)
		os.Exit(1)
	}
}

// again is a command for the next stage of this test binary.
func again(stage, dir string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), stageEnv+"="+stage, dirEnv+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd, nil
}

// separate builds the programs and starts the namespaces.
func separate() error {
	dir, err := os.MkdirTemp("", "dma-machine-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, "bin")+"/", "dma/cmd/dma", "dma/cmd/dma-runner")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	if err := callNumbers(dir); err != nil {
		return err
	}
	cmd, err := again(stageInit, dir)
	if err != nil {
		return err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC,
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGINT)
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		for range signals {
			_ = cmd.Process.Kill() // the namespace goes with its first process
		}
	}()
	return cmd.Wait()
}

// initialize is the first process of the namespaces: it makes the machine,
// starts the tests and reaps whoever has lost its parent.
func initialize() error {
	dir := os.Getenv(dirEnv)
	if err := mounts(dir); err != nil {
		return err
	}
	if err := loopback(); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	cmd, err := again(stageTest, dir)
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return err
		case pid == cmd.Process.Pid && status.Exited():
			os.Exit(status.ExitStatus())
		case pid == cmd.Process.Pid:
			return fmt.Errorf("the tests ended by %v", status.Signal())
		}
	}
}

// mounts makes the directories of the machine's own.
func mounts(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("/proc: %w", err)
	}
	if out, err := exec.Command("cp", "-a", "/etc", filepath.Join(dir, "etc")).CombinedOutput(); err != nil {
		return fmt.Errorf("copy of /etc: %w\n%s", err, out)
	}
	if err := unix.Mount(filepath.Join(dir, "etc"), "/etc", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("/etc: %w", err)
	}
	for _, at := range []string{"/home", "/var/mail", "/var/spool", "/run", "/opt"} {
		target, err := filepath.EvalSymlinks(at)
		if err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", target, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
	}
	return nil
}

// loopback brings up the network of the machine.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// account is a user of the machine.
type account struct {
	name     string
	uid, gid int
	home     string
}

// accounts lists the users of the machine that the copy of /etc does not have.
func accounts() []account {
	return []account{
		{"dma", 990, 990, "/nonexistent"},
		{"dmanet", 991, 991, "/nonexistent"},
		{"robot", 150, 150, "/home/robot"}, // below MINUID
		{"alice", 2001, 2001, "/home/alice"},
		{"bob", 2002, 2002, "/home/bob"},
		{"carol", 2003, 2003, "/home/carol"},
		{"mallory", 2666, 2666, "/home/mallory"},
	}
}

// Groups of the machine.
const (
	submitGroup = 992
	staffGroup  = 2900 // alice and bob are in it
)

// addAccounts writes the accounts behind those of /etc/passwd and /etc/group,
// without those of the same name or number there.
func addAccounts() error {
	var users, groups strings.Builder
	for _, a := range accounts() {
		fmt.Fprintf(&users, "%s:x:%d:%d:%s:%s:/bin/sh\n", a.name, a.uid, a.gid, strings.ToUpper(a.name[:1])+a.name[1:], a.home)
		fmt.Fprintf(&groups, "%s:x:%d:\n", a.name, a.gid)
	}
	fmt.Fprintf(&groups, "dmasubmit:x:%d:dma,dmanet\nstaffers:x:%d:alice,bob\n", submitGroup, staffGroup)
	for file, add := range map[string]string{"/etc/passwd": users.String(), "/etc/group": groups.String()} {
		old, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		mine := make(map[string]bool)
		for line := range strings.Lines(add) {
			f := strings.Split(line, ":")
			mine[f[0]], mine[f[2]] = true, true
		}
		var text strings.Builder
		for line := range strings.Lines(string(old)) {
			if f := strings.Split(line, ":"); len(f) > 2 && (mine[f[0]] || mine[f[2]]) {
				continue
			}
			text.WriteString(line)
		}
		if err := os.WriteFile(file, []byte(text.String()+add), 0o644); err != nil {
			return err
		}
	}
	return nil
}
