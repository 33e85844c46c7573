package sysfault

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Supported returns nil if a trial run works, else the reason: a container may
// forbid ptrace, and the kernel must be 5.3 or later.
func Supported() error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	res, err := Run(ctx, exec.Command("/bin/sh", "-c", "exit 7"), Scope{Roots: []string{"/proc/self"}}, nil)
	if err == nil && res.State.ExitStatus() != 7 {
		err = fmt.Errorf("trial run ended with status %#x", res.State)
	}
	if err != nil {
		return fmt.Errorf("tracing does not work here: %w", err)
	}
	return nil
}

// Run runs cmd under tracing and returns when it and every process that it left
// behind have ended. It may be called in a goroutine, several at a time, while
// the test does something else with the program.
//
// decide is called at each call in scope, before it happens, from one goroutine
// of Run's own; nil lets all go on. While decide runs the calling thread stands
// still, and no other thread or process of the run begins a system call after
// its next one, so decide may look at the state of the disk. After a kill no
// further call in scope begins in what was killed; calls that had already begun
// elsewhere may still finish.
//
// When ctx ends, the whole tree is killed and its error returned, with the
// result so far. Nothing of the tree survives Run, even if decide panics or
// ends its goroutine, or if the test binary dies (PTRACE_O_EXITKILL).
//
// cmd.Stdin, Stdout, Stderr and StdinPipe work as in os/exec; StdoutPipe does
// not, as what is unread when the command ends is lost. cmd.SysProcAttr.Ptrace is
// set, cmd.ProcessState stays nil. A stopped process (SIGSTOP) runs on.
func Run(ctx context.Context, cmd *exec.Cmd, scope Scope, decide func(Call) Action) (Result, error) {
	tr := &tracer{decide: decide, classes: scope.Classes, started: scope.Started, specs: specs(), tasks: map[int]*task{}, killed: map[int]bool{}}
	if tr.classes == 0 {
		tr.classes = Durable
	}
	if len(scope.Roots) == 0 {
		return Result{}, errors.New("sysfault: no roots")
	}
	for _, r := range scope.Roots {
		p, err := filepath.Abs(r)
		if err == nil {
			p, err = filepath.EvalSymlinks(p)
		}
		if err != nil {
			return Result{}, fmt.Errorf("sysfault: root: %w", err)
		}
		tr.roots = append(tr.roots, p)
	}
	err := errors.New("the driver was ended by its callback")
	onFreshThread(func() { err = tr.run(ctx, cmd) })
	if err == nil && tr.expired {
		err = context.Cause(ctx)
	}
	if err != nil {
		return tr.res, fmt.Errorf("sysfault: %s: %w", filepath.Base(cmd.Path), err)
	}
	return tr.res, nil
}

// onFreshThread runs f locked to a thread without children and waits for it.
// ptrace binds tracees to a thread, and a thread that has forked for someone
// else would let the driver reap another's child.
func onFreshThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT|unix.WALL|unix.WNOTHREAD, nil)
		if errors.Is(err, unix.ECHILD) {
			f()
			return
		}
		onFreshThread(f) // this thread stays taken, so the next is another
	}()
	<-done
}

// task is one traced thread.
type task struct {
	pid  int  // its thread group
	ran  bool // past the stop with which every new task begins
	call int  // index into res.Calls of the call that it is in, or -1

	saved     *syscall.PtraceRegs // as the program made the call, if changed
	errno     syscall.Errno       // to be returned in place of the result
	killAfter bool
}

type tracer struct {
	roots   []string
	classes Class
	specs   map[uint64]spec
	decide  func(Call) Action
	started func(*os.Process)
	main    int
	res     Result

	mu      sync.Mutex // ctx's end kills from another goroutine
	tasks   map[int]*task
	killed  map[int]bool // processes that got SIGKILL
	dying   bool         // all of them
	expired bool         // because ctx ended
}

