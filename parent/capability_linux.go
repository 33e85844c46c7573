package parent

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// restrict gives up, on all threads, every capability that the parent does not
// need. The uid stays 0. What is left to children is what set-uid programs that
// users' commands start can have, and the same whatever MAILBOX is: procmail makes
// a mailbox that lacks, and gives it to its user.
func restrict(chown bool) error {
	bound := uint64(1)<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_KILL | 1<<unix.CAP_CHOWN
	keep := bound
	if !chown {
		keep &^= 1 << unix.CAP_CHOWN
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&header, &have[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	permitted := uint64(have[0].Permitted) | uint64(have[1].Permitted)<<32
	need := keep &^ (1 << unix.CAP_CHOWN) // without it mailboxes wait to be made
	if permitted&need != need {
		return errors.New("capabilities CAP_SETUID, CAP_SETGID and CAP_KILL are needed; a container may have dropped them")
	}
	keep &= permitted
	// What this process may not take from the bounding set its children do not
	// have either: a change of the uid takes the rest.
	if permitted&(1<<unix.CAP_SETPCAP) != 0 {
		for c := uintptr(0); c < 64; c++ {
			if bound&(1<<c) != 0 {
				continue
			}
			_, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0)
			if errno == unix.EINVAL { // beyond the last one that this kernel knows
				break
			}
			if errno != 0 {
				return fmt.Errorf("capability %d: drop from the bounding set: %w", c, errno)
			}
		}
	}
	var set [2]unix.CapUserData
	for i := range set {
		half := uint32(keep >> (32 * i))
		set[i] = unix.CapUserData{Effective: half, Permitted: half}
	}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&set[0])), 0)
	if errno != 0 {
		return fmt.Errorf("capabilities: %w", errno)
	}
	return nil
}
