package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"dma/forward"
	"dma/internal/passwd"
	"dma/spooldir"
	"dma/states"
)

// handleForwarding lines the recipients of a message up by user: one user's
// trouble with a .forward delays no one else.
func (q *Queue) handleForwarding(ctx context.Context, name spooldir.Name) (time.Time, error) {
	lanes := func(*spooldir.Recipient) *states.Lanes[spooldir.Name] { return q.forwarding }
	return time.Time{}, q.lineUp(ctx, spooldir.Forwarding, name, lanes)
}

// slowForward is how long reading a .forward may take among all users. Someone for
// whom it took longer, whose home is on a file server that is down perhaps, is read
// for in lanes that only the like use, until that is quick again: there may be many
// of them, and each read takes its whole limit.
const slowForward = 5 * time.Second

// isSlow reports whether the .forward of a user was slow to read the last time.
func (q *Queue) isSlow(user string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.slow[user]
}

// readTook remembers how long it took to read the .forward of a user. What was quick
// because nobody has looked, the user's agent being killed or none to be had, tells
// nothing.
func (q *Queue) readTook(user string, d time.Duration, looked bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if d >= slowForward {
		q.slow[user] = true
	} else if looked {
		delete(q.slow, user)
	}
}

// errSlow says that a .forward is to be read in the lanes of the slow.
var errSlow = errors.New("the .forward was slow to read")

// lineUp adds the recipients of a message that stand in state to the lanes of
// their users.
func (q *Queue) lineUp(ctx context.Context, state spooldir.State, name spooldir.Name, lanes func(*spooldir.Recipient) *states.Lanes[spooldir.Name]) error {
	m, numbers, err := q.take(ctx, state, name)
	if m == nil {
		return err
	}
	defer m.Close()
	if numbers, err = q.delivered(m, state, numbers); err != nil {
		return err
	}
	results := q.toLanes(ctx, m, numbers, lanes)
	return errors.Join(q.settle(m, state, results), ctx.Err())
}

// toLanes adds recipients to the lanes of their users, and returns what was decided
// about those who have none.
func (q *Queue) toLanes(ctx context.Context, m *spooldir.Message, numbers []int, lanes func(*spooldir.Recipient) *states.Lanes[spooldir.Name]) []result {
	var results []result
	for _, n := range numbers {
		u, _, err := q.localUser(ctx, &m.Recipients[n-1])
		switch {
		case ctx.Err() != nil:
			return results // a look-up that was cut off by the end of the process decides nothing
		case errors.Is(err, passwd.ErrUnknown) && m.Recipients[n-1].Kind != spooldir.File && m.Recipients[n-1].Kind != spooldir.Command:
			// It was there when the recipient was routed. For a file or command
			// that is as likely a mistake in ALIASUSER, which can be mended.
			results = append(results, result{n: n, to: spooldir.Permfail, status: "5.1.1", reply: err.Error(), relay: "local"})
		case err != nil:
			results = append(results, result{n: n, to: spooldir.Tempfail, status: "4.3.0", reply: fmt.Sprintf("cannot look up the user: %v", err), relay: "local"})
		default:
			if err := q.agent.Serves(u); err != nil {
				results = append(results, result{n: n, to: spooldir.Tempfail, status: "4.3.5", reply: err.Error(), relay: "local"})
				continue
			}
			file := m.Name(n)
			lanes(&m.Recipients[n-1]).Add(u.Name, file.String(), file)
		}
	}
	return results
}

// runForwarding reads a user's .forward once for a batch of recipients, and
// moves each on: to its mailbox, or into a child.
func (q *Queue) runForwarding(ctx context.Context, user string, names []spooldir.Name) {
	q.runForwards(ctx, user, names, func() bool { return !q.isSlow(user) })
}

// runSlowly is runForwarding in the lanes of the slow.
func (q *Queue) runSlowly(ctx context.Context, user string, names []spooldir.Name) {
	q.runForwards(ctx, user, names, func() bool { return true })
}

// runForwards leaves to the lanes of the slow what it may not read here.
func (q *Queue) runForwards(ctx context.Context, user string, names []spooldir.Name, may func() bool) {
	u, err := q.users.Lookup(ctx, user)
	if err != nil {
		q.notNow(ctx, spooldir.Forwarding, names, err)
		return
	}
	type answer struct {
		result forward.Result
		err    error
	}
	answers := make(map[string]answer) // by detail
	for _, name := range names {
		if ctx.Err() != nil {
			return
		}
		err := q.forwardOne(ctx, u, name, func(detail string) (forward.Result, error) {
			a, ok := answers[detail]
			if !ok && !may() {
				return a.result, errSlow
			}
			if !ok {
				began := q.clock.Now()
				a.result, a.err = q.agent.Forward(ctx, u, detail)
				if ctx.Err() == nil {
					q.readTook(u.Name, q.clock.Now().Sub(began), a.err == nil || a.result.Path != "")
				}
				answers[detail] = a
			}
			return a.result, a.err
		})
		switch {
		case errors.Is(err, errSlow):
			q.slowly.Add(user, name.String(), name)
		case err != nil && ctx.Err() == nil:
			q.later(spooldir.Forwarding, name, err)
		}
	}
}

