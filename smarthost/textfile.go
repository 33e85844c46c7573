package smarthost

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"time"

	"dma/internal/config"
)

// maxTextFile is the most octets of a credentials or policy file.
const maxTextFile = 1 << 20

// textFile is a file that is read again when it has changed.
type textFile struct {
	path    string
	data    []byte
	info    fs.FileInfo
	settled bool // it had not changed for a while when it was read
}

// read returns the content, and whether it was read anew. A change that leaves the
// size alone and happens within the grain of the file system's clock would not
// show; so a file that has just changed is read again the next time.
func (f *textFile) read() (data []byte, changed bool, err error) {
	// O_NONBLOCK: a FIFO is refused below, not waited for.
	file, err := os.OpenFile(f.path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		f.info = nil
		return nil, false, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "read", Path: f.path, Err: errors.New("not a regular file")}
	}
	if err == nil && f.settled && f.same(info) {
		return f.data, false, nil
	}
	var fresh []byte
	if err == nil {
		fresh, err = io.ReadAll(io.LimitReader(file, maxTextFile+1))
	}
	if err == nil && len(fresh) > maxTextFile {
		err = &fs.PathError{Op: "read", Path: f.path, Err: errors.New("longer than 1 MiB")}
	}
	if err != nil {
		f.info = nil
		return nil, false, err
	}
	changed = !f.same(info) || !slices.Equal(f.data, fresh)
	f.data, f.info, f.settled = fresh, info, time.Since(info.ModTime()) > 2*time.Second
	return fresh, changed, nil
}

func (f *textFile) same(info fs.FileInfo) bool {
	return f.info != nil && os.SameFile(f.info, info) && f.info.Size() == info.Size() &&
		f.info.ModTime().Equal(info.ModTime()) && f.info.Mode() == info.Mode()
}

// reporter tells problems once, until they change.
type reporter struct {
	tell func(config.Problem)
	last []config.Problem
}

func (r *reporter) report(problems []config.Problem) {
	const most = 100
	if len(problems) > most {
		problems = append(problems[:most:most], config.Problem{File: problems[0].File, Text: "more problems than are shown here"})
	}
	if r.tell != nil && !slices.Equal(problems, r.last) {
		for _, p := range problems {
			r.tell(p)
		}
	}
	r.last = problems
}
