package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"dma/agent"
	"dma/internal/address"
	"dma/localwriter"
	"dma/spooldir"
	"dma/states"
)

// handleLocal lines the recipients of a message up by user. Commands have lanes
// of their own: they may take long, and where many users' do, mailboxes are
// written all the same.
func (q *Queue) handleLocal(ctx context.Context, name spooldir.Name) (time.Time, error) {
	return time.Time{}, q.lineUp(ctx, spooldir.Local, name, q.localLanes)
}

func (q *Queue) localLanes(r *spooldir.Recipient) *states.Lanes[spooldir.Name] {
	if r.Kind == spooldir.Command {
		return q.commands
	}
	return q.local
}

// lineUpBusy lines recipients in local up, at start, whose message another process
// keeps locked: a mailbox may hold the beginning of it, and nothing is to come
// behind that. It makes no step; and those that deliveries make need no lock.
func (q *Queue) lineUpBusy(ctx context.Context, name spooldir.Name) error {
	m, err := q.opened(spooldir.Local, name, q.spool.OpenAny)
	if m == nil {
		return err
	}
	defer m.Close()
	q.mu.Lock()
	orphaned := len(q.orphaned[m.ID]) > 0
	q.mu.Unlock()
	numbers, err := q.spool.Standing(m, spooldir.Local)
	if err != nil || orphaned { // its step comes first
		return err
	}
	q.toLanes(ctx, m, numbers, q.localLanes)
	return nil
}

// runLocal has a batch of recipients of one user delivered.
func (q *Queue) runLocal(ctx context.Context, user string, names []spooldir.Name) {
	u, err := q.users.Lookup(ctx, user)
	if err != nil {
		q.notNow(ctx, spooldir.Local, names, err)
		return
	}
	var jobs []*agent.Job
	var messages []*spooldir.Message
	defer func() {
		for _, m := range messages {
			m.Close()
		}
	}()
	for _, name := range names {
		m, err := q.open(spooldir.Local, name)
		if err != nil {
			q.trouble(spooldir.Local, name, err)
			q.pause(spooldir.Local, name)
		}
		if m == nil {
			continue
		}
		// It may have been lined up again while it was being delivered.
		if rest, err := q.delivered(m, spooldir.Local, []int{name.N}); len(rest) == 0 {
			if err != nil {
				q.trouble(spooldir.Local, name, err)
				q.pause(spooldir.Local, name)
			}
			m.Close()
			continue
		}
		// Or it is delivered, and only that could not be recorded.
		q.mu.Lock()
		r, decided := q.unrecorded[name.String()]
		q.mu.Unlock()
		if decided {
			if err := q.settle(m, spooldir.Local, []result{r}); err != nil {
				q.trouble(spooldir.Local, name, err)
				q.pause(spooldir.Local, name)
			}
			m.Close()
			continue
		}
		job, err := q.job(ctx, m, name.N)
		if err != nil {
			q.trouble(spooldir.Local, name, err)
			q.pause(spooldir.Local, name)
			m.Close()
			continue
		}
		jobs, messages = append(jobs, job), append(messages, m)
	}
	if jobs = q.ready(u.Name, jobs); len(jobs) == 0 {
		return
	}
	next := 0
	q.agent.Deliver(ctx, u, jobs, func(job *agent.Job) {
		// In the order of jobs, each as soon as it is decided: a command that
		// takes long must not keep back what is known about the others.
		next++
		m := job.Message.Content.(*spooldir.Message)
		if ctx.Err() != nil && errors.Is(job.Err, ctx.Err()) {
			return // cut off by the end of the process: it stays where it is
		}
		if err := q.finishLocal(ctx, u.Name, m, job); err != nil {
			q.later(spooldir.Local, m.Name(job.Message.Recipient), err)
		}
	})
	if next != len(jobs) {
		q.trouble(spooldir.Local, names[0], fmt.Errorf("the agent of %s answered for %d of %d recipients", u.Name, next, len(jobs)))
	}
}

// inTurn orders the jobs of a batch. What may have been cut off comes first: a torn
// end of a mailbox can be mended only while nothing stands behind it. What goes to
// one place stands together: an agent writes that with one sync.
func inTurn(a, b *agent.Job) int {
	switch {
	case a.Message.Suspect && !b.Message.Suspect:
		return -1
	case !a.Message.Suspect && b.Message.Suspect:
		return 1
	}
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Target, b.Target), cmp.Compare(a.Source, b.Source), cmp.Compare(a.Detail, b.Detail))
}

