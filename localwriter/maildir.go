package localwriter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Maildir names a Maildir and how to open it.
type Maildir struct {
	// Path is the directory. It and its tmp, new and cur are made with mode 0700
	// if they do not exist; the directory that it stands in has to. They have to
	// belong to UID; Path may be a symbolic link of UID or root.
	Path string

	// Folder is the detail of user+detail. If Path has a folder ".Folder", or that
	// in lower case, the message goes there, otherwise into Path itself.
	Folder string

	// UID is who has to own the directories.
	UID int

	// Host stands in the file names; the host's name if empty.
	Host string

	// Sync makes a file durable; (*os.File).Sync if nil. It is called by several
	// goroutines at a time.
	Sync func(*os.File) error

	sys *system
}

// Files in tmp that nobody touched for so long are left over
// (https://cr.yp.to/proto/maildir.html). At most maxClean names are looked at
// each time.
const (
	tmpAge   = 36 * time.Hour
	maxClean = 1000
)

// OpenMaildir opens a Maildir and removes what was left over in its tmp. It
// takes no locks.
func OpenMaildir(ctx context.Context, dir Maildir) (Session, error) {
	if dir.sys == nil {
		dir.sys = realSystem()
	}
	if dir.Sync != nil {
		dir.sys = dir.sys.syncing(dir.Sync)
	}
	if dir.Host == "" {
		dir.Host, _ = os.Hostname()
	}
	if !filepath.IsAbs(dir.Path) {
		return nil, failure("open", dir.Path, fmt.Errorf("%w: path is not absolute", errUnsafe))
	}
	s := &maildirSession{dir: dir, sys: dir.sys, host: hostPart(dir.Host)}
	if err := s.open(); err != nil {
		s.closeDirs()
		return nil, failure("open", dir.Path, err)
	}
	s.clean(ctx)
	return s, nil
}

// open makes and opens the directories.
func (s *maildirSession) open() error {
	made := false
	err := os.Mkdir(s.dir.Path, 0o700)
	if err == nil {
		made = true
		if err := syncDirectory(s.sys, filepath.Dir(s.dir.Path)); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	root, err := s.dir.openRoot()
	if err != nil {
		return err
	}
	defer func() { root.Close() }()
	for _, folder := range folderNames(s.dir.Folder) {
		sub, err := s.dir.openIn(root, folder)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		root.Close()
		root = sub
		break
	}
	for _, d := range []struct {
		f    **os.File
		name string
	}{{&s.tmp, "tmp"}, {&s.new, "new"}, {&s.cur, "cur"}} {
		*d.f, err = s.dir.openIn(root, d.name)
		if errors.Is(err, fs.ErrNotExist) {
			err = unix.Mkdirat(int(root.Fd()), d.name, 0o700)
			if err != nil && !errors.Is(err, fs.ErrExist) {
				return &fs.PathError{Op: "mkdir", Path: filepath.Join(root.Name(), d.name), Err: err}
			}
			made = true
			*d.f, err = s.dir.openIn(root, d.name)
		}
		if err != nil {
			return err
		}
	}
	if made {
		return s.sys.sync(root)
	}
	return nil
}

// openRoot opens Path.
func (dir Maildir) openRoot() (*os.File, error) {
	info, err := os.Lstat(dir.Path)
	if err != nil {
		return nil, err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != 0 && int(st.Uid) != dir.UID {
			return nil, fmt.Errorf("%w: it is a symbolic link of somebody else", errUnsafe)
		}
	}
	f, err := os.OpenFile(dir.Path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return dir.checkOwner(f)
}

// openIn opens a directory in parent, which must not be a symbolic link.
func (dir Maildir) openIn(parent *os.File, name string) (*os.File, error) {
	path := filepath.Join(parent.Name(), name)
	var fd int
	err := retryEINTR(func() (err error) {
		flags := unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
		fd, err = unix.Openat(int(parent.Fd()), name, flags, 0)
		return err
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return dir.checkOwner(os.NewFile(uintptr(fd), path))
}

// checkOwner returns f, or closes it if it does not belong to UID.
func (dir Maildir) checkOwner(f *os.File) (*os.File, error) {
	info, err := f.Stat()
	if err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != dir.UID {
			err = fmt.Errorf("%w: %s does not belong to uid %d", errUnsafe, f.Name(), dir.UID)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// clean removes files from tmp that are left over.
func (s *maildirSession) clean(ctx context.Context) {
	names, err := s.tmp.Readdirnames(maxClean)
	if err != nil {
		return
	}
	limit := s.sys.now().Add(-tmpAge)
	for _, name := range names {
		info, err := os.Lstat(filepath.Join(s.tmp.Name(), name))
		if ctx.Err() != nil {
			return
		}
		if err == nil && info.Mode().IsRegular() && info.ModTime().Before(limit) && accessTime(info).Before(limit) {
			unix.Unlinkat(int(s.tmp.Fd()), name, 0)
		}
	}
}

// folderNames returns the Maildir++ names of the folder for a detail, as it is
// and in lower case; none if there cannot be one.
func folderNames(detail string) []string {
	if detail == "" || len(detail) > 200 || detail[0] == '.' || detail[len(detail)-1] == '.' ||
		strings.ContainsAny(detail, "/\x00") || strings.Contains(detail, "..") {
		return nil
	}
	return slices.Compact([]string{"." + detail, "." + strings.ToLower(detail)})
}

// hostPart makes a part of a file name from a host's name.
func hostPart(host string) string {
	b := []byte(host)
	for i, c := range b {
		if !isAlnum(c) && c != '-' && c != '.' {
			b[i] = '_'
		}
	}
	if len(b) > 60 {
		b = b[:60]
	}
	if len(b) == 0 {
		return "localhost"
	}
	return string(b)
}

// stem is the part of a file name that tells one delivery from all others.
func (m Message) stem() string {
	return strconv.FormatInt(m.Arrival.Unix(), 10) + "." + m.key()
}

// stemOf returns the stem of a file name, whatever the host and the flags
// behind it. A name that is not of our making has one that is no message's.
func stemOf(name string) string {
	end := 0
	for range 3 {
		n := strings.IndexByte(name[end:], '.')
		if n < 0 {
			return name
		}
		end += n + 1
	}
	return name[:end-1]
}

// linkThenUnlink moves a name, and fails with EEXIST if the new one is taken.
func linkThenUnlink(fromDir int, from string, toDir int, to string) error {
	if err := retryEINTR(func() error { return unix.Linkat(fromDir, from, toDir, to, 0) }); err != nil {
		return err
	}
	return retryEINTR(func() error { return unix.Unlinkat(fromDir, from, 0) })
}

func retryEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// readNames calls f with each name in a directory.
func readNames(ctx context.Context, d *os.File, f func(name string)) error {
	if _, err := d.Seek(0, io.SeekStart); err != nil {
		return err
	}
	for {
		names, err := d.Readdirnames(1024)
		for _, name := range names {
			f(name)
		}
		if err == io.EOF {
			return nil
		}
		if err := errors.Join(err, ctx.Err()); err != nil {
			return err
		}
	}
}
