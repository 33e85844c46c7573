package sandbox

import (
	"errors"
	"os"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// KeepCapabilities takes all capabilities but those named from the process, on
// all threads: the permitted, effective and inheritable ones, the ambient ones
// without exception, and from the bounding set where the process may change
// that (CAP_SETPCAP). It never adds one. The programs that it starts have no
// more in their bounding sets.
func KeepCapabilities(keep ...Capability) error {
	for c := Capability(0); c <= lastCapability; c++ {
		have, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		if err != nil {
			break // the kernel knows no more of them
		}
		if have == 0 || slices.Contains(keep, c) {
			continue
		}
		err = allThreads("prctl(PR_CAPBSET_DROP)", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		if errors.Is(err, unix.EPERM) {
			break
		}
		if err != nil {
			return err
		}
	}
	err := allThreads("prctl(PR_CAP_AMBIENT)", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	if err != nil && !errors.Is(err, unix.EINVAL) { // before Linux 4.3 there are none
		return err
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have, want [2]unix.CapUserData
	if err := unix.Capget(&header, &have[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	for _, c := range keep {
		bit := uint32(1) << (c % 32)
		want[c/32].Effective |= have[c/32].Effective & bit
		want[c/32].Permitted |= have[c/32].Permitted & bit
	}
	if have == want {
		return nil
	}
	// The kernel reads through these in each thread: they must not move.
	var pin runtime.Pinner
	pin.Pin(&header)
	pin.Pin(&want)
	defer pin.Unpin()
	return allThreads("capset", unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&want)), 0, 0, 0)
}

// lastCapability bounds the search: a set has 64.
const lastCapability = 63