// forwardOne moves one recipient on.
func (q *Queue) forwardOne(ctx context.Context, u passwd.User, name spooldir.Name, read func(detail string) (forward.Result, error)) error {
	m, err := q.open(spooldir.Forwarding, name)
	if m == nil {
		return err
	}
	defer m.Close()
	r := &m.Recipients[name.N-1]
	_, detail, err := q.localUser(ctx, r)
	if err != nil {
		return err
	}
	// A slow answer must not hold up the other recipients of the message: the
	// lock comes afterwards, and then another look whether the name is here.
	found, err := read(detail)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, errSlow) {
		return err
	}
	if err := lockBriefly(ctx, m); err != nil {
		return err
	}
	if here, err := q.spool.In(m, name.N, spooldir.Forwarding); !here {
		return err
	}
	if err != nil {
		trouble := q.forwardTrouble(u, detail, found.Path, m, name.N, err)
		return errors.Join(trouble, q.settle(m, spooldir.Forwarding, []result{{n: name.N, to: spooldir.Tempfail, status: forwardStatus, reply: err.Error(), relay: "local"}}))
	}
	q.forwardMended(u, detail)
	switch {
	case found.Forwards():
	case !q.config.LMTP:
		return q.settle(m, spooldir.Forwarding, []result{{n: name.N, to: spooldir.Local}})
	case q.config.mailboxOf(r) == userAddress(u.Name, detail, q.config.HostName):
		return q.settle(m, spooldir.Forwarding, []result{{n: name.N, to: spooldir.Remote}})
	default:
		// The server of the mailboxes knows names of accounts, and the net
		// process does not.
		return q.putOff(ctx, m, name.N, spooldir.Forwarding, q.expand(ctx, m, name.N, spooldir.Forwarding, expansion{
			targets: []forward.Target{{Kind: forward.Mailbox, Value: u.Name, Detail: detail}},
			sender:  m.Sender, source: "forward", user: u.Name, detail: detail, reason: "mailbox of " + u.Name,
		}))
	}
	targets := forward.KeepOwn(found.Targets, u.Name, q.isLocal)
	return q.putOff(ctx, m, name.N, spooldir.Forwarding, q.expand(ctx, m, name.N, spooldir.Forwarding, expansion{
		targets: targets, sender: m.Sender, source: "forward", user: u.Name, detail: detail,
		reason: fmt.Sprintf("%s of %s", found.Path, u.Name),
	}))
}

// later deals with trouble of the machine in a lane: it is logged, and the name is
// looked at again after a pause. For a lock that another process holds, the loop of
// the state waits, in no lane's place.
func (q *Queue) later(state spooldir.State, name spooldir.Name, err error) {
	if errors.Is(err, spooldir.ErrBusy) {
		q.bell(state).Ring(name)
		return
	}
	q.trouble(state, name, err)
	q.pause(state, name)
}

// lockBriefly takes the lock of a message for who has a place in a lane: what another
// worker of this process does with the message may take as long as it is large, and
// is not waited for.
func lockBriefly(ctx context.Context, m *spooldir.Message) error {
	brief, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	err := m.Lock(brief)
	if err != nil && brief.Err() != nil && ctx.Err() == nil {
		return spooldir.ErrBusy
	}
	return err
}

// notNow puts a batch off about whose user nothing can be told now.
func (q *Queue) notNow(ctx context.Context, state spooldir.State, names []spooldir.Name, err error) {
	if ctx.Err() != nil {
		return
	}
	q.trouble(state, names[0], err)
	for _, n := range names {
		q.pause(state, n)
	}
}

// pause makes a worker look at a name again after trouble of the machine.
func (q *Queue) pause(state spooldir.State, name spooldir.Name) {
	q.ringAfter(30*time.Second, state, name)
}

func (q *Queue) ringAfter(d time.Duration, state spooldir.State, name spooldir.Name) {
	timer, stop := q.clock.After(d)
	go func() {
		defer stop()
		select {
		case <-timer:
			q.bell(state).Ring(name)
		case <-q.stopping:
		}
	}()
}
