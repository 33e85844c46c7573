//go:build !linux

package wire

import (
	"syscall"

	"golang.org/x/sys/unix"
)

const receiveFlags = 0

// forkLock keeps other goroutines from starting a process between the arrival of
// a file and its mark.
func forkLock() (unlock func()) {
	syscall.ForkLock.RLock()
	return syscall.ForkLock.RUnlock
}

func pair() ([2]int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	return fds, err
}

// RefuseFiles has the kernel refuse, where it can, files that are sent to a unix
// socket.
func RefuseFiles(int) {}

func acceptFiles(int) {}

// readPlain reads once. Files get lost in the kernel.
func readPlain(fd int, p []byte) (int, error) {
	n, _, flags, _, err := unix.Recvmsg(fd, p, nil, 0)
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = ErrFiles
	}
	return n, err
}

func filesIn(int) bool { return false }

func keep(int) error { return nil }
