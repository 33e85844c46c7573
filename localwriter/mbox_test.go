package localwriter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func openMbox(t testing.TB, box Mbox) Session {
	t.Helper()
	s, err := OpenMbox(context.Background(), box)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestMboxBatch(t *testing.T) {
	path := mboxPath(t)
	syncs := 0
	box := testMbox(path)
	box.sys = countingSystem(&syncs)
	var messages []Message
	want := ""
	for i := range 100 {
		m := testMessage(fmt.Sprintf("m%d", i), 1, "Subject: x\n\nFrom me\n"+strings.Repeat("x", i*100))
		messages = append(messages, m)
		want += rendering(t, m)
	}
	deliver(t, box, messages...)
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", info.Mode(), err)
	}
	if !accessTime(info).Before(info.ModTime()) {
		t.Errorf("atime %v is not before mtime %v", accessTime(info), info.ModTime())
	}
	sameText(t, "mailbox", readFile(t, path), want)
	if syncs != 2 { // the file and, as it is new, its directory
		t.Errorf("%d fsyncs for 100 messages, want 2", syncs)
	}
	if _, err := os.Lstat(path + ".lock"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("lock file is left: %v", err)
	}
}

// A user who has read everything sees new mail as new; a look at the mailbox
// that brings nothing does not change what the times say.
func TestNewMailTimes(t *testing.T) {
	path := mboxPath(t)
	writeFile(t, path, before)
	past := time.Now().Add(-time.Hour).Truncate(time.Second)
	os.Chtimes(path, past.Add(time.Minute), past)
	openMbox(t, testMbox(path)).Close()
	info, _ := os.Stat(path)
	if !accessTime(info).Equal(past.Add(time.Minute)) || !info.ModTime().Equal(past) {
		t.Errorf("times have changed to %v, %v", accessTime(info), info.ModTime())
	}
	os.Chtimes(path, time.Now().Add(time.Hour), past) // read in the future, by another clock
	deliver(t, testMbox(path), testMessage("m", 1, "a: b\n\nx\n"))
	info, _ = os.Stat(path)
	if !accessTime(info).Before(info.ModTime()) {
		t.Errorf("atime %v is not before mtime %v", accessTime(info), info.ModTime())
	}
}

// Nothing of what was not committed stays.
func TestCloseTakesBack(t *testing.T) {
	for _, size := range []int{10, 3 * mboxBuffer} {
		path := mboxPath(t)
		writeFile(t, path, before)
		s := openMbox(t, testMbox(path))
		if _, err := s.Append(context.Background(), testMessage("m", 1, strings.Repeat("x", size))); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		sameText(t, "mailbox", readFile(t, path), before)
	}
}

// The disk fills up after any number of bytes: the mailbox is as before, or has
// the messages that were committed.
func TestWriteFails(t *testing.T) {
	path := mboxPath(t)
	small := testMessage("small", 1, "a: b\n\nsmall\n")
	big := testMessage("big", 1, "a: b\n\n"+strings.Repeat("big\n", mboxBuffer/4))
	after := testMessage("after", 1, "a: b\n\nafter\n")
	status := map[error]string{unix.ENOSPC: "4.3.1", unix.EDQUOT: "4.2.2", unix.EFBIG: "4.2.2", unix.EIO: "4.3.0", nil: "4.3.0"}
	for cause := range status {
		for _, room := range []int{0, 1, 50, 150, 300, 4096, mboxBuffer, mboxBuffer + 100} {
			writeFile(t, path, before)
			box := testMbox(path)
			box.sys = realSystem()
			box.sys.write = func(f *os.File, b []byte) (int, error) {
				info, _ := f.Stat()
				n := min(len(before)+room-int(info.Size()), len(b))
				f.Write(b[:n])
				if n < len(b) {
					return n, cause // nil: a short write without a reason
				}
				return n, nil
			}
			s := openMbox(t, box)
			want := before
			_, err1 := s.Append(context.Background(), small)
			_, err2 := s.Append(context.Background(), big)
			_, err3 := s.Append(context.Background(), after)
			if err1 != nil || err2 == nil || err3 != nil {
				t.Fatalf("room %d, %v: errors %v, %v, %v", room, cause, err1, err2, err3)
			}
			var e *Error
			if !errors.As(err2, &e) || e.Permanent || e.Status != status[cause] {
				t.Errorf("%v is not temporary, or not %s", err2, status[cause])
			}
			err := s.Commit()
			if err == nil {
				want += rendering(t, small) + rendering(t, after)
			} else if !errors.As(err, &e) || e.Status != status[cause] || room > 1000 {
				t.Errorf("room %d: what there was room for failed, or not with %s: %v", room, status[cause], err)
			}
			sameText(t, fmt.Sprintf("room for %d bytes, %v", room, cause), readFile(t, path), want)
			if s.Close() != nil {
				t.Error("close failed")
			}
			sameText(t, "after close", readFile(t, path), want)
		}
	}
}

