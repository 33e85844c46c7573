package spooldir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Spool is an open spool directory. Its methods may be called from several
// goroutines; several processes may have the same spool open.
type Spool struct {
	path   string
	owner  int  // uid of the spool
	shared bool // a group may submit, and the owner is in it: files get it by the directory

	fsOnce sync.Once
	fs     FileSystem

	mu        sync.Mutex
	envelopes map[string]cachedEnvelope
	cached    int            // recipients in envelopes
	locks     map[inode]bool // that this process has
}

type cachedEnvelope struct {
	dev, ino uint64
	env      *Envelope
}

// Open opens the spool at path, which Init has made. The error says what is
// missing and how to mend it; it wraps fs.ErrNotExist or fs.ErrPermission.
func Open(path string) (*Spool, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("spool %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Lstat(abs, &st) }); err != nil {
		return nil, spoolError(path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, spoolError(path, unix.ENOTDIR)
	}
	// The directories that every process reaches are checked by the steps
	// that use them; tmp stands for all.
	var tmp unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Lstat(filepath.Join(abs, string(Tmp)), &tmp) }); err != nil {
		return nil, spoolError(path, err)
	}
	return &Spool{
		path:      abs,
		owner:     int(st.Uid),
		shared:    tmp.Mode&unix.S_ISGID != 0,
		envelopes: make(map[string]cachedEnvelope),
		locks:     make(map[inode]bool),
	}, nil
}

func spoolError(path string, err error) error {
	remedy := "create it with \"dma-runner init\""
	switch {
	case errors.Is(err, fs.ErrPermission):
		remedy = "the calling user may not enter it"
	case !errors.Is(err, fs.ErrNotExist):
		remedy = "it has to be a directory made by \"dma-runner init\""
	}
	return fmt.Errorf("spool %s: %w; %s", path, err, remedy)
}

// Path is the absolute path of the spool.
func (s *Spool) Path() string { return s.path }

// Owner is the uid that owns the spool.
func (s *Spool) Owner() int { return s.owner }

// FileSystem tells what the spool stands on.
func (s *Spool) FileSystem() FileSystem {
	s.fsOnce.Do(func() { s.fs = statFileSystem(s.path) })
	return s.fs
}

func (s *Spool) dir(state State) string { return filepath.Join(s.path, string(state)) }

func (s *Spool) file(state State, name string) string {
	return filepath.Join(s.path, string(state), name)
}

// Init makes the spool at path, or repairs it: every directory exists, belongs
// to the caller and is closed to everybody else. It may be called again at any
// time and never removes anything. It is for a spool that one uid serves.
func Init(path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fmt.Errorf("spool %s: %w", path, err)
	}
	for _, d := range append([]string{"."}, directories()...) {
		p := filepath.Join(path, d)
		if err := os.Mkdir(p, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("spool: %w", err)
		}
		info, err := os.Lstat(p)
		if err != nil {
			return fmt.Errorf("spool: %w", err)
		}
		if !info.IsDir() {
			return fmt.Errorf("spool: %s is no directory; move it away and run init again", p)
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
			return fmt.Errorf("spool: %s belongs to uid %d, not to uid %d who runs init: %w", p, st.Uid, os.Geteuid(), fs.ErrPermission)
		}
		if info.Mode().Perm() != 0o700 {
			if err := os.Chmod(p, 0o700); err != nil {
				return fmt.Errorf("spool: %w", err)
			}
		}
	}
	if err := keepBallast(path); err != nil && !full(err) {
		return fmt.Errorf("spool: %w", err)
	}
	for _, d := range []string{path, filepath.Dir(path)} {
		if err := syncDir(d); err != nil {
			return fmt.Errorf("spool: %w", err)
		}
	}
	return nil
}

// syncDir makes the entries of a directory durable. A failed sync is an error
// that must not be tried again: the second fsync of a failed one says nil.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// full reports whether err says that there is no room: space, inodes, quota.
func full(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// ignoringEINTR calls f again when a signal interrupted it.
func ignoringEINTR(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
