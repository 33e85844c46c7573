//go:build !linux

package door

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// socket makes a stream socket, accept takes a connection; both are closed on
// exec and do not block.
func socket() (int, error) {
	return prepared(func() (int, error) { return unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0) })
}

func accept(fd int) (int, error) {
	return prepared(func() (int, error) {
		conn, _, err := unix.Accept(fd)
		return conn, err
	})
}

func prepared(open func() (int, error)) (int, error) {
	syscall.ForkLock.RLock()
	fd, err := open()
	if err == nil {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return -1, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
