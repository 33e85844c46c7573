package queue

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"dma/forward"
	"dma/internal/address"
	"dma/internal/passwd"
	"dma/spooldir"
)

// The bounds of loops.
const (
	maxHops  = 50 // Received fields
	maxDepth = 20 // expansions of expansions
)

// largeContent is from when on a message counts as large, in octets.
const largeContent = 1 << 20

// handleNew decides where the recipients of a message go, or lines the message up
// where that may take long: its whole content is read, and how much that is, is its
// submitter's word. A file with holes states terabytes and costs nothing. It cannot
// be refused for them, since file systems that compress or share blocks have as few
// for honest mail. So large messages of one submitter have one place, and those of
// all submitters together a few, none of which is taken from small ones.
func (q *Queue) handleNew(ctx context.Context, name spooldir.Name) (time.Time, error) {
	if q.large.Again(name.ID) {
		return time.Time{}, nil
	}
	m, numbers, err := q.take(ctx, spooldir.New, name)
	if m == nil {
		return time.Time{}, err
	}
	defer m.Close()
	if m.ContentLength > largeContent {
		// Found out after it was read, that would have it read again and again.
		if err := q.parentsBusy(ctx, m); err != nil {
			return time.Time{}, err
		}
		q.large.Add(strconv.Itoa(q.spool.SubmittedBy(m)), m.ID, name)
		return time.Time{}, nil
	}
	return time.Time{}, q.admit(ctx, m, numbers)
}

// runLarge does for large messages what handleNew does for others.
func (q *Queue) runLarge(ctx context.Context, _ string, names []spooldir.Name) {
	for _, name := range names {
		err := q.handleLarge(ctx, name)
		switch {
		case err == nil, ctx.Err() != nil:
		case errors.Is(err, spooldir.ErrBusy):
			// It was not a moment ago, and handleNew finds out whether that lasts.
			q.ringAfter(time.Second, spooldir.New, name)
		default:
			q.trouble(spooldir.New, name, err)
			q.pause(spooldir.New, name)
		}
	}
}

func (q *Queue) handleLarge(ctx context.Context, name spooldir.Name) error {
	m, numbers, err := q.take(ctx, spooldir.New, name)
	if m == nil {
		return err
	}
	defer m.Close()
	return q.admit(ctx, m, numbers)
}

// admit decides where recipients of a message in new go: another state, or a child
// message in their place.
func (q *Queue) admit(ctx context.Context, m *spooldir.Message, numbers []int) error {
	var corrupt *spooldir.CorruptError
	if err := m.Verify(ctx); errors.As(err, &corrupt) {
		for _, n := range numbers {
			q.quarantine(spooldir.New, m.Name(n).String(), corrupt.Reason)
		}
		return nil
	} else if err != nil {
		return err
	}
	if err := q.finishParents(ctx, m); err != nil {
		return err
	}
	made, err := q.spool.CreateJournal(m.ID)
	if err != nil {
		return err
	}
	if made {
		if m.Modified.After(q.started) && !m.Modified.After(time.Now()) {
			q.mu.Lock()
			q.fresh[m.ID] = true
			q.mu.Unlock()
		}
		q.log.Queued(m.ID, m.Sender, q.spool.SubmittedBy(m), m.ContentLength, len(m.Recipients))
		e := spooldir.Entry{Time: q.clock.Now(), Event: spooldir.Queued, Owner: &m.Submitter}
		if err := q.spool.AppendJournal(m.ID, false, e); err != nil {
			q.trouble(spooldir.New, m.Name(numbers[0]), err)
		}
	} else {
		journal, err := q.history(m)
		if err != nil {
			return err
		}
		if owner := journal.Owner(); owner >= 0 && owner != m.Submitter {
			for _, n := range numbers {
				q.quarantine(spooldir.New, m.Name(n).String(), fmt.Sprintf("the id is that of another message, of uid %d", owner))
			}
			return nil
		}
		if numbers, err = q.delivered(m, spooldir.New, numbers); err != nil {
			return err
		}
	}

	trace, err := readTrace(m.Content())
	if err != nil {
		return err
	}
	var results []result
	for _, n := range numbers {
		r, err := q.route(ctx, m, n, trace)
		if ctx.Err() != nil {
			return ctx.Err() // what was cut off by the end of the process decides nothing
		}
		if err != nil {
			// One that cannot be expanded now must not hold up the others.
			q.trouble(spooldir.New, m.Name(n), err)
			r = &result{n: n, to: spooldir.Tempfail, status: "4.3.0", reply: err.Error(), relay: "none"}
		}
		if r != nil {
			results = append(results, *r)
		}
	}
	return q.settle(m, spooldir.New, results)
}

