package localwriter

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// lockProcess keeps the goroutines of this process apart where kernel locks
// belong to the process. Those of Linux that are used here belong to the open
// file, so there is nothing to do.
func lockProcess(string) (unlock func(), ok bool) { return func() {}, true }

// lockFile takes an fcntl(2) write lock on the whole of f, and reports false if
// somebody else has one. It is an open file description lock: it excludes other
// goroutines, and the ordinary fcntl locks of other programs.
func lockFile(f *os.File) (bool, error) {
	return setLock(f, unix.F_WRLCK)
}

// unlockFile gives the lock back.
func unlockFile(f *os.File) error {
	_, err := setLock(f, unix.F_UNLCK)
	return err
}

func setLock(f *os.File, kind int16) (bool, error) {
	lock := unix.Flock_t{Type: kind, Whence: io.SeekStart}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return false, nil
	}
	return err == nil, err
}
