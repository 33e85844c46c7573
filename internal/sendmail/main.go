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
// the library (TZ names a file) nor dma-runner follows it; with GODEBUG, which
// the runtime has followed already, it starts anew. Closed standard
// descriptors have been opened on /dev/null by the Go runtime, and other ones
// are not handed on. A file size limit makes a write fail, and so the
// submission. A signal that the caller ignores stays ignored.
func Main() int {
	env := make(map[string]string)
	for _, name := range [...]string{"EMAIL", "LOGNAME", "NAME", "USER"} {
		env[name] = os.Getenv(name)
	}
	debugged := os.Getenv("GODEBUG") != ""
	os.Clearenv()
	os.Setenv("PATH", safePath[len("PATH="):])
	syscall.Umask(0o077)
	if debugged && os.Getgid() != os.Getegid() {
		if err := restart(env); err != nil {
			complain(os.Stderr, err.Error())
			return exitTempFail
		}
	}

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

// restart starts the program anew without GODEBUG, by which a caller turns knobs
// of the Go runtime before main begins; some break it. It returns only where it
// cannot do that, and then the group is given up.
func restart(variables map[string]string) error {
	env := []string{safePath}
	for name, value := range variables {
		env = append(env, name+"="+value)
	}
	// By this name it is the file that runs, whatever stands at its path now.
	_ = syscall.Exec("/proc/self/exe", os.Args, env)
	return Machine{}.DropGroup()
}
