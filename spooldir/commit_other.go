//go:build !linux

package spooldir

import (
	"os"

	"golang.org/x/sys/unix"
)

// chmodName changes the mode of a file by its name, and follows no link that the
// owner of the directory may have put there meanwhile: the caller may be root.
func chmodName(path string, _ *os.File, mode uint32) error {
	return unix.Fchmodat(unix.AT_FDCWD, path, mode, unix.AT_SYMLINK_NOFOLLOW)
}
