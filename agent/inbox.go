package agent

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"dma/internal/passwd"
	"dma/localwriter"

	"golang.org/x/sys/unix"
)

// The mode of a mailbox in a mail directory of a group, as Debian policy 11.6 has
// it, and elsewhere.
const (
	sharedMode = 0o660
	ownMode    = 0o600
)

// inbox is the user's mailbox, an mbox.
func (a *Own) inbox(u passwd.User, path string) place {
	return place{name: path, open: func(ctx context.Context) (localwriter.Session, error) {
		box := localwriter.Mbox{Path: path, UID: a.owner(u), Flock: a.Flock, Sync: a.sync}
		box.Group = func() (int, fs.FileMode) {
			if gid, ok := localwriter.MailboxGroup(filepath.Dir(path)); ok && gid == os.Getegid() {
				return gid, sharedMode
			}
			return 0, ownMode
		}
		if a.MailFile != nil {
			// A session closes its file.
			fd, err := unix.FcntlInt(a.MailFile.Fd(), unix.F_DUPFD_CLOEXEC, 3)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			box.File = os.NewFile(uintptr(fd), path)
		}
		return localwriter.OpenMbox(ctx, box)
	}}
}
