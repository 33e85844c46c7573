package localwriter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Mbox names an mbox file and how to open it.
type Mbox struct {
	// Path is the file. It has to be a regular file with one link, not reached
	// by a symbolic link as its last element, owned by UID. It is made if it
	// does not exist.
	Path string

	// UID is who has to own the mailbox.
	UID int

	// Group says, for a mailbox that is made, which group to give it to if that
	// is greater than 0, otherwise the kernel chooses it, and its mode. If nil,
	// that is 0600.
	Group func() (gid int, mode fs.FileMode)

	// File is the mailbox, already opened for reading and appending, for a
	// process that may not open it itself. It still has to stand at Path. The
	// session closes it.
	File *os.File

	// LockWait is how long to wait for locks; 30 seconds if 0.
	LockWait time.Duration

	// Flock takes a flock(2) lock instead of one of fcntl(2). What other programs
	// take on this system has to be the same.
	Flock bool

	// Sync makes a file durable; (*os.File).Sync if nil.
	Sync func(*os.File) error

	sys *system
}

// OpenMbox opens and locks a mailbox. It stays locked until Close, so sessions
// are to be short: readers wait meanwhile.
func OpenMbox(ctx context.Context, box Mbox) (Session, error) {
	if box.sys == nil {
		box.sys = realSystem()
	}
	if box.Sync != nil {
		box.sys = box.sys.syncing(box.Sync)
	}
	if box.LockWait <= 0 {
		box.LockWait = 30 * time.Second
	}
	if !filepath.IsAbs(box.Path) {
		return nil, failure(opOpen, box.Path, fmt.Errorf("%w: path is not absolute", errUnsafe))
	}
	l, err := box.acquire(ctx)
	if err != nil {
		if box.File != nil {
			box.File.Close()
		}
		return nil, failure(opOpen, box.Path, err)
	}
	s := &mboxSession{box: box, sys: box.sys, lockedFile: *l, buf: make([]byte, 0, mboxBuffer)}
	if err := s.start(); err != nil {
		s.release()
		return nil, failure(opOpen, box.Path, err)
	}
	return s, nil
}

// A lockedFile is an open mailbox with all its locks.
type lockedFile struct {
	f       *os.File
	info    fs.FileInfo // as it was when all locks were there
	created bool
	flock   bool // the kernel lock is one of flock(2)
	dot     dotlock
	process func() // gives back what lockProcess took
}

// acquire opens the mailbox and takes all locks. It holds none while it waits,
// and opens the file anew each time, since who held the lock may have put
// another file in its place.
func (box Mbox) acquire(ctx context.Context) (*lockedFile, error) {
	host, _ := os.Hostname()
	owner := dotlockOwner(host, box.Flock)
	deadline := box.sys.now().Add(box.LockWait)
	for n := 0; ; n++ {
		l, holder, err := box.try(owner)
		if l != nil || err != nil {
			return l, err
		}
		if !box.sys.now().Before(deadline) {
			return nil, fmt.Errorf("%w: waited %v for %s", errLocked, box.LockWait, holder)
		}
		if err := box.sys.sleep(ctx, backoff(n)); err != nil {
			return nil, fmt.Errorf("%w: waiting for %s: %w", errLocked, holder, err)
		}
	}
}

