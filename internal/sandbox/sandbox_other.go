//go:build !linux

package sandbox

import (
	"runtime"
)

func apply(p Policy) (Report, error) {
	r := Report{Missing: []string{"no_new_privs, Landlock, seccomp and capabilities, which " + runtime.GOOS + " does not have"}}
	return r, limits(p)
}

// KeepCapabilities takes all capabilities but those named from the process.
// Here there are none.
func KeepCapabilities(...Capability) error { return nil }
