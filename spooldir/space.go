package spooldir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ballastFile lies in the spool to be given up when the disk is full, so that
// names can still move: a full disk stops renames, never unlinks.
const (
	ballastFile = "ballast"
	ballastSize = 1 << 20
)

// minInodes is the number of free inodes below which no mail is taken, on
// file systems that count them.
const minInodes = 256

// Room is how much of a file system is free for the owner of the spool.
type Room struct {
	Bytes, TotalBytes   int64
	Inodes, TotalInodes int64 // 0 of 0 where the file system makes them as needed
}

// Room tells how much is free.
func (s *Spool) Room() (Room, error) {
	r, err := statRoom(s.path)
	if err != nil {
		return Room{}, fmt.Errorf("statfs %s: %w", s.path, err)
	}
	return r, nil
}

// Free returns nil if the spool may take mail, and otherwise an error that
// says what is short: fewer than floor octets are free, or too few inodes.
func (s *Spool) Free(floor int64) error {
	r, err := s.Room()
	if err != nil {
		return err
	}
	if r.Bytes < floor {
		return fmt.Errorf("the disk of spool %s is full: %d octets are free, %d have to be", s.path, r.Bytes, floor)
	}
	if r.TotalInodes > 0 && r.Inodes < min(minInodes, r.TotalInodes/10) {
		return fmt.Errorf("the disk of spool %s is full: %d inodes are free", s.path, r.Inodes)
	}
	return nil
}

// ReleaseBallast gives the ballast up and reports whether there was one.
func (s *Spool) ReleaseBallast() bool {
	return ignoringEINTR(func() error { return unix.Unlink(filepath.Join(s.path, ballastFile)) }) == nil
}

// KeepBallast makes the ballast again when there is room for it above floor.
// Only the queue process calls it.
func (s *Spool) KeepBallast(floor int64) error {
	if _, err := os.Lstat(filepath.Join(s.path, ballastFile)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if s.Free(floor+2*ballastSize) != nil {
		return nil
	}
	return keepBallast(s.path)
}

func keepBallast(dir string) error {
	path := filepath.Join(dir, ballastFile)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	// Real blocks: a sparse file would keep nothing.
	if _, err := f.Write(make([]byte, ballastSize)); err != nil {
		f.Close()
		os.Remove(path)
		return err
	}
	return f.Close()
}
