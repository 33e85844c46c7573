package parent

import (
	"golang.org/x/sys/unix"

	"dma/internal/wire"
)

// olderKernel has files sent to a connection as a kernel does that knows of no
// way to refuse them.
func olderKernel(c *wire.Conn) {
	_ = c.Raw(func(fd int) { _ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSRIGHTS, 1) })
}
