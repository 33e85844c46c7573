package passwd

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

const users = `root:x:0:0:root:/root:/bin/bash
# a comment
joe:x:1000:100:Joe Doe,,,:/home/joe:/bin/sh
joe:x:1001:100:another Joe:/home/joe2:/bin/sh
toor:*:0:0::/root:
nohome:x:2000:2000:::
+@staff::::::
short:x:5:5
neg:x:-1:5:::
high:x:4294967295:5:::
gid:x:5:x:::
rel:x:5:5::home:
esc:x:5:5::/h` + "\x1b" + `:
shell:x:5:5::/:` + "\x07" + `
a/b:x:6:6:::
:x:6:6:::`

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestFile(t *testing.T) {
	ctx := context.Background()
	name := filepath.Join(t.TempDir(), "passwd")
	write(t, name, users)
	f := File(name)

	joe := User{Name: "joe", UID: 1000, GID: 100, Gecos: "Joe Doe,,,", Home: "/home/joe", Shell: "/bin/sh"}
	for _, tt := range []struct {
		name string
		want User
		err  string
	}{
		{"joe", joe, ""},
		{"toor", User{Name: "toor", Home: "/root"}, ""},
		{"nohome", User{Name: "nohome", UID: 2000, GID: 2000}, ""},
		{"Joe", User{}, `user "Joe": no such user`},
		{"@staff", User{}, `user "@staff": no such user`},
		{"../joe", User{}, `user "../joe": no such user`},
		{"", User{}, `user "": no such user`},
		{"a\nb", User{}, `user "a\nb": no such user`},
		{"short", User{}, `user "short": ` + name + `:8 is a bad line`},
	} {
		u, err := f.Lookup(ctx, tt.name)
		if u != tt.want || (err == nil) != (tt.err == "") || err != nil && err.Error() != tt.err {
			t.Errorf("Lookup(%q) = %+v, %v", tt.name, u, err)
		}
		if unknown := strings.HasSuffix(tt.err, "no such user"); errors.Is(err, ErrUnknown) != unknown {
			t.Errorf("Lookup(%q): errors.Is(%v, ErrUnknown) is %v", tt.name, err, !unknown)
		}
	}
	if u, err := f.LookupID(ctx, 1000); u != joe || err != nil {
		t.Errorf("LookupID(1000) = %+v, %v", u, err)
	}
	if u, err := f.LookupID(ctx, 0); u.Name != "root" || err != nil {
		t.Errorf("LookupID(0) = %+v, %v", u, err)
	}
	if _, err := f.LookupID(ctx, 77); !errors.Is(err, ErrUnknown) {
		t.Errorf("LookupID(77): %v", err)
	}

	bad, err := f.BadLines(ctx)
	want := []BadLine{
		{8, "4 fields instead of 7"},
		{9, `user "neg": bad uid "-1"`},
		{10, `user "high": bad uid "4294967295"`},
		{11, `user "gid": bad gid "x"`},
		{12, `user "rel": the home "home" is no absolute path`},
		{13, `user "esc": the home "/h\x1b" is no absolute path`},
		{14, `user "shell": the shell "\a" has control characters`},
		{15, `bad user name "a/b"`},
		{16, `bad user name ""`},
	}
	if err != nil || !reflect.DeepEqual(bad, want) {
		t.Errorf("bad lines %+v, %v", bad, err)
	}
}

func TestUsers(t *testing.T) {
	name := filepath.Join(t.TempDir(), "passwd")
	write(t, name, users)
	f := File(name)
	all, err := f.Users(t.Context())
	var names []string
	for _, u := range all {
		names = append(names, u.Name)
	}
	if got := strings.Join(names, " "); err != nil || got != "root toor joe nohome" {
		t.Errorf("%s, %v", got, err)
	}
	write(t, name, "")
	if all, err := f.Users(t.Context()); err == nil {
		t.Errorf("an empty file: %v", all)
	}
}

func TestFileChanges(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	name := filepath.Join(dir, "passwd")
	f := File(name)
	has := func(user string, want error) {
		t.Helper()
		_, err := f.Lookup(ctx, user)
		switch {
		case want == nil && err != nil, want != nil && !errors.Is(err, want), want != ErrUnknown && errors.Is(err, ErrUnknown):
			t.Errorf("%s: %v; want %v", user, err, want)
		}
	}
	old := time.Unix(1e9, 0)
	has("a", fs.ErrNotExist)
	write(t, name, "a:x:1:1:::\n")
	has("a", nil)
	has("b", ErrUnknown)

	write(t, name, "a:x:1:1:::\nb:x:2:2:::\n") // size
	has("b", nil)

	write(t, name, "a:x:1:1:::\nc:x:2:2:::\n")
	if err := os.Chtimes(name, old, old); err != nil { // time
		t.Fatal(err)
	}
	has("c", nil)
	has("b", ErrUnknown)

	write(t, name+".new", "a:x:1:1:::\nd:x:2:2:::\n")
	if err := os.Chtimes(name+".new", old, old); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil { // inode
		t.Fatal(err)
	}
	has("d", nil)

	// Unchanged, the file is not read again.
	before := f.data
	has("d", nil)
	if f.data != before {
		t.Error("read again although it is the same")
	}

	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	has("d", fs.ErrNotExist)
	write(t, name, "# nobody\n")
	if _, err := f.Lookup(ctx, "d"); err == nil || err.Error() != `user "d": `+name+": no user in it" {
		t.Errorf("empty file: %v", err)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.LookupID(ctx, 1); err == nil || err.Error() != "uid 1: "+name+": not a regular file" {
		t.Errorf("FIFO: %v", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := f.Lookup(ctx, "d"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestFileTooLarge(t *testing.T) {
	name := filepath.Join(t.TempDir(), "passwd")
	write(t, name, "a:x:1:1:::\n")
	if _, _, err := read(name, 10); err == nil || err.Error() != name+": larger than 10 octets" {
		t.Errorf("error %v", err)
	}
	if _, text, err := read(name, 11); err != nil || text != "a:x:1:1:::\n" {
		t.Errorf("%q, %v", text, err)
	}
}
