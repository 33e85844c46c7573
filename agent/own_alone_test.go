package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dma/forward"
	"dma/localwriter"
	"dma/spooldir"
)

// TestGroupOfOnesOwn: a .forward that its group may write to counts if nobody
// else is in the group, as far as the files of the machine tell.
func TestGroupOfOnesOwn(t *testing.T) {
	uid, gid := os.Geteuid(), os.Getegid()
	for _, test := range []struct {
		name, group, sources string
		want                 string // in the error; empty: it is used
	}{
		{"alone", "", "files", ""},
		{"shared", "other", "files", "has other members"},
		{"unknown", "", "files sss", "cannot be found out"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHome(t)
			for file, text := range map[string]string{
				"passwd":        fmt.Sprintf("me:x:%d:%d::%s:/bin/sh\nother:x:4712:4712::/:/bin/sh\n", uid, gid, h.dir),
				"group":         fmt.Sprintf("mine:x:%d:%s\n", gid, test.group),
				"nsswitch.conf": "passwd: files\ngroup: " + test.sources + "\n",
			} {
				h.write(file, text)
			}
			h.own.groups = forward.GroupFiles{Userdb: []string{},
				Group: filepath.Join(h.dir, "group"), Passwd: filepath.Join(h.dir, "passwd"), Switch: filepath.Join(h.dir, "nsswitch.conf"),
			}
			h.write(".forward", "x@remote.test")
			path := filepath.Join(h.dir, ".forward")
			if err := os.Chown(path, uid, gid); err != nil { // where the directory decides about the group
				t.Fatal(err)
			}
			if err := os.Chmod(path, 0o664); err != nil {
				t.Fatal(err)
			}
			r, err := h.own.Forward(t.Context(), h.user, "")
			switch {
			case test.want == "" && (err != nil || !r.Forwards()):
				t.Errorf("%+v, %v", r, err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("%+v, %v, want %q", r, err, test.want)
			}
		})
	}
}

// TestHomeless: the commands of the aliases run in / if their user surely has no
// home directory. Where it may only be out of reach they wait, as all commands do
// that are not of the aliases.
func TestHomeless(t *testing.T) {
	const line = `pwd -P > "$OUT"; echo "$HOME" >> "$OUT"`
	for _, test := range []struct {
		name, home string // below the folder of the test
		make       func(dir string) error
		waits      bool
	}{
		{name: "a home", home: "home", make: func(dir string) error { return os.Mkdir(dir+"/home", 0o700) }},
		{name: "none", home: "none"},
		{name: "none, with a slash", home: "none/"},
		{name: "empty"},
		{name: "the parent is missing", home: "no/none", waits: true},
		{name: "the parent is empty", home: "mnt/none", make: func(dir string) error { return os.Mkdir(dir+"/mnt", 0o700) }, waits: true},
		{name: "a link that leads nowhere", home: "link", make: func(dir string) error { return os.Symlink("nowhere", dir+"/link") }, waits: true},
		{name: "a file", home: "aliases", waits: true},
		{name: "below a file", home: "aliases/none", waits: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHome(t)
			line := strings.ReplaceAll(line, `"$OUT"`, h.dir+"/out")
			h.write("aliases", "al: "+forward.Target{Kind: forward.Command, Value: line}.String())
			if test.make != nil {
				if err := test.make(h.dir); err != nil {
					t.Fatal(err)
				}
			}
			if h.user.Home = ""; test.home != "" {
				h.user.Home = h.dir + "/" + test.home
			}
			j := h.job(spooldir.Command, line, "aliases")
			h.deliver(j)
			real, err := filepath.EvalSymlinks(h.dir)
			if err != nil {
				t.Fatal(err)
			}
			want := "/\n" + h.user.Home + "\n"
			if test.name == "a home" {
				want = real + "/home\n" + h.user.Home + "\n"
			}
			var trouble *localwriter.Error
			if test.waits {
				if want = ""; !errors.As(j.Err, &trouble) || trouble.Permanent {
					t.Errorf("%v", j.Err)
				}
			} else if j.Err != nil {
				t.Error(j.Err)
			}
			if got := h.read("out"); got != want {
				t.Errorf("the command ran in %q, want %q", got, want)
			}
		})
	}
	h := newHome(t)
	h.own.Mailbox = "pipe:cat > /dev/null"
	h.user.Home += "/none"
	j := h.job(spooldir.Mailbox, "", "")
	if h.deliver(j); !errors.Is(j.Err, os.ErrNotExist) {
		t.Errorf("MAILBOX: %v", j.Err)
	}
}
