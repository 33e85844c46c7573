package runner

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
				look := looker{within: foldersTime}
				open := look.folders(t.Context(), paths, aliases)
				if err := tt.change(dir); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 3*aliasesEvery+time.Second)
				defer cancel()
				if got := look.newFolder(ctx, paths, open); got != tt.want {
					t.Errorf("a new folder: %v", got)
				}
			})
		})
	}
}

// TestForeignFolder: somebody else, whose files are included too, cannot have the
// queue process end again and again.
func TestForeignFolder(t *testing.T) {
	for _, tt := range []struct {
		about  string
		change func(dir string) error
		want   bool
	}{
		{"a folder in the place of another", func(dir string) error {
			return errors.Join(os.Rename(dir+"/hers/lists", dir+"/hers/old"), os.Mkdir(dir+"/hers/lists", 0o755))
		}, false},
		{"a link to another folder", func(dir string) error { return os.Symlink(dir+"/hers/more/a", dir+"/hers/lists/b") }, false},
		{"a link to a new one of root", func(dir string) error {
			return errors.Join(os.Symlink(dir+"/late/x", dir+"/hers/lists/b"), os.Mkdir(dir+"/late", 0o755), os.WriteFile(dir+"/late/x", nil, 0o644))
		}, true},
		{"a folder that was missing", func(dir string) error { return os.Mkdir(dir+"/hers/late", 0o755) }, true},
	} {
		t.Run(tt.about, func(t *testing.T) {
			dir := site(t, "", map[string]string{
				"etc/aliases":  "a: :include:DIR/hers/lists/a\nb: :include:DIR/hers/lists/b\nc: :include:DIR/hers/late/x\nd: :include:DIR/late/x\n",
				"hers/lists/a": "bob\n", "hers/more/a": "bob\n",
			})
			if err := os.Chmod(dir+"/hers", 0o777); err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				paths := []string{filepath.Join(dir, "etc/aliases")}
				aliases, _, err := forward.LoadAliases(paths...)
				if err != nil {
					t.Fatal(err)
				}
				look := looker{within: foldersTime}
				open := look.folders(t.Context(), paths, aliases)
				if err := tt.change(dir); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 2*foreignAfter)
				defer cancel()
				if got := look.newFolder(ctx, paths, open); got != tt.want {
					t.Errorf("a new folder: %v", got)
				}
				foreign := !strings.Contains(tt.about, "root")
				if age := time.Since(began); tt.want && foreign != (age >= foreignAfter) {
					t.Errorf("after %v", age)
				}
			})
		})
	}
}

// TestFoldersThatHang: a folder that does not answer holds nothing up, is not opened,
// and is not looked at again while it hangs.
func TestFoldersThatHang(t *testing.T) {
	dir := site(t, "", map[string]string{"etc/aliases": "a: :include:DIR/lists/a\nb: :include:DIR/lists/none\nc: :include:DIR/dead/x\n", "lists/a": "bob\n"})
	synctest.Test(t, func(t *testing.T) {
		paths := []string{filepath.Join(dir, "etc/aliases")}
		aliases, _, err := forward.LoadAliases(paths...)
		if err != nil {
			t.Fatal(err)
		}
		look := looker{within: foldersTime, busy: map[string]bool{filepath.Join(dir, "lists/a"): true}} // which hangs
		open := look.folders(t.Context(), paths, aliases)
		want := []string{filepath.Join(dir, "etc"), filepath.Join(dir, "lists")}
		if got := slices.Sorted(slices.Values(open.there())); !slices.Equal(got, want) {
			t.Errorf("open: %q, want %q", got, want)
		}
		if d, ok := open[filepath.Join(dir, "dead")]; !ok || d.info != nil {
			t.Errorf("a folder that is missing: %v, %v", d, ok)
		}
	})
}
