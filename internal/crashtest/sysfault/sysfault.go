// Package sysfault breaks a program at a chosen system call. It runs a command
// under ptrace(2) and lets the test decide, at every call of every thread and
// descendant that concerns a file below one of the given roots, whether it goes
// on, is killed just before or after, fails with an errno, or writes short.
// The count is global over threads and processes, and what the Go runtime does
// elsewhere does not count.
//
// Tracing works on linux/amd64, as an ordinary user too; elsewhere Supported
// says so. The kernel honours set-user-ID and set-group-ID bits only of commands
// that were root when tracing began: start such a command for an ordinary user
// through setpriv(1), not with SysProcAttr.Credential.
//
// Not seen: writes through a shared mapping, and calls of a process with another
// root directory or mount namespace than the test's. io_uring and 32-bit
// programs end the run with an error.
package sysfault

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"testing"
)

// Class groups system calls. It is a bit set.
type Class uint8

const (
	Mutate Class = 1 << iota // names, content, mode, owner or times change; open that creates or truncates
	Sync                     // fsync, fdatasync, sync_file_range, syncfs
	Look                     // open of what is there, read, getdents64, a copy out of the roots
	Lock                     // flock, fcntl locks
	Close

	Durable = Mutate | Sync
	All     = Durable | Look | Lock | Close
)

// Call is one system call that concerns a file below a root.
type Call struct {
	N        int // 1, 2, ... over all threads and processes of one run
	Pid, Tid int // process (thread group) and thread
	Class    Class
	Name     string // as in the manual, section 2
	Path     string // the file, or the old name of a link or rename
	Path2    string // the new name of a link or rename, else empty
	Args     [6]uint64

	// Known only in Result.Calls. A call whose process was killed before the
	// call returned is not Done, and may have happened or not.
	Done  bool
	Errno syscall.Errno // of a call that failed, on its own or by Fail
}

func (c Call) String() string {
	if c.Path2 != "" {
		return fmt.Sprintf("#%d %s(%s, %s)", c.N, c.Name, c.Path, c.Path2)
	}
	return fmt.Sprintf("#%d %s(%s)", c.N, c.Name, c.Path)
}

// Op is what happens at a call.
type Op uint8

const (
	Continue      Op = iota
	KillProcess      // SIGKILL to the calling process; the call does not happen
	KillTree         // SIGKILL to every process of the run; the call does not happen
	KillTreeAfter    // SIGKILL to every process of the run when the call has returned
	Fail             // the call does not happen (close does) and returns Action.Errno
	Short            // a write, copy or splice handles at most Action.Max bytes
)

// Action is the answer to a Call. Its zero value lets the call go on.
type Action struct {
	Op    Op
	Errno syscall.Errno // for Fail
	Max   int           // for Short, at least 1
}

// Scope says which calls are shown to the test.
type Scope struct {
	Roots   []string // directories or files that exist
	Classes Class    // 0 means Durable

	// Started, if set, is called when the command is traced and has not run yet,
	// from the goroutine that drives it. The process may be used for signals.
	Started func(*os.Process)
}

// Result is what happened in one run.
type Result struct {
	Calls  []Call             // in the order in which they began
	State  syscall.WaitStatus // of the command itself
	Acted  bool               // an action other than Continue was carried out
	Killed bool               // an action killed a process or the tree
}

// Need skips t where tracing cannot work. On linux/amd64 with CI=true it fails
// t instead: these tests are not to be lost unnoticed.
func Need(t testing.TB) {
	t.Helper()
	err := Supported()
	switch {
	case err == nil:
	case os.Getenv("CI") == "true" && runtime.GOOS == "linux" && runtime.GOARCH == "amd64":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
}
