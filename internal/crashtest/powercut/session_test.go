package powercut

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"dma/internal/crashtest"
)

const programEnv = "POWERCUT_TEST_PROGRAM"

// TestMain lets the test binary be the workload, too.
func TestMain(m *testing.M) {
	if p := os.Getenv(programEnv); p != "" {
		if err := enqueue(os.Args[1], os.Args[2], protocols()[p]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(75)
		}
		fmt.Println("ACK")
		os.Exit(0)
	}
	crashtest.Main(m)
}

// protocols are the steps of an enqueue, the right one and wrong ones: open the
// file, write, link the names, sync, commit by mode; other is a sync of another
// file by someone else, which may bring half-done changes to the disk.
func protocols() map[string]string {
	return map[string]string{
		"right":              "write link sync other commit other sync",
		"no first fsync":     "write link commit other sync",
		"no last fsync":      "write link sync commit",
		"commit before data": "commit link other write sync",
		"link after fsync":   "write sync commit other link",
		"no fsync":           "write link commit",
	}
}

const links = 3

func text(id string) []byte { return bytes.Repeat([]byte(id+"\n"), 2000) }

func enqueue(root, id, steps string) error {
	tmp := filepath.Join(root, "tmp", id)
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0600)
	if err != nil {
		return err
	}
	defer f.Close()
	for step := range strings.FieldsSeq(steps) {
		switch step {
		case "write":
			_, err = f.Write(text(id))
		case "link":
			for n := 0; n < links && err == nil; n++ {
				err = os.Link(tmp, fmt.Sprintf("%s/new/%s.%d", root, id, n))
			}
		case "sync":
			err = f.Sync()
		case "commit":
			err = f.Chmod(0640)
		case "other":
			err = syncOther(root)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", step, err)
		}
	}
	return nil
}

func syncOther(root string) error {
	f, err := os.OpenFile(root+"/other", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString("x"); err != nil {
		return err
	}
	return f.Sync()
}

// check wants every promised message committed, and every committed one whole.
func check(img Image) error {
	want := map[string]bool{}
	for _, m := range img.Marks {
		want[m.(string)] = true
	}
	found, err := os.ReadDir(img.Dir + "/new")
	if err != nil {
		return err
	}
	for _, e := range found {
		fi, err := e.Info()
		if err != nil {
			return err
		}
		if id, _, _ := strings.Cut(e.Name(), "."); fi.Mode().Perm() == 0640 {
			want[id] = want[id] || false
		}
	}
	for id, promised := range want {
		for n := range links {
			name := fmt.Sprintf("%s.%d", id, n)
			fi, err := os.Stat(img.Dir + "/new/" + name)
			if err != nil {
				return fmt.Errorf("promised %v: %w", promised, err)
			}
			b, err := os.ReadFile(img.Dir + "/new/" + name)
			if err != nil || !bytes.Equal(b, text(id)) || fi.Mode().Perm() != 0640 {
				return fmt.Errorf("%s, promised %v: %v, %d bytes are not what was written, %v", name, promised, fi.Mode(), len(b), err)
			}
		}
	}
	return nil
}

func fileSystems() []string { return []string{"ext4", "xfs"} }

func session(t *testing.T, fs string) *Session {
	s := New(t, fs)
	s.Prepare(func(dir string) error {
		return errors.Join(os.Mkdir(dir+"/tmp", 0700), os.Mkdir(dir+"/new", 0700))
	})
	return s
}

// TestEnqueue runs the workload as a program of its own. The right protocol has
// to hold in every image, and every wrong one has to be caught.
func TestEnqueue(t *testing.T) {
	for _, fs := range fileSystems() {
		for name, steps := range protocols() {
			t.Run(fs+"/"+name, func(t *testing.T) {
				s := session(t, fs)
				dir := s.Mount()
				for n := range 3 {
					id := fmt.Sprintf("m%d", n)
					cmd := exec.CommandContext(t.Context(), "/proc/self/exe", dir, id)
					cmd.Env = append(os.Environ(), programEnv+"="+name, "GORACE=atexit_sleep_ms=0")
					out, err := cmd.Output()
					if err != nil || string(out) != "ACK\n" {
						t.Fatalf("%v: %q", err, out)
					}
					s.Mark(id)
				}
				s.Stop()
				if name == "right" {
					s.Replay(Plan{Max: 150, Seed: 1}, check)
					return
				}
				rep := s.Explore(Plan{Max: 150, Seed: 1, Stop: 1}, check)
				if len(rep.Violations) == 0 || !rep.Violations[0].Mounted {
					t.Errorf("%q went unnoticed in %d images of %d records", steps, rep.Images, rep.Records)
				}
				t.Log(rep.Violations)
			})
		}
	}
}

// TestMarksAndPrepare checks that what was prepared is in each image, that marks
// come in order, and that each flushed-only image holds what was synced by then.
func TestMarksAndPrepare(t *testing.T) {
	for _, fs := range fileSystems() {
		t.Run(fs, func(t *testing.T) {
			s := session(t, fs)
			dir := s.Mount()
			for n := range 3 {
				if err := syncOther(dir); err != nil {
					t.Fatal(err)
				}
				s.Mark(n)
			}
			most := 0
			s.Replay(Plan{Modes: []Mode{FlushedOnly, Prefix}}, func(img Image) error {
				if !slices.Equal(img.Marks, []any{0, 1, 2}[:len(img.Marks)]) {
					return fmt.Errorf("marks %v", img.Marks)
				}
				most = max(most, len(img.Marks))
				if _, err := os.Stat(img.Dir + "/new"); err != nil {
					return err
				}
				if b, _ := os.ReadFile(img.Dir + "/other"); len(b) < len(img.Marks) {
					return fmt.Errorf("%d bytes after %d marks", len(b), len(img.Marks))
				}
				return syncOther(img.Dir) // a check may write
			})
			if most != 3 {
				t.Errorf("saw at most %d marks", most)
			}
		})
	}
}

func TestFaults(t *testing.T) {
	for _, fs := range fileSystems() {
		t.Run(fs, func(t *testing.T) {
			for name, set := range map[string]func(*Session){
				"write": func(s *Session) { s.SetFaults(func(int64, int) syscall.Errno { return syscall.EIO }, nil) },
				"flush": func(s *Session) { s.SetFaults(nil, func() syscall.Errno { return syscall.EIO }) },
			} {
				s := session(t, fs)
				dir := s.Mount()
				if err := syncOther(dir); err != nil {
					t.Fatal(err)
				}
				set(s)
				if err := syncOther(dir); !errors.Is(err, syscall.EIO) {
					t.Errorf("sync with a failing %s: %v, want EIO", name, err)
				}
				s.Stop()
			}
		})
	}
}

// TestUnavailable checks that what can be installed is named.
func TestUnavailable(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := maker{tool: "mkfs.none", pkg: "nonetools"}.find()
	var missing *crashtest.Missing
	if !errors.As(err, &missing) || !strings.Contains(err.Error(), "apt-get install nonetools") {
		t.Error(err)
	}
	if _, err := makerOf("ext2"); err == nil {
		t.Error("ext2 is not known")
	}
}
