package wire

import "golang.org/x/sys/unix"

// receiveFlags make the kernel mark received files itself.
const receiveFlags = unix.MSG_CMSG_CLOEXEC

func forkLock() (unlock func()) { return func() {} }

func pair() ([2]int, error) {
	return unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
}
