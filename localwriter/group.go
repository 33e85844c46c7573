package localwriter

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// MailboxGroup returns the group that whoever delivers to mailboxes in the
// directory dir has to have, as group mail in Debian's /var/mail: that of a
// directory which the group may write to, but not everybody. It reports false
// where there is none, where it would be gid 0, and where anybody but root has a
// hand in the directory or the way to it.
func MailboxGroup(dir string) (gid int, ok bool) {
	dir = filepath.Clean(dir)
	if !filepath.IsAbs(dir) {
		return 0, false
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil || !rootsWay(dir) || !rootsWay(real) {
		return 0, false
	}
	info, err := os.Lstat(real)
	if err != nil || !info.IsDir() || info.Mode().Perm()&0o022 != 0o020 {
		return 0, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Gid == 0 {
		return 0, false
	}
	return int(st.Gid), true
}

// rootsWay reports whether only root can change where path leads to: all
// directories and links on it are root's, and others may at most add names to
// directories before the last one that have the sticky bit.
func rootsWay(path string) bool {
	for at := path; ; at = filepath.Dir(at) {
		info, err := os.Lstat(at)
		if err != nil {
			return false
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || st.Uid != 0 {
			return false
		}
		open := info.Mode().Perm()&0o022 != 0 && info.Mode()&(fs.ModeSticky|fs.ModeSymlink) == 0
		if at != path && open {
			return false
		}
		if at == "/" {
			return true
		}
	}
}
