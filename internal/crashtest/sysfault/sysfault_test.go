//go:build linux && amd64

package sysfault

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
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const programEnv = "SYSFAULT_TEST_PROGRAM"

// TestMain lets the test binary be the program that is broken.
func TestMain(m *testing.M) {
	if name := os.Getenv(programEnv); name != "" {
		if err := program(name, os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(75)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const content = "0123456789"

func program(name, dir string) error {
	switch name {
	case "enqueue":
		return enqueue(dir)
	case "writev":
		f, err := os.Create(dir + "/tmp/v")
		if err != nil {
			return err
		}
		n, err := unix.Writev(int(f.Fd()), [][]byte{nil, []byte("abcdef"), []byte("ghi")})
		fmt.Println(n)
		return err
	case "echo":
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	case "tree": // a child in its own session that never ends, and a grandchild
		c := exec.Command("/bin/sh", "-c", `echo x >"$0/tmp/child"; cat <&4 & echo y >"$0/tmp/child2"; wait`, dir)
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		c.ExtraFiles = []*os.File{os.NewFile(3, "alive"), r, w}
		if err := c.Run(); err != nil {
			return err
		}
	}
	return nil
}

// enqueue commits a message of three links, from changing threads.
func enqueue(dir string) (err error) {
	for range 4 {
		go func() {
			for {
				_, _ = os.ReadFile("/proc/self/stat")
				runtime.Gosched()
			}
		}()
	}
	tmp := dir + "/tmp/m"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0600)
	if err != nil {
		return err
	}
	steps := []func() error{
		func() error { _, err := f.WriteString(content); return err },
		func() error { return os.Link(tmp, dir+"/new/m.0") },
		func() error { return os.Link(tmp, dir+"/new/m.1") },
		f.Sync,
		func() error { return os.Chmod(dir+"/new/m.0", 0640) },
		f.Sync,
		func() error { return os.Remove(tmp) },
	}
	for _, step := range steps {
		done := make(chan error)
		go func() { runtime.LockOSThread(); done <- step() }() // the thread ends with it
		if err := <-done; err != nil {
			return errors.Join(err, os.RemoveAll(dir+"/new/m.0"), os.RemoveAll(dir+"/new/m.1"), os.Remove(tmp))
		}
	}
	fmt.Println("ACK")
	return nil
}

func spool(t *testing.T) string {
	dir := t.TempDir()
	for _, d := range []string{"/tmp", "/new"} {
		if err := os.Mkdir(dir+d, 0755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func command(name, dir string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", dir)
	cmd.Env = append(os.Environ(), programEnv+"="+name, "GORACE=atexit_sleep_ms=0") // else -race waits a second at exit
	return cmd
}

func run(t *testing.T, cmd *exec.Cmd, scope Scope, decide func(Call) Action) Result {
	t.Helper()
	Need(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	res, err := Run(ctx, cmd, scope, decide)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func names(calls []Call) string {
	var s []string
	for _, c := range calls {
		s = append(s, c.Name)
	}
	return strings.Join(s, " ")
}

func TestCount(t *testing.T) {
	// Which threads the calls come from is the scheduler's choice: it gets
	// several chances to use more than one.
	for range 10 {
		if countOnce(t) > 1 || t.Failed() {
			return
		}
	}
	t.Errorf("all calls from one thread, ten times: the test lost its point")
}

// countOnce checks one undisturbed run and returns from how many threads its
// calls came.
func countOnce(t *testing.T) int {
	dir := spool(t)
	cmd := command("enqueue", dir)
	var out bytes.Buffer
	cmd.Stdout = &out
	res := run(t, cmd, Scope{Roots: []string{dir}}, nil)
	const want = "openat write linkat linkat fsync fchmodat fsync unlinkat"
	if got := names(res.Calls); got != want {
		t.Fatalf("calls\n got %s\nwant %s", got, want)
	}
	if out.String() != "ACK\n" || res.State.ExitStatus() != 0 || res.Acted || res.Killed {
		t.Errorf("output %q, result %+v", out.String(), res)
	}
	threads := map[int]bool{}
	for i, c := range res.Calls {
		threads[c.Tid] = true
		if c.N != i+1 || !c.Done || c.Errno != 0 || c.Pid != res.Calls[0].Pid || !strings.HasPrefix(c.Path, dir) {
			t.Errorf("%+v", c)
		}
	}
	if c := res.Calls[3]; c.Path != dir+"/tmp/m" || c.Path2 != dir+"/new/m.1" {
		t.Errorf("%v", c)
	}
	return len(threads)
}

// TestOrdinaryUser repeats TestCount as another user.
func TestOrdinaryUser(t *testing.T) {
	Need(t)
	if os.Geteuid() != 0 {
		t.Skip("every test here runs as an ordinary user already")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^TestCount$", "-test.v")
	cmd.Dir = "/"
	cmd.Env = []string{"CI=true", "PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestCount")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestSetgid checks that a traced program keeps its set-group-ID bit if it is
// started through setpriv.
func TestSetgid(t *testing.T) {
	Need(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("", "setgid") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	b, err := os.ReadFile("/usr/bin/id")
	if err != nil {
		t.Skip(err)
	}
	id := dir + "/id"
	if err := errors.Join(os.Chmod(dir, 0755), os.WriteFile(id, b, 0755), os.Chown(id, 0, 12345), os.Chmod(id, 0755|os.ModeSetgid)); err != nil {
		t.Fatal(err)
	}
	newCmd := func() *exec.Cmd {
		return exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", id, "-g")
	}
	if out, err := newCmd().Output(); err != nil || string(out) != "12345\n" {
		t.Skipf("no set-group-ID here: %v, %q", err, out)
	}
	cmd := newCmd()
	var out bytes.Buffer
	cmd.Stdout = &out
	run(t, cmd, Scope{Roots: []string{dir}}, nil)
	if out.String() != "12345\n" {
		t.Errorf("traced, the group is %q", out.String())
	}
}

// TestEnumerate breaks the enqueue at every call in every way.
func TestEnumerate(t *testing.T) {
	for _, tc := range []struct {
		name string
		a    Action
	}{
		{"process", Action{Op: KillProcess}}, {"tree", Action{Op: KillTree}}, {"after", Action{Op: KillTreeAfter}},
		{"enospc", Action{Op: Fail, Errno: syscall.ENOSPC}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var dir string
			var out *bytes.Buffer
			broken := 0
			plan := Plan{Action: func(Call) Action { return tc.a }, Scope: Scope{Roots: []string{os.TempDir()}}}
			newCmd := func(t *testing.T) *exec.Cmd {
				dir, out = spool(t), new(bytes.Buffer)
				cmd := command("enqueue", dir)
				cmd.Stdout = out
				return cmd
			}
			Enumerate(t, plan, newCmd, func(t *testing.T, n int, call Call, res Result) {
				left, _ := filepath.Glob(dir + "/*/m*")
				if n == 0 {
					if len(left) != 2 || out.String() != "ACK\n" {
						t.Errorf("left %v, said %q", left, out)
					}
					return
				}
				broken++
				if call.N != n || !res.Acted || out.Len() != 0 {
					t.Errorf("call %v, said %q, result %+v", call, out, res)
				}
				if tc.a.Op == Fail {
					if res.State.ExitStatus() != 75 || res.Calls[n-1].Errno != tc.a.Errno {
						t.Errorf("status %v, %+v", res.State.ExitStatus(), res.Calls[n-1])
					}
					return
				}
				done := n - 1 // calls that have happened
				if tc.a.Op == KillTreeAfter {
					done = n
				}
				want := []int{0, 1, 1, 2, 3, 3, 3, 3, 2}[done]
				if len(left) != want || !res.Killed || res.State.Signal() != syscall.SIGKILL || len(res.Calls) != n {
					t.Errorf("%v: left %v, want %d; %d calls, status %#x", call, left, want, len(res.Calls), res.State)
				}
				if fi, err := os.Stat(dir + "/new/m.0"); (err == nil && fi.Mode().Perm() == 0640) != (done >= 6) {
					t.Errorf("%v: committed is not %v", call, done >= 6)
				}
			})
			if broken != 8 {
				t.Errorf("broke %d of 8 calls", broken)
			}
		})
	}
}

func TestShort(t *testing.T) {
	dir := spool(t)
	cut := func(c Call) Action {
		if c.Name == "write" && c.N == 2 || c.Name == "writev" {
			return Action{Op: Short, Max: 4}
		}
		return Action{}
	}
	res := run(t, command("enqueue", dir), Scope{Roots: []string{dir}}, cut)
	b, _ := os.ReadFile(dir + "/new/m.1")
	if string(b) != content || !strings.HasPrefix(names(res.Calls), "openat write write linkat") {
		t.Errorf("%q after %v", b, names(res.Calls))
	}
	cmd := command("writev", dir)
	var out bytes.Buffer
	cmd.Stdout = &out
	res = run(t, cmd, Scope{Roots: []string{dir}}, cut)
	if b, _ := os.ReadFile(dir + "/tmp/v"); string(b) != "abcd" || out.String() != "4\n" {
		t.Errorf("%q, said %q, %v", b, out.String(), res.Calls)
	}
	if _, err := Run(t.Context(), command("enqueue", spool(t)), Scope{Roots: []string{os.TempDir()}}, func(Call) Action {
		return Action{Op: Short, Max: 4} // the first call is an open
	}); err == nil {
		t.Error("an open was cut short")
	}
}

// TestClasses checks which calls each class shows, for a shell and for paths
// that reach the root through a symbolic link and a relative name.
func TestClasses(t *testing.T) {
	dir := spool(t)
	link := t.TempDir() + "/link"
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	script := `cd "$0"; echo a >tmp/a; mv tmp/a new/a; cat "$1/new/a"; flock new/a true; ls new; touch /tmp`
	for class, want := range map[Class][]string{
		Mutate: {"openat", "write", "rename"},
		Look:   {"openat", "read", "getdents64"},
		Lock:   {"flock"},
		Close:  {"close"},
	} {
		res := run(t, exec.Command("/bin/sh", "-c", script, dir, link), Scope{Roots: []string{dir}, Classes: class}, nil)
		got := " " + names(res.Calls)
		for _, w := range want {
			if !strings.Contains(got, " "+w) {
				t.Errorf("class %d: no %s in%s", class, w, got)
			}
		}
		for _, c := range res.Calls {
			if c.Class&class == 0 || !strings.HasPrefix(c.Path+"/", dir+"/") {
				t.Errorf("class %d shows %v", class, c)
			}
		}
	}
}

// alive gives cmd the writing end of a pipe as descriptor 3. The function that
// it returns waits until every process that inherited it has ended.
func alive(t *testing.T, cmd *exec.Cmd) func() {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{w}
	return func() {
		t.Helper()
		w.Close()
		_ = r.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := r.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("a process of the tree lives on: %v", err)
		}
		r.Close()
	}
}

// TestNothingLeft ends runs of a tree with a session of its own in every way.
func TestNothingLeft(t *testing.T) {
	Need(t)
	stop := errors.New("enough")
	at := func(c Call) bool { return strings.HasSuffix(c.Path, "/child2") && c.Name == "write" }
	for name, tc := range map[string]struct {
		decide func(cancel context.CancelCauseFunc) func(Call) Action
		err    error
	}{
		"kill": {func(context.CancelCauseFunc) func(Call) Action {
			return func(c Call) Action {
				if at(c) {
					return Action{Op: KillTree}
				}
				return Action{}
			}
		}, nil},
		"context": {func(cancel context.CancelCauseFunc) func(Call) Action {
			return func(c Call) Action {
				if at(c) {
					cancel(stop)
				}
				return Action{}
			}
		}, stop},
		"goexit": {func(context.CancelCauseFunc) func(Call) Action {
			return func(c Call) Action {
				if at(c) {
					runtime.Goexit()
				}
				return Action{}
			}
		}, errors.New("any")},
	} {
		t.Run(name, func(t *testing.T) {
			limit, cancelLimit := context.WithTimeout(t.Context(), time.Minute)
			defer cancelLimit()
			ctx, cancel := context.WithCancelCause(limit)
			defer cancel(nil)
			dir := spool(t)
			cmd := command("tree", dir)
			wait := alive(t, cmd)
			res, err := Run(ctx, cmd, Scope{Roots: []string{dir}}, tc.decide(cancel))
			wait()
			if (err == nil) != (tc.err == nil) || tc.err == stop && !errors.Is(err, stop) {
				t.Errorf("error %v", err)
			}
			if n := len(res.Calls); n == 0 || !at(res.Calls[n-1]) {
				t.Errorf("calls %v", res.Calls)
			}
			pids := map[int]bool{}
			for _, c := range res.Calls {
				pids[c.Pid] = true
			}
			if name == "kill" && (!res.Killed || pids[cmd.Process.Pid]) {
				t.Errorf("result %+v: the calls are those of a child", res)
			}
		})
	}
}

// TestBeside feeds the program while it is traced, and checks that the driver
// does not reap children of other goroutines.
func TestBeside(t *testing.T) {
	Need(t)
	for range 5 {
		var others []*exec.Cmd
		for range 4 {
			c := exec.Command("/bin/sh", "-c", "exit 3")
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			others = append(others, c)
		}
		dir := spool(t)
		cmd := command("echo", dir)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout = w
		started := make(chan *os.Process, 1)
		ended := make(chan error, 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var res Result
		go func() {
			var err error
			res, err = Run(ctx, cmd, Scope{Roots: []string{dir}, Started: func(p *os.Process) { started <- p }}, nil)
			w.Close()
			ended <- err
		}()
		p := <-started
		fmt.Fprintln(in, "hello")
		if line, err := bufio.NewReader(r).ReadString('\n'); line != "hello\n" {
			t.Errorf("%q, %v", line, err)
		}
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil || res.State.Signal() != syscall.SIGTERM || res.Killed {
			t.Errorf("%v, %+v", err, res)
		}
		r.Close()
		for _, c := range others {
			var exit *exec.ExitError
			if err := c.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 3 {
				t.Errorf("another child: %v", err)
			}
		}
	}
}

func TestSample(t *testing.T) {
	if got := sample(4, 0, 1); !slices.Equal(got, []int{1, 2, 3, 4}) {
		t.Error(got)
	}
	a, b := sample(1000, 10, 7), sample(1000, 10, 7)
	if !slices.Equal(a, b) || !slices.IsSorted(a) || len(slices.Compact(a)) != 10 || slices.Equal(a, sample(1000, 10, 8)) {
		t.Error(a, b)
	}
}
