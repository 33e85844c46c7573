package agent

import (
	"os"

	"golang.org/x/sys/unix"
)

// automounts reports whether the names in a directory are made by an
// automounter, of which one that is missing says nothing.
func automounts(dir *os.File) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(int(dir.Fd()), &st) != nil || st.Type == unix.AUTOFS_SUPER_MAGIC
}
