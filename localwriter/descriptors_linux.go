package localwriter

import (
	"math"

	"golang.org/x/sys/unix"
)

// closeOnExec keeps all descriptors above 2 from commands, those too that this
// process was started with. It does not matter on kernels that lack the call
// (before 5.11): what Go opens is marked anyway.
func closeOnExec() {
	unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
}
