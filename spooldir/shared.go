package spooldir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// InitShared makes the spool at path, or repairs it, so that every user may
// submit to it and two processes without privilege serve it: each directory
// exists with the owner and mode of Layout, and each role has its lock file. It
// has to run as root, may be called again at any time, also while the spool is
// served, and never removes anything. The files of messages stay as they are.
//
// The owner of a spool that is repaired is not trusted: nothing is changed
// through a symbolic link or by a name that could have been exchanged.
func InitShared(path string, ids Identities) error {
	if err := ids.check(); err != nil {
		return fmt.Errorf("spool %s: %w", path, err)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("spool %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("spool %s: %w", path, err)
	}
	root, err := openDir(unix.AT_FDCWD, path)
	if err != nil {
		return fmt.Errorf("spool %s: %w", path, err)
	}
	defer unix.Close(root)
	// The spool itself comes last: until then a new one is closed to everybody
	// else.
	for _, d := range append(Layout()[1:], Layout()[0]) {
		fd, err := openDir(root, d.Path)
		if err != nil {
			return fmt.Errorf("spool: %s: %w", filepath.Join(path, d.Path), err)
		}
		err = give(fd, true, ids.uid(d.Owner), ids.gid(d.Group), d.Mode)
		if err == nil && d.Path == LockDir {
			err = makeLocks(fd, ids)
		}
		if err == nil && d.Path == "." {
			err = makeBallast(fd, ids)
		}
		if err == nil {
			err = unix.Fsync(fd)
		}
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("spool: %s: %w", filepath.Join(path, d.Path), err)
		}
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	return nil
}

// OpenParentLock opens the file by which one root process at a time serves the shared
// spool at path, and makes it if there is none. It belongs to root and lies in a
// directory of root's, in one that the queue process may change: it is not opened
// where that has put something else in its place.
func OpenParentLock(path string) (*os.File, error) {
	name := filepath.Join(path, LockDir, "parent")
	bad := func(err error) (*os.File, error) {
		return nil, fmt.Errorf("%s: %w; stop the service, look who has changed the spool, and repair it with: dma-runner init", name, err)
	}
	dir, err := unix.Open(filepath.Dir(name), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return bad(err)
	}
	defer unix.Close(dir)
	if have, err := attributesOf(dir); err != nil {
		return bad(err)
	} else if have.uid != 0 || have.mode&0o022 != 0 {
		return bad(fmt.Errorf("its directory is %v, and has to be root's alone", have))
	}
	fd, err := unix.Openat(dir, "parent", unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return bad(err)
	}
	f := os.NewFile(uintptr(fd), name)
	if have, err := attributesOf(fd); err != nil || have.dir || have.uid != 0 {
		f.Close()
		return bad(fmt.Errorf("it is no file of root's: %v, %v", have, err))
	}
	return f, nil
}

// openDir makes a directory if there is none, open to nobody, and opens it.
func openDir(at int, name string) (int, error) {
	if err := unix.Mkdirat(at, name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return -1, fmt.Errorf("mkdir: %w", err)
	}
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EMLINK) {
		return -1, errors.New("no directory; move it away and run init again")
	}
	if err != nil {
		return -1, fmt.Errorf("open: %w", err)
	}
	return fd, nil
}

// give gives an open file its owner and mode. The order keeps a file from
// having the new mode under the old owner.
func give(fd int, dir bool, uid, gid int, mode uint32) error {
	want := attributes{dir, uid, gid, mode}
	have, err := attributesOf(fd)
	if err != nil {
		return err
	}
	if have == want {
		return nil
	}
	if have.dir != dir {
		return fmt.Errorf("no %s; move it away and run init again", kindName(dir))
	}
	if have.uid != uid || have.gid != gid {
		if err := unix.Fchown(fd, uid, gid); err != nil {
			return fmt.Errorf("chown: %w", err)
		}
	}
	if err := unix.Fchmod(fd, mode); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	return nil
}

// makeLocks makes the lock files in the open directory of locks, which belongs
// to root by now.
func makeLocks(dir int, ids Identities) error {
	for file, owner := range lockFiles() {
		if err := makeFile(dir, file, ids.uid(owner), ids.gid(owner), modeLock, nil); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return nil
}

// makeBallast makes the ballast, if there is room for it.
func makeBallast(dir int, ids Identities) error {
	err := makeFile(dir, ballastFile, ids.QueueUID, ids.QueueGID, 0o600, make([]byte, ballastSize))
	if full(err) {
		return nil
	}
	return err
}

// makeFile makes a file with content, or gives the one that is there its owner
// and mode. A file with a second name somewhere else is not touched: it could
// be anybody's.
func makeFile(dir int, name string, uid, gid int, mode uint32, content []byte) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	made := err == nil
	if errors.Is(err, fs.ErrExist) {
		fd, err = unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if made {
		if _, err := f.Write(content); err != nil {
			unix.Unlinkat(dir, name, 0)
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 {
		return errors.New("no regular file with one name; remove it and run init again")
	}
	return give(fd, false, uid, gid, mode)
}

func attributesOf(fd int) (attributes, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return attributes{}, fmt.Errorf("stat: %w", err)
	}
	return attributes{st.Mode&unix.S_IFMT == unix.S_IFDIR, int(st.Uid), int(st.Gid), uint32(st.Mode) & 0o7777}, nil
}

// stateOf is attributesOf for what Lstat has found.
func stateOf(info fs.FileInfo) attributes {
	a := attributes{dir: info.IsDir(), uid: -1, gid: -1}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		a.uid, a.gid, a.mode = int(st.Uid), int(st.Gid), uint32(st.Mode)&0o7777
	}
	return a
}
