package localwriter

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// asRoot skips a test that makes files of others.
func asRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root makes files of others")
	}
}

func do(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestMailboxGroup(t *testing.T) {
	asRoot(t)
	for _, test := range []struct {
		name     string
		mode     uint32
		uid, gid int
		above    uint32
		want     bool
	}{
		{"Debian", 0o2775, 0, 8, 0o755, true},
		{"without the bit", 0o775, 0, 8, 0o755, true},
		{"BSD", 0o775, 0, 0, 0o755, false},
		{"everybody's", 0o1777, 0, 8, 0o755, false},
		{"root's", 0o755, 0, 8, 0o755, false},
		{"a user's", 0o2775, 1000, 8, 0o755, false},
		{"in everybody's", 0o2775, 0, 8, 0o777, false},
		{"in everybody's, sticky", 0o2775, 0, 8, 0o1777, true},
	} {
		above := t.TempDir()
		dir := filepath.Join(above, "mail")
		do(t, os.Mkdir(dir, 0o700))
		do(t, os.Chown(dir, test.uid, test.gid))
		do(t, syscall.Chmod(dir, test.mode))
		do(t, syscall.Chmod(above, test.above))
		gid, ok := MailboxGroup(dir)
		if ok != test.want || ok && gid != test.gid {
			t.Errorf("%s: %d, %v", test.name, gid, ok)
		}
		// By a link of root it is the same, by one of a user nothing.
		links := t.TempDir()
		link := filepath.Join(links, "link")
		do(t, os.Symlink(dir, link))
		if _, ok := MailboxGroup(link); ok != test.want {
			t.Errorf("%s: by a link %v", test.name, ok)
		}
		do(t, os.Lchown(link, 1000, 1000))
		if _, ok := MailboxGroup(link); ok {
			t.Errorf("%s: by a link of a user", test.name)
		}
	}
	for _, dir := range []string{"", "mail", "/nonexistent/mail"} {
		if _, ok := MailboxGroup(dir); ok {
			t.Errorf("%q has a group", dir)
		}
	}
}

// TestGroupMailbox: who makes a mailbox in the directory of a group gives it to
// the group, whatever the umask.
func TestGroupMailbox(t *testing.T) {
	asRoot(t)
	path := mboxPath(t)
	defer syscall.Umask(syscall.Umask(0o077))
	box := testMbox(path)
	box.Group = func() (int, fs.FileMode) { return 8, 0o660 }
	deliver(t, box, testMessage("id", 1, "a: b\n\nx\n"))
	info, err := os.Stat(path)
	do(t, err)
	if st := info.Sys().(*syscall.Stat_t); st.Gid != 8 || info.Mode() != 0o660 {
		t.Errorf("gid %d, mode %v", st.Gid, info.Mode())
	}
}

// TestStrangersLock: in a directory where everybody can make files, the lock
// file of somebody else keeps no mail away.
func TestStrangersLock(t *testing.T) {
	asRoot(t)
	for _, test := range []struct {
		mode uint32
		uid  int
		want bool // the mail is delivered
	}{
		{0o1777, 1000, true}, {0o1777, 4711, false}, {0o1777, 0, false}, {0o755, 1000, false}, {0o2775, 1000, false},
	} {
		path := mboxPath(t)
		do(t, syscall.Chmod(filepath.Dir(path), test.mode))
		writeFile(t, path, "")
		do(t, os.Chown(path, 4711, 4711))
		writeFile(t, path+".lock", "")
		do(t, os.Chown(path+".lock", test.uid, test.uid))
		box := testMbox(path)
		box.UID, box.LockWait = 4711, time.Nanosecond
		s, err := OpenMbox(context.Background(), box)
		if (err == nil) != test.want || err != nil && !errors.Is(err, errLocked) {
			t.Errorf("%o, uid %d: %v", test.mode, test.uid, err)
		}
		if err == nil {
			do(t, s.Close())
		}
		if _, err := os.Lstat(path + ".lock"); err != nil {
			t.Errorf("%o, uid %d: the lock file is gone", test.mode, test.uid)
		}
	}
}

// TestOpenedMailbox: a mailbox that was handed over has to stand at its place.
func TestOpenedMailbox(t *testing.T) {
	path := mboxPath(t)
	open := func() *os.File {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
		do(t, err)
		return f
	}
	box := testMbox(path)
	box.File = open()
	m := testMessage("id", 1, "a: b\n\nx\n")
	deliver(t, box, m)
	box.File = open()
	if already := deliver(t, box, suspect(m)); !already[0] {
		t.Error("not found")
	}
	sameText(t, "mailbox", readFile(t, path), rendering(t, m))
	box.File = open()
	do(t, os.Rename(path, path+".old"))
	writeFile(t, path, "")
	box.sys = realSystem()
	box.sys.sleep = func(context.Context, time.Duration) error {
		t.Error("waited for it")
		return errLocked
	}
	if _, err := OpenMbox(context.Background(), box); !errors.Is(err, errMoved) {
		t.Errorf("replaced: %v", err)
	}
}
