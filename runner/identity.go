package runner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"dma/internal/config"
	"dma/internal/passwd"
	"dma/spooldir"
)

// oneUIDFile in a spool of root says that its owner wants everything to run as
// root: init --one-uid makes it.
const oneUIDFile = "one-uid"

// become makes this process the one that may serve the spool, or says why it
// may not. The owner of the spool decides: started by the owner, everything
// runs as that uid; started as root, this process becomes the owner. A spool
// of root has to have been made with init --one-uid, the only mode in which
// anything runs as uid 0.
func become(s *spooldir.Spool) error {
	owner, me := s.Owner(), os.Geteuid()
	switch {
	case owner == 0 && me == 0:
		if _, err := os.Lstat(filepath.Join(s.Path(), oneUIDFile)); errors.Is(err, fs.ErrNotExist) {
			return exitf(exitNoPerm, "spool %s belongs to root, and commands of users would run as root; give it to another user, or accept that with: dma-runner init --one-uid", s.Path())
		} else if err != nil {
			return err
		}
		return nil
	case owner == me:
		return nil
	case me != 0:
		return exitf(exitNoPerm, "spool %s belongs to uid %d, and this is uid %d; run dma-runner as its owner", s.Path(), owner, me)
	}
	info, err := os.Stat(s.Path())
	if err != nil {
		return err
	}
	gid := owner
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		gid = int(st.Gid)
	}
	if err := syscall.Setgroups([]int{}); err != nil {
		return fmt.Errorf("become uid %d: setgroups: %w", owner, err)
	}
	if err := syscall.Setgid(gid); err != nil {
		return fmt.Errorf("become uid %d: setgid: %w", owner, err)
	}
	if err := syscall.Setuid(owner); err != nil {
		return fmt.Errorf("become uid %d: setuid: %w", owner, err)
	}
	if os.Getuid() != owner || os.Geteuid() != owner || syscall.Setuid(0) == nil {
		return fmt.Errorf("become uid %d: the process kept its rights", owner)
	}
	return nil
}

// mayForward reports whether the .forward of u counts where users are served under
// their own uids.
func mayForward(c *config.Config, u passwd.User) bool {
	return u.UID != 0 && (u.UID >= c.MinUID || slices.Contains(listed(c), u.Name))
}

// listed returns the users below MINUID for whom more is done than their mailbox
// is written: those of FORWARDUSERS, and ALIASUSER, whose are commands and files
// in any case.
func listed(c *config.Config) []string {
	if c.AliasUser == "" || slices.Contains(c.ForwardUsers, c.AliasUser) {
		return c.ForwardUsers
	}
	return append(slices.Clone(c.ForwardUsers), c.AliasUser)
}
