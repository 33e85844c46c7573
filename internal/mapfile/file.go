// Package mapfile reads the small text files that an administrator edits while the
// program runs: maps from names to something else, credentials, policies.
package mapfile

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// File is a text file that is read again when it has changed. It is not safe for
// use by several goroutines at a time.
type File struct {
	Path  string
	Limit int64            // the most octets it may have; default 1 MiB
	Now   func() time.Time // default time.Now

	info    fs.FileInfo // nil: not read
	settled bool        // it had not changed for a while when it was read
	sum     [sha256.Size]byte
}

// settle is how old the last change of a file must be before its time is enough to
// tell that it has not changed again: a change that leaves the size alone and
// happens within the grain of the file system's clock does not show.
const settle = 2 * time.Second

// Read returns the text if it has changed since the last call that succeeded; if
// it has not, changed is false and text nil. The error is that of the file, with
// its path; after one the next text counts as changed.
func (f *File) Read() (text []byte, changed bool, err error) {
	info, text, fresh, err := f.read()
	if err != nil {
		f.info = nil
		return nil, false, err
	}
	if !fresh {
		return nil, false, nil
	}
	now := time.Now
	if f.Now != nil {
		now = f.Now
	}
	sum := sha256.Sum256(text)
	changed = !f.same(info) || sum != f.sum
	f.info, f.sum, f.settled = info, sum, now().Sub(info.ModTime()).Abs() > settle
	if !changed {
		return nil, false, nil
	}
	return text, true, nil
}

// Info returns what was known of the file when it was last read; nil if it could
// not be.
func (f *File) Info() fs.FileInfo { return f.info }

// read returns the text if it may have changed.
func (f *File) read() (info fs.FileInfo, text []byte, fresh bool, err error) {
	// O_NONBLOCK: a FIFO is refused below, not waited for.
	file, err := os.OpenFile(f.Path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, false, err
	}
	defer file.Close()
	info, err = file.Stat()
	if err != nil {
		return nil, nil, false, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, false, &fs.PathError{Op: "read", Path: f.Path, Err: errors.New("not a regular file")}
	}
	if f.settled && f.same(info) {
		return info, nil, false, nil
	}
	limit := f.Limit
	if limit <= 0 {
		limit = 1 << 20
	}
	text, err = io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, nil, false, err
	}
	if int64(len(text)) > limit {
		return nil, nil, false, &fs.PathError{Op: "read", Path: f.Path, Err: fmt.Errorf("longer than %d KiB", limit>>10)}
	}
	return info, text, true, nil
}

func (f *File) same(info fs.FileInfo) bool {
	return f.info != nil && os.SameFile(f.info, info) && f.info.Size() == info.Size() &&
		f.info.ModTime().Equal(info.ModTime()) && f.info.Mode() == info.Mode()
}