// route decides about recipient n. A nil result means that a child has taken
// its place.
func (q *Queue) route(ctx context.Context, m *spooldir.Message, n int, trace trace) (*result, error) {
	to := func(state spooldir.State) (*result, error) { return &result{n: n, to: state}, nil }
	permfail := func(status, format string, args ...any) (*result, error) {
		return &result{n: n, to: spooldir.Permfail, status: status, reply: fmt.Sprintf(format, args...), relay: "none"}, nil
	}
	tempfail := func(status, format string, args ...any) (*result, error) {
		return &result{n: n, to: spooldir.Tempfail, status: status, reply: fmt.Sprintf(format, args...), relay: "none"}, nil
	}

	r := &m.Recipients[n-1]
	if trace.received > maxHops {
		return permfail("5.4.6", "mail loop: the message has %d Received fields, and more than %d are taken for a loop", trace.received, maxHops)
	}
	if m.Depth > maxDepth {
		return permfail("5.4.6", "mail loop: the message comes from %d expansions by aliases and .forward files", m.Depth)
	}
	switch r.Kind {
	case spooldir.File, spooldir.Command:
		return to(spooldir.Local)
	case spooldir.LocalUser, spooldir.Mailbox:
		_, err := q.users.Lookup(ctx, r.User)
		switch {
		case errors.Is(err, passwd.ErrUnknown):
			return permfail("5.1.1", "no such user: %s", r.User)
		case err != nil:
			return tempfail("4.3.0", "cannot look up user %s: %v", r.User, err)
		case r.Kind == spooldir.LocalUser:
			// An alias may name the user of its own name: then the field comes
			// from that very expansion.
			if addr := q.deliveryAddress(r); !q.sameAddress(addr, r.Address) && trace.deliveredTo(addr, q.sameAddress) {
				return permfail("5.4.6", "mail loop: the message was delivered to %s before", addr)
			}
			return to(spooldir.Forwarding)
		case q.config.LMTP:
			return to(spooldir.Remote)
		}
		return to(spooldir.Local)
	}

	a, err := address.Parse(r.Address)
	if err != nil {
		return permfail("5.1.3", "bad address: %v", err)
	}
	local, here := q.isLocal(a)
	if !here {
		if err := q.config.Relay(); err != nil {
			return tempfail("4.3.5", "%v", err)
		}
		return to(spooldir.Remote)
	}
	if trace.deliveredTo(r.Address, q.sameAddress) {
		return permfail("5.4.6", "mail loop: the message was delivered to %s before", r.Address)
	}
	return q.routeLocal(ctx, m, n, local, to, permfail, tempfail)
}

type decide func(spooldir.State) (*result, error)
type refuse func(status, format string, args ...any) (*result, error)

