package wire

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// receiveFlags make the kernel mark received files itself.
const receiveFlags = unix.MSG_CMSG_CLOEXEC

func forkLock() (unlock func()) { return func() {} }

func pair() ([2]int, error) {
	return unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
}

// RefuseFiles has the kernel refuse, where it can, files that are sent to a unix
// socket: the sender gets EPERM. The connections that a listening socket takes are
// as it is. What is asked of the kernel besides lets readPlain see everything that
// lies in the socket: no octet out of band, and no other ancillary data.
func RefuseFiles(fd int) {
	for _, option := range []int{unix.SO_PASSRIGHTS, unix.SO_PASSCRED, unix.SO_PASSSEC, unix.SO_PASSPIDFD} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 0) // an older kernel knows less
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
}

func acceptFiles(fd int) {
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSRIGHTS, 1)
}

// readPlain reads once, up to files that lie in the socket. It leaves those there:
// even a reader that wants none is the one who closes them.
func readPlain(fd int, p []byte) (int, error) {
	n, _, flags, _, err := unix.Recvmsg(fd, p, nil, unix.MSG_PEEK)
	switch {
	case err != nil:
		return 0, err
	case flags&unix.MSG_CTRUNC != 0:
		return 0, ErrFiles
	case n == 0:
		return 0, nil
	}
	return syscall.Read(fd, p[:n]) // which tells the race detector, as os.File does
}

// filesIn reads what has arrived, and reports whether it met files, which who
// closes the socket would close.
func filesIn(fd int) bool {
	buf := make([]byte, 8<<10)
	for {
		n, err := readPlain(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, ErrFiles):
			return true
		case err != nil || n == 0:
			return false
		}
	}
}

// keep keeps a socket open for as long as the process lives.
func keep(fd int) error {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return fmt.Errorf("keep the socket: %w", err)
	}
	return fmt.Errorf("%w: the socket is kept", ErrFiles)
}
