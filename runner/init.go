package runner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"dma/spooldir"
)

// runInit makes or repairs the spool for the uid that runs it.
func runInit(c *call) error {
	oneUID := false
	for _, a := range c.args {
		if a != "--one-uid" {
			return exitf(exitUsage, "init knows --one-uid and no %q", a)
		}
		oneUID = true
	}
	dir := c.config.SpoolDir
	if os.Geteuid() == 0 && !oneUID {
		if _, err := os.Lstat(filepath.Join(dir, oneUIDFile)); errors.Is(err, fs.ErrNotExist) {
			return exitf(exitNoPerm, "init would make %s a spool of root, and commands of users would run as root; run it as the user who is to own the spool, or accept that with: dma-runner init --one-uid", dir)
		}
	}
	if err := spooldir.Init(dir); err != nil {
		return err
	}
	if oneUID {
		f, err := os.OpenFile(filepath.Join(dir, oneUIDFile), os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	fmt.Fprintf(c.stdio.Out, "spool %s is ready; uid %d serves it\n", dir, os.Geteuid())
	return nil
}