func (tr *tracer) run(ctx context.Context, cmd *exec.Cmd) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	attr := syscall.SysProcAttr{}
	if cmd.SysProcAttr != nil {
		attr = *cmd.SysProcAttr
	}
	attr.Ptrace = true
	cmd.SysProcAttr = &attr
	if cmd.WaitDelay == 0 {
		cmd.WaitDelay = 10 * time.Second // someone outside the tree may hold a pipe
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	tr.main = cmd.Process.Pid
	tr.tasks[tr.main] = &task{pid: tr.main, ran: true, call: -1}
	ended := false
	defer func() {
		if !ended {
			tr.killAll()
			tr.loop()
		}
		// The process is reaped already; this waits for the copying of its output.
		_ = cmd.Wait()
	}()
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(tr.main, &ws, unix.WALL, nil); err != nil {
		return fmt.Errorf("wait for the first stop: %w", err)
	}
	if !ws.Stopped() {
		return fmt.Errorf("ended with status %#x before it was traced", ws)
	}
	const options = unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK |
		unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_EXITKILL
	if err := syscall.PtraceSetOptions(tr.main, options); err != nil {
		return fmt.Errorf("PTRACE_SETOPTIONS: %w", err)
	}
	over := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(over)
		tr.mu.Lock()
		tr.expired = !tr.dying && len(tr.tasks) > 0
		tr.mu.Unlock()
		tr.killAll()
	})
	defer func() {
		if !stop() {
			<-over
		}
	}()
	if tr.started != nil {
		tr.started(cmd.Process)
	}
	if err := resume(tr.main, 0); err != nil {
		return err
	}
	err := tr.loop()
	ended = true
	return err
}

// loop handles events until no tracee is left, and returns the first error.
func (tr *tracer) loop() error {
	var first error
	for {
		var ws syscall.WaitStatus
		tid, err := syscall.Wait4(-1, &ws, unix.WALL|unix.WNOTHREAD, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.ECHILD):
			return first
		case err == nil:
			err = tr.event(tid, ws)
		}
		if err != nil {
			if first == nil {
				first = err
			}
			tr.killAll()
		}
	}
}

func (tr *tracer) event(tid int, ws syscall.WaitStatus) error {
	if ws.Exited() || ws.Signaled() {
		tr.mu.Lock()
		delete(tr.tasks, tid)
		tr.mu.Unlock()
		if tid == tr.main {
			tr.res.State = ws
		}
		return nil
	}
	if !ws.Stopped() {
		return nil
	}
	t, dead := tr.adopt(tid)
	if dead {
		_ = syscall.Kill(t.pid, syscall.SIGKILL) // again, for one that came late; never resumed
		return nil
	}
	sig := 0
	switch s := ws.StopSignal(); {
	case s == syscall.SIGTRAP|0x80:
		goOn, err := tr.syscallStop(tid, t)
		if err != nil || !goOn {
			return err
		}
	case s == syscall.SIGTRAP && ws.TrapCause() > 0:
		if ws.TrapCause() == unix.PTRACE_EVENT_EXEC {
			// The thread that called execve has taken over the leader's id.
			former, err := syscall.PtraceGetEventMsg(tid)
			tr.mu.Lock()
			if err == nil && int(former) != tid {
				delete(tr.tasks, int(former))
			}
			tr.tasks[tid] = &task{pid: tid, ran: true, call: -1}
			tr.mu.Unlock()
		}
	case s == syscall.SIGSTOP && !t.ran:
	default:
		sig = int(s)
		if stopping(s) && noSiginfo(tid) {
			sig = 0 // a group stop, not a signal to be delivered
		}
	}
	t.ran = true
	return resume(tid, sig)
}

// adopt returns the task, making it if it is new, and whether it is to die.
func (tr *tracer) adopt(tid int) (*task, bool) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	t := tr.tasks[tid]
	if t == nil {
		t = &task{pid: threadGroup(tid), call: -1}
		tr.tasks[tid] = t
	}
	return t, tr.dying || tr.killed[t.pid]
}

