package machinetest

import (
	"bufio"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dma/internal/door"
	"dma/spooldir"
)

// actorName is the name by which the test binary is a program that users run:
// it does what takes a system call of its own.
const actorName = "actor"

// actor installs the program and returns its path.
func (m *machine) actor() string {
	m.t.Helper()
	path := filepath.Join(os.Getenv(dirEnv), actorName)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	text, err := os.ReadFile("/proc/self/exe")
	m.do(err)
	m.write(path, string(text), 0o755)
	return path
}

// actors are what the program does, by its first argument. What goes on until
// it is told to end says in a line that it has begun, and ends with its input.
var actors = map[string]func(args []string) error{
	"ptrace":  actPtrace,
	"lock":    actLock,
	"swap":    actSwap,
	"race":    actRace,
	"harass":  actHarass,
	"door":    actDoor,
	"block":   actBlock,
	"fifo":    actFIFO,
	"steal":   actSteal,
	"confine": actConfine,
	"memory":  actMemory,
}

func actorMain(args []string) int {
	act := actors[args[0]]
	if act == nil {
		fmt.Fprintln(os.Stderr, "actor: what?")
		return 2
	}
	if err := act(args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "actor:", err)
		return 1
	}
	return 0
}

// until says that something has begun, and returns a channel that is closed when
// the input ends.
func until() <-chan struct{} {
	over := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	fmt.Println("begun")
	return over
}

// actPtrace tries to trace a process, and to read its memory.
func actPtrace(args []string) error {
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	if f, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid)); err == nil {
		f.Close()
		fmt.Println("memory is open")
	}
	for _, name := range []string{"environ", "maps"} {
		if f, err := os.Open(fmt.Sprintf("/proc/%d/%s", pid, name)); err == nil {
			if _, err := f.Read(make([]byte, 1)); err == nil {
				fmt.Println(name, "is open")
			}
			f.Close()
		}
	}
	// The numbers alone the kernel shows by the uid, until the process has made
	// itself untraceable.
	for fd := range 100 {
		path := fmt.Sprintf("/proc/%d/fd/%d", pid, fd)
		if to, err := os.Readlink(path); err == nil {
			fmt.Println(path, "is", to)
		}
		if f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
			f.Close()
			fmt.Println(path, "is open")
		}
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil); err == nil {
		fmt.Println("limits can be set")
	}
	runtime.LockOSThread()
	if err := unix.PtraceSeize(pid); err != nil {
		return fmt.Errorf("seize: %w", err)
	}
	fmt.Println("traced") // and let go by our end
	return nil
}

// actLock holds the lock that mail readers take: of fcntl(2), or of flock(2) if
// that is asked for.
func actLock(args []string) error {
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if len(args) > 1 && args[1] == "flock" {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	} else {
		err = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	}
	if err != nil {
		return err
	}
	<-until()
	return nil
}

// actSwap exchanges two names again and again.
func actSwap(args []string) error {
	over := until()
	for range 2_000_000 {
		select {
		case <-over:
			return nil
		default:
		}
		_ = unix.Renameat2(unix.AT_FDCWD, args[0], unix.AT_FDCWD, args[1], unix.RENAME_EXCHANGE)
		time.Sleep(20 * time.Microsecond)
	}
	return nil
}

// actRace makes and removes a symbolic link again and again.
func actRace(args []string) error {
	over := until()
	for range 2_000_000 {
		select {
		case <-over:
			return nil
		default:
		}
		if unix.Symlink(args[0], args[1]) == nil {
			time.Sleep(20 * time.Microsecond)
			_ = unix.Unlink(args[1])
		}
		time.Sleep(20 * time.Microsecond)
	}
	return nil
}

