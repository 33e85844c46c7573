package parent

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// spec describes a process to start.
type spec struct {
	title   string // its name, for ps
	role    string // its first argument
	account Account
	env     []string
	worker  bool       // it has the log as its standard error, and is killed when we are
	out     *os.File   // its standard output; nil is /dev/null
	files   []*os.File // its descriptors from 3 on; nil is /dev/null
}

// child is a process that was started.
type child interface {
	ended() <-chan struct{} // closed when it was reaped
	err() error             // how it ended; after that
	kill()                  // its whole process group, at once
}

// starter starts processes.
type starter interface {
	start(spec) (child, error)
}

// thread is an OS thread that never ends: the kernel sends the signal that
// announces the death of a parent when the thread that started the child ends.
type thread chan func()

func newThread() thread {
	t := make(thread)
	go func() {
		runtime.LockOSThread()
		for f := range t {
			f()
		}
	}()
	return t
}

func (t thread) do(f func() error) error {
	done := make(chan error)
	t <- func() { done <- f() }
	return <-done
}

// system is the starter of the machine.
type system struct {
	thread thread
	log    *os.File // standard error of the workers; nil: /dev/null
}

// start implements starter: it executes our own program again.
func (s *system) start(sp spec) (child, error) {
	if sp.account.UID <= 0 {
		return nil, fmt.Errorf("%s: nothing is started as uid %d", sp.title, sp.account.UID)
	}
	program, err := executable()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", sp.title, err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", sp.title, err)
	}
	defer null.Close()
	files := append([]*os.File{null, null, null}, sp.files...)
	files[1] = sp.out
	if sp.worker && s.log != nil {
		files[2] = s.log
	}
	for i, f := range files {
		if f == nil { // a closed one would soon be a file that the Go runtime opens
			files[i] = null
		}
	}
	var p *os.Process
	err = s.thread.do(func() (err error) {
		p, err = os.StartProcess(program, []string{"dma-runner: " + sp.title, sp.role}, &os.ProcAttr{
			Dir:   "/",
			Env:   append([]string{}, sp.env...),
			Files: files,
			Sys:   attributes(sp.account, sp.worker),
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", sp.title, err)
	}
	c := &process{p: p, account: sp.account, gone: make(chan struct{})}
	go c.wait()
	return c, nil
}

// attributes returns how a process is started. Groups is never nil, which would
// be the same; it says that they are set. An agent is not killed when we are: it
// has a command to kill first. It is told by its life, also if its user has
// stopped it.
func attributes(a Account, worker bool) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setsid: true, Credential: credential(a)}
	if worker {
		followThread(attr, syscall.SIGKILL)
	} else {
		followThread(attr, syscall.SIGCONT)
	}
	return attr
}

func credential(a Account) *syscall.Credential {
	c := &syscall.Credential{Uid: uint32(a.UID), Gid: uint32(a.GID), Groups: []uint32{}}
	for _, gid := range a.Groups {
		c.Groups = append(c.Groups, uint32(gid))
	}
	return c
}

// process is a child of ours. It leads a session and a process group.
type process struct {
	p       *os.Process
	account Account
	gone    chan struct{}
	how     error

	mu     sync.Mutex
	reaped bool
}

func (c *process) ended() <-chan struct{} { return c.gone }

func (c *process) err() error { return c.how }

func (c *process) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.reaped {
		syscall.Kill(-c.p.Pid, syscall.SIGKILL)
	}
}

// wait reaps the process. Where that can be told apart from its end, what it
// left in its session is killed first, while its number cannot be another's.
func (c *process) wait() {
	if awaitExit(c.p.Pid) {
		endSession(c.p.Pid, c.account)
		c.mu.Lock()
		c.how = reap(c.p)
	} else {
		how := reap(c.p)
		c.mu.Lock()
		c.how = how
	}
	c.reaped = true
	c.mu.Unlock()
	close(c.gone)
}

func reap(p *os.Process) error {
	state, err := p.Wait()
	if err != nil {
		return err
	}
	return exited{state}
}

// exited is how a process has ended.
type exited struct{ *os.ProcessState }

func (e exited) Error() string { return "ended: " + e.String() }

// environment returns what every process has in its environment.
func environment(more ...string) []string {
	env := []string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"}
	for _, name := range []string{"TZ", "LANG"} {
		if value := os.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	return append(env, more...)
}

// closeInherited keeps descriptors that we were started with from our children.
func closeInherited() {
	if closeOnExec() {
		return
	}
	var limit syscall.Rlimit
	most := uint64(1 << 16)
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil {
		most = min(most, uint64(limit.Cur))
	}
	for fd := 3; fd < int(most); fd++ {
		syscall.CloseOnExec(fd)
	}
}

// setupTime is how long a new process may take to read its setup.
const setupTime = 30 * time.Second

// tether is what binds a child to us: its setup and its life.
type tether struct {
	setup, life *os.File // the child's ends
	write, hold *os.File // ours
}

func newTether() (*tether, error) {
	var t tether
	var err error
	if t.setup, t.write, err = os.Pipe(); err != nil {
		return nil, err
	}
	if t.life, t.hold, err = os.Pipe(); err != nil {
		t.setup.Close()
		t.write.Close()
		return nil, err
	}
	return &t, nil
}

// started hands the setup over to a child that was started.
func (t *tether) started(setup []byte) {
	t.setup.Close()
	t.life.Close()
	go func() {
		defer t.write.Close()
		t.write.SetWriteDeadline(time.Now().Add(setupTime))
		t.write.Write(setup) // a child that does not read it ends, or never says ready
	}()
}

// failed closes everything where there is no child.
func (t *tether) failed() {
	t.setup.Close()
	t.life.Close()
	t.write.Close()
	t.hold.Close()
}

// cut tells the child to end.
func (t *tether) cut() { t.hold.Close() }
