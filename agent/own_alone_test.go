package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dma/forward"
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
