package runner

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// untraceable keeps processes of the same user from looking into this one.
func untraceable() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl: %w", err)
	}
	return nil
}

// noCapabilities returns an error if the process has a capability.
func noCapabilities() error {
	var data [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	for _, d := range data {
		if d.Effective != 0 || d.Permitted != 0 {
			return errors.New("the process has capabilities")
		}
	}
	return nil
}
