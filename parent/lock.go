package parent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"dma/agent"
)

// locks is the folder with the locks of the users. A lock is held by the open
// file that the agent was started with, so it lasts as long as the agent,
// longer than a parent that was killed.
type locks struct{ dir *os.File }

// openLocks opens the folder agents of runDir, and makes both where they are
// missing.
func openLocks(runDir string) (*locks, error) {
	dir := filepath.Join(runDir, "agents")
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{{runDir, 0o755}, {dir, 0o700}} {
		err := os.Mkdir(d.path, d.mode)
		if errors.Is(err, os.ErrExist) && d.path == dir {
			continue
		}
		if err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
		// Whatever the umask is, or was when somebody made it.
		if err := os.Chmod(d.path, d.mode); err != nil {
			return nil, err
		}
	}
	f, st, err := openTrusted(dir, os.Geteuid(), 0)
	if err != nil {
		return nil, err
	}
	if st.Mode&0o077 != 0 {
		f.Close()
		return nil, fmt.Errorf("%s: mode %#o; it may be open to root only", dir, st.Mode&0o777)
	}
	return &locks{f}, nil
}

// take returns the open file that holds the lock of a user and role, or an
// error that wraps agent.ErrBusy. It cannot be written to: the user can take it
// from the agent, which is his, and would fill a file system where no quota counts.
func (l *locks) take(uid int, role agent.Role) (*os.File, error) {
	name := strconv.Itoa(uid) + "." + string(role)
	fd, err := unix.Openat(int(l.dir.Fd()), name, unix.O_RDONLY|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = agent.ErrBusy
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return f, nil
}
