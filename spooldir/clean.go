package spooldir

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"
)

// UncommittedAge is how old a name has to be, by its ctime, before the cleaner
// believes that its submitter died, where it cannot see that.
const UncommittedAge = 24 * time.Hour

// Cleaned tells what a cleaner or a recovery did to one file.
type Cleaned struct {
	File string // state/name
	What string
}

// Clean removes what dead submitters left in tmp and new: only uncommitted
// names and the submitters' own temporary ones, and only those that a submitter
// held the lock of and does not any more, or whose inode has not changed for
// UncommittedAge. A committed recipient name found in tmp goes back to new. now is
// the time by which the age counts. What it takes does not grow with the number of
// names.
//
// A submitter that was only stopped may go on at any moment. It commits by the
// first name, so the cleaner takes that one away first, to tmp, and looks at
// the mode again; then no commit is possible any more, or it has happened. A
// submitter that held the lock and does not is not there: its names go in any
// order.
func (s *Spool) Clean(now time.Time) ([]Cleaned, error) {
	c := newCleaner(s, now)
	c.tmp(nil)
	c.new()
	return c.result()
}

// maxNoted bounds what a cleaner tells one by one, and maxErrors its errors.
const (
	maxNoted  = 1000
	maxErrors = 10
)

// cleanRound is how many messages, whose first name was taken away, a cleaner
// keeps in mind.
const cleanRound = 4096

type cleaner struct {
	spool  *Spool
	before time.Time
	round  int
	done   []Cleaned
	more   int // done, and not told
	errs   []error
}

func newCleaner(s *Spool, now time.Time) *cleaner {
	return &cleaner{spool: s, before: now.Add(-UncommittedAge), round: cleanRound}
}

func (c *cleaner) note(state State, file, what string) {
	if len(c.done) >= maxNoted {
		c.more++
		return
	}
	c.done = append(c.done, Cleaned{string(state) + "/" + file, what})
}

func (c *cleaner) fail(err error) {
	if err != nil && !errors.Is(err, ErrGone) && len(c.errs) < maxErrors {
		c.errs = append(c.errs, err)
	}
}

// result is what was done, and what went wrong.
func (c *cleaner) result() ([]Cleaned, error) {
	if c.more > 0 {
		c.done = append(c.done, Cleaned{"spool", fmt.Sprintf("%d more files as those before", c.more)})
		c.more = 0
	}
	return c.done, errors.Join(c.errs...)
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

// abandoned reports whether a file was held by a submitter who has died. The file
// is uncommitted then, and stays so.
func (c *cleaner) abandoned(state State, file string, mode uint32) bool {
	if mode&0o7777 != modeHeld {
		return false
	}
	fd, err := unix.Open(c.spool.file(state, file), unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if !reliableLocks(fd) || ignoringEINTR(func() error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) }) != nil {
		return false
	}
	// One that is about to commit has taken the mode back before the lock.
	var st unix.Stat_t
	err = ignoringEINTR(func() error { return unix.Fstat(fd, &st) })
	return err == nil && st.Mode == unix.S_IFREG|modeHeld
}

// tmp cleans tmp. Files for which dead says yes need not be old.
func (c *cleaner) tmp(dead func(id string) bool) {
	c.fail(c.spool.readDir(string(Tmp), func(file string) bool {
		st, old, err := c.lstat(Tmp, file)
		switch {
		case err != nil:
			c.fail(err)
			return true
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			return true // not ours: a person made it
		}
		old = old || c.abandoned(Tmp, file, uint32(st.Mode))
		if name, err := ParseName(file); err == nil {
			if st.Mode&unix.S_IFMT == unix.S_IFREG && !uncommitted(uint32(st.Mode)) {
				// A cleaner died between taking it away and looking.
				if err = c.spool.Move(name, Tmp, New); err == nil {
					c.note(Tmp, file, "committed: back to new")
				}
				c.fail(err)
			} else if old {
				c.fail(c.removeFile(Tmp, file))
			}
			return true
		}
		if _, ok := IDKind(file); !ok {
			return true // not ours: a person put it there
		}
		if old || dead != nil && dead(file) {
			c.fail(c.removeFile(Tmp, file))
		}
		return true
	}))
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

func inodeOf(st *unix.Stat_t) inode { return inode{uint64(st.Dev), uint64(st.Ino)} }

// new cleans new. What has to go by its age goes in two readings, first names and
// then the others: taking the first one away makes the others young again. Where
// the first one cannot be taken away, the others stay: a submitter that goes on
// could still commit by it.
func (c *cleaner) new() {
	for again := true; again; {
		gone := make(map[inode]bool)
		stay := make(map[inode]bool)
		others, more := false, false // more stay than are kept in mind
		again = false
		all := c.names(func(n Name, st *unix.Stat_t, old bool) bool {
			switch {
			case c.abandoned(New, n.file, uint32(st.Mode)):
				c.take(n, st)
			case !old:
			case n.N > 1:
				others = true
			case c.take(n, st):
				gone[inodeOf(st)] = true
				again = len(gone) >= c.round
			case len(stay) < c.round:
				stay[inodeOf(st)] = true
			default:
				more = true
			}
			return !again
		})
		if len(gone) == 0 && !others {
			return
		}
		c.names(func(n Name, st *unix.Stat_t, old bool) bool {
			// Every first name that is old has gone or is known to stay, unless there is
			// another round.
			if n.N > 1 && (gone[inodeOf(st)] || old && !again && all && !more && !stay[inodeOf(st)]) {
				c.take(n, st)
			}
			return true
		})
	}
}

// names calls each with the uncommitted names in new until it returns false. It
// reports whether no name was overlooked.
func (c *cleaner) names(each func(n Name, st *unix.Stat_t, old bool) bool) (all bool) {
	all = true
	err := c.spool.Scan(New, func(n Name) bool {
		st, old, err := c.lstat(New, n.file)
		if err != nil {
			all = all && errors.Is(err, ErrGone)
			c.fail(err)
			return true
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG || !uncommitted(uint32(st.Mode)) {
			return true
		}
		return each(n, &st, old)
	}, nil)
	c.fail(err)
	return all && err == nil
}

// take removes one name of a dead submission, and reports whether it did: it takes
// it away and looks again what it is.
func (c *cleaner) take(n Name, before *unix.Stat_t) bool {
	if err := renameExclusive(c.spool.file(New, n.file), c.spool.file(Tmp, n.file)); err != nil {
		c.fail(goneOr(err))
		return false
	}
	st, _, err := c.lstat(Tmp, n.file)
	if err != nil {
		c.fail(err)
		return false
	}
	if !uncommitted(uint32(st.Mode)) || inodeOf(&st) != inodeOf(before) {
		c.fail(c.spool.Move(n, Tmp, New))
		return false
	}
	if err := ignoringEINTR(func() error { return unix.Unlink(c.spool.file(Tmp, n.file)) }); err != nil {
		c.fail(goneOr(err))
		return false
	}
	c.note(New, n.file, "uncommitted: removed")
	return true
}
