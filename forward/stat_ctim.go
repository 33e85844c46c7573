//go:build dragonfly || linux || openbsd

package forward

import (
	"io/fs"
	"syscall"
	"time"
)

// changeTime returns the time of the last change of a file or of what is known
// about it, or else that of its content.
func changeTime(info fs.FileInfo) time.Time {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return time.Unix(st.Ctim.Unix())
	}
	return info.ModTime()
}
