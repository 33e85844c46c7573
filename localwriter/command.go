package localwriter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Command is a program that takes one message on its standard input.
type Command struct {
	// Line is the command line, as it stands in a .forward file without '|' and
	// quotes. Without a character that means something to a shell it is split at
	// blanks and executed; otherwise, or if there is no such program, /bin/sh -c
	// gets it.
	Line string

	// Dir is the working directory.
	Dir string

	// Env is the whole environment; see Environment. Programs are searched in
	// its PATH.
	Env []string

	// Limit is how long the command may take; 10 minutes if 0.
	Limit time.Duration

	// Credential is whom to run it as; nil: as this process.
	Credential *syscall.Credential

	// OutputWait is how long to wait for descendants that keep the output open
	// after the command has ended; 5 seconds if 0. They are then left alone.
	OutputWait time.Duration
}

// maxOutput is how much of a command's output is kept. The rest is read and
// dropped.
const maxOutput = 4 << 10

// killWait is how long to wait for a killed command to vanish, which one that
// hangs in the kernel does not.
const killWait = 10 * time.Second

var (
	errTimeLimit  = errors.New("time limit exceeded")
	errMessage    = errors.New("reading the message")
	errUnkillable = errors.New("command does not end though it was killed")
)

// Run gives the message to the command and waits for it. The command has only
// descriptors 0 to 2, a process group of its own, umask 077 and all signals at
// their default. When the time limit is over or ctx ends, the whole group is
// killed; a descendant that left the group is not.
//
// Exit status 0 is success, whether or not all of the message was read. 75, 71,
// a signal, a time-out, 73, 126, 127 and statuses without a meaning are
// temporary failures; the other ones of sysexits.h are permanent. If the command
// fails and its output begins with an enhanced status code of class 4 or 5 and a
// blank, that decides instead, as in Postfix (local(8)).
func (c Command) Run(ctx context.Context, message io.Reader) error {
	if c.Limit <= 0 {
		c.Limit = 10 * time.Minute
	}
	if c.OutputWait <= 0 {
		c.OutputWait = 5 * time.Second
	}
	if info, err := os.Stat(c.Dir); err != nil {
		return failure("change directory for", c.Line, err)
	} else if !info.IsDir() {
		return failure("change directory for", c.Line, &os.PathError{Op: "chdir", Path: c.Dir, Err: syscall.ENOTDIR})
	}
	if err := ctx.Err(); err != nil {
		return failure("run", c.Line, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ctx, stop := context.WithTimeoutCause(ctx, c.Limit, fmt.Errorf("%w (%v)", errTimeLimit, c.Limit))
	defer stop()

	args, direct := c.args()
	out := &firstOutput{}
	cmd, err := c.start(ctx, cancel, args, message, out)
	if direct && errors.Is(err, syscall.ENOEXEC) {
		cmd, err = c.start(ctx, cancel, c.shell(), message, out)
	}
	if err != nil {
		return failure("run", c.Line, err)
	}
	err = wait(ctx, cmd)
	cause := context.Cause(ctx)
	switch {
	case errors.Is(err, errUnkillable), cause == nil:
		return c.result(err, out.line())
	case errors.Is(cause, errMessage): // whatever it made of half a message
		return failure("run", c.Line, cause)
	case cmd.ProcessState != nil && cmd.ProcessState.Success():
		return nil // and what it left behind kept the output open too long
	}
	return &Error{Op: "run", Path: c.Line, Status: "4.3.0", Output: out.line(), Err: cause}
}

// start starts the program.
func (c Command) start(ctx context.Context, cancel context.CancelCauseFunc, args []string, in io.Reader, out io.Writer) (*exec.Cmd, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = c.Dir
	cmd.Env = c.Env
	if cmd.Env == nil {
		cmd.Env = []string{} // nil would be our own
	}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = c.OutputWait
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: c.Credential}
	cmd.Cancel = func() error {
		// SIGKILL ends stopped processes too.
		if unix.Kill(-cmd.Process.Pid, unix.SIGKILL) != nil {
			return os.ErrProcessDone
		}
		return nil
	}
	cmd.Stdin = &source{in, func(err error) {
		cancel(err)
		cmd.Cancel()
	}}

	starting.Lock()
	defer starting.Unlock()
	closeOnExec()
	defer catchIgnored()()
	defer unix.Umask(unix.Umask(0o077))
	return cmd, cmd.Start()
}

// starting serialises what is set for the whole process while a command is
// started.
var starting sync.Mutex

// catchIgnored sees to it that no signal is ignored until the returned function
// is called: exec(2) resets those that are caught, not those that are ignored.
func catchIgnored() (undo func()) {
	var ignored []os.Signal
	for _, s := range []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGPIPE,
		unix.SIGALRM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGCHLD, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU} {
		if signal.Ignored(s) {
			ignored = append(ignored, s)
		}
	}
	if len(ignored) == 0 {
		return func() {}
	}
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, ignored...)
	return func() {
		signal.Stop(caught)
		signal.Ignore(ignored...)
	}
}

// wait waits for the command, but not for ever for one that cannot be killed.
func wait(ctx context.Context, cmd *exec.Cmd) error {
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	t := time.NewTimer(cmd.WaitDelay + killWait)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-t.C:
		return errUnkillable
	}
}

// source hands out the message. If that cannot be read, the command is killed
// before it sees an end of file and takes the half for the whole.
type source struct {
	r    io.Reader
	kill func(cause error)
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.kill(fmt.Errorf("%w: %w", errMessage, err))
	}
	return n, err
}

// firstOutput keeps the first maxOutput bytes written to it.
type firstOutput struct {
	mu sync.Mutex
	b  []byte
}

func (f *firstOutput) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.b = append(f.b, p[:min(len(p), maxOutput-len(f.b))]...)
	return len(p), nil
}
