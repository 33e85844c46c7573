//go:build dragonfly || linux || openbsd

package localwriter

import (
	"io/fs"
	"syscall"
	"time"
)

// accessTime returns the time of access of a file, or else of its modification.
func accessTime(info fs.FileInfo) time.Time {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return time.Unix(st.Atim.Unix())
	}
	return info.ModTime()
}
