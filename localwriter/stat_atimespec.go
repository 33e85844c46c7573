//go:build darwin || freebsd || netbsd

package localwriter

import (
	"io/fs"
	"syscall"
	"time"
)

// accessTime returns the time of access of a file, or else of its modification.
func accessTime(info fs.FileInfo) time.Time {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return time.Unix(st.Atimespec.Unix())
	}
	return info.ModTime()
}
