package localwriter

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is also what tests start as another process.
const helperEnv = "LOCALWRITER_TEST_HELPER"

func TestMain(m *testing.M) {
	switch os.Getenv(helperEnv) {
	case "":
		os.Exit(m.Run())
	case "fcntl", "flock": // holds such a lock on its argument until stdin ends
		f, err := os.OpenFile(os.Args[1], os.O_RDWR, 0)
		switch {
		case err != nil:
		case os.Getenv(helperEnv) == "flock":
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		default:
			err = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		}
		fmt.Println("locked", err)
		io.Copy(io.Discard, os.Stdin)
	case "held": // tells which locks others have on its argument
		var held []string
		f, err := os.OpenFile(os.Args[1], os.O_RDWR, 0)
		if err == nil {
			lock := unix.Flock_t{Type: unix.F_WRLCK}
			if err = unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock); lock.Type != unix.F_UNLCK {
				held = append(held, "fcntl")
			}
		}
		if err == nil {
			if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
				held, err = append(held, "flock"), nil
			}
		}
		fmt.Println(held, err)
	case "deliver": // delivers messages NAME.1 to NAME.100, one a session, with such a lock
		box := unsyncedMbox(os.Args[1])
		box.LockWait, box.Flock = time.Minute, os.Args[3] == "flock"
		for i := range 100 {
			s, err := OpenMbox(context.Background(), box)
			if err == nil {
				_, err = s.Append(context.Background(), testMessage(os.Args[2], i+1, "Subject: x\n\nFrom "+os.Args[2]+"\n"))
				err = errors.Join(err, s.Commit(), s.Close())
			}
			if err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			fmt.Println(i)
		}
	case "fsize": // delivers with a limit on the size of files
		big := strings.Repeat("line\n", 100000)
		s, err := OpenMbox(context.Background(), Mbox{Path: os.Args[1], UID: os.Geteuid()})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		limit := unix.Rlimit{Cur: 4096, Max: 4096}
		unix.Setrlimit(unix.RLIMIT_FSIZE, &limit)
		_, err1 := s.Append(context.Background(), testMessage("small", 1, "a: b\n\nsmall\n"))
		_, err2 := s.Append(context.Background(), testMessage("big", 1, "a: b\n\n"+big))
		err3 := s.Commit()
		fmt.Println(err1 == nil, errors.Is(err2, unix.EFBIG), err3 == nil, s.Close() == nil)
	}
	os.Exit(0)
}

// helper starts the test binary as another process.
func helper(t *testing.T, mode string, args ...string) (stdin io.WriteCloser, stdout *bufio.Reader, cmd *exec.Cmd) {
	t.Helper()
	cmd = exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), helperEnv+"="+mode)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	return in, bufio.NewReader(out), cmd
}

// heldLocks asks another process which kernel locks there are on a file.
func heldLocks(t *testing.T, path string) string {
	t.Helper()
	_, out, cmd := helper(t, "held", path)
	text, err := io.ReadAll(out)
	held, ok := strings.CutSuffix(string(text), " <nil>\n")
	if err := errors.Join(err, cmd.Wait()); err != nil || !ok {
		t.Fatalf("helper: %q, %v", text, err)
	}
	return held
}

func testMessage(id string, n int, content string) Message {
	return Message{
		ID: id, Recipient: n, Sender: "alice@example.org",
		Arrival: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC),
		Header:  []byte("Return-Path: <alice@example.org>\nDelivered-To: bob\n"),
		Content: strings.NewReader(content), Size: int64(len(content)),
	}
}

func rendering(t testing.TB, m Message) string {
	t.Helper()
	b, err := io.ReadAll(m.render())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func suspect(m Message) Message { m.Suspect = true; return m }

func testMbox(path string) Mbox { return Mbox{Path: path, UID: os.Geteuid()} }

// unsyncedMbox is for tests that make many deliveries and no power cut.
func unsyncedMbox(path string) Mbox {
	box := testMbox(path)
	box.sys = realSystem()
	box.sys.sync = func(*os.File) error { return nil }
	return box
}

// countingSystem counts fsyncs.
func countingSystem(syncs *int) *system {
	s := realSystem()
	real := s.sync
	s.sync = func(f *os.File) error { *syncs++; return real(f) }
	return s
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// deliver appends the messages in one session and commits.
func deliver(t testing.TB, box Mbox, messages ...Message) (already []bool) {
	t.Helper()
	s, err := OpenMbox(context.Background(), box)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		a, err := s.Append(context.Background(), m)
		if err != nil {
			t.Fatal(err)
		}
		already = append(already, a)
	}
	if err := s.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return already
}

// show makes a difference of mailboxes readable.
func show(s string) string {
	if len(s) > 1200 {
		s = s[:500] + "[...]" + s[len(s)-700:]
	}
	return fmt.Sprintf("%q", s)
}

func sameText(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Fatalf("%s:\n got %s\nwant %s", what, show(got), show(want))
	}
}

func mboxPath(t testing.TB) string { return filepath.Join(t.TempDir(), "mbox") }

// failingReaderAt hands out good and then fails.
type failingReaderAt struct {
	good string
	err  error
}

func (f failingReaderAt) ReadAt(p []byte, off int64) (int, error) {
	n, err := bytes.NewReader([]byte(f.good)).ReadAt(p, off)
	if err != nil {
		err = f.err
	}
	return n, err
}