// syscallStop handles the stop before or after a system call and reports
// whether the task goes on.
func (tr *tracer) syscallStop(tid int, t *task) (bool, error) {
	// struct ptrace_syscall_info, ptrace(2)
	var b [88]byte
	_, _, errno := syscall.Syscall6(syscall.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid), uintptr(len(b)), uintptr(unsafe.Pointer(&b[0])), 0, 0)
	if errno != 0 {
		return true, gone("PTRACE_GET_SYSCALL_INFO", errno)
	}
	le := binary.LittleEndian
	switch b[0] {
	case unix.PTRACE_SYSCALL_INFO_ENTRY:
		if arch := le.Uint32(b[4:]); arch != unix.AUDIT_ARCH_X86_64 {
			return false, fmt.Errorf("calls of architecture %#x cannot be traced", arch)
		}
		var args [6]uint64
		for i := range args {
			args[i] = le.Uint64(b[32+8*i:])
		}
		return tr.enter(tid, t, le.Uint64(b[24:]), args)
	case unix.PTRACE_SYSCALL_INFO_EXIT:
		return tr.leave(tid, t, int64(le.Uint64(b[24:])), b[32] != 0)
	}
	return true, nil
}

func (tr *tracer) enter(tid int, t *task, nr uint64, args [6]uint64) (bool, error) {
	if nr == unix.SYS_IO_URING_SETUP {
		return false, errors.New("the program uses io_uring, which cannot be traced")
	}
	s, ok := tr.specs[nr]
	if !ok {
		return true, nil
	}
	c, ok, err := tr.call(tid, s, args)
	if err != nil || !ok {
		return err == nil, err
	}
	c.N, c.Pid = len(tr.res.Calls)+1, t.pid
	t.call = len(tr.res.Calls)
	tr.res.Calls = append(tr.res.Calls, c)
	var a Action
	if tr.decide != nil {
		a = tr.decide(c)
	}
	tr.res.Acted = tr.res.Acted || a.Op != Continue
	switch a.Op {
	case Continue:
	case KillProcess:
		tr.res.Killed = true
		tr.kill(t.pid)
		return false, nil
	case KillTree:
		tr.res.Killed = true
		tr.killAll()
		return false, nil
	case KillTreeAfter:
		t.killAfter = true
	case Fail:
		if a.Errno == 0 {
			return false, fmt.Errorf("%v: Fail without an errno", c)
		}
		t.errno = a.Errno
		return true, tr.change(tid, t, func(r *syscall.PtraceRegs) { spoil(r, s) })
	case Short:
		if a.Max < 1 || s.size == 0 {
			return false, fmt.Errorf("%v: cannot be cut to %d bytes", c, a.Max)
		}
		if s.size == vector {
			return true, tr.cutVector(tid, t, nr, args, a.Max)
		}
		return true, tr.change(tid, t, func(r *syscall.PtraceRegs) {
			p := argument(r, s.size)
			*p = min(*p, uint64(a.Max))
		})
	default:
		return false, fmt.Errorf("%v: unknown action %d", c, a.Op)
	}
	return true, nil
}

func (tr *tracer) leave(tid int, t *task, ret int64, failed bool) (bool, error) {
	if t.call < 0 {
		return true, nil
	}
	c := &tr.res.Calls[t.call]
	t.call = -1
	c.Done = true
	if failed {
		c.Errno = syscall.Errno(-ret)
	}
	if t.errno != 0 {
		c.Errno = t.errno
	}
	if t.saved != nil {
		// The kernel keeps the arguments in place over a call, and compilers know it.
		var r syscall.PtraceRegs
		if err := syscall.PtraceGetRegs(tid, &r); err != nil {
			return true, gone("PTRACE_GETREGS", err)
		}
		for i := range 6 {
			*argument(&r, i) = *argument(t.saved, i)
		}
		r.Orig_rax = t.saved.Orig_rax
		if t.errno != 0 {
			r.Rax = uint64(-int64(t.errno))
		}
		if err := syscall.PtraceSetRegs(tid, &r); err != nil {
			return true, gone("PTRACE_SETREGS", err)
		}
	}
	t.saved, t.errno = nil, 0
	if t.killAfter {
		tr.res.Killed = true
		tr.killAll()
		return false, nil
	}
	return true, nil
}

