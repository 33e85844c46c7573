//go:build !linux

package sendmail

import (
	"os"
	"runtime"
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

func closeOnExec() { closeOnExecOneByOne() }

func openUnnamed(dir string) (*os.File, error) { return openUnlinked(dir) }
