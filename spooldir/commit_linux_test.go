package spooldir

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// TestChmodName: the file that was linked gets its mode, and the watcher of the
// directory hears of the name; what else stands there keeps its own.
func TestChmodName(t *testing.T) {
	for name, chmod := range map[string]func(string, *os.File, uint32) error{"one call": chmodName, "old kernel": chmodSame} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			tmp, path, other := filepath.Join(dir, "tmp"), filepath.Join(dir, "new", "name"), filepath.Join(dir, "other")
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			must(os.Mkdir(filepath.Join(dir, "new"), 0o700))
			f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
			must(err)
			defer f.Close()
			must(os.Link(tmp, path))
			must(os.Remove(tmp))
			must(os.WriteFile(other, nil, 0o600))
			w, err := fsnotify.NewWatcher()
			must(err)
			defer w.Close()
			must(w.Add(filepath.Dir(path)))
			must(chmod(path, f, 0o640))
			select {
			case e := <-w.Events:
				if e.Name != path || !e.Has(fsnotify.Chmod) {
					t.Errorf("%v", e)
				}
			case <-time.After(10 * time.Second):
				t.Error("the watcher hears nothing")
			}
			mode := func(path string) uint32 {
				var st unix.Stat_t
				must(unix.Stat(path, &st))
				return st.Mode & 0o7777
			}
			if got := mode(path); got != 0o640 {
				t.Errorf("mode %o", got)
			}
			must(os.Remove(path))
			must(os.Symlink(other, path))
			if err := chmod(path, f, 0o640); err == nil || mode(other) != 0o600 {
				t.Errorf("by a link: %v, mode %o", err, mode(other))
			}
			must(os.Remove(path))
			if err := chmod(path, f, 0o640); err == nil {
				t.Error("no file, and no error")
			}
		})
	}
}
