package queue

import (
	"context"
	"maps"
	"time"

	"dma/internal/dsn"
	"dma/spooldir"
)

// handleTempfail lets the recipients of a message wait for their time. What is
// due goes back to new, so that routing, aliases and .forward are asked again;
// what is too old fails for good.
func (q *Queue) handleTempfail(ctx context.Context, name spooldir.Name) (time.Time, error) {
	m, numbers, err := q.take(ctx, spooldir.Tempfail, name)
	if m == nil {
		return time.Time{}, err
	}
	defer m.Close()
	q.left(m.ID)
	if numbers, err = q.delivered(m, spooldir.Tempfail, numbers); err != nil {
		return time.Time{}, err
	}
	journal, err := q.history(m)
	if err != nil {
		return time.Time{}, err
	}
	q.recallTroubles(journal, numbers)
	now, arrival := q.clock.Now(), since(m, journal)
	q.mu.Lock()
	flushed, released := q.flushed, q.released[m.ID]
	q.mu.Unlock()

	var due []spooldir.Name
	var late []int
	var expired []result
	var next time.Time
	for _, n := range numbers {
		last := journal.Last(n)
		at := journal.Next(n)
		tried, back := released[n]
		if last != nil && !last.Time.Before(tried) {
			tried = last.Time
		} else if back {
			// It is here again, and the disk did not let anybody record why.
			// Without a rest it would be tried again and again.
			at = q.config.Retry.Next(m.ID, 2, arrival, tried)
		}
		switch {
		case q.config.Retry.Expired(arrival, now, journal.Attempts(n)):
			r := result{n: n, to: spooldir.Permfail, status: "5.4.7", reply: "gave up: too old", relay: "none"}
			if last != nil {
				r.reply, r.relay = "gave up after "+age(now.Sub(arrival))+"; last: "+last.Reply, last.Relay
			}
			expired = append(expired, r)
			continue
		case !at.After(now), at.After(now.Add(q.config.Retry.Max * 5 / 4)), tried.Before(flushed):
			// The second is a clock that was wrong when it was written.
			due = append(due, m.Name(n))
		case next.IsZero() || at.Before(next):
			next = at
		}
		if q.isLate(m, journal, n, now) {
			late = append(late, n)
		}
	}
	if err := q.settle(m, spooldir.Tempfail, expired); err != nil {
		return time.Time{}, err
	}
	if len(late) > 0 {
		if err := q.noticeDelay(m, late); err != nil {
			q.trouble(spooldir.Tempfail, name, err)
		}
	}
	if len(due) > 0 {
		q.releasing(m.ID, due, now)
	}
	if _, err := q.mover.MoveAll(due, spooldir.Tempfail, spooldir.New, "its time has come"); err != nil {
		return time.Time{}, err
	}
	if !next.IsZero() {
		if err := q.spool.SetDue(m.ID, next); err != nil {
			return time.Time{}, err
		}
	}
	return next, nil
}

// since is the time from which the age of a message counts: its arrival, and no
// later than when it was taken up. The arrival is the submitter's word, and mail
// from the future would never be too old.
func since(m *spooldir.Message, journal *spooldir.Journal) time.Time {
	for i := range journal.Entries {
		if e := &journal.Entries[i]; e.Event == spooldir.Queued && e.Time.Before(m.Arrival) {
			return e.Time
		}
	}
	return m.Arrival
}

// releasing notes that names of a message go back to new now. The map is never
// changed once it is handed out.
func (q *Queue) releasing(id string, names []spooldir.Name, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	released := maps.Clone(q.released[id])
	if released == nil {
		released = make(map[int]time.Time)
	}
	for _, n := range names {
		released[n.N] = now.Truncate(time.Microsecond) // as exact as a journal
	}
	q.released[id] = released
}

// isLate reports whether the sender asked to hear of a delay of recipient n
// and is to hear of it now.
func (q *Queue) isLate(m *spooldir.Message, journal *spooldir.Journal, n int, now time.Time) bool {
	if q.config.DelayNotice == 0 || m.Sender == "" || now.Sub(since(m, journal)) < q.config.DelayNotice {
		return false
	}
	notify, err := dsn.ParseNotify(m.Recipients[n-1].Notify)
	return err == nil && notify&dsn.Delay != 0 && !noticed(journal, n, "")
}

// age is a duration for people: days, hours or minutes.
func age(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return (d / (24 * time.Hour) * 24 * time.Hour).String()
	case d >= time.Hour:
		return d.Truncate(time.Hour).String()
	}
	return d.Truncate(time.Minute).String()
}
