package fsid

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// As calls f, in a thread that has the file system's uid and gid changed for that
// long, and returns its error. F does what it has to do in its own goroutine. The
// supplementary groups stay those of the process.
func As(uid, gid int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		// A thread that cannot be changed back is not used again: it ends with this
		// goroutine.
		runtime.LockOSThread()
		wasUID, wasGID := current()
		err := set(uid, gid)
		if err == nil {
			err = f()
		}
		if set(wasUID, wasGID) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// current returns what the thread has. The value -1 is none that could be set.
func current() (uid, gid int) {
	uid, _ = unix.SetfsuidRetUid(-1)
	gid, _ = unix.SetfsgidRetGid(-1)
	return uid, gid
}

// set changes the ids of the thread. The calls return what was before, and no
// error.
func set(uid, gid int) error {
	_ = unix.Setfsgid(gid)
	_ = unix.Setfsuid(uid)
	if u, g := current(); u != uid || g != gid {
		return fmt.Errorf("files as uid %d and gid %d: the thread has %d and %d", uid, gid, u, g)
	}
	return nil
}
