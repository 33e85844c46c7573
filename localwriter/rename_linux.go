package localwriter

import (
	"errors"

	"golang.org/x/sys/unix"
)

// renameExclusive renames a file and fails with EEXIST if the new name is
// taken.
func renameExclusive(fromDir int, from string, toDir int, to string) error {
	err := retryEINTR(func() error { return unix.Renameat2(fromDir, from, toDir, to, unix.RENAME_NOREPLACE) })
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return linkThenUnlink(fromDir, from, toDir, to) // a file system without it
	}
	return err
}
