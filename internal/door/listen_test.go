package door

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestListen(t *testing.T) {
	dir := t.TempDir()
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	path := filepath.Join(dir, "run", "s")
	first, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	for file, mode := range map[string]os.FileMode{path: os.ModeSocket | 0o666, filepath.Dir(path): os.ModeDir | 0o755} {
		if info, err := os.Lstat(file); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v %v", file, info.Mode(), err)
		}
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "somebody listens") {
		t.Errorf("a second one: %v", err)
	}
	if conn, err := net.Dial("unix", path); err != nil {
		t.Errorf("after that: %v", err)
	} else {
		conn.Close()
	}
	first.Close()
	again, err := Listen(path)
	if err != nil {
		t.Fatalf("over a stale one: %v", err)
	}
	again.Close()
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("left: %v %v", left, err)
	}
}

// TestListenRefuses: nothing is removed or followed, and no folder is taken that
// others write in.
func TestListenRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, tc := range []struct {
		name string
		make func(path string) error
		want string
	}{
		{"file", func(p string) error { return os.WriteFile(p, []byte("x"), 0o644) }, "no socket"},
		{"folder", func(p string) error { return os.Mkdir(p, 0o755) }, "no socket"},
		{"link", func(p string) error { return os.Symlink("nowhere", p) }, "no socket"},
		{"fifo", func(p string) error { return syscall.Mkfifo(p, 0o644) }, "no socket"},
	} {
		path := filepath.Join(dir, tc.name)
		if err := tc.make(path); err != nil {
			t.Fatal(err)
		}
		before, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.name, err)
		}
		if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
			t.Errorf("%s is not what it was: %v", tc.name, err)
		}
	}
	for _, tc := range []struct {
		path string
		mode uint32
		want string
	}{
		{"open/s", 0o777, "others can write"},
		{"sticky/s", 0o1777, "others can write"},
		{"group/s", 0o775, "others can write"},
		{"file/s", 0, "not a directory|no directory"},
		{"link/s", 0, "no directory"},
		{"none/none/s", 0, "no such file"},
		{strings.Repeat("x", 110), 0, "at most 103 octets"},
	} {
		path := filepath.Join(dir, tc.path)
		if tc.mode != 0 {
			if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Chmod(filepath.Dir(path), tc.mode); err != nil {
				t.Fatal(err)
			}
		}
		_, err := Listen(path)
		found := false
		for part := range strings.SplitSeq(tc.want, "|") {
			found = found || err != nil && strings.Contains(err.Error(), part)
		}
		if !found {
			t.Errorf("%s: %v", tc.path, err)
		}
	}
	if _, err := Listen("s"); err == nil {
		t.Error("a relative path is taken")
	}
}

func TestInherited(t *testing.T) {
	dir := t.TempDir()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	tcpFile, err := tcp.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer tcpFile.Close()
	fd, err := socket()
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	for name, fd := range map[string]int{"file": int(null.Fd()), "tcp": int(tcpFile.Fd()), "not listening": fd, "closed": 1 << 20} {
		if _, err := Inherited(fd); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	listener, err := Listen(filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dup, err := syscall.Dup(int(listener.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	f, err := Inherited(dup)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}
