package sendmail

import (
	"errors"
	"math"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

func executable() (string, error) { return os.Executable() }

// callersLimits are the limits that bound what a mailbox or a command may become.
func callersLimits() []int {
	return []int{unix.RLIMIT_CPU, unix.RLIMIT_FSIZE, unix.RLIMIT_DATA, unix.RLIMIT_AS}
}

// closeOnExec keeps every descriptor from the next program but the first three.
func closeOnExec() {
	if unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) != nil {
		closeOnExecOneByOne()
	}
}

// openUnnamed makes a file without a name in dir.
func openUnnamed(dir string) (*os.File, error) {
	for {
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), filepath.Join(dir, "scratch")), nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EISDIR), errors.Is(err, unix.EINVAL):
			return openUnlinked(dir) // the file system can't do it
		default:
			return nil, &os.PathError{Op: "create", Path: dir, Err: err}
		}
	}
}