// job makes the order to deliver recipient n.
func (q *Queue) job(ctx context.Context, m *spooldir.Message, n int) (*agent.Job, error) {
	r := &m.Recipients[n-1]
	_, detail, err := q.localUser(ctx, r)
	if err != nil {
		return nil, err
	}
	var head strings.Builder
	fmt.Fprintf(&head, "Return-Path: <%s>\n", m.Sender)
	recipient := q.deliveryAddress(r)
	if r.Kind == spooldir.Address || r.Kind == spooldir.LocalUser {
		// The others have it from their expansion already.
		fmt.Fprintf(&head, "Delivered-To: %s\n", recipient)
	}
	original := recipient
	if r.Original != "" {
		original = q.qualify(r.Original)
	}
	job := &agent.Job{
		Kind: r.Kind, Target: r.Target, Source: r.Source,
		Recipient: recipient, Original: original, Detail: detail,
		Message: localwriter.Message{
			ID: m.ID, Recipient: n, Sender: m.Sender, Arrival: m.Arrival,
			Header: []byte(head.String()), Content: m, Size: m.ContentLength,
			Suspect: !q.isFresh(m.ID),
		},
	}
	if r.Kind == spooldir.Address || r.Kind == spooldir.LocalUser {
		job.Kind = spooldir.Mailbox
	}
	if a, err := address.Parse(recipient); err == nil {
		job.Domain = a.Domain
	}
	return job, nil
}

// finishLocal records what came of a delivery.
func (q *Queue) finishLocal(ctx context.Context, user string, m *spooldir.Message, job *agent.Job) error {
	n := job.Message.Recipient
	place := placeOf(user, job)
	if q.leftUnfinished(place, job) && q.isUnfinished(place, m.Name(n)) {
		q.doubt(m.ID)
		return job.Err
	}
	defer q.isFinished(place, m.Name(n))
	r := result{n: n, relay: "local"}
	var trouble *localwriter.Error
	switch {
	case job.Err == nil:
		r.to, r.status, r.reply = spooldir.Sent, "2.0.0", job.Place
		if job.Already {
			r.reply += " (it was there already)"
		}
	case errors.Is(job.Err, agent.ErrUnlisted):
		return q.expandAgain(ctx, m, n)
	case errors.As(job.Err, &trouble) && trouble.Permanent:
		r.to, r.status, r.reply = spooldir.Permfail, trouble.Status, job.Err.Error()
	default:
		r.to, r.status, r.reply = spooldir.Tempfail, "4.3.0", job.Err.Error()
		q.doubt(m.ID) // some of it may be there
		if trouble != nil && trouble.Status != "" {
			r.status = trouble.Status
		}
	}
	err := q.settle(m, spooldir.Local, []result{r})
	if err != nil && r.to == spooldir.Sent {
		q.doubt(m.ID)
		q.mu.Lock()
		q.unrecorded[m.Name(n).String()] = r
		q.mu.Unlock()
	}
	return err
}

// expandAgain answers that the owner of a file or command no longer lists it:
// what the owner lists now gets the message.
func (q *Queue) expandAgain(ctx context.Context, m *spooldir.Message, n int) error {
	// Under the lock, and only once: after an error the child may be there.
	if err := lockBriefly(ctx, m); err != nil {
		return err
	}
	defer m.Unlock()
	if here, err := q.spool.In(m, n, spooldir.Local); !here {
		return err
	}
	return q.putOff(ctx, m, n, spooldir.Local, q.replace(m, n))
}

// replace puts a child in the place of a file or command, to be expanded anew.
func (q *Queue) replace(m *spooldir.Message, n int) error {
	r := &m.Recipients[n-1]
	reason := fmt.Sprintf("%s no longer lists %s", r.User, r.Target)
	again := spooldir.Recipient{Kind: spooldir.LocalUser, Address: r.Address, User: r.User, Detail: r.Detail, Original: r.Original, Notify: r.Notify, ORCPT: r.ORCPT}
	if r.Source == "aliases" {
		again.Kind, again.User = spooldir.Address, ""
	}
	env := &spooldir.Envelope{
		ID:      spooldir.DeriveID(m.ID, n, spooldir.Child),
		Arrival: m.Arrival, Sender: m.Sender, UID: q.spool.SubmittedBy(m),
		EightBit: m.EightBit, UTF8: m.UTF8, Return: m.Return, EnvelopeID: m.EnvelopeID,
		Depth: m.Depth + 1, Parents: []spooldir.Parent{{Name: m.Name(n)}},
		Recipients: []spooldir.Recipient{again},
	}
	// Without the Delivered-To of the expansion that is taken back: it would
	// look like a loop.
	if err := q.roomFor(m); err != nil {
		return err
	}
	content, err := withoutFirst(m, "Delivered-To: "+q.qualify(r.Address)+"\n")
	if err != nil {
		return err
	}
	draft, err := q.write(env, "", content)
	if err != nil {
		return err
	}
	defer draft.Close()
	return q.replaced(m, n, spooldir.Local, env, reason, 0)
}
