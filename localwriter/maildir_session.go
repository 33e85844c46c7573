package localwriter

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// maxPending is how many files wait in tmp for their fsync, and syncers how
// many of them are synced at a time: the file system then writes its journal
// once for several.
const (
	maxPending = 64
	syncers    = 8
)

// A maildirSession is an open Maildir.
type maildirSession struct {
	dir           Maildir
	sys           *system
	host          string
	tmp, new, cur *os.File

	pending []pendingFile // written to tmp
	moved   []string      // names in new since the last Commit
	dirty   bool          // new has to be synced
	inCur   bool          // a message that counts as delivered may be in cur
	failed  error         // Commit has to fail

	seed  maphash.Seed
	known map[uint64]struct{} // hashes of the stems in new and cur; nil: not read yet
	buf   []byte
}

type pendingFile struct {
	f    *os.File
	name string
	size int64
}

// Mend implements Session: a file in a Maildir is whole.
func (s *maildirSession) Mend(context.Context, Message) error { return nil }

// Append implements Session. The name of the file follows from the message, so
// that doing it again does no harm.
func (s *maildirSession) Append(ctx context.Context, m Message) (already bool, err error) {
	already, err = s.append(ctx, m)
	return already, failure("deliver to", s.dir.Path, err)
}

func (s *maildirSession) append(ctx context.Context, m Message) (already bool, err error) {
	if s.failed != nil {
		return false, s.failed
	}
	if err := errors.Join(m.check(), ctx.Err()); err != nil {
		return false, err
	}
	if m.Suspect {
		if already, err := s.delivered(ctx, m); already || err != nil {
			s.dirty, s.inCur = true, true
			return already, err
		}
	}
	if len(s.pending) >= maxPending {
		if err := s.settle(); err != nil {
			return false, err
		}
	}
	p := pendingFile{name: m.stem() + "." + s.host, size: m.fileSize()}
	if p.f, err = s.create(p.name); err != nil {
		return false, err
	}
	if err := s.copy(ctx, p.f, m.file()); err != nil {
		p.f.Close()
		return false, errors.Join(err, s.unlink(s.tmp, p.name))
	}
	s.pending = append(s.pending, p)
	s.dirty = true
	return false, nil
}

// delivered reports whether the message is in new or cur.
func (s *maildirSession) delivered(ctx context.Context, m Message) (bool, error) {
	if s.known == nil {
		known := make(map[uint64]struct{})
		s.seed = maphash.MakeSeed()
		// In this order: a reader moves files from new to cur meanwhile.
		for _, d := range []*os.File{s.new, s.cur} {
			err := readNames(ctx, d, func(name string) {
				known[maphash.String(s.seed, stemOf(name))] = struct{}{}
			})
			if err != nil {
				return false, err
			}
		}
		s.known = known
	}
	_, ok := s.known[maphash.String(s.seed, m.stem())]
	return ok, nil
}

// create makes a file in tmp, in place of one that was left over.
func (s *maildirSession) create(name string) (*os.File, error) {
	for try := 0; ; try++ {
		var fd int
		err := retryEINTR(func() (err error) {
			flags := unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
			fd, err = unix.Openat(int(s.tmp.Fd()), name, flags, 0o600)
			return err
		})
		if err == nil {
			return os.NewFile(uintptr(fd), filepath.Join(s.tmp.Name(), name)), nil
		}
		if errors.Is(err, fs.ErrExist) && try == 0 {
			err = s.unlink(s.tmp, name)
		}
		if err != nil {
			return nil, &fs.PathError{Op: "create", Path: filepath.Join(s.tmp.Name(), name), Err: err}
		}
	}
}

