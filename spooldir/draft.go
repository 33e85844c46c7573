package spooldir

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// draftBuffer is how much content a Draft keeps in memory, in octets; a
// message that fits is written with one call.
const draftBuffer = 256 << 10

// Draft is a message being written. Nobody takes it for mail before Commit.
type Draft struct {
	spool   *Spool
	env     Envelope
	f       *os.File
	tmp     string // its own name in tmp, "" once removed
	linked  []string
	buf     []byte
	flushed bool // the envelope's place and buf so far are in the file
	written int64
	sum     uint32
	inode   inode // if held
	locked  bool  // the lock of the file
	held    bool  // to be kept beyond Commit
}

// Create begins a message: it makes the file in tmp. An empty ID and a zero
// Arrival are filled in; the lengths and checksums of e are not looked at. The
// caller writes the content and ends with Commit or Abort. An id that exists
// is an error that wraps fs.ErrExist.
func (s *Spool) Create(e *Envelope) (*Draft, error) {
	if len(e.Recipients) == 0 {
		return nil, errors.New("a message without recipients")
	}
	if len(e.Recipients) > MaxRecipients {
		return nil, fmt.Errorf("%d recipients, and at most %d are possible in one message", len(e.Recipients), MaxRecipients)
	}
	d := &Draft{spool: s, env: *e}
	if d.env.Arrival.IsZero() {
		d.env.Arrival = time.Now()
	}
	d.env.Arrival = d.env.Arrival.UTC().Truncate(time.Microsecond)
	if d.env.ID == "" {
		d.env.ID = NewID(d.env.Arrival)
	}
	if _, ok := IDKind(d.env.ID); !ok {
		return nil, fmt.Errorf("%q is no message id", d.env.ID)
	}
	for i := range d.env.Recipients {
		if err := d.env.Recipients[i].check(); err != nil {
			return nil, err
		}
	}
	if err := d.env.check(); err != nil {
		return nil, err
	}
	path := s.file(Tmp, d.env.ID)
	fd := -1
	err := ignoringEINTR(func() (err error) {
		fd, err = unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, modeUncommitted)
		return err
	})
	if err != nil {
		return nil, &fs.PathError{Op: "create", Path: path, Err: err}
	}
	d.f, d.tmp = os.NewFile(uintptr(fd), path), path
	if os.Geteuid() == 0 && s.owner != 0 && !s.shared {
		// The owner has to read what root puts into a spool of one uid.
		if err := unix.Fchown(fd, s.owner, -1); err != nil {
			d.Abort()
			return nil, &fs.PathError{Op: "chown", Path: path, Err: err}
		}
	}
	d.lock()
	return d, nil
}

// lock lets the cleaner see that somebody writes the file, where that can be
// relied on. Where it cannot, the cleaner goes by time.
func (d *Draft) lock() {
	fd := int(d.f.Fd())
	if !reliableLocks(fd) || ignoringEINTR(func() error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) }) != nil {
		return
	}
	d.locked = true
	_ = ignoringEINTR(func() error { return unix.Fchmod(fd, modeHeld) })
}

// unlock gives the lock back, before anybody takes the message up: who stops the
// submitter then stops nobody else. The mode goes first, and counts as a change of
// the inode: the cleaner, which has the file open or is about to, leaves it alone.
func (d *Draft) unlock() error {
	if !d.locked {
		return nil
	}
	fd := int(d.f.Fd())
	if err := ignoringEINTR(func() error { return unix.Fchmod(fd, modeUncommitted) }); err != nil {
		return &fs.PathError{Op: "chmod", Path: d.f.Name(), Err: err}
	}
	if d.held {
		return nil
	}
	d.locked = false
	return ignoringEINTR(func() error { return unix.Flock(fd, unix.LOCK_UN) })
}

// ID is the id that the message has or will have.
func (d *Draft) ID() string { return d.env.ID }

// Arrival is the time of arrival that the envelope states.
func (d *Draft) Arrival() time.Time { return d.env.Arrival }

