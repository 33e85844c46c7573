package spooldir

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLookThenRename moves another user's file where it may not be linked: on
// a file system without RENAME_NOREPLACE, with hard links protected.
func TestLookThenRename(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if on, err := os.ReadFile("/proc/sys/fs/protected_hardlinks"); err != nil || strings.TrimSpace(string(on)) != "1" {
		t.Skip("hard links are not protected here")
	}
	const owner, mover = 64420, 64421
	dir := t.TempDir()
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	src, dst, taken := filepath.Join(dir, "a", "x"), filepath.Join(dir, "b", "x"), filepath.Join(dir, "b", "taken")
	for _, d := range []string{"a", "b"} {
		if err := errors.Join(os.Mkdir(filepath.Join(dir, d), 0o700), os.Chown(filepath.Join(dir, d), mover, mover)); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{src, taken} {
		if err := errors.Join(os.WriteFile(file, []byte(file), 0o640), os.Chown(file, owner, owner)); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread keeps the ids
		if err := errors.Join(syscall.Setfsgid(mover), syscall.Setfsuid(mover)); err != nil {
			done <- err
			return
		}
		done <- func() error {
			if err := unix.Link(src, dst); !errors.Is(err, unix.EPERM) {
				return errors.Join(errors.New("a link is possible: the test shows nothing"), err)
			}
			if err := linkThenUnlink(src, taken); !errors.Is(err, unix.EEXIST) {
				return errors.Join(errors.New("onto another file"), err)
			}
			if err := linkThenUnlink(filepath.Join(dir, "a", "y"), dst); !errors.Is(err, unix.ENOENT) {
				return errors.Join(errors.New("of a missing file"), err)
			}
			return linkThenUnlink(src, dst)
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(src); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old name: %v", err)
	}
	for path, want := range map[string]string{dst: src, taken: taken} {
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
}
