//go:build !linux

package parent

import (
	"os"
	"syscall"
)

// closeOnExec leaves it to a loop.
func closeOnExec() (ok bool) { return false }

// workersLog returns the standard error for workers, which is ours: it cannot be
// opened once more in another way.
func workersLog() *os.File { return os.Stderr }

func executable() (string, error) { return os.Executable() }

// followThread has no counterpart: a child notices the end of its life pipe, and
// an agent that its user has stopped when that lets it go on.
func followThread(*syscall.SysProcAttr, syscall.Signal) {}

// awaitExit cannot wait without reaping.
func awaitExit(int) (ok bool) { return false }

// endSession does nothing: which processes belong to a session cannot be told
// without the tools of the system.
func endSession(int, Account) {}
