package passwd

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const groupText = "root:x:0:\nwheel:*:10:ann, joe\n#x:x:11:joe\n+:::\nbad:x:y:joe\nshort:x:12\nmail:x:8:joe,,-x\r\njoe:x:1000:joe\nagain:x:10:joe\n"

func TestGroups(t *testing.T) {
	const more = "passwd: files\ngroup: files ldap\n"
	joe := User{Name: "joe", UID: 1000, GID: 1000}
	for _, tt := range []struct {
		about            string
		nsswitch, script string // of id
		user             User
		want             []int
		err              string // expected after "groups of user ...: "
	}{
		{"the file", "", "exit 1", joe, []int{1000, 8, 10}, ""},
		{"files only", "group: files compat\n", "exit 1", joe, []int{1000, 8, 10}, ""},
		{"none", "", "", User{Name: "eve", UID: 5, GID: 6}, []int{6}, ""},
		{"asked", more, "echo 1000 7 5 7", joe, []int{1000, 5, 7}, ""},
		{"asked for logins", "initgroups: ldap\n", "echo 1000 7", joe, []int{1000, 7}, ""},
		{"arguments", more, `test "$*" = "-G joe" && test "$HOME$(pwd)" = / && echo 1000`, joe, []int{1000}, ""},
		{"no id", more, "", joe, nil, "DIR/nsswitch.conf names ldap, and there is no id to ask"},
		{"fails", more, "exit 1", joe, nil, "id: exit status 1"},
		{"another user", more, "echo 0 7", joe, nil, "id: the first group is not 1000"},
		{"nothing", more, "exit 0", joe, nil, "id: the first group is not 1000"},
		{"names", more, "echo 1000 wheel", joe, nil, "id: something else than numbers"},
		{"bad name", more, "echo 0", User{Name: "-u", GID: 0}, nil, "not the name of a user"},
	} {
		t.Run(tt.about, func(t *testing.T) {
			s, dir := newSystem(t, tt.nsswitch, "")
			s.groups = &groupFile{path: filepath.Join(dir, "group")}
			s.id = []string{filepath.Join(dir, "id")}
			write(t, s.groups.path, groupText)
			if tt.script != "" {
				if err := os.WriteFile(s.id[0], []byte("#!/bin/sh\n"+tt.script+"\n"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			got, err := s.Groups(context.Background(), tt.user)
			want := ""
			if tt.err != "" {
				want = "groups of user " + strconv.Quote(tt.user.Name) + ": " + strings.ReplaceAll(tt.err, "DIR", dir)
			}
			if !slices.Equal(got, tt.want) || errText(err) != want {
				t.Errorf("got %v, %v; want %v, %s", got, err, tt.want, want)
			}
		})
	}
}

// TestGroupsChange: the file is read again when it has changed, and no groups
// are believed where it is missing.
func TestGroupsChange(t *testing.T) {
	g := &groupFile{path: filepath.Join(t.TempDir(), "group")}
	if _, err := g.of("joe"); err == nil {
		t.Error("no error without a file")
	}
	for _, want := range []int{10, 2000} {
		write(t, g.path, "x:x:"+strconv.Itoa(want)+":joe\n")
		if got, err := g.of("joe"); err != nil || !slices.Equal(got, []int{want}) {
			t.Errorf("got %v, %v; want %d", got, err, want)
		}
	}
}

// TestGroupsAsID compares with id(1) for users of this machine.
func TestGroupsAsID(t *testing.T) {
	ctx := context.Background()
	s := System()
	for _, name := range []string{"root", "nobody", "daemon"} {
		out, err := exec.Command("id", "-G", name).Output()
		if err != nil {
			t.Skip(err)
		}
		u, err := s.Lookup(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		gids, err := s.Groups(ctx, u)
		if err != nil {
			t.Fatal(err)
		}
		var want []int
		for f := range strings.FieldsSeq(string(out)) {
			gid, _ := strconv.Atoi(f)
			want = append(want, gid)
		}
		slices.Sort(gids)
		slices.Sort(want)
		if !slices.Equal(gids, want) {
			t.Errorf("%s: %v; id says %v", name, gids, want)
		}
	}
}

// TestUnprivileged: root's programs run as nobody with a group of their own.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	s := System().(*system)
	script := filepath.Join(t.TempDir(), "getent")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nid -u; id -G; echo $$ >&2\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for dir := script; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	nobody, err := s.file.Lookup(context.Background(), "nobody")
	if err != nil {
		t.Skip(err)
	}
	out, err := s.output(context.Background(), "getent", script)
	if want := strconv.Itoa(nobody.UID) + "\n" + strconv.Itoa(untraced) + "\n"; err != nil || out != want {
		t.Errorf("%q, %v; want %q", out, err, want)
	}
}

// FuzzGroups: no group and no source comes out of a file that is not written there.
func FuzzGroups(f *testing.F) {
	for _, s := range []string{
		"", "team:x:3900:dora,jim\n", "a:b:c\n+::::\nx:x:-1:y\nx:x:99999999999999999999:y\n", "t:x:1: a , b,,a\r\n#t:x:1:z\n",
		"group: files [NOTFOUND=return] ldap sss # x\n", "group:[[a]b] c\ngroup: d", "passwd files\n group :compat nis",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for name, gids := range parseGroups(text) {
			if !ValidName(name) || !strings.Contains(text, name) {
				t.Errorf("member %q", name)
			}
			for _, gid := range gids {
				if gid < 0 || !strings.Contains(text, strconv.Itoa(gid)) {
					t.Errorf("%s is in group %d", name, gid)
				}
			}
		}
		for _, source := range databaseLine(text, "group") {
			if source == "" || source == "files" || strings.ContainsAny(source, " \t\n#[") {
				t.Errorf("source %q", source)
			}
		}
	})
}
