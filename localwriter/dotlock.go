package localwriter

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// When somebody else's lock file counts as left over: nothing touched it for
// staleAfter and the process that it names does not run (or it names none), or
// nothing touched it for staleAlways, since process ids are used again. A lock
// file of dma on this host goes with the kernel lock that it names: who holds
// that one may remove it at once.
const (
	staleAfter  = 5 * time.Minute
	staleAlways = 30 * time.Minute
	touchEvery  = time.Minute
)

// A dotlock is FILE.lock, held. The zero dotlock holds nothing.
type dotlock struct {
	path    string
	mark    string      // what stands in it
	info    fs.FileInfo // of the file; nil: not known
	touched time.Time
}

// dotlockMark is what stands in a lock file: the process id in the first line,
// where other programs look for it, and who made it in the second.
func dotlockMark(owner string) string {
	return fmt.Sprintf("%d\n%s", os.Getpid(), owner)
}

// dotlockOwner is who makes a lock file: dma on this host, with a kernel lock of
// fcntl(2) or of flock(2).
func dotlockOwner(host string, flock bool) string {
	s := "dma " + printableLine(host, 255)
	if flock {
		s += " flock"
	}
	return s + "\n"
}

// takeDotlock makes the lock file of a mailbox of uid. The caller holds the
// kernel lock that owner names. It reports false if somebody else has it; where
// the directory refuses us, or somebody who has no business with the mailbox
// keeps us out, it returns the zero dotlock and true.
func takeDotlock(mailbox, owner string, uid int, now time.Time) (dotlock, bool, error) {
	path := mailbox + ".lock"
	for range 2 {
		d, err := makeDotlock(path, owner, now)
		switch {
		case err == nil:
			return d, true, nil
		case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS), errors.Is(err, unix.ENAMETOOLONG):
			return dotlock{}, true, nil
		case !errors.Is(err, fs.ErrExist):
			return dotlock{}, false, err
		}
		if strangersLock(path, uid) {
			return dotlock{}, true, nil
		}
		stale, err := removeStale(path, owner, now)
		switch {
		case errors.Is(err, fs.ErrPermission):
			return dotlock{}, true, nil // left over, and not ours to remove
		case err != nil || !stale:
			return dotlock{}, false, err
		}
	}
	return dotlock{}, false, nil
}

// strangersLock reports whether a lock file was made by somebody else than root,
// the owner of the mailbox and ourselves where everybody can make one: it would
// be an easy way to keep another user's mail away.
func strangersLock(path string, uid int) bool {
	dir, err := os.Stat(filepath.Dir(path))
	if err != nil || dir.Mode().Perm()&0o002 == 0 {
		return false
	}
	info, err := os.Lstat(path)
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Uid != 0 && int(st.Uid) != uid && int(st.Uid) != os.Geteuid()
}

// makeDotlock makes the lock file, which at no time is without its text: a kill
// in between would leave one that nobody knows to be left over. The name that
// it has first is always the same, as only who has the kernel lock comes here.
func makeDotlock(path, owner string, now time.Time) (dotlock, error) {
	if _, err := os.Lstat(path); err == nil {
		return dotlock{}, fs.ErrExist
	}
	first := path + ".dma"
	if err := unix.Unlink(first); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return dotlock{}, err
	}
	mark := dotlockMark(owner)
	if err := writeDotlock(first, mark); err != nil {
		return dotlock{}, err
	}
	if err := renameExclusive(unix.AT_FDCWD, first, unix.AT_FDCWD, path); err != nil {
		unix.Unlink(first)
		return dotlock{}, err
	}
	d := dotlock{path: path, mark: mark, touched: now}
	d.info, _ = os.Lstat(path)
	return d, nil
}

// writeDotlock makes a file that everybody can read. Package os would first see
// whether it can be polled, by five calls more.
func writeDotlock(path, mark string) error {
	var fd int
	err := retryEINTR(func() (err error) {
		fd, err = unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o444)
		return err
	})
	if err != nil {
		return &fs.PathError{Op: "create", Path: path, Err: err}
	}
	n, err := unix.Write(fd, []byte(mark))
	if err == nil && n < len(mark) {
		err = io.ErrShortWrite
	}
	// Whatever the umask.
	if err := errors.Join(err, unix.Fchmod(fd, 0o444), unix.Close(fd)); err != nil {
		unix.Unlink(path)
		return &fs.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

// removeStale removes the lock file if it is left over, and reports whether it
// did or found it gone.
func removeStale(path, owner string, now time.Time) (bool, error) {
	before, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if !isStale(path, before, owner, now) {
		return false, nil
	}
	after, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil || !os.SameFile(before, after) || !after.ModTime().Equal(before.ModTime()) {
		return false, err
	}
	// Not os.Remove, which would try to remove a directory too.
	if err := unix.Unlink(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		if errors.Is(err, unix.EISDIR) {
			err = fs.ErrPermission
		}
		return false, err
	}
	return true, nil
}

func isStale(path string, info fs.FileInfo, owner string, now time.Time) bool {
	age := now.Sub(info.ModTime())
	pid, ours := 0, false
	if info.Mode().IsRegular() {
		pid, ours = readDotlock(path, owner)
	}
	if ours || age > staleAlways {
		return true
	}
	return age > staleAfter && (pid == 0 || errors.Is(unix.Kill(pid, 0), unix.ESRCH))
}

// readDotlock returns the process id in a lock file, 0 if there is none, and
// whether owner made it.
func readDotlock(path, owner string) (pid int, ours bool) {
	first, rest, _ := strings.Cut(dotlockText(path), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid < 0 {
		pid = 0
	}
	return pid, rest == owner
}

// dotlockText returns the beginning of a lock file, "" if it cannot be read.
func dotlockText(path string) string {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 512))
	if err != nil {
		return ""
	}
	return string(b)
}

// touch keeps others from taking the lock file for left over.
func (d *dotlock) touch(now time.Time) {
	if d.path != "" && now.Sub(d.touched) >= touchEvery && d.ours() && os.Chtimes(d.path, now, now) == nil {
		d.touched = now
		d.info, _ = os.Lstat(d.path)
	}
}

// ours reports whether the lock file is still the one that was made: somebody
// may have taken it for left over.
func (d *dotlock) ours() bool {
	info, err := os.Lstat(d.path)
	if err != nil {
		return false
	}
	if d.info != nil && os.SameFile(d.info, info) && d.info.ModTime().Equal(info.ModTime()) {
		return true
	}
	return dotlockText(d.path) == d.mark
}

// release removes the lock file if it is still ours.
func (d *dotlock) release() error {
	if d.path == "" {
		return nil
	}
	held := *d
	d.path = ""
	if !held.ours() {
		return nil
	}
	return unix.Unlink(held.path)
}
