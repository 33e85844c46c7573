package forward

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzInclude reads included files of any content: of the aliases and of a
// .forward, and of which somebody else may change.
func FuzzInclude(f *testing.F) {
	files, _ := filepath.Glob("testdata/corpus/*")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, s := range []string{"", "a\nb, c # d\r\n", "\n\n x y", ":include:/x\n", "|cat", "~/x", "\\jim", "\"a", "a\x00b", "\ufeffa", strings.Repeat("a,", 100)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "list")
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		at := Target{Kind: Include, Value: path, File: "aliases", Line: 7}
		for _, home := range []bool{false, true} {
			var all int
			for _, mode := range []os.FileMode{0o644, 0o664} {
				if err := os.Chmod(path, mode); err != nil {
					t.Fatal(err)
				}
				in, err := readInclude(at, safety{uid: os.Geteuid()}, home)
				var p Problem
				if errors.As(err, &p) {
					if text := p.Error(); in.targets != nil || printable(text) != text || len(text) > 1000 || p.File != path || p.Line < 1 {
						t.Errorf("%d targets, problem %q", len(in.targets), text)
					}
					continue
				} else if err != nil {
					t.Fatal(err)
				}
				if mode == 0o644 {
					all = len(in.targets)
				} else if in.distrust == "" || len(in.targets) != all {
					t.Errorf("%d targets and %d, distrust %q", all, len(in.targets), in.distrust)
				}
				for _, target := range in.targets {
					if check(target) != nil || target.File != path || target.Line < 1 || target.Kind == User || target.Detail != "" ||
						!home && strings.HasPrefix(target.Value, "~/") && (writes(target) && target.Kind != Command || target.Kind == Include) {
						t.Errorf("%#v", target)
					}
					if in.refused() == nil && in.distrust != "" && (writes(target) || target.Kind == Include) {
						t.Errorf("not refused: %#v", target)
					}
				}
			}
		}
	})
}
