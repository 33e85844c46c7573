package queue

import (
	"context"
	"errors"
	"strings"
	"time"

	"dma/internal/address"
	"dma/internal/dsn"
	"dma/spooldir"
)

// handlePermfail reports what failed for good: one bounce for all recipients
// of a message that failed together, committed before their names go. A bounce
// waits until its message has no name left on its way.
func (q *Queue) handlePermfail(ctx context.Context, name spooldir.Name) (time.Time, error) {
	m, _, err := q.take(ctx, spooldir.Permfail, name)
	if m == nil {
		return time.Time{}, err
	}
	defer m.Close()

	q.mu.Lock()
	q.gathered[m.ID] = name
	q.mu.Unlock()
	under, err := q.spool.Stands(m, spooldir.New, spooldir.Forwarding, spooldir.Local, spooldir.Remote)
	if err != nil {
		return time.Time{}, err
	}
	if under {
		// left rings when one comes to rest; the time is for moves that
		// nobody tells this process of.
		return q.clock.Now().Add(time.Minute), nil
	}
	q.mu.Lock()
	delete(q.gathered, m.ID)
	q.mu.Unlock()
	// The net process moves names without the lock of the message: what it
	// moved here while the others were looked at belongs into this bounce.
	numbers, err := q.spool.Standing(m, spooldir.Permfail)
	if err != nil {
		return time.Time{}, err
	}

	journal, err := q.history(m)
	if err != nil {
		return time.Time{}, err
	}
	var report, silent, told []int
	for _, n := range numbers {
		notify, err := dsn.ParseNotify(m.Recipients[n-1].Notify)
		switch {
		case journal.Has(spooldir.Kept, n):
		case journal.Has(spooldir.Bounced, n):
			told = append(told, n) // and its name could not be removed then
		case err == nil && !notify.Wants(dsn.Failed):
			silent = append(silent, n)
		default:
			report = append(report, n)
		}
	}
	if err := q.releaseAll(m, told, "bounced before"); err != nil {
		return time.Time{}, err
	}
	if len(silent) > 0 {
		if err := q.end(m, silent, "the sender asked for no report"); err != nil {
			return time.Time{}, err
		}
	}
	if len(report) == 0 {
		return time.Time{}, q.last(m)
	}
	if m.Sender == "" && q.toPostmaster(m) {
		return time.Time{}, q.keep(m, report)
	}
	draft, err := q.commitReport(m, report, spooldir.Bounce, dsn.Failed)
	if err != nil {
		return time.Time{}, err
	}
	defer draft.Close()
	if err := q.end(m, report, "bounce "+draft.ID()+" is committed"); err != nil {
		return time.Time{}, err
	}
	return time.Time{}, q.last(m)
}

// end removes the names of recipients in permfail. The journal says first that
// their sender was told: should a name not be removable now, nobody is told
// twice.
func (q *Queue) end(m *spooldir.Message, numbers []int, reason string) error {
	e := spooldir.Entry{Time: q.clock.Now(), Event: spooldir.Bounced, Recipients: numbers, Reply: reason}
	if err := q.spool.AppendJournal(m.ID, false, e); err != nil {
		q.trouble(spooldir.Permfail, m.Name(numbers[0]), err)
	}
	return q.releaseAll(m, numbers, reason)
}

// releaseAll removes the names of recipients in permfail.
func (q *Queue) releaseAll(m *spooldir.Message, numbers []int, reason string) error {
	if len(numbers) == 0 {
		return nil
	}
	for _, n := range numbers {
		if err := q.release(m.Name(n), spooldir.Permfail, reason); err != nil && !errors.Is(err, spooldir.ErrGone) {
			return err
		}
	}
	return q.unordered(spooldir.Permfail)
}

// toPostmaster reports whether a message is a report that goes to the
// postmaster already: nobody is left to be told of its failure.
func (q *Queue) toPostmaster(m *spooldir.Message) bool {
	if m.Kind() != spooldir.Bounce && m.Kind() != spooldir.Child {
		return false
	}
	for i := range m.Recipients {
		r := &m.Recipients[i]
		addr := r.Address
		if r.Original != "" {
			addr = r.Original
		}
		a, err := address.Parse(addr)
		if err != nil || !strings.EqualFold(a.Local, postmaster) {
			return false
		}
		// Another host's postmaster is a sender like others.
		if _, here := q.isLocal(a); !here && a.Domain != "" && !strings.EqualFold(a.Domain, q.config.HostName) {
			return false
		}
	}
	return true
}

// keep leaves recipients in permfail for a person and says so once.
func (q *Queue) keep(m *spooldir.Message, numbers []int) error {
	for _, n := range numbers {
		q.log.Kept(m.ID, n, m.Recipients[n-1].Address, "a report to the postmaster could not be delivered; look at it and remove its name from permfail")
	}
	e := spooldir.Entry{Time: q.clock.Now(), Event: spooldir.Kept, Recipients: numbers}
	return q.spool.AppendJournal(m.ID, false, e)
}
