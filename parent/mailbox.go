package parent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"dma/internal/config"
	"dma/internal/passwd"
)

// mailDir is a mail directory that root alone decides about.
type mailDir struct {
	dir  *os.File
	stat unix.Stat_t
	base string // the name of the user's mailbox in it
}

// errForeign says that somebody else than root has a say in a directory.
var errForeign = errors.New("is not in root's hands")

// openMailDir opens the directory of a user's mailbox outside homes.
func openMailDir(pattern string, u passwd.User) (*mailDir, error) {
	path := filepath.Clean(config.ExpandPath(pattern, u.Name, u.Home))
	m := &mailDir{base: filepath.Base(path)}
	var err error
	m.dir, m.stat, err = openTrusted(filepath.Dir(path), 0, maxLinks)
	return m, err
}

// maxLinks is how many links on the way to a mail directory are followed.
const maxLinks = 40

// openTrusted opens a directory. It and those above it belong to root or to uid,
// and nobody else can write to those above it; the error wraps errForeign where
// that is not so, and nothing in or below such a directory is looked at: it may
// lie on a file system of the user's that does not answer. As many links as given,
// which belong to those two as well, are followed.
func openTrusted(path string, uid, links int) (*os.File, unix.Stat_t, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	var st unix.Stat_t
	at := "/"
	fail := func(op string, err error) (*os.File, unix.Stat_t, error) {
		return nil, st, &os.PathError{Op: op, Path: at, Err: err}
	}
	fd, err := unix.Open(at, flags, 0)
	if err != nil {
		return fail("open", err)
	}
	var f *os.File
	defer func() {
		if f == nil {
			unix.Close(fd)
		}
	}()
	rest := strings.Split(path, "/")
	for {
		if err := check(fd, &st, uid); err != nil {
			return fail("open", err)
		}
		for len(rest) > 0 && (rest[0] == "" || rest[0] == ".") {
			rest = rest[1:]
		}
		if len(rest) == 0 {
			break
		}
		if st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0 {
			return fail("open", errForeign)
		}
		name := rest[0]
		rest = rest[1:]
		at = filepath.Join(at, name)
		var next unix.Stat_t
		if err := unix.Fstatat(fd, name, &next, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fail("stat", err)
		}
		if next.Uid != 0 && int(next.Uid) != uid {
			return fail("open", errForeign)
		}
		if next.Mode&unix.S_IFMT != unix.S_IFLNK {
			dir, err := unix.Openat(fd, name, flags, 0)
			if err != nil {
				return fail("open", err)
			}
			unix.Close(fd)
			fd = dir
			continue
		}
		if links--; links < 0 {
			return fail("open", unix.ELOOP)
		}
		// By its path, on which only root and uid can change anything.
		target, err := os.Readlink(at)
		if err != nil {
			return nil, st, err
		}
		rest = append(strings.Split(target, "/"), rest...)
		at = filepath.Dir(at)
		if filepath.IsAbs(target) {
			at = "/"
			root, err := unix.Open(at, flags, 0)
			if err != nil {
				return fail("open", err)
			}
			unix.Close(fd)
			fd = root
		}
	}
	f = os.NewFile(uintptr(fd), at)
	return f, st, nil
}

func check(fd int, st *unix.Stat_t, uid int) error {
	if err := unix.Fstat(fd, st); err != nil {
		return err
	}
	if st.Uid != 0 && int(st.Uid) != uid {
		return errForeign
	}
	return nil
}

// group returns the group of the directory where that is what lets a writer
// append and lock there.
func (m *mailDir) group() (gid int, ok bool) {
	return int(m.stat.Gid), m.stat.Mode&0o020 != 0 && m.stat.Mode&0o002 == 0 && m.stat.Gid != 0
}

// create makes the mailbox of a user who cannot make it.
func (m *mailDir) create(u passwd.User) error {
	if _, ok := m.group(); ok || m.stat.Mode&0o002 != 0 {
		return nil
	}
	fd, err := m.open(unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL)
	if errors.Is(err, unix.EEXIST) {
		if !m.unfinished() {
			return nil
		}
		fd, err = m.open(unix.O_WRONLY)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fchown(fd, u.UID, u.GID); err != nil {
		return fmt.Errorf("%s: give to %s: %w", m.base, u.Name, err)
	}
	if err := m.dir.Sync(); err != nil {
		return err
	}
	return nil
}

// unfinished reports whether the mailbox is one that a parent was killed over.
// Where it is asked nobody but root can put a file.
func (m *mailDir) unfinished() bool {
	var st unix.Stat_t
	err := unix.Fstatat(int(m.dir.Fd()), m.base, &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && own(&st) && st.Size == 0 && st.Mode&0o777 == 0o600
}

// own reports whether a file is a regular one of root with no other name.
func own(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFREG && st.Uid == 0 && st.Nlink == 1
}

func (m *mailDir) open(flags int) (int, error) {
	fd, err := unix.Openat(int(m.dir.Fd()), m.base, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: filepath.Join(m.dir.Name(), m.base), Err: err}
	}
	return fd, nil
}

// openRoots opens the mailbox of root, and makes it where it is missing.
func (m *mailDir) openRoots() (*os.File, error) {
	const flags = unix.O_RDWR | unix.O_APPEND
	path := filepath.Join(m.dir.Name(), m.base)
	var before, after unix.Stat_t
	// Looked at before it is opened: to open a device can have effects.
	err := unix.Fstatat(int(m.dir.Fd()), m.base, &before, unix.AT_SYMLINK_NOFOLLOW)
	missing := errors.Is(err, unix.ENOENT)
	switch {
	case err != nil && !missing:
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	case !missing && !own(&before):
		return nil, fmt.Errorf("%s: not a regular file of root with one name", path)
	}
	var fd int
	if missing {
		fd, err = m.open(flags | unix.O_CREAT | unix.O_EXCL)
	} else {
		fd, err = m.open(flags)
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	if err := unix.Fstat(fd, &after); err != nil {
		f.Close()
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if !own(&after) || !missing && (before.Dev != after.Dev || before.Ino != after.Ino) {
		f.Close()
		return nil, fmt.Errorf("%s: not a regular file of root with one name", path)
	}
	if missing {
		if err := m.dir.Sync(); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}
