package notify

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// monotonic is the time of Reloading, for the manager to tell an old Ready from
// a new one.
func monotonic() string {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) != nil {
		return ""
	}
	return fmt.Sprintf("\nMONOTONIC_USEC=%d", t.Nano()/1000)
}
