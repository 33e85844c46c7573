//go:build !linux

package sendmail

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// executable returns the path of this program's file. OpenBSD's kernel does
// not tell, and the name by which the caller called is not to be trusted: there
// it is where packages put it.
func executable() (string, error) {
	if runtime.GOOS == "openbsd" {
		return "/usr/local/sbin/dma", nil
	}
	return os.Executable()
}

// callersLimits are the limits that bound what a mailbox or a command may become.
func callersLimits() []int { return []int{unix.RLIMIT_CPU, unix.RLIMIT_FSIZE, unix.RLIMIT_DATA} }

func closeOnExec() { closeOnExecOneByOne() }

func openUnnamed(dir string) (*os.File, error) { return openUnlinked(dir) }
