package parent

import (
	"errors"
	"math"
	"os"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"dma/internal/fsid"
)

// closeOnExec keeps all descriptors but the first three from programs, as far as
// the kernel has a call for that.
func closeOnExec() (ok bool) {
	return unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil
}

// workersLog returns the standard error for workers: ours, but of the terminal that
// it may be only the end to write to, else they could read what is typed for root.
// Where that cannot be had it is nil, and they log to syslog.
func workersLog() *os.File {
	var st unix.Stat_t
	flags, err := unix.FcntlInt(2, unix.F_GETFL, 0)
	if err != nil || unix.Fstat(2, &st) != nil {
		return nil
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || flags&unix.O_ACCMODE == unix.O_WRONLY {
		return os.Stderr
	}
	f, err := os.OpenFile("/proc/self/fd/2", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil
	}
	return f
}

// executable returns our own program, also after its file was replaced.
func executable() (string, error) { return "/proc/self/exe", nil }

func followThread(attr *syscall.SysProcAttr, signal syscall.Signal) { attr.Pdeathsig = signal }

// awaitExit waits until pid has ended, and leaves it to be reaped.
func awaitExit(pid int) (ok bool) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return err == nil
		}
	}
}

// endSession kills the processes of the session of sid, which has ended and is
// not reaped: commands of users have process groups of their own, which the
// agent can no longer kill. Who has left the session is not found.
func endSession(sid int, a Account) {
	// Who forks meanwhile is found in the next round; after the last it wins.
	for range 16 {
		found := false
		for _, pid := range visible(sid, a) {
			if pid != sid && inSession(pid, sid) {
				found = killIn(pid, sid) || found
			}
		}
		if !found {
			return
		}
	}
}

// visible returns the numbers of the processes among which those of the session of
// sid are, whose account is a: where /proc is mounted so that it hides what others
// run, from us too (hidepid), they are those that a sees.
func visible(sid int, a Account) []int {
	pids := processes()
	if !slices.Contains(pids, sid) {
		_ = fsid.As(a.UID, a.GID, func() error {
			pids = processes()
			return nil
		})
	}
	return pids
}

// processes returns the numbers of all processes that we may see.
func processes() []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func inSession(pid, sid int) bool {
	got, err := unix.Getsid(pid)
	return err == nil && got == sid
}

// killIn kills pid if it still is in the session, and reports whether it did.
func killIn(pid, sid int) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	// The number may have become another's before the descriptor was opened,
	// and not since.
	return inSession(pid, sid) && unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil
}