// actHarass sends a signal to the agents of its own user, a number of times, and
// says how often it met one.
func actHarass(args []string) error {
	sig, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	most, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	over := until()
	hits := 0
	defer func() { fmt.Println("hits", hits) }()
	for hits < most {
		select {
		case <-over:
			return nil
		case <-time.After(3 * time.Millisecond):
		}
		files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil || !strings.HasPrefix(string(text), "dma-runner: ") {
				continue
			}
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if err == nil && unix.Kill(pid, syscall.Signal(sig)) == nil {
				hits++
			}
		}
	}
	<-over
	return nil
}

// actDoor submits by the socket of the service the envelopes that it reads, and
// says of each how it went.
func actDoor([]string) error {
	in := gob.NewDecoder(os.Stdin)
	for {
		var e spooldir.Envelope
		if err := in.Decode(&e); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		d, err := door.Client{Path: "/run/dma/submit.sock"}.Create(&e)
		if err == nil {
			if _, err = io.WriteString(d, "Subject: by the door\n\nby the door\n"); err == nil {
				err = d.Commit()
			}
		}
		var r *door.Refusal
		switch {
		case err == nil:
			fmt.Println("taken")
		case errors.As(err, &r):
			fmt.Println("refused")
		default:
			fmt.Fprintln(os.Stderr, err)
			fmt.Println("broken")
		}
	}
}

// actBlock becomes another program with all signals blocked.
func actBlock(args []string) error {
	runtime.LockOSThread()
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[0]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, nil); err != nil {
		return err
	}
	return syscall.Exec(args[0], args, os.Environ())
}

// actFIFO holds a FIFO open for writing and writes nothing.
func actFIFO(args []string) error {
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	<-until()
	return nil
}

// actSteal takes descriptors 3 to 6 of a process, and holds them.
func actSteal(args []string) error {
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	for fd := 3; fd <= 6; fd++ {
		if _, err := unix.PidfdGetfd(process, fd, 0); err != nil && !errors.Is(err, unix.EBADF) {
			return fmt.Errorf("descriptor %d: %w", fd, err)
		}
	}
	<-until()
	return nil
}

// actMemory writes all memory of a process that can be read, traced so that it
// stands still meanwhile, to the output.
func actMemory(args []string) error {
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := unix.PtraceSeize(pid); err != nil {
		return fmt.Errorf("seize: %w", err)
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return err
	}
	defer mem.Close()
	piece := make([]byte, 1<<20)
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil {
			return err
		}
		if mode[0] != 'r' || to > math.MaxInt64 { // as the vsyscall page is, which is the kernel's
			continue
		}
		for from < to {
			n, err := mem.ReadAt(piece[:min(to-from, uint64(len(piece)))], int64(from))
			if _, err := os.Stdout.Write(piece[:n]); err != nil {
				return err
			}
			from += uint64(n)
			if err != nil {
				break // a page of the kernel's, or one that has gone
			}
		}
	}
	return nil
}

// background is a program of a user that goes on until end.
type background struct {
	t   testing.TB
	in  io.WriteCloser
	out *bufio.Reader
	end func() string // returns what else it said
}

// begin starts the actor as a user, and returns when it says that it has begun.
func (m *machine) begin(user string, args ...string) *background {
	m.t.Helper()
	cmd := m.command(user, append([]string{m.actor()}, args...)...)
	in, err := cmd.StdinPipe()
	m.do(err)
	out, err := cmd.StdoutPipe()
	m.do(err)
	cmd.Stderr = os.Stderr
	m.do(cmd.Start())
	b := &background{t: m.t, in: in, out: bufio.NewReader(out)}
	ended := false
	b.end = func() string {
		if ended {
			return ""
		}
		ended = true
		in.Close()
		rest, _ := io.ReadAll(b.out)
		_ = cmd.Wait()
		return string(rest)
	}
	m.t.Cleanup(func() { b.end() })
	if line, err := b.out.ReadString('\n'); line != "begun\n" {
		m.t.Fatalf("%q: %q, %v", args, line, err)
	}
	return b
}
