package queue

import (
	"errors"
	"fmt"
	"time"

	"dma/spooldir"
)

// result is what was decided about one recipient.
type result struct {
	n      int
	to     spooldir.State
	status string // RFC 3463
	reply  string // why
	relay  string
	soon   time.Time // what failed for now is tried again then, if not earlier; zero: as usual
}

// settle records results in the journal of a message, logs them and moves the
// recipients. The recipients stand in from; the message is locked or all its
// names in from are in the caller's hand.
func (q *Queue) settle(m *spooldir.Message, from spooldir.State, results []result) error {
	if len(results) == 0 {
		return nil
	}
	now := q.clock.Now()
	var journal *spooldir.Journal // read where it matters
	var entries []spooldir.Entry
	for i := range results {
		r := &results[i]
		e := spooldir.Entry{Time: now, Recipients: []int{r.n}, Status: r.status, Relay: r.relay, Reply: r.reply}
		switch r.to {
		case spooldir.Sent:
			e.Event = spooldir.Delivered
		case spooldir.Tempfail:
			e.Event = spooldir.Deferred
			if journal == nil {
				var err error
				if journal, err = q.spool.ReadJournal(m.ID); err != nil {
					journal = &spooldir.Journal{}
				}
			}
			e.Next = q.config.Retry.Next(m.ID, journal.Attempts(r.n)+1, since(m, journal), now)
			if r.soon.After(now) && r.soon.Before(e.Next) {
				e.Next = r.soon
			}
		case spooldir.Permfail:
			e.Event = spooldir.Failed
		default:
			continue // a claim: nothing to tell
		}
		q.logAttempt(m, &e, r.n)
		entries = spooldir.Merge(entries, e)
	}
	if len(entries) > 0 {
		// One synced line where one answer decides several recipients; for a
		// single one the step itself is synced, with others in a group.
		sync := false
		for i := range entries {
			sync = sync || entries[i].Event == spooldir.Delivered && len(entries[i].Recipients) > 1
		}
		if err := q.spool.AppendJournal(m.ID, sync, entries...); err != nil {
			// History is lost, mail is not: the step decides.
			q.trouble(from, m.Name(results[0].n), err)
		}
	}
	var errs []error
	var removed []int
	for _, r := range results {
		name := m.Name(r.n)
		err := q.mover.Move(name, from, r.to, r.reply)
		if err != nil && !errors.Is(err, spooldir.ErrGone) {
			errs = append(errs, err)
		}
		q.mu.Lock()
		if q.removed[name.String()] {
			delete(q.removed, name.String())
			removed = append(removed, r.n)
		}
		q.mu.Unlock()
	}
	if len(removed) > 0 {
		q.endRemoved(m, removed)
	}
	return errors.Join(errs...)
}

// endRemoved does what handleSent does for recipients that never came there: the
// full disk let their names only be removed. A report that the disk has no room
// for either is not made.
func (q *Queue) endRemoved(m *spooldir.Message, numbers []int) {
	reports, err := q.successWanted(m, numbers)
	if err == nil {
		var drafts []*spooldir.Draft
		drafts, err = q.reportSuccess(m, reports)
		defer closeAll(drafts)
	}
	if err != nil {
		q.trouble(spooldir.Local, m.Name(numbers[0]), fmt.Errorf("no report of success: %w", err))
	}
	if err := q.last(m); err != nil {
		q.trouble(spooldir.Local, m.Name(numbers[0]), err)
	}
}

// delivered sorts out the recipients that the journal says are delivered or
// expanded, moves them to sent and returns the others.
func (q *Queue) delivered(m *spooldir.Message, state spooldir.State, numbers []int) ([]int, error) {
	is, err := q.journals.Of(q.spool, m.ID)
	if err != nil {
		return nil, err
	}
	rest := numbers[:0]
	for _, n := range numbers {
		if !is(n) {
			rest = append(rest, n)
			continue
		}
		err := q.mover.Move(m.Name(n), state, spooldir.Sent, "the journal says delivered")
		if err != nil && !errors.Is(err, spooldir.ErrGone) {
			return nil, err
		}
	}
	return rest, nil
}
