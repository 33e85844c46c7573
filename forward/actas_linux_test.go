package forward

import (
	"os"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const canActAs = true

// actAs runs f with the file-system rights of uid, if the test runs as root.
// They belong to the thread, which is not used again.
func actAs(t *testing.T, uid int, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		f()
		return
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever
		for _, set := range []func(int) error{syscall.Setfsgid, syscall.Setfsuid} {
			if err := set(uid); err != nil {
				done <- err
				return
			}
		}
		f()
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// mkdevice makes a device that gives zeros without end.
func mkdevice(path string) error {
	return unix.Mknod(path, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5)))
}
