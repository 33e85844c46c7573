package forward

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// load reads aliases with this content, written long ago.
func load(t *testing.T, content string) (*Aliases, []Problem) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "aliases")
	write(t, path, content)
	if err := os.Chtimes(path, longAgo, longAgo); err != nil {
		t.Fatal(err)
	}
	a, problems, err := LoadAliases(path)
	if err != nil {
		t.Fatal(err)
	}
	return a, problems
}

var longAgo = time.Now().Add(-time.Hour)

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestLoadAliases(t *testing.T) {
	a, problems, err := LoadAliases("testdata/aliases")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"mailer-daemon": "address postmaster",
		"POSTMASTER":    "address root",
		"root":          "address jim; address bob@example.org; mailbox root",
		"John doe":      "address john",
		"weird:name":    "address weird",
		"bin":           "discard",
		"archive":       "file /var/mail/archive with blank; maildir /srv/archive/",
		"ticket":        "command /usr/lib/rt/rt-mailgate --queue 'a, b'    --action correspond",
		"list":          "include /etc/mail/list",
		"list-request":  "command /usr/local/bin/majordomo -l list",
		"jim":           "address jim; address bob@example.net",
		"lower":         "address UPPER",
		"dupe":          "address one",
		"after":         "address jim",
		"~tilde":        "",
		"fixed":         "address jim",
		"last":          "address jim",
		"nobody":        "",
		"nocolon":       "",
		"open: jim":     "",
	} {
		got, ok, err := a.Lookup(name)
		if name == "~tilde" {
			if err == nil {
				t.Errorf("%s: no error", name)
			}
			continue
		}
		if err != nil || ok != (want != "") || describe(got) != want {
			t.Errorf("%s: %s, %v, %v; want %s", name, describe(got), ok, err, want)
		}
	}
	want := []string{
		":23: warning: `dupe` is an alias already in line 22, which stands; remove one of them",
		":24: no colon after `nocolon`; write name: target, target",
		":25: `jim bob` has a blank in it;",
		":26: a quote is never closed;",
		":28: `empty` has no target; write /dev/null for mail that nobody wants",
		":29: no name before the colon;",
		":30: `user@example.org`: an alias is the part before the @;",
		":31: the quote of the name is never closed;",
		":32: `~/mbox`: there is no home directory here;",
		":33: `~/mbox`: there is no home directory here;",
		":34: `:`: there is :include:/path and nothing else",
		":35: no colon after `fixed`;",
	}
	for i := range max(len(want), len(problems)) {
		switch {
		case i >= len(want):
			t.Errorf("unexpected: %v", problems[i])
		case i >= len(problems):
			t.Errorf("no problem %s", want[i])
		case !strings.HasPrefix(problems[i].Error(), "testdata/aliases"+want[i]):
			t.Errorf("problem %v, want %s", problems[i], want[i])
		}
	}
	for _, name := range []string{"bad", "badquote", "empty"} {
		var p Problem
		if _, ok, err := a.Lookup(name); ok || !errors.As(err, &p) || p.Line == 0 {
			t.Errorf("%s: %v, %v; want the problem", name, ok, err)
		}
	}
	if owner, ok := a.Owner("List"); owner != "owner-list" || !ok {
		t.Errorf("owner of list: %s, %v", owner, ok)
	}
	if owner, ok := a.Owner("root"); owner != "" || ok {
		t.Errorf("owner of root: %s, %v", owner, ok)
	}
	if names := a.Names(); !slices.IsSorted(names) || !slices.Contains(names, "bad") || slices.Contains(names, "nocolon") {
		t.Errorf("names %q", names)
	}
}