// try makes one attempt, with owner in the lock file. Without a lock and without
// an error, it says who is in the way.
func (box Mbox) try(owner string) (_ *lockedFile, holder string, err error) {
	process, ok := lockProcess(box.Path)
	if !ok {
		return nil, "another delivery of this process", nil
	}
	l := &lockedFile{process: process, flock: box.Flock}
	defer func() {
		if l.process == nil {
			return // handed out
		}
		l.unlock()
		if l.f != nil && box.File == nil {
			l.f.Close()
		}
		process()
	}()

	l.f, l.created, err = box.open()
	if errors.Is(err, errMoved) && box.File == nil {
		return nil, "the file to stay in its place", nil
	}
	if err != nil {
		return nil, "", err
	}
	if ok, err := lockKernel(l.f, box.Flock); err != nil || !ok {
		return nil, "a kernel lock (" + kernelLock(box.Flock) + ")", wrap(kernelLock(box.Flock), err)
	}
	l.dot, ok, err = takeDotlock(box.Path, owner, box.UID, box.sys.now())
	if err != nil || !ok {
		return nil, box.Path + ".lock", err
	}
	// A reader may have replaced the file before it let go of the locks.
	l.info, err = box.verify(l.f)
	if errors.Is(err, errMoved) && box.File == nil {
		return nil, "the file to stay in its place", nil
	}
	if err != nil {
		return nil, "", err
	}
	out := *l
	l.process = nil
	return &out, "", nil
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// unlock gives back all locks but that within the process.
func (l *lockedFile) unlock() error {
	err := l.dot.release()
	if l.f == nil {
		return err
	}
	return errors.Join(err, unlockKernel(l.f, l.flock))
}

// release gives back all locks and closes the file.
func (l *lockedFile) release() error {
	err := errors.Join(l.unlock(), l.f.Close())
	l.process()
	return err
}

// errMoved tells that the path names another file than the one that is open.
var errMoved = errors.New("mailbox was replaced")

// open opens the mailbox, or makes it.
func (box Mbox) open() (_ *os.File, created bool, err error) {
	if box.File != nil {
		_, err := box.verify(box.File)
		return box.File, false, err
	}
	// Opening a device or a FIFO can have effects, so it is looked at before.
	before, err := os.Lstat(box.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return box.create()
	}
	if err != nil {
		return nil, false, err
	}
	if err := box.checkInfo(before); err != nil {
		return nil, false, err
	}
	f, err := os.OpenFile(box.Path, os.O_RDWR|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, errMoved
	}
	if err != nil {
		return nil, false, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !os.SameFile(before, info):
		err = errMoved
	default:
		err = box.checkInfo(info)
	}
	if err != nil {
		f.Close()
		return nil, false, err
	}
	return f, false, nil
}

func (box Mbox) create() (_ *os.File, created bool, err error) {
	f, err := os.OpenFile(box.Path, os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, false, errMoved
	}
	if err != nil {
		return nil, false, err
	}
	if os.Geteuid() == 0 && box.UID != 0 {
		err = f.Chown(box.UID, -1)
	}
	if err == nil && box.Group != nil {
		gid, mode := box.Group()
		if gid > 0 {
			err = f.Chown(-1, gid)
		}
		err = errors.Join(err, f.Chmod(mode)) // whatever the umask
	}
	if err != nil {
		f.Close()
		return nil, false, err
	}
	return f, true, nil
}

// verify checks that f is a mailbox as it should be and stands at Path.
func (box Mbox) verify(f *os.File) (fs.FileInfo, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	at, err := os.Lstat(box.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errMoved
	}
	if err != nil {
		return nil, err
	}
	if at.Mode()&fs.ModeSymlink != 0 {
		return nil, box.checkInfo(at)
	}
	if !os.SameFile(info, at) {
		return nil, errMoved
	}
	return info, box.checkInfo(info)
}

// checkInfo refuses what is not a mailbox of UID.
func (box Mbox) checkInfo(info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		return fmt.Errorf("%w: it is a symbolic link", errUnsafe)
	case !info.Mode().IsRegular() || !ok:
		return fmt.Errorf("%w: it is not a regular file (%v)", errUnsafe, info.Mode().Type())
	case int(st.Uid) != box.UID:
		return fmt.Errorf("%w: it belongs to uid %d instead of %d", errUnsafe, st.Uid, box.UID)
	case st.Nlink != 1:
		return fmt.Errorf("%w: it has %d hard links", errUnsafe, st.Nlink)
	}
	return nil
}
