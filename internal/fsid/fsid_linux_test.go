package fsid

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"dma/internal/crashtest"
)

// TestAs: what is made belongs to the other user, what is closed to that user is
// closed, and neither holds afterwards, or for other goroutines.
func TestAs(t *testing.T) {
	var unavailable error
	if os.Geteuid() != 0 {
		unavailable = errors.New("not root")
	}
	crashtest.Need(t, unavailable)
	dir := t.TempDir()
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const uid, gid = 54321, 54322
	open, closed := filepath.Join(dir, "open"), filepath.Join(dir, "closed")
	for path, mode := range map[string]os.FileMode{open: 0o777, closed: 0o700} {
		if err := errors.Join(os.Mkdir(path, 0o700), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	trouble := errors.New("trouble")
	err := As(uid, gid, func() error {
		if _, err := os.ReadDir(closed); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("a closed directory: %v", err)
		}
		other := make(chan error)
		go func() {
			_, err := os.ReadDir(closed)
			other <- err
		}()
		if err := <-other; err != nil {
			t.Errorf("another goroutine: %v", err)
		}
		if err := os.WriteFile(filepath.Join(open, "file"), nil, 0o600); err != nil {
			t.Error(err)
		}
		return trouble
	})
	if err != trouble {
		t.Errorf("%v", err)
	}
	for range 100 { // also in the thread that was used
		if _, err := os.ReadDir(closed); err != nil {
			t.Fatal(err)
		}
	}
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Join(open, "file"), &st); err != nil || st.Uid != uid || st.Gid != gid {
		t.Errorf("%d:%d, %v", st.Uid, st.Gid, err)
	}
}
