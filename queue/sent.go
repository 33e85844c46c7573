package queue

import (
	"context"
	"errors"
	"time"

	"dma/internal/dsn"
	"dma/internal/maillog"
	"dma/spooldir"
	"dma/states"
)

// handleSent lets go of what is done: a success report is committed where one
// is asked for, the name is removed, and with the last name the journal.
func (q *Queue) handleSent(ctx context.Context, name spooldir.Name) (time.Time, error) {
	m, numbers, err := q.take(ctx, spooldir.Sent, name)
	if m == nil {
		return time.Time{}, err
	}
	defer m.Close()
	q.left(m.ID)
	reports, err := q.successWanted(m, numbers)
	if err != nil {
		return time.Time{}, err
	}
	if q.syncer != nil && !q.spool.FileSystem().Ordered {
		// Once the name is gone, nothing is left to be synced.
		if err := q.syncer.Flush(); err != nil {
			return time.Time{}, err
		}
	}
	drafts, err := q.reportSuccess(m, reports)
	defer closeAll(drafts)
	if err != nil {
		return time.Time{}, err
	}
	for _, n := range numbers {
		if err := q.release(m.Name(n), spooldir.Sent, "done"); err != nil && !errors.Is(err, spooldir.ErrGone) {
			return time.Time{}, err
		}
	}
	if len(reports) > 0 {
		if err := q.unordered(spooldir.Sent); err != nil {
			return time.Time{}, err
		}
	}
	return time.Time{}, q.last(m)
}

// reportSuccess commits the reports that successWanted has found, and returns
// their drafts, which hold their locks until the names have gone.
func (q *Queue) reportSuccess(m *spooldir.Message, reports map[dsn.Kind][]int) (drafts []*spooldir.Draft, err error) {
	for kind, wanted := range reports {
		draft, err := q.commitReport(m, wanted, spooldir.Success, kind)
		if err != nil {
			return drafts, err
		}
		drafts = append(drafts, draft)
		e := spooldir.Entry{Time: q.clock.Now(), Event: spooldir.Reported, Recipients: wanted, Reply: "report " + draft.ID()}
		if err := q.spool.AppendJournal(m.ID, false, e); err != nil {
			q.trouble(spooldir.Sent, m.Name(wanted[0]), err)
		}
	}
	return drafts, nil
}

func closeAll(drafts []*spooldir.Draft) {
	for _, d := range drafts {
		d.Close()
	}
}

// release removes a name at the end of its way.
func (q *Queue) release(name spooldir.Name, state spooldir.State, reason string) error {
	return q.mover.Move(name, state, states.Gone, reason)
}

// last removes the journal of a message without names.
func (q *Queue) last(m *spooldir.Message) error {
	links, err := m.Links()
	if err != nil || links > 0 {
		return err
	}
	q.mu.Lock()
	delete(q.fresh, m.ID)
	delete(q.gathered, m.ID)
	delete(q.released, m.ID)
	q.mu.Unlock()
	q.journals.Forget(m.ID)
	return q.spool.RemoveJournal(m.ID)
}

// successWanted returns those recipients whose sender asked to hear of their
// delivery, and whom no child or relay has taken over, by the kind of report.
func (q *Queue) successWanted(m *spooldir.Message, numbers []int) (map[dsn.Kind][]int, error) {
	wanted := make(map[dsn.Kind][]int)
	var journal *spooldir.Journal
	for _, n := range numbers {
		notify, err := dsn.ParseNotify(m.Recipients[n-1].Notify)
		if err != nil || notify&dsn.Success == 0 || m.Sender == "" {
			continue
		}
		if journal == nil {
			if journal, err = q.history(m); err != nil {
				return nil, err
			}
		}
		last := journal.Outcome(n)
		if last == nil || last.Relayed() || journal.Has(spooldir.Reported, n) {
			continue
		}
		kind := dsn.Delivered
		switch {
		case last.Event == spooldir.Expanded && last.Relay != "list":
			kind = dsn.Expanded
		case last.Event == spooldir.Delivered && last.Relay != "local" && !byLMTP(last):
			kind = dsn.Relayed
		}
		wanted[kind] = append(wanted[kind], n)
	}
	return wanted, nil
}

// logAttempt writes the one line that an attempt for one recipient has in the
// log.
func (q *Queue) logAttempt(m *spooldir.Message, e *spooldir.Entry, n int) {
	r := &m.Recipients[n-1]
	d := maillog.Delivery{
		ID: m.ID, N: n, From: m.Sender, To: r.Address, OrigTo: r.Original,
		Relay: e.Relay, Delay: max(e.Time.Sub(m.Arrival), 0), DSN: e.Status, Reply: e.Reply, Next: e.Next,
	}
	switch e.Event {
	case spooldir.Delivered:
		d.Status = maillog.Sent
	case spooldir.Expanded:
		d.Status = maillog.Expanded
	case spooldir.Deferred:
		d.Status = maillog.Deferred
	case spooldir.Failed:
		d.Status = maillog.Bounced
		if e.Status == "5.4.7" {
			d.Status = maillog.Expired
		}
	default:
		return
	}
	if r.Kind != spooldir.Address {
		d.To = r.Label()
	}
	q.log.Delivery(d)
}
