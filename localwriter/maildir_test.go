package localwriter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func testMaildir(path string) Maildir {
	return Maildir{Path: path, UID: os.Geteuid(), Host: "host.example"}
}

func openMaildir(t testing.TB, dir Maildir) Session {
	t.Helper()
	s, err := OpenMaildir(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// list returns the names in the directories of a Maildir, as "new/NAME".
func list(t testing.TB, path string) []string {
	t.Helper()
	var names []string
	for _, d := range []string{"cur", "new", "tmp"} {
		entries, err := os.ReadDir(filepath.Join(path, d))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, d+"/"+e.Name())
		}
	}
	return names
}

func sameNames(t testing.TB, path string, want ...string) {
	t.Helper()
	if got := list(t, path); !slices.Equal(got, want) {
		t.Errorf("files are %q, want %q", got, want)
	}
}

const name1 = "1772600767.m.1.host.example" // of testMessage("m", 1, ...)

func TestMaildir(t *testing.T) {
	path := filepath.Join(t.TempDir(), "Maildir")
	syncs := 0
	dir := testMaildir(path)
	dir.sys = realSystem()
	s := openMaildir(t, dir)
	for _, d := range []string{"", "tmp", "new", "cur"} {
		if info, err := os.Stat(filepath.Join(path, d)); err != nil || info.Mode() != os.ModeDir|0o700 {
			t.Errorf("%s: %v, %v", d, info.Mode(), err)
		}
	}
	m := testMessage("m", 1, "Subject: x\n\nFrom me\n\x00no newline")
	if _, err := s.Append(context.Background(), m); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(); err != nil {
		t.Fatal(err)
	}
	sameNames(t, path, "new/"+name1)
	sameText(t, "file", readFile(t, filepath.Join(path, "new", name1)),
		"X-Dma-Delivery: m.1\n"+string(m.Header)+"Subject: x\n\nFrom me\n\x00no newline")
	info, _ := os.Stat(filepath.Join(path, "new", name1))
	if info.Mode() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}

	// A batch larger than what waits at a time.
	dir.sys = countingSystem(&syncs)
	s = openMaildir(t, dir)
	s.(*maildirSession).sys.sync = lockedCount(&syncs)
	for i := range 150 {
		if _, err := s.Append(context.Background(), testMessage("batch", i+1, "x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.Commit(), s.Commit()); err != nil {
		t.Fatal(err)
	}
	if n := len(list(t, path)); n != 151 || syncs != 151 {
		t.Errorf("%d files, %d fsyncs, want 151 and 151", n, syncs)
	}
}

// lockedCount counts fsyncs of several goroutines.
func lockedCount(n *int) func(*os.File) error {
	turn := make(chan struct{}, 1)
	return func(f *os.File) error {
		turn <- struct{}{}
		*n++
		<-turn
		return f.Sync()
	}
}

// The delivery stops at any place and is done again: there is one message.
func TestMaildirRecovery(t *testing.T) {
	m := testMessage("m", 1, "Subject: x\n\nbody\n")
	whole := "X-Dma-Delivery: m.1\n" + string(m.Header) + "Subject: x\n\nbody\n"
	for name, test := range map[string]struct {
		file, content string
		already       bool
		want          string
	}{
		"nothing":             {"", "", false, "new/" + name1},
		"torn in tmp":         {"tmp/" + name1, whole[:20], false, "new/" + name1},
		"whole in tmp":        {"tmp/" + name1, whole, false, "new/" + name1},
		"in new":              {"new/" + name1, whole, true, "new/" + name1},
		"in new, other host":  {"new/1772600767.m.1.other", whole, true, "new/1772600767.m.1.other"},
		"in cur":              {"cur/" + name1 + ":2,S", whole, true, "cur/" + name1 + ":2,S"},
		"in cur, dovecot":     {"cur/" + name1 + ",S=100:2,", whole, true, "cur/" + name1 + ",S=100:2,"},
		"in cur, other marks": {"cur/" + name1 + "!2,S", whole, true, "cur/" + name1 + "!2,S"},
	} {
		t.Run(name, func(t *testing.T) {
			path := t.TempDir()
			openMaildir(t, testMaildir(path)).Close()
			if test.file != "" {
				writeFile(t, filepath.Join(path, test.file), test.content)
			}
			s := openMaildir(t, testMaildir(path))
			already, err := s.Append(context.Background(), suspect(m))
			if err := errors.Join(err, s.Commit()); err != nil {
				t.Fatal(err)
			}
			if already != test.already {
				t.Errorf("already %v", already)
			}
			sameNames(t, path, test.want)
			sameText(t, "file", readFile(t, filepath.Join(path, test.want)), whole)
		})
	}
	// Other recipients and other messages are other files.
	path := t.TempDir()
	s := openMaildir(t, testMaildir(path))
	for _, m := range []Message{m, suspect(testMessage("m", 11, "x")), suspect(testMessage("m2", 1, "x"))} {
		if already, err := s.Append(context.Background(), m); already || err != nil {
			t.Fatal(already, err)
		}
	}
	if err := s.Commit(); err != nil || len(list(t, path)) != 3 {
		t.Fatal(err, list(t, path))
	}
	// Not suspect, and there all the same.
	s = openMaildir(t, testMaildir(path))
	if _, err := s.Append(context.Background(), m); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(); err != nil || len(list(t, path)) != 3 {
		t.Fatal(err, list(t, path))
	}
}

func TestMaildirFails(t *testing.T) {
	for cause, status := range map[error]string{unix.ENOSPC: "4.3.1", unix.EDQUOT: "4.2.2"} {
		t.Run(unix.ErrnoName(cause.(unix.Errno)), func(t *testing.T) { testMaildirFails(t, cause, status) })
	}
}

// testMaildirFails: after a failure with the cause the Maildir is as it was.
func testMaildirFails(t *testing.T, cause error, status string) {
	path := t.TempDir()
	s := openMaildir(t, testMaildir(path))
	if _, err := s.Append(context.Background(), testMessage("old", 1, "old mail\n")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Commit(), s.Close()); err != nil {
		t.Fatal(err)
	}
	old := list(t, path)
	text := readFile(t, filepath.Join(path, old[0]))
	same := func() {
		t.Helper()
		sameNames(t, path, old...)
		sameText(t, "old mail", readFile(t, filepath.Join(path, old[0])), text)
	}
	fail := func(t *testing.T, change func(*system)) {
		t.Helper()
		dir := testMaildir(path)
		dir.sys = realSystem()
		s := openMaildir(t, dir)
		change(dir.sys)
		var e *Error
		_, err := s.Append(context.Background(), testMessage("m", 1, "x"))
		if err == nil {
			err = s.Commit()
		}
		if !errors.As(err, &e) || e.Permanent || !errors.Is(err, cause) || e.Status != status {
			t.Errorf("error is %v", err)
		}
		s.Close()
		same()
	}
	t.Run("write", func(t *testing.T) {
		fail(t, func(s *system) {
			s.write = func(f *os.File, b []byte) (int, error) { f.Write(b[:3]); return 3, cause }
		})
	})
	t.Run("fsync of the file", func(t *testing.T) {
		fail(t, func(s *system) { s.sync = func(*os.File) error { return cause } })
	})
	t.Run("fsync of the directory", func(t *testing.T) {
		fail(t, func(s *system) {
			s.sync = func(f *os.File) error {
				if strings.HasSuffix(f.Name(), "/new") {
					return cause
				}
				return nil
			}
		})
	})
	// What was not committed is taken back.
	s = openMaildir(t, testMaildir(path))
	s.Append(context.Background(), testMessage("m", 1, "x"))
	s.Close()
	same()
}

func TestMaildirFolder(t *testing.T) {
	path := t.TempDir()
	os.Mkdir(filepath.Join(path, ".lists"), 0o700)
	os.Mkdir(filepath.Join(path, ".lists.go"), 0o700)
	os.Mkdir(filepath.Join(path, ".Work"), 0o700)
	os.Mkdir(filepath.Join(path, ".work"), 0o700)
	os.Mkdir(filepath.Join(path, "tmp"), 0o700)
	for i, test := range []struct{ folder, want string }{
		{"lists", ".lists"}, {"lists.go", ".lists.go"}, {"none", ""}, {"", ""},
		{"Lists", ".lists"}, {"LISTS.Go", ".lists.go"}, {"Work", ".Work"}, {"WORK", ".work"}, {"work", ".work"},
		{"../tmp", ""}, {".", ""}, {"..", ""}, {"/tmp", ""}, {"lists/cur", ""}, {"a\x00b", ""}, {strings.Repeat("x", 300), ""},
	} {
		dir := testMaildir(path)
		dir.Folder = test.folder
		s := openMaildir(t, dir)
		m := testMessage("m", i+1, "x")
		if _, err := s.Append(context.Background(), m); err != nil {
			t.Fatal(err)
		}
		if err := s.Commit(); err != nil {
			t.Fatal(err)
		}
		file := fmt.Sprintf("new/1772600767.m.%d.host.example", i+1)
		if _, err := os.Stat(filepath.Join(path, test.want, file)); err != nil {
			t.Errorf("folder %q: %v", test.folder, err)
		}
	}
}

func TestMaildirClean(t *testing.T) {
	path := t.TempDir()
	openMaildir(t, testMaildir(path)).Close()
	now := time.Now()
	for name, age := range map[string]time.Duration{"old": 37 * time.Hour, "young": 35 * time.Hour} {
		file := filepath.Join(path, "tmp", name)
		writeFile(t, file, "x")
		os.Chtimes(file, now.Add(-age), now.Add(-age))
	}
	os.Mkdir(filepath.Join(path, "tmp", "sub"), 0o700)
	os.Chtimes(filepath.Join(path, "tmp", "sub"), now.Add(-99*time.Hour), now.Add(-99*time.Hour))
	openMaildir(t, testMaildir(path))
	sameNames(t, path, "tmp/sub", "tmp/young")
}

func TestHostileMaildirs(t *testing.T) {
	for name, make := range map[string]func(path, elsewhere string) error{
		"file":           func(path, _ string) error { return os.WriteFile(path, nil, 0o600) },
		"FIFO":           func(path, _ string) error { return unix.Mkfifo(path, 0o600) },
		"new is a link":  func(path, e string) error { os.Mkdir(path, 0o700); return os.Symlink(e, path+"/new") },
		"tmp is a FIFO":  func(path, _ string) error { os.Mkdir(path, 0o700); return unix.Mkfifo(path+"/tmp", 0o600) },
		"dangling":       func(path, e string) error { return os.Symlink(e+"/none", path) },
		"foreign (root)": func(path, _ string) error { os.Mkdir(path, 0o777); return os.Chown(path, 12345, -1) },
		"foreign new (root)": func(path, _ string) error {
			os.MkdirAll(path+"/new", 0o777)
			return os.Chown(path+"/new", 12345, -1)
		},
		"link of somebody else (root)": func(path, e string) error {
			return errors.Join(os.Symlink(e, path), os.Lchown(path, 12345, -1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			if strings.Contains(name, "root") && os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			base := t.TempDir()
			path, elsewhere := filepath.Join(base, "Maildir"), filepath.Join(base, "elsewhere")
			os.Mkdir(elsewhere, 0o700)
			if err := make(path, elsewhere); err != nil {
				t.Fatal(err)
			}
			s, err := OpenMaildir(context.Background(), testMaildir(path))
			if err == nil {
				s.Close()
				t.Fatal("it was opened")
			}
			var e *Error
			if !errors.As(err, &e) || e.Permanent {
				t.Errorf("error is %v", err)
			}
			if left, _ := os.ReadDir(elsewhere); len(left) > 0 {
				t.Errorf("made elsewhere: %v", left)
			}
		})
	}
	// A link of one's own is fine.
	base := t.TempDir()
	os.Mkdir(filepath.Join(base, "real"), 0o700)
	os.Symlink("real", filepath.Join(base, "Maildir"))
	openMaildir(t, testMaildir(filepath.Join(base, "Maildir")))
}

func TestHostPart(t *testing.T) {
	for host, want := range map[string]string{"a.b-c": "a.b-c", "": "localhost", "../x:y\n": ".._x_y_", strings.Repeat("h", 300): strings.Repeat("h", 60)} {
		if got := hostPart(host); got != want {
			t.Errorf("%q: %q", host, got)
		}
	}
}
