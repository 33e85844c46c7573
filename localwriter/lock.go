package localwriter

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// kernelLock is the name of the lock that lockKernel takes.
func kernelLock(flock bool) string {
	if flock {
		return "flock"
	}
	return "fcntl"
}

// lockKernel takes the kernel lock of a mailbox, and reports false if somebody
// else has it. It is one or the other: on the BSDs, and on Linux over NFS, a
// process that holds the one is kept from the other.
func lockKernel(f *os.File, flock bool) (bool, error) {
	if !flock {
		return lockFile(f)
	}
	err := retryEINTR(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// unlockKernel gives the lock back. Closing does not, if another process shares
// the open file.
func unlockKernel(f *os.File, flock bool) error {
	if !flock {
		return unlockFile(f)
	}
	return unix.Flock(int(f.Fd()), unix.LOCK_UN)
}
