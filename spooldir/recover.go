package spooldir

import (
	"errors"
	"sort"
	"time"

	"golang.org/x/sys/unix"
)

// Recovery is what Recover found and mended.
type Recovery struct {
	Done     []Cleaned
	Trouble  []error // with single files; they are as they were, and stop nothing
	Children []Name  // one name of each committed message in new or hold that dma itself made
}

// Recover brings the spool into a legal state after whatever happened to it.
// The queue process calls it at start, holding its lock, before it takes
// anything up:
//
//   - children and reports that their maker did not live to commit are removed
//     (their ids show what they are);
//   - a name that stands in two states stays in the further one; another file
//     under the same name goes to corrupt;
//   - every message that has left new has a journal, every journal a message.
//
// What the caller has to do itself is to finish the steps of the parents of
// all Children, before any other step.
func (s *Spool) Recover(now time.Time) (Recovery, error) {
	c := newCleaner(s, now)
	var r Recovery
	c.tmp(func(id string) bool {
		kind, _ := IDKind(id)
		return kind != Submitted
	})
	c.new() // first, so that what dead submitters left need not be kept in mind
	ids, underWay, err := c.all(&r)
	if err != nil {
		return r, err
	}
	r.trouble(c.journals(ids, underWay))
	done, err := c.result()
	r.trouble(err)
	r.Done = done
	sort.Slice(r.Children, func(i, j int) bool { return r.Children[i].ID < r.Children[j].ID })
	return r, nil
}

func (r *Recovery) trouble(err error) {
	if err != nil {
		r.Trouble = append(r.Trouble, err)
	}
}

// all looks at every name of the spool and returns the ids that have any,
// and those that have any beyond new.
func (c *cleaner) all(r *Recovery) (ids, underWay map[string]bool, err error) {
	s := c.spool
	ids, underWay = make(map[string]bool), make(map[string]bool)
	at := make(map[string]State)
	children := make(map[string]bool)
	for _, state := range States() {
		var names []Name
		if err := s.Scan(state, func(n Name) bool { names = append(names, n); return true }, nil); err != nil {
			return nil, nil, err
		}
		for _, n := range names {
			if state == New {
				gone, err := c.uncommittedChild(n)
				r.trouble(err)
				if gone {
					continue
				}
			}
			// It may have been parked while nobody could finish its parent's step.
			if kind, _ := IDKind(n.ID); kind != Submitted && !children[n.ID] && (state == New || state == Hold) {
				children[n.ID] = true
				r.Children = append(r.Children, n)
			}
			ids[n.ID] = true
			underWay[n.ID] = underWay[n.ID] || state != New
			if before, twice := at[n.file]; twice {
				stays, err := c.twice(n, before, state)
				r.trouble(err)
				at[n.file] = stays
				continue
			}
			at[n.file] = state
		}
	}
	return ids, underWay, nil
}

// uncommittedChild removes a name in new of a child or report that was never
// committed, and reports whether it did.
func (c *cleaner) uncommittedChild(n Name) (bool, error) {
	if kind, _ := IDKind(n.ID); kind == Submitted {
		return false, nil
	}
	st, _, err := c.lstat(New, n.file)
	if errors.Is(err, ErrGone) {
		return true, nil
	}
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || !uncommitted(uint32(st.Mode)) {
		return false, err
	}
	return true, c.removeFile(New, n.file)
}

// twice settles a name that stands in two states and returns the one that it
// stands in now. States come in the order of States, so b is not less far
// than a, except that Remote comes after Local.
func (c *cleaner) twice(n Name, a, b State) (State, error) {
	done, err := c.spool.settle(n, a, b)
	if errors.Is(err, ErrGone) { // another file stood in a, and is in corrupt now
		c.note(a, n.file, "another file under a name in "+string(b)+": moved to corrupt")
		return b, nil
	}
	if err != nil {
		return a, err
	}
	if !done { // another file stood in b, and is in corrupt now
		c.note(b, n.file, "another file under the same name: moved to corrupt")
		return a, nil
	}
	c.note(a, n.file, "stood in "+string(b)+" too: removed here")
	return b, nil
}

// journals makes missing journals of messages that are under way, and removes
// those without a message.
func (c *cleaner) journals(ids, underWay map[string]bool) error {
	s := c.spool
	var errs []error
	for id, is := range underWay {
		if !is {
			continue
		}
		made, err := s.CreateJournal(id)
		if err != nil {
			errs = append(errs, err)
		} else if made {
			c.note(LogDir, id, "missing: made")
		}
	}
	errs = append(errs, c.orphans(ids))
	return errors.Join(errs...)
}

// CleanJournals removes journals that no name belongs to: those of messages
// whose last name somebody removed by hand, or a full disk did not let move.
func (s *Spool) CleanJournals() ([]Cleaned, error) {
	// The journals first: a message that comes meanwhile has none among them.
	before := make(map[string]bool)
	if err := s.Journals(func(id string) bool { before[id] = true; return true }); err != nil {
		return nil, err
	}
	places, err := s.List()
	if err != nil {
		return nil, err
	}
	for _, p := range places {
		delete(before, p.Name.ID)
	}
	var done []Cleaned
	var errs []error
	for id := range before {
		errs = append(errs, s.RemoveJournal(id))
		done = append(done, Cleaned{LogDir + "/" + id, "no message: removed"})
	}
	return done, errors.Join(errs...)
}

// orphans removes the journals of messages that are not among ids.
func (c *cleaner) orphans(ids map[string]bool) error {
	var orphans []string
	errs := []error{c.spool.Journals(func(id string) bool {
		if !ids[id] {
			orphans = append(orphans, id)
		}
		return true
	})}
	for _, id := range orphans {
		errs = append(errs, c.spool.RemoveJournal(id))
		c.note(LogDir, id, "no message: removed")
	}
	return errors.Join(errs...)
}
