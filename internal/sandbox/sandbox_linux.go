package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// errCgo says that the program cannot change all of its threads.
var errCgo = errors.New("this program is linked with cgo, where not all threads can be reached; build it with CGO_ENABLED=0")

// allThreads makes a system call in every thread. The arguments have to mean
// the same in each.
func allThreads(call string, trap, a1, a2, a3, a4, a5 uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall6(trap, a1, a2, a3, a4, a5, 0)
	if errno == syscall.ENOTSUP {
		return errCgo
	}
	if errno != 0 {
		return os.NewSyscallError(call, errno)
	}
	return nil
}

func apply(p Policy) (Report, error) {
	var r Report
	if err := limits(p); err != nil {
		return r, err
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return r, os.NewSyscallError("prctl(PR_SET_DUMPABLE)", err)
	}
	if err := KeepCapabilities(); err != nil {
		return r, err
	}
	if err := allThreads("prctl(PR_SET_NO_NEW_PRIVS)", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return r, err
	}
	r.NoNewPrivs = true
	abi, missing, err := restrictFiles(p)
	if err != nil {
		return r, err
	}
	r.Landlock, r.Missing = abi, missing
	filter, err := filterFor(p)
	if err != nil {
		r.Missing = append(r.Missing, err.Error())
	} else if err := restrictCalls(filter); errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		r.Missing = append(r.Missing, "seccomp, which this kernel does not have")
	} else if err != nil {
		return r, os.NewSyscallError("seccomp", err)
	} else {
		r.Seccomp = true
	}
	return r, r.verify(p)
}

// taskDir has a folder for each thread of this process. Reading it stays
// allowed, so that what is in force can be looked at.
const taskDir = "/proc/self/task"

// verify looks at every thread and tries what no policy allows.
func (r *Report) verify(p Policy) error {
	statuses, err := threadStatus()
	if err != nil {
		r.Missing = append(r.Missing, "a look at the threads: "+err.Error())
	}
	r.Threads = len(statuses)
	r.Capabilities = len(statuses) > 0
	for _, s := range statuses {
		if s["NoNewPrivs"] != "" && s["NoNewPrivs"] != "1" {
			return fmt.Errorf("thread %s has no no_new_privs", s["Pid"])
		}
		if r.Seccomp && s["Seccomp"] != "2" {
			return fmt.Errorf("thread %s has no filter of system calls", s["Pid"])
		}
		for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
			if strings.Trim(s[set], "0") != "" {
				return fmt.Errorf("thread %s has the capabilities %s in %s", s["Pid"], s[set], set)
			}
		}
	}
	if r.Seccomp {
		if err := unix.Unshare(0); !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("a forbidden system call answers %v", err)
		}
	}
	if r.Landlock > 0 && !p.mayRead("/") {
		fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		if !errors.Is(err, unix.EACCES) {
			return fmt.Errorf("opening a forbidden directory answers %v", err)
		}
	}
	return nil
}

func (p *Policy) mayRead(path string) bool {
	for _, have := range p.Paths {
		if have.Path == path && have.Rights&List != 0 {
			return true
		}
	}
	return false
}

// threadStatus reads the status of every thread of this process.
func threadStatus() ([]map[string]string, error) {
	tasks, err := os.ReadDir(taskDir)
	if err != nil {
		return nil, err
	}
	var all []map[string]string
	for _, t := range tasks {
		if _, err := strconv.Atoi(t.Name()); err != nil {
			continue
		}
		data, err := os.ReadFile(taskDir + "/" + t.Name() + "/status")
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // the thread has ended
		}
		if err != nil {
			return nil, err
		}
		s := make(map[string]string)
		for line := range strings.Lines(string(data)) {
			if key, value, ok := strings.Cut(line, ":"); ok {
				s[key] = strings.TrimSpace(value)
			}
		}
		all = append(all, s)
	}
	if len(all) == 0 {
		return nil, errors.New("there are none")
	}
	return all, nil
}