// Write adds to the content.
func (d *Draft) Write(p []byte) (int, error) {
	if !d.flushed {
		if len(d.buf)+len(p) <= draftBuffer {
			d.buf = append(d.buf, p...)
			return len(p), nil
		}
		if err := d.flush(); err != nil {
			return 0, err
		}
	}
	n, err := d.f.Write(p)
	d.sum = crc32.Update(d.sum, crc32.IEEETable, p[:n])
	d.written += int64(n)
	return n, err
}

// flush writes an envelope, to be overwritten by the final one, and what has
// been buffered.
func (d *Draft) flush() error {
	d.flushed = true
	if _, err := d.f.Write(append(d.env.encode(), d.buf...)); err != nil {
		return err
	}
	d.sum = crc32.ChecksumIEEE(d.buf)
	d.written = int64(len(d.buf))
	d.buf = nil
	return nil
}

// finish writes what is missing, the envelope with the final length and
// checksum included.
func (d *Draft) finish() error {
	if !d.flushed {
		d.env.ContentLength = int64(len(d.buf))
		d.env.ContentChecksum = crc32.ChecksumIEEE(d.buf)
		_, err := d.f.Write(append(d.env.encode(), d.buf...))
		d.flushed = true
		return err
	}
	d.env.ContentLength, d.env.ContentChecksum = d.written, d.sum
	_, err := d.f.WriteAt(d.env.encode(), 0)
	return err
}

// Hold takes the lock of the message before it has a name in new, and makes
// Commit keep it until Close. The queue process, which makes a child or a
// report, so finishes the step of its parent before anybody takes it up.
func (d *Draft) Hold() error {
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Fstat(int(d.f.Fd()), &st) }); err != nil {
		return &fs.PathError{Op: "fstat", Path: d.f.Name(), Err: err}
	}
	d.inode = inodeOf(&st)
	err := d.spool.lock(context.Background(), d.f, d.inode) // nobody else has this file
	d.held = err == nil
	return err
}

// Commit makes the message mail. The order of its steps is the one described
// in the package comment; when it returns nil, the message, all its names and
// its commitment are on disk. After an error nothing of it is left, as far as
// the file system lets us: the caller has to report a failure, and the message
// may exist only if the error came from the very last sync. Commit ends the
// draft; after Hold, Close ends it.
func (d *Draft) Commit() error {
	if err := d.commit(); err != nil {
		d.remove()
		d.Close()
		return fmt.Errorf("commit message %s: %w", d.env.ID, err)
	}
	if d.held {
		return nil
	}
	d.f.Close() // both syncs have succeeded: close has nothing left to say
	return nil
}

func (d *Draft) commit() error {
	if err := d.finish(); err != nil {
		return err
	}
	for n := range d.env.Recipients {
		path := d.spool.file(New, d.env.Name(n+1).file)
		if err := ignoringEINTR(func() error { return unix.Link(d.tmp, path) }); err != nil {
			return &os.LinkError{Op: "link", Old: d.tmp, New: path, Err: err}
		}
		d.linked = append(d.linked, path)
	}
	if err := ignoringEINTR(func() error { return unix.Unlink(d.tmp) }); err != nil {
		return &fs.PathError{Op: "unlink", Path: d.tmp, Err: err}
	}
	d.tmp = ""
	if err := d.f.Sync(); err != nil {
		return err
	}
	if err := d.unlock(); err != nil {
		return err
	}
	// By path, and by the path in new: the change of mode is what a watcher
	// of that directory is told of.
	if err := ignoringEINTR(func() error { return chmodName(d.linked[0], d.f, modeCommitted) }); err != nil {
		return &fs.PathError{Op: "chmod", Path: d.linked[0], Err: err}
	}
	return d.f.Sync()
}

// remove takes back every name made so far, the first one last: as long as it
// stands the rest are known to be its.
func (d *Draft) remove() {
	for i := len(d.linked) - 1; i >= 0; i-- {
		unix.Unlink(d.linked[i])
	}
	if d.tmp != "" {
		unix.Unlink(d.tmp)
	}
}

// Abort gives the draft up and removes what there is of it.
func (d *Draft) Abort() error {
	d.remove()
	return d.Close()
}

// Close ends a committed draft that Hold keeps locked.
func (d *Draft) Close() error {
	if d.held {
		d.held = false
		return errors.Join(d.spool.unlock(d.f, d.inode), d.f.Close())
	}
	return d.f.Close()
}
