//go:build !linux

package parent

import (
	"os"
	"syscall"
)

func executable() (string, error) { return os.Executable() }

// followThread has no counterpart: a child notices the end of its life pipe, and
// an agent that its user has stopped when that lets it go on.
func followThread(*syscall.SysProcAttr, syscall.Signal) {}

// awaitExit cannot wait without reaping.
func awaitExit(int) (ok bool) { return false }

// endSession does nothing: which processes belong to a session cannot be told
// without the tools of the system.
func endSession(int, Account) {}
