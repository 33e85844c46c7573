package sendmail

import (
	"os"
	"os/signal"
	"syscall"
)

// safePath is the PATH of this process and of what it starts.
const safePath = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"

// Main is the command: it makes the process safe to go on in, runs the command
// and returns the exit status. It has to be the first thing that main does.
//
// What the caller has set beforehand is dealt with like this. The environment
// is emptied but for the few variables that Process.Env names, so that neither
// the library (TZ names a file) nor dma-runner follows it. Closed standard
// descriptors have been opened on /dev/null by the Go runtime, and other ones
// are not handed on. A file size limit makes a write fail, and so the
// submission. A signal that the caller ignores stays ignored.
func Main() int {
	env := make(map[string]string)
	for _, name := range [...]string{"EMAIL", "LOGNAME", "NAME", "USER"} {
		env[name] = os.Getenv(name)
	}
	os.Clearenv()
	os.Setenv("PATH", safePath[len("PATH="):])
	syscall.Umask(0o077)

	interrupt := make(chan os.Signal, 1)
	for _, s := range [...]os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM} {
		if !signal.Ignored(s) {
			signal.Notify(interrupt, s)
		}
	}
	// A closed standard error is no reason to die after the message is safe:
	// with a handler the write fails instead.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	p := &Process{
		Args:      os.Args,
		Env:       env,
		Stdin:     os.Stdin,
		Stdout:    os.Stdout,
		Stderr:    os.Stderr,
		UID:       os.Getuid(),
		Interrupt: interrupt,
		System:    Machine{},
	}
	return p.Run()
}
