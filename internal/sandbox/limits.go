package sandbox

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Capability is the number of a capability of Linux, see capabilities(7).
type Capability uint

// The capabilities that a parent of processes with other uids may need.
const (
	CapChown       Capability = 0
	CapDACOverride Capability = 1
	CapKill        Capability = 5
	CapSetGID      Capability = 6
	CapSetUID      Capability = 7
)

// lower sets a resource limit to at most max.
func lower(name string, resource int, max uint64) error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(resource, &l); err != nil {
		return fmt.Errorf("limit of %s: %w", name, err)
	}
	setLimit(&l, max)
	if err := syscall.Setrlimit(resource, &l); err != nil {
		return fmt.Errorf("limit of %s: %w", name, err)
	}
	return nil
}

func limits(p Policy) error {
	if err := lower("cores", syscall.RLIMIT_CORE, 0); err != nil {
		return err
	}
	if p.Processes > 0 {
		if err := lower("processes", unix.RLIMIT_NPROC, uint64(p.Processes)); err != nil {
			return err
		}
	}
	if p.Files > 0 {
		return lower("files", syscall.RLIMIT_NOFILE, uint64(p.Files))
	}
	return nil
}
