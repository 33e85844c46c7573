package localwriter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// mboxBuffer is how much is gathered for one write(2).
const mboxBuffer = 256 << 10

// An mboxSession is an mbox that is open and locked.
type mboxSession struct {
	box Mbox
	sys *system
	lockedFile

	size int64   // length of the file
	buf  []byte  // to be written behind it
	tail [2]byte // the last two bytes of file and buf; 0 where there is none
	base int64   // length to go back to if Commit fails

	dirty   bool // Commit has something to make durable
	newName bool // the name of the file may not be on disk yet
	failed  error
	torn    bool // the file may end with a part of a message: nothing comes behind it

	atime time.Time // of the file, before it was read
	read  bool      // the file was read, so that its atime may have changed

	found *findings // what recovery knows about the file; nil: nothing yet
}

// start begins with the file as it was when the locks were taken.
func (s *mboxSession) start() error {
	s.atime = accessTime(s.info)
	s.size, s.base = s.info.Size(), s.info.Size()
	// Who made an empty mailbox may have been killed before its name was synced.
	s.newName = s.created || s.size == 0
	return s.readTail()
}

// readTail learns how the file ends. The buffer is empty.
func (s *mboxSession) readTail() error {
	s.tail = [2]byte{}
	n := min(s.size, 2)
	if n == 0 {
		return nil
	}
	s.read = true
	_, err := s.f.ReadAt(s.tail[2-n:], s.size-n)
	return err
}

// end is where the next byte goes.
func (s *mboxSession) end() int64 { return s.size + int64(len(s.buf)) }

// Append implements Session.
func (s *mboxSession) Append(ctx context.Context, m Message) (already bool, err error) {
	already, err = s.append(ctx, m)
	return already, failure("append to", s.box.Path, err)
}

func (s *mboxSession) append(ctx context.Context, m Message) (already bool, err error) {
	if s.torn {
		return false, Behind(s.box.Path)
	}
	if s.failed != nil {
		return false, s.failed
	}
	if err := errors.Join(m.check(), ctx.Err()); err != nil {
		return false, err
	}
	s.dot.touch(s.sys.now())
	if m.Suspect {
		s.dirty, s.newName = true, true
		done, already, err := s.recover(ctx, m)
		if err != nil {
			s.torn = true
			return false, failure(opMend, s.box.Path, err)
		}
		if done {
			return already, nil
		}
	}
	// A full disk or a quota is to hit the message that it is too small for.
	large := m.Size > mboxBuffer/8
	if large {
		if err := s.flush(); err != nil {
			return false, err
		}
	}
	start, tail := s.end(), s.tail
	err = s.copy(ctx, m)
	if err == nil && large {
		err = s.flush()
	}
	if err != nil {
		err = errors.Join(err, s.takeBack(start))
		s.tail = tail
		return false, err
	}
	s.dirty = true
	return false, nil
}

// copy puts the rendering of m into the buffer, behind an empty line: what
// another program left without one must not swallow the From_ line.
func (s *mboxSession) copy(ctx context.Context, m Message) error {
	switch {
	case s.end() == 0 || s.tail == [2]byte{'\n', '\n'}:
	case s.tail[1] == '\n':
		s.buf = append(s.buf, '\n')
	default:
		s.buf = append(s.buf, '\n', '\n')
	}
	r := m.render()
	for {
		if cap(s.buf)-len(s.buf) < mboxBuffer/4 {
			if err := errors.Join(ctx.Err(), s.flush()); err != nil {
				return err
			}
		}
		n, err := r.Read(s.buf[len(s.buf):cap(s.buf)])
		s.buf = s.buf[:len(s.buf)+n]
		if err == io.EOF {
			s.tail = [2]byte{'\n', '\n'}
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the message: %w", err)
		}
	}
}

// flush writes the buffer. If that fails, the file is as long as before and the
// buffer is kept.
func (s *mboxSession) flush() error {
	if len(s.buf) == 0 {
		return nil
	}
	n, err := s.sys.write(s.f, s.buf)
	if err == nil && n < len(s.buf) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return errors.Join(err, s.truncate(s.size, s.size+int64(n)))
	}
	s.size += int64(n)
	s.buf = s.buf[:0]
	return nil
}

// takeBack removes everything from offset off on.
func (s *mboxSession) takeBack(off int64) error {
	s.found = nil
	if off >= s.size {
		s.buf = s.buf[:off-s.size]
		return nil
	}
	s.buf = s.buf[:0]
	return s.truncate(off, s.size)
}

// truncate cuts the file, which should be have bytes long, to size. It leaves
// what a program without locks wrote meanwhile. If it fails, nothing is known
// about the file any more.
func (s *mboxSession) truncate(size, have int64) error {
	info, err := s.f.Stat()
	if err == nil && info.Size() != have {
		err = fmt.Errorf("%w: another program wrote to it without a lock", errUnsafe)
	}
	if err == nil {
		err = s.f.Truncate(size)
	}
	if err != nil {
		s.failed, s.torn = fmt.Errorf("%w: %w", errTorn, err), true
		return s.failed
	}
	s.size = size
	s.base = min(s.base, size)
	return nil
}

// Commit implements Session: one fsync for everything since the last one.
func (s *mboxSession) Commit() error {
	return failure("commit", s.box.Path, s.commit())
}

func (s *mboxSession) commit() error {
	if s.failed != nil {
		return s.failed
	}
	if !s.dirty {
		return nil
	}
	if err := s.flush(); err != nil {
		s.dirty = false
		return errors.Join(err, s.undo())
	}
	s.restoreTimes()
	err := s.sys.sync(s.f)
	if err == nil && s.newName {
		err = syncDirectory(s.sys, filepath.Dir(s.box.Path))
	}
	if err != nil {
		// What a second fsync says about these bytes means nothing.
		err = errors.Join(fmt.Errorf("fsync: %w", err), s.undo())
		s.failed = err
		return err
	}
	s.newName = false
	s.dirty = false
	s.base = s.size
	return nil
}

// undo takes back what was not committed.
func (s *mboxSession) undo() error {
	if s.failed != nil || s.end() == s.base {
		return nil
	}
	if err := s.takeBack(s.base); err != nil {
		return err
	}
	return s.readTail()
}

// Close implements Session.
func (s *mboxSession) Close() error {
	var err error
	if s.dirty {
		err = s.undo()
	}
	s.restoreTimes()
	return failure("close", s.box.Path, errors.Join(err, s.release()))
}

// restoreTimes sets the time of access back to what it was before we read the
// file, and in any case before its time of modification: shells and mail
// readers take this for "new mail". It is a courtesy, so errors do not count.
func (s *mboxSession) restoreTimes() {
	if !s.dirty && !s.read {
		return
	}
	s.read = false
	info, err := s.f.Stat()
	if err != nil {
		return
	}
	atime, mtime := s.atime, info.ModTime()
	if s.dirty && atime.Unix() >= mtime.Unix() { // some compare the seconds only
		atime = mtime.Add(-time.Second)
	}
	times := []unix.Timespec{unix.NsecToTimespec(atime.UnixNano()), unix.NsecToTimespec(mtime.UnixNano())}
	unix.UtimesNanoAt(unix.AT_FDCWD, s.box.Path, times, unix.AT_SYMLINK_NOFOLLOW)
}

// syncDirectory makes the names in a directory durable. Where the directory
// cannot be opened or the file system has no such thing, the fsync of the file
// has to do.
func syncDirectory(sys *system, path string) error {
	d, err := os.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return nil
		}
		return err
	}
	defer d.Close()
	if err := sys.sync(d); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return nil
}