// change alters the registers of a call before it happens.
func (tr *tracer) change(tid int, t *task, f func(*syscall.PtraceRegs)) error {
	var r syscall.PtraceRegs
	if err := syscall.PtraceGetRegs(tid, &r); err != nil {
		return gone("PTRACE_GETREGS", err)
	}
	saved := r
	t.saved = &saved
	f(&r)
	return gone("PTRACE_SETREGS", syscall.PtraceSetRegs(tid, &r))
}

// spoil makes a call fail without effect: its descriptors become -1, its paths
// point nowhere. The call number stays, since a seccomp filter looks at it after
// the tracer. close goes through: it frees the descriptor even when it fails.
func spoil(r *syscall.PtraceRegs, s spec) {
	if s.class == Close {
		return
	}
	for i := 0; i < len(s.where); i += 2 {
		arg := int(s.where[i+1] - '0')
		switch s.where[i] {
		case 'f', 'r':
			*argument(r, arg) = ^uint64(0)
		case 'p':
			*argument(r, arg-1) = ^uint64(0)
			*argument(r, arg) = 1
		case 'c':
			*argument(r, arg) = 1
		}
	}
}

// cutVector turns a writev or pwritev into a write of the beginning of its first buffer.
func (tr *tracer) cutVector(tid int, t *task, nr uint64, args [6]uint64, limit int) error {
	for i := range min(args[2], 1024) {
		b, err := peek(tid, args[1]+16*i, 16)
		if err != nil || len(b) < 16 {
			return err // a bad address: the call itself will say so
		}
		base, size := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
		if size == 0 {
			continue
		}
		return tr.change(tid, t, func(r *syscall.PtraceRegs) {
			r.Orig_rax = unix.SYS_WRITE
			if nr == unix.SYS_PWRITEV {
				r.Orig_rax = unix.SYS_PWRITE64 // the offset is in the same place
			}
			r.Rsi, r.Rdx = base, min(size, uint64(limit))
		})
	}
	return nil
}

func (tr *tracer) kill(pid int) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.killed[pid] = true
	_ = syscall.Kill(pid, syscall.SIGKILL) // fails only when it has ended
}

func (tr *tracer) killAll() {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.dying = true
	for _, t := range tr.tasks {
		_ = syscall.Kill(t.pid, syscall.SIGKILL)
	}
}

func argument(r *syscall.PtraceRegs, i int) *uint64 {
	return [...]*uint64{&r.Rdi, &r.Rsi, &r.Rdx, &r.R10, &r.R8, &r.R9}[i]
}

func resume(tid, sig int) error {
	return gone("PTRACE_SYSCALL", syscall.PtraceSyscall(tid, sig))
}

// gone drops the error that says that a tracee was killed meanwhile: its end
// will be reported.
func gone(what string, err error) error {
	if err == nil || errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

func stopping(s syscall.Signal) bool {
	return s == syscall.SIGSTOP || s == syscall.SIGTSTP || s == syscall.SIGTTIN || s == syscall.SIGTTOU
}

// noSiginfo reports whether a stop is a group stop, ptrace(2).
func noSiginfo(tid int) bool {
	var si unix.Siginfo
	_, _, errno := syscall.Syscall6(syscall.SYS_PTRACE, unix.PTRACE_GETSIGINFO, uintptr(tid), 0, uintptr(unsafe.Pointer(&si)), 0, 0)
	return errno == syscall.EINVAL
}

// threadGroup returns the process that a thread belongs to.
func threadGroup(tid int) int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	for line := range strings.Lines(string(b)) {
		var pid int
		if n, _ := fmt.Sscanf(line, "Tgid: %d", &pid); n == 1 {
			return pid
		}
	}
	return tid
}
