package spooldir

import (
	"errors"
	"io/fs"
	"sort"
	"time"

	"golang.org/x/sys/unix"
)

// UncommittedAge is how old a name has to be, by its ctime, before the cleaner
// believes that its submitter died.
const UncommittedAge = 24 * time.Hour

// Cleaned tells what a cleaner or a recovery did to one file.
type Cleaned struct {
	File string // state/name
	What string
}

// Clean removes what dead submitters left in tmp and new: only uncommitted
// names and the submitters' own temporary ones, and only those whose inode has
// not changed for UncommittedAge. A committed recipient name found in tmp goes
// back to new. now is the time by which the age counts.
//
// A submitter that was only stopped may go on at any moment. It commits by the
// first name, so the cleaner takes just that one away, to tmp, and looks at
// the mode again; then no commit is possible any more, or it has happened.
func (s *Spool) Clean(now time.Time) ([]Cleaned, error) {
	c := cleaner{spool: s, before: now.Add(-UncommittedAge)}
	err := errors.Join(c.tmp(nil), c.new())
	return c.done, err
}

type cleaner struct {
	spool  *Spool
	before time.Time
	done   []Cleaned
}

func (c *cleaner) note(state State, file, what string) {
	c.done = append(c.done, Cleaned{string(state) + "/" + file, what})
}

// lstat returns the mode, and whether the inode is old enough.
func (c *cleaner) lstat(state State, file string) (st unix.Stat_t, old bool, err error) {
	err = ignoringEINTR(func() error { return unix.Lstat(c.spool.file(state, file), &st) })
	if err != nil {
		return st, false, goneOr(err)
	}
	sec, nsec := st.Ctim.Unix()
	return st, time.Unix(sec, nsec).Before(c.before), nil
}

// tmp cleans tmp. Files for which dead says yes need not be old.
func (c *cleaner) tmp(dead func(id string) bool) error {
	var files []string
	err := c.spool.readDir(string(Tmp), func(file string) bool {
		files = append(files, file)
		return true
	})
	errs := []error{err}
	for _, file := range files {
		st, old, err := c.lstat(Tmp, file)
		if errors.Is(err, ErrGone) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			continue // not ours: a person made it
		}
		if name, err := ParseName(file); err == nil {
			if st.Mode&unix.S_IFMT == unix.S_IFREG && !uncommitted(uint32(st.Mode)) {
				// A cleaner died between taking it away and looking.
				err := c.spool.Move(name, Tmp, New)
				if err == nil {
					c.note(Tmp, file, "committed: back to new")
				} else if !errors.Is(err, ErrGone) {
					errs = append(errs, err)
				}
			} else if old {
				errs = append(errs, c.removeFile(Tmp, file))
			}
			continue
		}
		if _, ok := IDKind(file); !ok {
			continue // not ours: a person put it there
		}
		if old || dead != nil && dead(file) {
			errs = append(errs, c.removeFile(Tmp, file))
		}
	}
	return errors.Join(errs...)
}

func (c *cleaner) removeFile(state State, file string) error {
	err := ignoringEINTR(func() error { return unix.Unlink(c.spool.file(state, file)) })
	if err == nil {
		c.note(state, file, "uncommitted: removed")
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// new cleans new.
func (c *cleaner) new() error {
	groups := make(map[string][]Name)
	err := c.spool.Scan(New, func(n Name) bool {
		groups[n.ID] = append(groups[n.ID], n)
		return true
	}, nil)
	errs := []error{err}
	for _, names := range groups {
		sort.Slice(names, func(i, j int) bool { return names[i].N < names[j].N })
		st, old, err := c.lstat(New, names[0].file)
		if err != nil || !old || !uncommitted(uint32(st.Mode)) || st.Mode&unix.S_IFMT != unix.S_IFREG {
			if err != nil && !errors.Is(err, ErrGone) {
				errs = append(errs, err)
			}
			continue
		}
		errs = append(errs, c.message(names))
	}
	return errors.Join(errs...)
}

// message removes the names of one dead submission, which are sorted by
// number.
func (c *cleaner) message(names []Name) error {
	first := names[0]
	if err := renameExclusive(c.spool.file(New, first.file), c.spool.file(Tmp, first.file)); err != nil {
		if err := goneOr(err); !errors.Is(err, ErrGone) {
			return err
		}
		return nil
	}
	st, _, err := c.lstat(Tmp, first.file)
	if err != nil {
		return err
	}
	if !uncommitted(uint32(st.Mode)) {
		err := c.spool.Move(first, Tmp, New)
		if errors.Is(err, ErrGone) {
			return nil
		}
		return err
	}
	var errs []error
	for i := len(names) - 1; i > 0; i-- {
		// Only names of this very inode: the rest is somebody else's.
		other, _, err := c.lstat(New, names[i].file)
		if err == nil && other.Dev == st.Dev && other.Ino == st.Ino {
			errs = append(errs, c.removeFile(New, names[i].file))
		}
	}
	errs = append(errs, c.removeFile(Tmp, first.file))
	return errors.Join(errs...)
}
