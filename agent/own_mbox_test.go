package agent

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"dma/spooldir"

	"golang.org/x/sys/unix"
)

// watchedContent calls read whenever it is read.
type watchedContent struct {
	io.ReaderAt
	read func()
}

func (c watchedContent) ReadAt(p []byte, off int64) (int, error) {
	c.read()
	return c.ReaderAt.ReadAt(p, off)
}

// TestMboxLock: MBOXLOCK counts for the mailbox and for a file that is listed.
func TestMboxLock(t *testing.T) {
	for _, flock := range []bool{false, true} {
		h := newHome(t)
		h.write(".forward", h.dir+"/box")
		h.own.Flock = NewOwn(Setup{Flock: flock}, nil).Flock
		for file, j := range map[string]*Job{
			"mbox": h.job(spooldir.Mailbox, "", ""), "box": h.job(spooldir.File, h.dir+"/box", "forward"),
		} {
			var lock error
			j.Message.Content = watchedContent{j.Message.Content, func() {
				f, err := os.Open(filepath.Join(h.dir, file))
				if err != nil {
					t.Error(err)
					return
				}
				defer f.Close()
				lock = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
			}}
			h.deliver(j)
			held := errors.Is(lock, unix.EWOULDBLOCK)
			// Elsewhere than on Linux an fcntl lock keeps flock away too.
			if j.Err != nil || flock && !held || !flock && held && runtime.GOOS == "linux" {
				t.Errorf("%s, flock %v: %v, and another's lock: %v", file, flock, j.Err, lock)
			}
		}
	}
}
