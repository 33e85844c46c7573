package mapfile

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"dma/internal/config"
)

func TestFile(t *testing.T) {
	clock := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	f := File{Path: filepath.Join(t.TempDir(), "f"), Limit: 2048, Now: func() time.Time { return clock }}
	write := func(text string, at time.Time) {
		t.Helper()
		if err := os.WriteFile(f.Path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(f.Path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(want string, wantChanged bool) {
		t.Helper()
		text, changed, err := f.Read()
		if err != nil || string(text) != want || changed != wantChanged {
			t.Errorf("%q, %v, %v; want %q, %v", text, changed, err, want, wantChanged)
		}
	}
	fails := func(want string) {
		t.Helper()
		text, changed, err := f.Read()
		if err == nil || text != nil || changed || !strings.Contains(err.Error(), f.Path) || !strings.Contains(err.Error(), want) || f.Info() != nil {
			t.Errorf("%q, %v, %v; want an error with %q", text, changed, err, want)
		}
	}
	fails("no such file")
	old := clock.Add(-time.Hour)
	write("", old)
	expect("", true)
	expect("", false)
	write("one", old)
	expect("one", true)
	expect("", false)
	write("two", old.Add(time.Second))
	expect("two", true)
	if !f.settled {
		t.Error("an old file is read each time")
	}
	if err := os.Chmod(f.Path, 0o640); err != nil {
		t.Fatal(err)
	}
	expect("two", true)
	if f.Info().Mode().Perm() != 0o640 {
		t.Error(f.Info().Mode())
	}
	// Within the grain of the clock, a change of the same size is seen too.
	write("six", clock)
	expect("six", true)
	expect("", false)
	write("ten", clock)
	expect("ten", true)
	// One that has the same text after an error counts as changed.
	if err := os.Remove(f.Path); err != nil {
		t.Fatal(err)
	}
	fails("no such file")
	write("ten", clock)
	expect("ten", true)
	write(strings.Repeat("x", 2049), clock)
	fails("longer than 2 KiB")
	write(strings.Repeat("x", 2048), clock)
	expect(strings.Repeat("x", 2048), true)
	if err := os.Remove(f.Path); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(f.Path, 0o600); err != nil {
		t.Fatal(err)
	}
	fails("not a regular file")
}

func TestEntries(t *testing.T) {
	text := "\ufeff# a comment\n\n key value \nkey:value\r\nkey : a value # and why\n\tkey\n" +
		"\"a b:c\" x\n[2001:db8::1] y\na#b c#d\n#\nlast:"
	want := []Entry{
		{"key", "value", 3}, {"key", "value", 4}, {"key", "a value", 5}, {"key", "", 6},
		{`"a b:c"`, "x", 7}, {"[2001:db8::1]", "y", 8}, {"a#b", "c#d", 9}, {"last", "", 11},
	}
	if got := slices.Collect(Entries([]byte(text))); !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	for range Entries([]byte(text)) {
		break // and no more is yielded
	}
}

func FuzzEntries(f *testing.F) {
	f.Add([]byte("key: value\n\"a\\\" b\" c # d\n[x y"))
	f.Fuzz(func(t *testing.T, text []byte) {
		last := 0
		for e := range Entries(text) {
			if e.Key == "" && !strings.HasPrefix(e.Value, ":") && e.Value == "" && !strings.Contains(string(text), ":") {
				t.Errorf("an entry without a key: %+v", e)
			}
			if e.Line <= last || strings.ContainsAny(e.Key+e.Value, "\n") || strings.Trim(e.Value, " \t\r") != e.Value {
				t.Errorf("%+v after line %d", e, last)
			}
			last = e.Line
		}
	})
}

func TestReporter(t *testing.T) {
	var got []string
	r := Reporter{Tell: func(p config.Problem) { got = append(got, p.Text) }}
	a := []config.Problem{{Text: "a"}}
	r.Report(a)
	r.Report(a)
	r.Report(nil)
	r.Report(a)
	if !slices.Equal(got, []string{"a", "a"}) {
		t.Error(got)
	}
	got = nil
	var many []config.Problem
	for i := range 200 {
		many = append(many, config.Problem{Text: fmt.Sprint(i)})
	}
	r.Report(many)
	if len(got) != MaxProblems+1 || got[MaxProblems] != "more problems than are shown here" {
		t.Error(len(got), got[len(got)-1])
	}
	if len(many) != 200 || many[MaxProblems].Text != "100" {
		t.Error("the list of the caller was changed")
	}
	new(Reporter).Report(a)
}