// routeLocal applies the aliases to a local name.
func (q *Queue) routeLocal(ctx context.Context, m *spooldir.Message, n int, local string, to decide, permfail, tempfail refuse) (*result, error) {
	aliases, problems, err := q.aliases.Current()
	q.aliasProblems(problems)
	if err != nil {
		return tempfail("4.3.5", "cannot read the aliases: %v", err)
	}
	host := forward.Host{
		IsUser: func(name string) (bool, error) {
			_, err := q.users.Lookup(ctx, name)
			if errors.Is(err, passwd.ErrUnknown) {
				return false, nil
			}
			return err == nil, err
		},
		IsLocal:   q.isLocal,
		Submitted: m.Depth == 0,
		Now:       q.clock.Now,
	}
	x, err := aliases.Expand(ctx, local, host)
	q.aliasProblems(q.aliases.IncludedProblems())
	var unsettled *forward.Unsettled
	switch {
	case errors.Is(err, forward.ErrNoUser):
		return permfail("5.1.1", "no such user: %s", local)
	case errors.As(err, &unsettled):
		r, _ := tempfail("4.3.5", "%v", err)
		r.soon = unsettled.Until
		return r, nil
	case err != nil:
		return tempfail("4.3.5", "%v", err)
	}
	if len(x.Trail) == 0 && len(x.Targets) == 1 && x.Targets[0].Kind == forward.User {
		return to(spooldir.Forwarding) // no alias: the plain case
	}
	if err := q.aliasUser(ctx, x.Targets); err != nil {
		return tempfail("4.3.5", "alias %s: %v", strings.Join(x.Trail, " -> "), err)
	}
	sender := m.Sender
	if x.Owner != "" && sender != "" {
		sender = q.qualify(x.Owner)
	}
	return nil, q.expand(ctx, m, n, spooldir.New, expansion{
		targets: x.Targets, sender: sender, list: x.Owner != "",
		source: "aliases", user: q.config.AliasUser,
		reason: "alias " + strings.Join(x.Trail, " -> "),
	})
}

func (q *Queue) aliasProblems(problems []forward.Problem) {
	for _, p := range problems {
		q.log.AliasProblem(p.File, p.Line, p.Text)
	}
}

// aliasUser says why nobody can run the commands and write the files among the
// targets of an alias, nil if somebody can or there are none.
func (q *Queue) aliasUser(ctx context.Context, targets []forward.Target) error {
	for _, t := range targets {
		switch t.Kind {
		default:
			continue
		case forward.File, forward.Maildir, forward.Command:
		}
		if q.config.AliasUser == "" {
			return errors.New("it names a file or a command, and there is no user for that; set ALIASUSER in dma.conf")
		}
		if _, err := q.users.Lookup(ctx, q.config.AliasUser); err != nil {
			return fmt.Errorf("it names a file or a command, and ALIASUSER cannot be looked up: %w", err)
		}
		return nil
	}
	return nil
}

// localUser finds the user that a recipient in forwarding or local belongs to.
func (q *Queue) localUser(ctx context.Context, r *spooldir.Recipient) (passwd.User, string, error) {
	if r.Kind != spooldir.Address {
		u, err := q.users.Lookup(ctx, r.User)
		return u, r.Detail, err
	}
	a, err := address.Parse(r.Address)
	if err != nil {
		return passwd.User{}, "", err
	}
	if _, here := q.isLocal(a); !here {
		// Moved here by hand, or the configuration has changed.
		return passwd.User{}, "", fmt.Errorf("%s does not belong to this host", r.Address)
	}
	names := []string{a.Local}
	if lower := strings.ToLower(a.Local); lower != a.Local {
		names = append(names, lower)
	}
	switch strings.ToLower(a.Local) {
	case "postmaster", "mailer-daemon":
		names = append(names, "root")
	}
	for _, name := range names {
		u, err := q.users.Lookup(ctx, name)
		if !errors.Is(err, passwd.ErrUnknown) {
			return u, "", err
		}
	}
	if base, detail, ok := strings.Cut(a.Local, "+"); ok && base != "" {
		for _, name := range []string{base, strings.ToLower(base)} {
			u, err := q.users.Lookup(ctx, name)
			if !errors.Is(err, passwd.ErrUnknown) {
				return u, detail, err
			}
		}
	}
	return passwd.User{}, "", fmt.Errorf("%s: %w", a.Local, passwd.ErrUnknown)
}
