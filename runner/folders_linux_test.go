package runner

import (
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dma/internal/crashtest"
	"dma/internal/hangfs"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == roleFolders {
		os.Exit(runFoldersRole())
	}
	os.Exit(m.Run())
}

// TestLookApart: an included file that does not answer neither holds up who puts on
// the sandbox nor hides the folders of others.
func TestLookApart(t *testing.T) {
	crashtest.Need(t, hangfs.Available())
	dir := site(t, "", map[string]string{
		"etc/aliases": "a: :include:DIR/lists/a\nb: :include:DIR/dead/x\nc: :include:DIR/more/c\nd: :include:DIR/none/d\n",
		"lists/a":     "bob\n", "dead/x": "", "more/c": "bob\n",
	})
	fs, err := hangfs.Mount(filepath.Join(dir, "dead/x"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fs.Close(); err != nil {
			t.Error(err)
		}
	})
	fs.Hang()
	open, err := lookApart([]string{filepath.Join(dir, "etc/aliases")}, 200*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, path := range open.there() {
		rel, _ := filepath.Rel(dir, path)
		got = append(got, rel)
	}
	slices.Sort(got)
	if want := []string{"dead", "etc", "lists", "more"}; !slices.Equal(got, want) {
		t.Errorf("there are %q, want %q", got, want)
	}
	if !open[filepath.Join(dir, "lists")].fixed {
		t.Error("a folder of nobody else's is somebody's")
	}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_GETPID, 0, 0, 0); errno != 0 && errno != syscall.ENOTSUP {
		t.Error(errno)
	}
}
