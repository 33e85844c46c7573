package spooldir

import (
	"errors"

	"golang.org/x/sys/unix"
)

// renameExclusive renames src to dst and fails with EEXIST when there is a
// dst. Plain rename(2) onto another link of the same file says yes and does
// nothing.
func renameExclusive(src, dst string) error {
	err := ignoringEINTR(func() error {
		return unix.Renameat2(unix.AT_FDCWD, src, unix.AT_FDCWD, dst, unix.RENAME_NOREPLACE)
	})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return linkThenUnlink(src, dst) // a file system without the flag
	}
	return err
}
