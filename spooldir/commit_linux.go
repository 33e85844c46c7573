package spooldir

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// chmodName changes the mode of the file f by its name path, and of no other file
// that the owner of the directory may have put there meanwhile, or has led there
// by a link: the caller may be root.
func chmodName(path string, f *os.File, mode uint32) error {
	err := unix.Fchmodat(unix.AT_FDCWD, path, mode, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM), errors.Is(err, unix.EINVAL):
		// A link; or Linux before 6.6, or a filter of calls that is as old.
		return chmodSame(path, f, mode)
	}
	return err
}

// chmodSame is chmodName for kernels that have no call for it. A descriptor of a
// name keeps that name, so that the watchers of its directory are told.
func chmodSame(path string, f *os.File, mode uint32) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var have, want unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &have), unix.Fstat(int(f.Fd()), &want)); err != nil {
		return err
	}
	if have.Dev != want.Dev || have.Ino != want.Ino {
		return fmt.Errorf("another file stands there: %w", unix.ESTALE)
	}
	err = unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), mode)
	if errors.Is(err, unix.ENOENT) { // there is no /proc
		err = unix.Chmod(path, mode)
	}
	return err
}