// copy writes r to f.
func (s *maildirSession) copy(ctx context.Context, f *os.File, r io.Reader) error {
	if s.buf == nil {
		s.buf = make([]byte, 256<<10)
	}
	for {
		n, err := io.ReadFull(r, s.buf)
		if err == io.EOF {
			return nil
		}
		if err != nil && err != io.ErrUnexpectedEOF {
			return fmt.Errorf("reading the message: %w", err)
		}
		w, err := s.sys.write(f, s.buf[:n])
		if err == nil && w < n {
			err = io.ErrShortWrite
		}
		if err := errors.Join(err, ctx.Err()); err != nil {
			return err
		}
	}
}

// settle syncs what was written to tmp and moves it to new.
func (s *maildirSession) settle() error {
	errs := make([]error, len(s.pending))
	var wg sync.WaitGroup
	turns := make(chan struct{}, syncers)
	for i, p := range s.pending {
		turns <- struct{}{}
		wg.Go(func() {
			errs[i] = errors.Join(s.sys.sync(p.f), p.f.Close())
			<-turns
		})
	}
	wg.Wait()
	err := errors.Join(errs...)
	for _, p := range s.pending {
		if err == nil {
			err = s.publish(p)
		}
		if err != nil {
			s.unlink(s.tmp, p.name)
		}
	}
	s.pending = s.pending[:0]
	if err != nil {
		s.failed = err
	}
	return err
}

// publish moves a file from tmp to new. If a file of that name and size is
// there, it is the same message.
func (s *maildirSession) publish(p pendingFile) error {
	err := renameExclusive(int(s.tmp.Fd()), p.name, int(s.new.Fd()), p.name)
	if errors.Is(err, fs.ErrExist) {
		var st unix.Stat_t
		err = unix.Fstatat(int(s.new.Fd()), p.name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == p.size {
			return s.unlink(s.tmp, p.name)
		}
		err = retryEINTR(func() error {
			return unix.Renameat(int(s.tmp.Fd()), p.name, int(s.new.Fd()), p.name)
		})
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: "tmp/" + p.name, New: "new/" + p.name, Err: err}
	}
	s.moved = append(s.moved, p.name)
	return nil
}

// Commit implements Session: one fsync for each message, several at a time, and
// one for the directory.
func (s *maildirSession) Commit() error {
	return failure("commit", s.dir.Path, s.commit())
}

func (s *maildirSession) commit() error {
	if !s.dirty {
		return s.failed
	}
	err := s.failed
	if err == nil {
		err = s.settle()
	}
	if err == nil {
		err = wrap("fsync", s.syncNames())
	}
	if err != nil {
		s.undo()
		s.failed = err
		return err
	}
	s.dirty = false
	s.moved = s.moved[:0]
	return nil
}

// syncNames makes the names in new durable, and those in cur where a reader has
// moved one there.
func (s *maildirSession) syncNames() error {
	if err := s.sys.sync(s.new); err != nil {
		return err
	}
	read := s.inCur
	for _, name := range s.moved {
		var st unix.Stat_t
		read = read || unix.Fstatat(int(s.new.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil
	}
	s.inCur = false
	if read {
		return s.sys.sync(s.cur)
	}
	return nil
}

// undo takes back what was not committed, unless a reader took it meanwhile.
func (s *maildirSession) undo() {
	for _, p := range s.pending {
		p.f.Close()
		s.unlink(s.tmp, p.name)
	}
	for _, name := range s.moved {
		s.unlink(s.new, name)
	}
	s.pending, s.moved, s.dirty = nil, nil, false
}

// Close implements Session.
func (s *maildirSession) Close() error {
	s.undo()
	return failure("close", s.dir.Path, s.closeDirs())
}

func (s *maildirSession) closeDirs() error {
	var errs []error
	for _, d := range []*os.File{s.tmp, s.new, s.cur} {
		if d != nil {
			errs = append(errs, d.Close())
		}
	}
	return errors.Join(errs...)
}

// unlink removes a name; one that is gone is fine.
func (s *maildirSession) unlink(dir *os.File, name string) error {
	err := retryEINTR(func() error { return unix.Unlinkat(int(dir.Fd()), name, 0) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