func TestLoadAliasesFiles(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	write(t, one, "a: first\nb: x y\n")
	write(t, two, "a: second\nb: fine\nc: third")
	a, problems, err := LoadAliases(one, filepath.Join(dir, "missing"), two)
	if err != nil || len(problems) != 2 || problems[0].File != one || !strings.Contains(problems[1].Error(), "/missing: it does not exist; create it") {
		t.Fatal(problems, err)
	}
	if got, _, _ := a.Lookup("a"); describe(got) != "address first" {
		t.Errorf("a: %s", describe(got))
	}
	if got, _, _ := a.Lookup("c"); describe(got) != "address third" {
		t.Errorf("c: %s", describe(got))
	}
	if _, _, err := a.Lookup("b"); err == nil {
		t.Error("b: the second file stands in for a mistake in the first")
	}

	if err := os.Remove(two); err != nil {
		t.Fatal(err)
	}
	for name, make := range map[string]func() error{
		"directory": func() error { return os.Mkdir(two, 0o755) },
		"fifo":      func() error { return mkfifo(two) },
		"large":     func() error { return os.WriteFile(two, nil, 0o644) },
		"loop":      func() error { return os.Symlink("two", two) },
	} {
		if err := make(); err != nil {
			t.Fatal(err)
		}
		if name == "large" {
			if err := os.Truncate(two, 1<<30); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := LoadAliases(one, two); err == nil || !strings.Contains(err.Error(), two) {
			t.Errorf("%s: error %v", name, err)
		}
		if err := os.Remove(two); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLoadAliasesProblems(t *testing.T) {
	a, problems := load(t, strings.Repeat("x y\n", 10*maxProblems)+"last: jim")
	if len(problems) != maxProblems+1 || !strings.Contains(problems[maxProblems].Text, "more mistakes from here on") {
		t.Errorf("%d problems", len(problems))
	}
	if _, ok, err := a.Lookup("last"); !ok || err != nil {
		t.Error(ok, err)
	}
}

func TestAliasesWritable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "aliases")
	write(t, path, "a: jim\nb: jim, |cat\nc: /dev/null\n")
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	a, problems, err := LoadAliases(path)
	if err != nil || len(problems) != 2 || problems[0].Line != 0 || problems[1].Line != 2 {
		t.Fatal(problems, err)
	}
	for name, want := range map[string]bool{"a": true, "b": false, "c": true} {
		if _, ok, err := a.Lookup(name); ok != want || (err == nil) != want {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
}

func TestAliasFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "aliases")
	now := time.Now()
	f := NewAliasFile(path)
	f.now = func() time.Time { return now.Add(time.Hour) }
	current := func(want string, wantProblems int) *Aliases {
		t.Helper()
		a, problems, err := f.Current()
		if err != nil {
			t.Fatal(err)
		}
		if got, _, _ := a.Lookup("x"); describe(got) != want {
			t.Errorf("x: %s, want %s", describe(got), want)
		}
		if len(problems) != wantProblems {
			t.Errorf("problems %v, want %d", problems, wantProblems)
		}
		return a
	}
	current("", 1) // it is missing
	write(t, path, "x: aa\ny y\n")
	first := current("address aa", 1)
	if current("address aa", 0) != first {
		t.Error("read again without a change")
	}

	// Replaced by a file of the same size and time.
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path+".new", "x: bb\ny y\n")
	if err := os.Chtimes(path+".new", info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	current("address bb", 0)
	write(t, path, "x: bbb\ny y\nz z\n")
	current("address bbb", 2)
	write(t, path, "x: bbb\n")
	current("address bbb", 0)

	// Just changed: its times do not tell a second change, so it is read.
	info, err = os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f.now = info.ModTime
	write(t, path, "x: cc\n y\n")
	current("", 1)
	info, err = os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f.now = info.ModTime
	write(t, path, "x: d\n# y\n")
	if err := os.Chtimes(path, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	current("address d", 0)

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	current("", 1)
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if a, _, err := f.Current(); a != nil || err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a directory: %v, %v", a, err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	current("", 0)
}

func TestAliasFileConcurrent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "aliases")
	write(t, path, "x: a\nbad\n")
	f := NewAliasFile(path)
	var wg sync.WaitGroup
	var mu sync.Mutex
	reports := 0
	for range 8 {
		wg.Go(func() {
			a, problems, err := f.Current()
			if err != nil {
				t.Error(err)
				return
			}
			a.Lookup("x")
			mu.Lock()
			reports += len(problems)
			mu.Unlock()
		})
	}
	wg.Wait()
	if reports != 1 {
		t.Errorf("reported %d times", reports)
	}
}

func FuzzAliases(f *testing.F) {
	data, err := os.ReadFile("testdata/aliases")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(data))
	for _, s := range []string{"", "a", "a:", ":", "a:b", "\"a\" : \"|c\n d\"", " a: b", "a: b\n\n# c\n d\n\te", "a: b,\n c\r\n", "#\n a: b", "a: \"b\nc: d", "*: a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		read := func(s string) (*Aliases, []Problem) {
			a := &Aliases{entries: map[string][]Target{}, broken: map[string]Problem{}, doubtful: map[string]Problem{}}
			problems, _ := a.add("f", []byte(s), false)
			return a, problems
		}
		a, problems := read(s)
		for _, p := range problems {
			if e := p.Error(); printable(e) != e || len(e) > 1000 || p.Line < 1 || p.Line > strings.Count(s, "\n")+1 {
				t.Errorf("problem %q", e)
			}
		}
		for name, targets := range a.entries {
			if name == "" || len(targets) == 0 || name != strings.ToLower(name) {
				t.Errorf("%q: %v", name, targets)
			}
			for _, target := range targets {
				if check(target) != nil || target.Line < 1 {
					t.Errorf("%q: %#v", name, target)
				}
			}
		}
		// A line of one's own before and after changes nothing.
		b, more := read("fuzzfirst: x\nfuzzsecond: x\n" + s + "\nfuzzlast: y")
		if len(problems) > 1 && len(more) == 0 {
			t.Errorf("%d problems, then none", len(problems))
		}
		for _, name := range []string{"fuzzfirst", "fuzzlast"} {
			if got, ok, err := b.Lookup(name); !ok || err != nil || len(got) == 0 {
				t.Errorf("%s is lost: %v, %v", name, got, err)
			}
		}
	})
}