func TestFileSizeLimit(t *testing.T) {
	path := mboxPath(t)
	writeFile(t, path, before)
	_, out, cmd := helper(t, "fsize", path)
	b, err := io.ReadAll(out)
	if err := errors.Join(err, cmd.Wait()); err != nil {
		t.Fatal(err, string(b))
	}
	if string(b) != "true true true true\n" {
		t.Fatalf("got %q", b)
	}
	sameText(t, "mailbox", readFile(t, path), before+rendering(t, testMessage("small", 1, "a: b\n\nsmall\n")))
}

// After a failed fsync everything since the last commit is taken back, and
// nothing is tried again.
func TestSyncFails(t *testing.T) {
	path := mboxPath(t)
	writeFile(t, path, before)
	box := testMbox(path)
	box.sys = realSystem()
	calls := 0
	box.sys.sync = func(f *os.File) error {
		if calls++; calls == 2 {
			return unix.EIO
		}
		return nil
	}
	s := openMbox(t, box)
	first, second := testMessage("first", 1, "a: b\n\nx\n"), testMessage("second", 1, "a: b\n\ny\n")
	if _, err := s.Append(context.Background(), first); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(); err != nil {
		t.Fatal(err)
	}
	s.Append(context.Background(), second)
	var e *Error
	if err := s.Commit(); !errors.As(err, &e) || e.Permanent || !errors.Is(err, unix.EIO) {
		t.Fatalf("commit: %v", err)
	}
	sameText(t, "mailbox", readFile(t, path), before+rendering(t, first))
	if s.Commit() == nil {
		t.Error("a failed fsync was tried again")
	}
	if _, err := s.Append(context.Background(), second); err == nil {
		t.Error("append after a failed fsync")
	}
	if calls != 2 {
		t.Errorf("%d fsyncs", calls)
	}
}

// A program without locks appends while we deliver: its mail stays.
func TestUnlockedWriter(t *testing.T) {
	path := mboxPath(t)
	writeFile(t, path, before)
	box := testMbox(path)
	box.sys = realSystem()
	box.sys.sync = func(f *os.File) error {
		o, _ := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		o.WriteString("From unlocked\n\n")
		o.Close()
		return unix.EIO
	}
	s := openMbox(t, box)
	s.Append(context.Background(), testMessage("m", 1, "a: b\n\nx\n"))
	if s.Commit() == nil {
		t.Fatal("commit said yes")
	}
	s.Close()
	if got := readFile(t, path); !strings.HasPrefix(got, before) || !strings.HasSuffix(got, "From unlocked\n\n") {
		t.Errorf("mailbox is %q", got)
	}
}

