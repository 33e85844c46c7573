package forward

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestUnsettled: nobody says that there is no such user, and that an entry is
// whole, while an aliases file is being written, or is gone.
func TestUnsettled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "aliases")
	stat := func() stamp {
		s, err := lookAt(path)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	age := func(d time.Duration) {
		at := time.Now().Add(-d)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	// replace renames a file of an hour ago to path.
	replace := func(content string) {
		write(t, path+".new", content)
		if err := errors.Join(os.Chtimes(path+".new", longAgo, longAgo), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
	}
	f := NewAliasFile(path)
	// expand asks for a name, when the file is as old as that after its time of
	// modification or, where that is long ago, of change.
	expand := func(a *Aliases, name string, after time.Duration) error {
		t.Helper()
		at := stat().mtime
		if time.Since(at) > time.Minute {
			at = stat().ctime
		}
		host := testHost("jim", "bob")
		host.Now = func() time.Time { return at.Add(after) }
		_, err := a.Expand(context.Background(), name, host)
		return err
	}
	read := func() *Aliases {
		t.Helper()
		a, _, err := LoadAliases(path)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	reread := func() *Aliases {
		t.Helper()
		a, _, err := f.Current()
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	expect := func(what string, err error, text string, until time.Time) {
		t.Helper()
		var u *Unsettled
		switch {
		case text == "" && !errors.Is(err, ErrNoUser):
			t.Errorf("%s: error %v, want that there is no such user", what, err)
		case text == "":
		case !errors.As(err, &u) || errors.Is(err, ErrNoUser) || !strings.Contains(err.Error(), text):
			t.Errorf("%s: error %v, want %s", what, err, text)
		case !u.Until.Equal(until):
			t.Errorf("%s: until %v, want %v", what, u.Until, until)
		}
	}
	never := time.Time{}

	a := reread()
	expect("missing", func() error { _, err := a.Expand(context.Background(), "sales", testHost()); return err }(),
		"no such user: sales, but "+path+" does not exist; create it, or take it out of ALIASES", never)
	if _, err := a.Expand(context.Background(), "jim", testHost("jim")); err != nil {
		t.Errorf("an account, and no aliases: %v", err)
	}

	write(t, path, "a: jim\nb: jim, bo")
	at := stat().mtime
	for _, a := range []*Aliases{read(), reread()} {
		expect("written", expand(a, "sales", 5*time.Second), "no such user: sales, but "+path+" changed 5s ago; it is looked up again", at.Add(moment))
		expect("cut off", expand(a, "b", 5*time.Second), path+" changed 5s ago and ends within the line of `b`", at.Add(moment))
		if err := expand(a, "a", 5*time.Second); err != nil {
			t.Errorf("the line before: %v", err)
		}
		expect("settled", expand(a, "sales", moment), "", never)
		if err := expand(a, "b", moment); err != nil {
			t.Errorf("cut off long ago: %v", err)
		}
	}
	write(t, path, "a: jim\nb: jim,\n\n")
	at = stat().mtime
	expect("cut off after a comma", expand(read(), "b", time.Second), "ends within", at.Add(moment))
	write(t, path, "a: jim\nb: jim\n # and so on\n")
	if err := expand(read(), "b", 0); err != nil {
		t.Errorf("not cut off: %v", err)
	}

	// By the time of modification alone, where nothing else is known.
	age(time.Hour)
	expect("an old file", expand(read(), "sales", 0), "", never)
	age(-3 * time.Second)
	expect("a little ahead", expand(read(), "sales", -3*time.Second), "changed 0s ago", stat().mtime.Add(moment))
	age(-1000 * time.Hour)
	expect("far ahead", expand(read(), "sales", -1000*time.Hour), "", never)

	// A file that takes its place may be older.
	age(time.Hour)
	reread()
	replace("a: jim\n")
	expect("replaced", expand(reread(), "sales", 3*time.Second), "changed 3s ago", stat().ctime.Add(moment))
	expect("replaced long ago", expand(reread(), "sales", moment), "", never)
	expect("replaced before it was read first", expand(read(), "sales", 0), "", never)
	old := reread()
	replace("sales: jim\n")
	expect("replaced since", expand(old, "sales", time.Hour), "is being changed", stat().ctime.Add(time.Hour+moment))

	// Empty or missing, and it was not before: for as long as that lasts.
	for name, empty := range map[string]func(){
		"is empty, and was not before": func() { replace("") },
		"does not exist; create it":    func() { os.Remove(path) },
	} {
		empty()
		_, problems, err := f.Current()
		if err != nil || len(problems) != 1 || !strings.Contains(problems[0].Error(), name) || !strings.Contains(problems[0].Error(), "until then mail for unknown names waits") {
			t.Errorf("%s: problems %v, %v", name, problems, err)
		}
		for range 2 {
			host := testHost()
			host.Now = func() time.Time { return time.Now().Add(1000 * time.Hour) }
			_, err := reread().Expand(context.Background(), "sales", host)
			expect(name, err, name, never)
		}
		replace("a: jim\n")
		expect("there again", expand(reread(), "sales", moment), "", never)
	}
	replace("")
	expect("empty from the first", expand(read(), "sales", 0), "", never)
}

// TestSourceOptional: the default of ALIASES may be missing, unless it was there
// before, or its folder is missing.
func TestSourceOptional(t *testing.T) {
	if s := newSource(optional, stamp{}, nil); s.gone != "" {
		t.Errorf("missing: %s", s.gone)
	}
	before := []source{newSource(optional, stamp{ino: 1, size: 1}, nil)}
	for range 2 {
		before = []source{newSource(optional, stamp{}, before)}
		if !strings.Contains(before[0].gone, "and did before") {
			t.Errorf("gone: %q", before[0].gone)
		}
	}
	// A name that has just gone from the folder may have been the file's.
	dir := t.TempDir()
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := source{path: filepath.Join(dir, "aliases")}
	for after, want := range map[time.Duration]bool{0: true, moment - 1: true, moment: false, -time.Hour: false} {
		if at, ok := s.recent(info.ModTime().Add(after)); ok != want || ok && !at.Equal(info.ModTime()) {
			t.Errorf("%v after a change of the folder: %v, %v", after, at, ok)
		}
	}
}
