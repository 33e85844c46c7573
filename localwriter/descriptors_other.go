//go:build !linux

package localwriter

import "golang.org/x/sys/unix"

// closeOnExec keeps descriptors above 2 from commands, those too that this
// process was started with, which have low numbers. What Go opens is marked
// anyway.
func closeOnExec() {
	for fd := 3; fd < 256; fd++ {
		unix.CloseOnExec(fd)
	}
}