func TestUnreadableMessage(t *testing.T) {
	path := mboxPath(t)
	writeFile(t, path, before)
	s := openMbox(t, testMbox(path))
	good := testMessage("good", 1, "a: b\n\nx\n")
	bad := testMessage("bad", 1, strings.Repeat("x", 2*mboxBuffer))
	bad.Content = failingReaderAt{strings.Repeat("x", mboxBuffer+7), unix.EIO}
	for _, m := range []Message{good, bad, good} {
		if _, err := s.Append(context.Background(), m); errors.Is(err, unix.EIO) != (m.ID == "bad") {
			t.Errorf("%s: %v", m.ID, err)
		}
	}
	if err := s.Commit(); err != nil {
		t.Fatal(err)
	}
	sameText(t, "mailbox", readFile(t, path), before+rendering(t, good)+rendering(t, good))
}

func TestHostileMailboxes(t *testing.T) {
	tests := []struct {
		name string
		root bool
		make func(t *testing.T, path, victim string) error
	}{
		{"symbolic link", false, func(t *testing.T, path, victim string) error { return os.Symlink(victim, path) }},
		{"dangling symbolic link", false, func(t *testing.T, path, victim string) error { return os.Symlink(victim+"-none", path) }},
		{"hard link", false, func(t *testing.T, path, victim string) error { return os.Link(victim, path) }},
		{"FIFO", false, func(t *testing.T, path, victim string) error { return unix.Mkfifo(path, 0o600) }},
		{"directory", false, func(t *testing.T, path, victim string) error { return os.Mkdir(path, 0o700) }},
		{"foreign owner", true, func(t *testing.T, path, victim string) error {
			return errors.Join(os.WriteFile(path, nil, 0o600), os.Chown(path, 12345, -1))
		}},
		{"device", true, func(t *testing.T, path, victim string) error {
			return exec.Command("mknod", path, "c", "1", "3").Run()
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.root && os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			dir := t.TempDir()
			path, victim := filepath.Join(dir, "mbox"), filepath.Join(dir, "victim")
			writeFile(t, victim, "secret")
			if err := test.make(t, path, victim); err != nil {
				t.Fatal(err)
			}
			s, err := OpenMbox(context.Background(), testMbox(path))
			if err == nil {
				s.Close()
				t.Fatal("it was opened")
			}
			var e *Error
			if !errors.As(err, &e) || e.Permanent || e.Status != "4.2.0" {
				t.Errorf("error is %v", err)
			}
			sameText(t, "victim", readFile(t, victim), "secret")
			names, _ := os.ReadDir(dir)
			if len(names) != 2 {
				t.Errorf("left behind: %v", names)
			}
		})
	}
}

// The file is replaced between open and lock, as a reader does that writes a
// new mailbox and renames it.
func TestReplacedWhileWaiting(t *testing.T) {
	path := mboxPath(t)
	writeFile(t, path, before)
	holder := openMbox(t, testMbox(path))
	box := testMbox(path)
	box.sys = realSystem()
	box.sys.sleep = func(context.Context, time.Duration) error {
		writeFile(t, path+".new", "")
		os.Rename(path+".new", path)
		return holder.Close()
	}
	m := testMessage("m", 1, "a: b\n\nx\n")
	deliver(t, box, m)
	sameText(t, "mailbox", readFile(t, path), rendering(t, m))
}

// A given descriptor is used, and refused if it is not what stands at Path.
func TestGivenFile(t *testing.T) {
	path := mboxPath(t)
	writeFile(t, path, before)
	open := func(path string) Mbox {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		box := testMbox(filepath.Join(filepath.Dir(path), "mbox"))
		box.File = f
		box.sys = realSystem()
		box.sys.sleep = func(context.Context, time.Duration) error { return context.Canceled }
		return box
	}
	m := testMessage("m", 1, "a: b\n\nx\n")
	deliver(t, open(path), m)
	sameText(t, "mailbox", readFile(t, path), before+rendering(t, m))
	writeFile(t, path+"2", "")
	if s, err := OpenMbox(context.Background(), open(path+"2")); err == nil {
		s.Close()
		t.Error("a descriptor of another file was used")
	}
}

