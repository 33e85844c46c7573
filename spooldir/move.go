package spooldir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// FullError says that the disk is so full that a name could not move. The
// name is where it was.
type FullError struct{ Err error }

func (e *FullError) Error() string { return "the disk is full: " + e.Err.Error() }
func (e *FullError) Unwrap() error { return e.Err }

// Move moves a name from one state to another. It never replaces a name and
// never leaves both. It is the primitive under package states, which alone
// knows which steps are legal; nothing else calls it.
//
// Where the name stands in both directories already (a crash on a file system
// that allows it, a link made by hand), the further of the two stays, by Rank.
// If they are different files, the one that is no message is moved to corrupt,
// and if both are, the less far one: it is the newcomer. Errors: ErrGone if the name is not in from, or was no match for the
// one in to; a *FullError; anything
// else is trouble of the machine. A move is durable after Sync.
func (s *Spool) Move(name Name, from, to State) error {
	src, dst := s.file(from, name.file), s.file(to, name.file)
	for range 3 {
		err := renameExclusive(src, dst)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, fs.ErrNotExist):
			if _, err := os.Lstat(s.dir(to)); err != nil {
				return fmt.Errorf("move %s: %w", name, err)
			}
			return ErrGone
		case errors.Is(err, fs.ErrExist):
			done, err := s.settle(name, from, to)
			if err != nil || done {
				return err
			}
			continue // the way is free now
		case full(err):
			// The room that the ballast keeps is there for this.
			if s.ReleaseBallast() {
				continue
			}
			return &FullError{err}
		}
		return fmt.Errorf("move %s from %s to %s: %w", name, from, to, err)
	}
	return fmt.Errorf("move %s from %s to %s: somebody keeps making the same name", name, from, to)
}

// settle decides what stays when a name stands in from and to. It returns
// true if that makes the move done, and ErrGone if the name must not move
// because it already is further along than from.
func (s *Spool) settle(name Name, from, to State) (bool, error) {
	src, dst := s.file(from, name.file), s.file(to, name.file)
	var a, b unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Lstat(src, &a) }); err != nil {
		return true, goneOr(err)
	}
	if err := ignoringEINTR(func() error { return unix.Lstat(dst, &b) }); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return true, goneOr(err)
	}
	if a.Dev != b.Dev || a.Ino != b.Ino {
		there, err := s.sound(to, name)
		if err != nil {
			return true, err
		}
		here := false
		if there && from.Rank() >= to.Rank() {
			if here, err = s.sound(from, name); err != nil {
				return true, err
			}
		}
		if there && !here {
			if _, err := s.Quarantine(from, name.file); err != nil {
				return true, err
			}
			return true, ErrGone
		}
		_, err = s.Quarantine(to, name.file)
		return false, err
	}
	if to.Rank() >= from.Rank() {
		return true, goneOr(ignoringEINTR(func() error { return unix.Unlink(src) }))
	}
	// A step back (a retry, a release) while the goal has a stale name.
	err := goneOr(ignoringEINTR(func() error { return unix.Unlink(dst) }))
	if errors.Is(err, ErrGone) {
		err = nil
	}
	return false, err
}

// sound reports whether a name in a state belongs to a committed message. An
// error says that it could not be told, and so nothing may be done about it.
func (s *Spool) sound(state State, name Name) (bool, error) {
	m, err := s.Open(state, name)
	var corrupt *CorruptError
	switch {
	case err == nil:
		m.Close()
		return true, nil
	case errors.As(err, &corrupt), errors.Is(err, ErrGone), errors.Is(err, ErrUncommitted):
		return false, nil
	}
	return false, err
}

func goneOr(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return ErrGone
	}
	return err
}

// Remove removes a name: the end of a recipient. ErrGone if it is not there.
func (s *Spool) Remove(name Name, state State) error {
	path := s.file(state, name.file)
	if err := ignoringEINTR(func() error { return unix.Unlink(path) }); err != nil {
		if err := goneOr(err); errors.Is(err, ErrGone) {
			return err
		}
		return &fs.PathError{Op: "unlink", Path: path, Err: err}
	}
	return nil
}

// Quarantine moves a file that cannot be a message to corrupt, under a name
// that is free there, and returns its new path. It never deletes anything.
func (s *Spool) Quarantine(state State, file string) (string, error) {
	src := s.file(state, file)
	for i := range 1000 {
		dst := s.file(Corrupt, file)
		if i > 0 {
			suffix := fmt.Sprintf(".%d", i)
			dst = s.file(Corrupt, file[:min(len(file), nameMax-len(suffix))]+suffix)
		}
		err := renameExclusive(src, dst)
		switch {
		case err == nil:
			return dst, nil
		case errors.Is(err, fs.ErrNotExist):
			return "", ErrGone
		case errors.Is(err, fs.ErrExist):
			var a, b unix.Stat_t
			if unix.Lstat(src, &a) == nil && unix.Lstat(dst, &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino && a.Mode&unix.S_IFMT != unix.S_IFDIR {
				return dst, goneOr(ignoringEINTR(func() error { return unix.Unlink(src) }))
			}
			continue
		case full(err) && s.ReleaseBallast():
			continue
		}
		return "", fmt.Errorf("move %s to corrupt: %w", src, err)
	}
	return "", fmt.Errorf("move %s to corrupt: no free name", src)
}

// linkThenUnlink is renameExclusive for systems and file systems without
// RENAME_NOREPLACE. A kill in between leaves both names, which settle knows.
func linkThenUnlink(src, dst string) error {
	err := ignoringEINTR(func() error { return unix.Link(src, dst) })
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return lookThenRename(src, dst, err)
	}
	if err != nil {
		return err
	}
	return ignoringEINTR(func() error { return unix.Unlink(src) })
}

// lookThenRename is for files that may not be linked: those of other users,
// where the system protects hard links. Ids never repeat, so only another name
// of the same message could come under dst between the look and the rename,
// which then does nothing; or what a person puts there in that instant.
func lookThenRename(src, dst string, refused error) error {
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Lstat(src, &st) }); err != nil {
		return err
	}
	err := ignoringEINTR(func() error { return unix.Lstat(dst, &st) })
	switch {
	case err == nil:
		return unix.EEXIST
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := ignoringEINTR(func() error { return unix.Rename(src, dst) }); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return refused
		}
		return err
	}
	return nil
}
