package peertest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dma/internal/crashtest"
)

// Environment that a start of the program hands to the next one.
const (
	stageEnv    = "DMA_PEERTEST_STAGE"    // "init": process 1 of the namespaces; "inside"
	errorEnv    = "DMA_PEERTEST_ERROR"    // why there is no set
	programsEnv = "DMA_PEERTEST_PROGRAMS" // the folder for Programs
)

// Hostname is the name of the host in the namespaces.
const Hostname = "host.example"

// Main is the body of a TestMain for tests that use the given sets (none: Peers).
// If such tests are wanted it runs them in namespaces of their own.
func Main(m *testing.M, sets ...Set) {
	if len(sets) == 0 {
		sets = []Set{Peers()}
	}
	if !crashtest.Enabled() {
		os.Exit(m.Run())
	}
	os.Exit(Run(m.Run, sets...))
}

// Run runs f in new namespaces, in a further start of this program, with the
// sets unpacked before, while there still is a network. It returns what f
// returned. Without root f runs where it is, and [NewRoot] says what lacks.
func Run(f func() int, sets ...Set) int {
	switch os.Getenv(stageEnv) {
	case "init":
		return initProcess()
	case "inside":
		return f()
	}
	if os.Geteuid() != 0 {
		return f()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	var failed error
	for _, set := range sets {
		if _, err := Unpack(ctx, set); err != nil {
			failed = errors.Join(failed, fmt.Errorf("packages %v: %w", set, err))
		}
	}
	programs, err := os.MkdirTemp("", "dma-programs-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "peertest:", err)
		return 1
	}
	defer os.RemoveAll(programs)
	env := append(os.Environ(), stageEnv+"=init", programsEnv+"="+programs)
	if failed != nil {
		env = append(env, errorEnv+"="+failed.Error())
	}
	runtime.LockOSThread() // Pdeathsig follows the thread that forked
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Args[0] = os.Args[0]
	c.Env = env
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGINT)
	if err := c.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "peertest: namespaces:", err)
		return 1
	}
	go func() {
		for s := range signals {
			_ = c.Process.Signal(s) // fails only when it has ended
		}
	}()
	if err := c.Wait(); err != nil && !c.ProcessState.Exited() {
		fmt.Fprintln(os.Stderr, "peertest:", err)
		return 1
	}
	return c.ProcessState.ExitCode()
}

// initProcess is process 1: it starts the program once more and waits for
// whatever is left to it. All processes end with it.
func initProcess() int {
	fail := func(what string, err error) int {
		fmt.Fprintf(os.Stderr, "peertest: %s: %v\n", what, err)
		return 1
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fail("private mounts", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fail("/proc", err)
	}
	if err := unix.Sethostname([]byte(Hostname)); err != nil {
		return fail("host name", err)
	}
	if err := loopbackUp(); err != nil {
		return fail("loopback", err)
	}
	self, err := os.Executable()
	if err != nil {
		return fail("program", err)
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGINT)
	if err := os.Setenv(stageEnv, "inside"); err != nil {
		return fail("environment", err)
	}
	p, err := os.StartProcess(self, os.Args, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		return fail("start", err)
	}
	go func() {
		for s := range signals {
			_ = p.Signal(s) // fails only when it has ended
		}
	}()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return fail("wait", err)
		case pid == p.Pid && status.Exited():
			return status.ExitStatus()
		case pid == p.Pid:
			return fail("ended by", errors.New(status.Signal().String()))
		}
	}
}

// loopbackUp gives the namespace 127.0.0.1 and ::1.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// Need skips a test that is not wanted or not possible here, and fails it where
// it is wanted and packages lack.
func Need(t testing.TB) {
	t.Helper()
	crashtest.Need(t, available())
}

func available() error {
	if text := os.Getenv(errorEnv); text != "" {
		return &crashtest.Missing{What: text, Remedy: "apt-get update, and a connection to the package archive"}
	}
	if os.Getenv(stageEnv) != "inside" {
		return errors.New("no namespaces: needs root, and a TestMain that calls peertest.Main")
	}
	return nil
}