// Four goroutines and two processes deliver at the same time.
func TestConcurrentDeliveries(t *testing.T) {
	for _, flock := range []bool{false, true} {
		t.Run(kernelLock(flock), func(t *testing.T) { testConcurrentDeliveries(t, flock) })
	}
}

func testConcurrentDeliveries(t *testing.T, flock bool) {
	path := mboxPath(t)
	var wg sync.WaitGroup
	for _, id := range []string{"p1", "p2"} {
		_, out, cmd := helper(t, "deliver", path, id, kernelLock(flock))
		wg.Go(func() {
			b, _ := io.ReadAll(out)
			if err := cmd.Wait(); err != nil {
				t.Errorf("%s: %v: %s", id, err, b)
			}
		})
	}
	for g := range 4 {
		wg.Go(func() {
			for i := range 50 {
				box := unsyncedMbox(path)
				box.LockWait, box.Flock = time.Minute, flock
				s, err := OpenMbox(context.Background(), box)
				if err == nil {
					_, err = s.Append(context.Background(), testMessage(fmt.Sprintf("g%d", g), i+1, "a: b\n\nFrom x\n"))
					err = errors.Join(err, s.Commit(), s.Close())
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	got := []byte(readFile(t, path))
	messages := bytes.Count(got, []byte("\nX-Dma-Delivery: "))
	froms := bytes.Count(append([]byte("\n"), got...), []byte("\nFrom "))
	if messages != 400 || froms != 400 {
		t.Errorf("%d messages, %d From_ lines, want 400", messages, froms)
	}
}

// A process is killed while it delivers; what it was to deliver is delivered
// again.
func TestKilled(t *testing.T) {
	for round := range 10 {
		path := mboxPath(t)
		flock := round%2 == 1
		_, out, cmd := helper(t, "deliver", path, "killed", kernelLock(flock))
		for range round * 7 {
			if _, err := out.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		cmd.Process.Kill()
		cmd.Wait()
		var all []Message
		want := ""
		for i := range 100 {
			m := testMessage("killed", i+1, "Subject: x\n\nFrom killed\n")
			all = append(all, suspect(m))
			want += rendering(t, m)
		}
		box := testMbox(path)
		box.Flock = flock
		box.sys = realSystem()
		box.sys.sleep = func(context.Context, time.Duration) error {
			t.Error("the lock of a killed process is waited for")
			return context.Canceled
		}
		already := deliver(t, box, all...)
		sameText(t, fmt.Sprintf("round %d", round), readFile(t, path), want)
		if !already[max(0, round*7-1)] && round > 0 || already[99] {
			t.Errorf("round %d: already %v", round, already)
		}
	}
}

func TestWaitsForOtherProcess(t *testing.T) {
	for _, flock := range []bool{false, true} {
		t.Run(kernelLock(flock), func(t *testing.T) { testWaitsForOtherProcess(t, flock) })
	}
}

func testWaitsForOtherProcess(t *testing.T, flock bool) {
	path := mboxPath(t)
	writeFile(t, path, before)
	stdin, out, _ := helper(t, kernelLock(flock), path)
	if line, err := out.ReadString('\n'); line != "locked <nil>\n" {
		t.Fatalf("helper: %q, %v", line, err)
	}
	box := testMbox(path)
	box.Flock = flock
	box.sys = realSystem()
	// In vain, by a clock that jumps.
	now := time.Now()
	box.sys.now = func() time.Time { now = now.Add(time.Second); return now }
	waits := 0
	box.sys.sleep = func(context.Context, time.Duration) error {
		waits++
		if _, err := os.Lstat(path + ".lock"); err == nil {
			t.Error("waits with the lock file held")
		}
		return nil
	}
	var e *Error
	if _, err := OpenMbox(context.Background(), box); !errors.As(err, &e) || !errors.Is(err, errLocked) || e.Status != "4.2.0" ||
		!strings.Contains(err.Error(), kernelLock(flock)) {
		t.Fatalf("locked mailbox: %v", err)
	}
	if waits < 20 || waits > 40 {
		t.Errorf("%d waits in 30 seconds of a second each", waits)
	}
	// Cancelled.
	ctx, cancel := context.WithCancel(context.Background())
	box.sys.sleep = func(ctx context.Context, _ time.Duration) error { cancel(); return ctx.Err() }
	if _, err := OpenMbox(ctx, box); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
	// Until the other one ends.
	box.sys = realSystem()
	box.LockWait = time.Minute
	waits = 0
	box.sys.sleep = func(ctx context.Context, d time.Duration) error {
		if waits++; waits == 1 {
			stdin.Close()
		}
		return sleep(ctx, d)
	}
	m := testMessage("m", 1, "a: b\n\nx\n")
	deliver(t, box, m)
	if waits == 0 {
		t.Error("it did not wait")
	}
	sameText(t, "mailbox", readFile(t, path), before+rendering(t, m))
}

// TestWaitsForDotlock: while somebody else has the lock file, other processes
// can take the kernel lock.
func TestWaitsForDotlock(t *testing.T) {
	for _, flock := range []bool{false, true} {
		t.Run(kernelLock(flock), func(t *testing.T) {
			path := mboxPath(t)
			writeFile(t, path, before)
			writeFile(t, path+".lock", fmt.Sprintln(os.Getpid()))
			box := testMbox(path)
			box.Flock = flock
			box.sys = realSystem()
			waits := 0
			box.sys.sleep = func(context.Context, time.Duration) error {
				if held := heldLocks(t, path); held != "[]" {
					t.Errorf("waits for the lock file with %s held", held)
				}
				sameText(t, "lock file", readFile(t, path+".lock"), fmt.Sprintln(os.Getpid()))
				if waits++; waits == 2 {
					return os.Remove(path + ".lock")
				}
				return nil
			}
			m := testMessage("m", 1, "a: b\n\nx\n")
			deliver(t, box, m)
			if waits != 2 {
				t.Errorf("%d waits", waits)
			}
			sameText(t, "mailbox", readFile(t, path), before+rendering(t, m))
		})
	}
}

func TestDotlock(t *testing.T) {
	host, _ := os.Hostname()
	owner := dotlockOwner(host, false)
	now := time.Now()
	dead := "999999999\n"
	tests := []struct {
		name    string
		content string
		age     time.Duration
		taken   bool
	}{
		{"fresh, empty", "", 0, false},
		{"old, empty", "", staleAfter + time.Second, true},
		{"fresh, process gone", dead, 0, false},
		{"old, process gone", dead, staleAfter + time.Second, true},
		{"old, process runs", fmt.Sprintln(os.Getpid()), staleAfter + time.Second, false},
		{"very old, process runs", fmt.Sprintln(os.Getpid()), staleAlways + time.Second, true},
		{"ours, left over", dead + owner, 0, true},
		{"ours, process id used again", "1\n" + owner, 0, true},
		{"ours, with another kernel lock", dead + dotlockOwner(host, true), 0, false},
		{"ours, with another kernel lock, old", dead + dotlockOwner(host, true), staleAfter + time.Second, true},
		{"of another host", dead + dotlockOwner("other."+host, false), 0, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := mboxPath(t)
			writeFile(t, path+".lock", test.content)
			os.Chtimes(path+".lock", now.Add(-test.age), now.Add(-test.age))
			d, ok, err := takeDotlock(path, owner, os.Geteuid(), now)
			if err != nil || ok != test.taken {
				t.Fatalf("taken %v, %v, want %v", ok, err, test.taken)
			}
			if !ok {
				sameText(t, "lock file", readFile(t, path+".lock"), test.content)
				return
			}
			sameText(t, "lock file", readFile(t, path+".lock"), dotlockMark(owner))
			if err := d.release(); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(path + ".lock"); err == nil {
				t.Error("not released")
			}
		})
	}
	// One that somebody else took over is neither touched nor removed.
	path := mboxPath(t)
	d, _, _ := takeDotlock(path, owner, os.Geteuid(), now)
	os.Remove(path + ".lock")
	writeFile(t, path+".lock", "")
	past := now.Add(-time.Minute).Truncate(time.Second)
	os.Chtimes(path+".lock", past, past)
	d.touch(now.Add(touchEvery))
	if info, err := os.Stat(path + ".lock"); err != nil || !info.ModTime().Equal(past) {
		t.Errorf("somebody's lock file: touched at %v, %v", info.ModTime(), err)
	}
	if err := d.release(); err != nil {
		t.Error(err)
	}
	sameText(t, "somebody's lock file", readFile(t, path+".lock"), "")
	// One that was touched, by us or by anybody, is still ours.
	for want, touch := range map[time.Time]func(*dotlock){
		past.Add(time.Hour): func(d *dotlock) { d.touch(past.Add(time.Hour)) },
		past:                func(d *dotlock) { os.Chtimes(d.path, past, past) },
	} {
		path := mboxPath(t)
		writeFile(t, path+".lock.dma", "of one that was killed")
		d, _, _ := takeDotlock(path, owner, os.Geteuid(), now)
		touch(&d)
		if info, err := os.Stat(path + ".lock"); err != nil || info.Mode() != 0o444 || !info.ModTime().Equal(want) {
			t.Errorf("lock file: mode %v, touched at %v, %v", info.Mode(), info.ModTime(), err)
		}
		if err := d.release(); err != nil {
			t.Error(err)
		}
		if names, _ := os.ReadDir(filepath.Dir(path)); len(names) > 0 {
			t.Errorf("left behind: %v", names)
		}
	}
	// Neither a link nor a directory is followed or opened.
	for _, make := range []func(string) error{
		func(p string) error { return os.Symlink("/etc/passwd", p) },
		func(p string) error { return os.Mkdir(p, 0o700) },
		func(p string) error { return unix.Mkfifo(p, 0o600) },
	} {
		path := mboxPath(t)
		if err := make(path + ".lock"); err != nil {
			t.Fatal(err)
		}
		if _, ok, err := takeDotlock(path, owner, os.Geteuid(), now); ok || err != nil {
			t.Errorf("fresh: %v, %v", ok, err)
		}
		if _, ok, err := takeDotlock(path, owner, os.Geteuid(), now.Add(time.Hour)); !ok || err != nil {
			t.Errorf("old: %v, %v", ok, err)
		}
	}
}

// Where the directory does not let us make a lock file, fcntl has to do.
func TestNoDotlock(t *testing.T) {
	path := mboxPath(t)
	writeFile(t, path, before)
	dir := filepath.Dir(path)
	box := testMbox(path)
	if os.Geteuid() == 0 {
		// Root may write everywhere; the effective ids of one thread are enough
		// for the calls that it makes.
		runtime.LockOSThread() // and the thread ends with the goroutine
		os.Chmod(filepath.Dir(dir), 0o711)
		os.Chmod(dir, 0o755)
		os.Chown(path, 12345, 12345)
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETREUID, ^uintptr(0), 12345, 0); errno != 0 {
			t.Skip(errno)
		}
		defer syscall.RawSyscall(syscall.SYS_SETREUID, ^uintptr(0), 0, 0)
		box.UID = 12345
	} else {
		os.Chmod(dir, 0o500)
		defer os.Chmod(dir, 0o700)
	}
	m := testMessage("m", 1, "a: b\n\nx\n")
	deliver(t, box, m)
	sameText(t, "mailbox", readFile(t, path), before+rendering(t, m))
}
