//go:build !linux

package localwriter

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// inUse holds the mailboxes that a goroutine of this process has locked. It has
// to be known to all of them: a POSIX lock belongs to the process, and closing
// any descriptor of the file gives it up.
var inUse struct {
	sync.Mutex
	paths map[string]bool
}

// lockProcess takes path for one goroutine of this process, before it is
// opened.
func lockProcess(path string) (unlock func(), ok bool) {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	inUse.Lock()
	defer inUse.Unlock()
	if inUse.paths[path] {
		return nil, false
	}
	if inUse.paths == nil {
		inUse.paths = make(map[string]bool)
	}
	inUse.paths[path] = true
	return func() {
		inUse.Lock()
		defer inUse.Unlock()
		delete(inUse.paths, path)
	}, true
}

// lockFile takes an fcntl(2) write lock on the whole of f, and reports false if
// another process has one.
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
	err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lock)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return false, nil
	}
	return err == nil, err
}
