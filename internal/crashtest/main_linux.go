package crashtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"testing"
)

// namespaceEnv tells the second start of the test binary which mount
// namespace it has left.
const namespaceEnv = "DMA_TEST_MOUNT_NAMESPACE"

// Main is the body of a TestMain: it runs the tests and exits. As root, with
// Enabled tests, it first starts the test binary again in a private mount
// namespace. Whatever happens to that process, the kernel then removes its
// mounts, and with them the loop devices. Where the namespace is refused (a
// container without CAP_SYS_ADMIN) the tests run in this process and Private
// says why they lack it.
func Main(m *testing.M) {
	if os.Geteuid() != 0 || !Enabled() || os.Getenv(namespaceEnv) != "" {
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // Pdeathsig follows the thread that forked
	here, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		os.Exit(m.Run())
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), namespaceEnv+"="+here)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	// Unshareflags with CLONE_NEWNS also makes all mounts private.
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	sigs := make(chan os.Signal, 4)
	signal.Notify(sigs, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGINT)
	if err := c.Start(); err != nil {
		signal.Stop(sigs)
		runtime.UnlockOSThread()
		os.Exit(m.Run())
	}
	go func() {
		for s := range sigs {
			_ = c.Process.Signal(s) // fails only when it has ended
		}
	}()
	switch err := c.Wait(); {
	case err == nil:
		os.Exit(0)
	case c.ProcessState != nil && c.ProcessState.Exited():
		os.Exit(c.ProcessState.ExitCode())
	default:
		fmt.Fprintln(os.Stderr, "tests in a private mount namespace:", err)
		os.Exit(1)
	}
}

// Private returns nil if this process is root in a mount namespace of its own,
// so that a mount cannot outlive it; otherwise it says what lacks.
func Private() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root")
	}
	left := os.Getenv(namespaceEnv)
	here, err := os.Readlink("/proc/self/ns/mnt")
	switch {
	case err != nil:
		return fmt.Errorf("mount namespace: %w", err)
	case left == "":
		return errors.New("no private mount namespace: needs CAP_SYS_ADMIN, and a TestMain that calls crashtest.Main")
	case left == here:
		return errors.New("the mount namespace is not private")
	}
	return nil
}
