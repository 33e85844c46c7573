package runner

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"dma/forward"
)

// TestNewFolder: what the queue process may open is the folders that there were
// when it began; for others, also in the place of those, it has to begin anew.
func TestNewFolder(t *testing.T) {
	for _, tt := range []struct {
		about  string
		change func(dir string) error
		want   bool
	}{
		{"nothing", func(string) error { return nil }, false},
		{"another file of a folder", func(dir string) error {
			return os.WriteFile(dir+"/etc/aliases", []byte("a: :include:"+dir+"/lists/b\n"), 0o644)
		}, false},
		{"a file of another folder", func(dir string) error {
			return os.WriteFile(dir+"/etc/aliases", []byte("a: :include:"+dir+"/more/a\n"), 0o644)
		}, true},
		{"a link to another folder", func(dir string) error { return os.Symlink(dir+"/more/a", dir+"/lists/b") }, true},
		{"a folder that was missing", func(dir string) error { return os.Mkdir(dir+"/late", 0o755) }, true},
		{"a folder in the place of another", func(dir string) error {
			if err := os.Rename(dir+"/lists", dir+"/old"); err != nil {
				return err
			}
			return os.Mkdir(dir+"/lists", 0o755)
		}, true},
		{"a folder that goes", func(dir string) error { return os.RemoveAll(dir + "/lists") }, false},
	} {
		t.Run(tt.about, func(t *testing.T) {
			dir := site(t, "", map[string]string{
				"etc/aliases": "a: :include:DIR/lists/a\nb: :include:DIR/lists/b\nlate: :include:DIR/late/x\n",
				"lists/a":     "bob\n", "more/a": "bob\n",
			})
			synctest.Test(t, func(t *testing.T) {
				paths := []string{filepath.Join(dir, "etc/aliases")}
				aliases, _, err := forward.LoadAliases(paths...)
				if err != nil {
					t.Fatal(err)
				}
				open := foldersOf(paths, aliases)
				if err := tt.change(dir); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 3*aliasesEvery+time.Second)
				defer cancel()
				if got := newFolder(ctx, paths, open); got != tt.want {
					t.Errorf("a new folder: %v", got)
				}
			})
		})
	}
}
