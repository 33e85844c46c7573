// Package tinyfs provides file systems that are soon full, for tests of what a
// program does on ENOSPC. A tmpfs refuses new names and content when it is full
// but never a rename; ext4 and xfs refuse renames too (a directory may need a
// block): use a powercut.Session filled with Fill for that.
package tinyfs

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"dma/internal/crashtest"
)

// Limits are the bounds of a tiny file system. Zero means the kernel's default.
type Limits struct {
	Bytes  int64 // content, rounded up to whole pages
	Inodes int   // files and directories, the root included; on tmpfs each hard link takes one
}

// New mounts a tmpfs of this size and returns its directory, mode 0755. It is
// unmounted when the test ends. The test's package needs a TestMain that calls
// crashtest.Main; where such tests are not wanted or not possible, t is skipped.
func New(t testing.TB, l Limits) string {
	t.Helper()
	crashtest.Need(t, crashtest.Private())
	dir := t.TempDir()
	opts := "mode=0755"
	if l.Bytes > 0 {
		opts += fmt.Sprintf(",size=%d", l.Bytes)
	}
	if l.Inodes > 0 {
		opts += fmt.Sprintf(",nr_inodes=%d", l.Inodes)
	}
	if err := mount(dir, opts); err != nil {
		t.Fatalf("mount tmpfs (%s): %v", opts, err)
	}
	t.Cleanup(func() {
		if err := unmount(dir); err != nil {
			t.Errorf("unmount tmpfs: %v; a process may still use it", err)
		}
	})
	return dir
}

// Fill writes the file path until the file system has no room left, then cuts
// it so that at least leave bytes are free. It fails t if nothing fills up
// within max bytes.
func Fill(t testing.TB, path string, leave, max int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 4096)
	size := int64(0)
	for {
		n, err := f.Write(buf)
		size += int64(n)
		if errors.Is(err, syscall.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if size > max {
			t.Fatalf("%s: not full after %d bytes", path, size)
		}
	}
	if err := f.Sync(); err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if leave > 0 {
		if err := f.Truncate(size - min(leave, size)); err != nil {
			t.Fatal(err)
		}
	}
}
