package crashtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPrivate checks that a mount made here is not seen by the process outside.
func TestPrivate(t *testing.T) {
	Need(t, Private())
	dir := t.TempDir()
	if err := unix.Mount("private", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	for pid, want := range map[int]bool{os.Getpid(): true, os.Getppid(): false} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(b), " "+dir+" "); got != want {
			t.Errorf("process %d sees the mount: %v, want %v", pid, got, want)
		}
	}
}

const failEnv = "CRASHTEST_FAIL"

// TestExitStatus checks that the outer process passes a failure on.
func TestExitStatus(t *testing.T) {
	if os.Getenv(failEnv) != "" {
		t.Fatal("on purpose")
	}
	Need(t, Private())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^TestExitStatus$")
	cmd.Env = append(os.Environ(), failEnv+"=1", namespaceEnv+"=")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "on purpose") {
		t.Errorf("%v: %s", err, out)
	}
}
