package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"dma/forward"
	"dma/internal/address"
	"dma/internal/dsn"
	"dma/internal/passwd"
	"dma/spooldir"
)

// expansion is what takes the place of a recipient.
type expansion struct {
	targets []forward.Target
	sender  string // of the child
	list    bool   // the sender is the owner of a list
	source  string // "aliases" or "forward": who lists files and commands
	user    string // as whom files are written and commands run
	detail  string // of user+detail: it decides which .forward lists them
	reason  string
}

// expand puts a child message in the place of recipient n of m, which stands
// in from: the child is committed, and holds its own lock, before the parent
// goes to sent. A kill in between leaves both, and whoever takes the child up
// finishes the parent's step first.
func (q *Queue) expand(ctx context.Context, m *spooldir.Message, n int, from spooldir.State, x expansion) error {
	env, keep, due, err := q.childEnvelope(ctx, m, n, x)
	if err != nil {
		return err
	}
	if len(env.Recipients) == 0 { // all targets are /dev/null
		return q.settle(m, from, []result{{n: n, to: spooldir.Sent, status: "2.0.0", reply: x.reason + ": discarded", relay: "local"}})
	}
	if !keep {
		env.Return, env.EnvelopeID = "", ""
	}
	if err := q.roomFor(m); err != nil {
		return err
	}
	head := "Delivered-To: " + q.deliveryAddress(&m.Recipients[n-1]) + "\n"
	draft, err := q.write(env, head, m.Content())
	if err != nil {
		return err
	}
	defer draft.Close()
	return q.replaced(m, n, from, env, x.reason, due)
}

// putOff lets a recipient wait whose expansion failed with err, like one with any
// other trouble: it is tried again when its time comes, and returned when it is too
// old. What another process locks is not moved. The message is locked.
func (q *Queue) putOff(ctx context.Context, m *spooldir.Message, n int, from spooldir.State, err error) error {
	if err == nil || ctx.Err() != nil || errors.Is(err, spooldir.ErrBusy) {
		return err
	}
	return q.settle(m, from, []result{{n: n, to: spooldir.Tempfail, status: "4.3.0", reply: err.Error(), relay: "none"}})
}

// replaced finishes the step of recipient n, in whose place the committed
// child env stands.
//
// due is the report that the sender is owed for it, if he asked for any (RFC
// 3461 5.2.7): none when the child's recipients are reported themselves,
// "expanded" for several targets, "delivered" for a list.
func (q *Queue) replaced(m *spooldir.Message, n int, from spooldir.State, env *spooldir.Envelope, reason string, due dsn.Kind) error {
	q.recordExpanded(m, n, from, env, reason, due)
	parent := m.Name(n)
	err := q.mover.Move(parent, from, spooldir.Sent, reason)
	if err != nil && !errors.Is(err, spooldir.ErrGone) {
		return err
	}
	if err := q.unordered(spooldir.Sent, parent); err != nil {
		return err
	}
	q.bell(spooldir.New).Ring(env.Name(1))
	return nil
}

// recordExpanded writes down that the committed child env stands in the place of
// recipient n of m, and what report is due to the sender.
func (q *Queue) recordExpanded(m *spooldir.Message, n int, from spooldir.State, env *spooldir.Envelope, reason string, due dsn.Kind) {
	e := spooldir.Entry{
		Time: q.clock.Now(), Event: spooldir.Expanded, Recipients: []int{n},
		Status: "2.0.0", Relay: "forward", Reply: fmt.Sprintf("%s: child %s", reason, env.ID),
		DSN: due == 0,
	}
	if due == dsn.Delivered {
		e.Relay = "list"
	}
	q.log.Expanded(m.ID, n, m.Recipients[n-1].Address, env.ID, len(env.Recipients))
	q.logAttempt(m, &e, n)
	if err := q.spool.AppendJournal(m.ID, false, e); err != nil {
		q.trouble(from, m.Name(n), err)
	}
}

// dueBy tells from the NOTIFY of a recipient and of the child in its place what
// childEnvelope found due to the sender.
func dueBy(parent, child *spooldir.Recipient) dsn.Kind {
	before, _ := dsn.ParseNotify(parent.Notify)
	after, _ := dsn.ParseNotify(child.Notify)
	switch {
	case before&dsn.Success == 0, after&dsn.Success != 0:
		return 0
	case after == 0: // only the members of a list ask for nothing themselves
		return dsn.Delivered
	}
	return dsn.Expanded
}

// roomFor returns an error if the disk has no room for the content of a child of m.
// To find that out by writing would take from everybody the room that there is.
func (q *Queue) roomFor(m *spooldir.Message) error {
	if m.ContentLength <= largeContent {
		return nil
	}
	room, err := q.spool.Room()
	if err == nil && room.Bytes < m.ContentLength {
		err = &spooldir.FullError{Err: fmt.Errorf("%d octets are free, and a copy of the message has %d", room.Bytes, m.ContentLength)}
	}
	return err
}

// withoutFirst returns the content of a message without its first line if that
// is line.
func withoutFirst(m *spooldir.Message, line string) (io.Reader, error) {
	got := make([]byte, len(line))
	n, err := m.ReadAt(got, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	content := m.Content()
	if string(got[:n]) == line {
		if _, err := content.Seek(int64(n), io.SeekStart); err != nil {
			return nil, err
		}
	}
	return content, nil
}

// write commits a message of dma's own and returns the draft, which holds the
// lock of the message until it is closed.
func (q *Queue) write(env *spooldir.Envelope, head string, content io.Reader) (*spooldir.Draft, error) {
	d, err := q.spool.Create(env)
	if errors.Is(err, fs.ErrExist) {
		// What an earlier attempt of this process could not take back: nobody
		// else makes files under this id.
		if err := os.Remove(q.spool.Path() + "/" + string(spooldir.Tmp) + "/" + env.ID); err != nil {
			return nil, err
		}
		d, err = q.spool.Create(env)
	}
	if err != nil {
		return nil, err
	}
	if err := d.Hold(); err != nil {
		d.Abort()
		return nil, err
	}
	if _, err := io.WriteString(d, head); err != nil {
		d.Abort()
		return nil, err
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{d}, content, make([]byte, 128<<10)); err != nil {
		d.Abort()
		return nil, err
	}
	if err := d.Commit(); err != nil {
		return nil, err
	}
	return d, nil
}

// childEnvelope makes the envelope of a child. Targets that are the same place
// collapse, however they are spelled; keep reports whether RET and ENVID go
// along, due what the sender is owed now (RFC 3461 5.2.7).
func (q *Queue) childEnvelope(ctx context.Context, m *spooldir.Message, n int, x expansion) (env *spooldir.Envelope, keep bool, due dsn.Kind, err error) {
	r := &m.Recipients[n-1]
	env = &spooldir.Envelope{
		ID:      spooldir.DeriveID(m.ID, n, spooldir.Child),
		Arrival: m.Arrival, Sender: x.sender, UID: q.spool.SubmittedBy(m),
		EightBit: m.EightBit, UTF8: m.UTF8, Return: m.Return, EnvelopeID: m.EnvelopeID,
		Depth:   m.Depth + 1,
		Parents: []spooldir.Parent{{Name: m.Name(n)}},
	}
	how := dsn.Alias
	if x.list {
		how = dsn.List
	} else if len(x.targets) == 1 {
		how = dsn.Forward
	}
	notify, _ := dsn.ParseNotify(r.Notify)
	child, keep, due := notify.Expand(how)

	seen := make(map[spooldir.Recipient]bool)
	for _, t := range x.targets {
		c, ok := childRecipient(t, q.deliveryAddress(r), x)
		if !ok {
			continue
		}
		c.Original = r.Original
		if c.Original == "" {
			c.Original = r.Address
		}
		if child != 0 {
			c.Notify = child.String()
		}
		if keep {
			c.ORCPT = r.ORCPT
		}
		p := c
		if len(x.targets) > 1 { // else nobody has to be looked up
			if p, err = q.place(ctx, c); err != nil {
				return nil, false, 0, err
			}
		}
		if !seen[p] {
			seen[p] = true
			env.Recipients = append(env.Recipients, c)
		}
	}
	return env, keep, due, nil
}

// place is r in the spelling in which recipients of one child are compared.
func (q *Queue) place(ctx context.Context, r spooldir.Recipient) (spooldir.Recipient, error) {
	if r.Kind != spooldir.Address {
		return r, nil
	}
	a, err := address.Parse(r.Address)
	if err != nil {
		return r, nil
	}
	if local, here := q.isLocal(a); here {
		if local, err = q.spelling(ctx, local); err != nil {
			return r, fmt.Errorf("cannot look up user %s: %w", a.Local, err)
		}
		a = address.Address{Local: local}
	}
	r.Address = a.String()
	return r, nil
}

// spelling is a name of this host in lower case, but for its detail, if it surely
// means the same there: no user has it as it is.
func (q *Queue) spelling(ctx context.Context, local string) (string, error) {
	base, detail, more := strings.Cut(local, "+")
	if strings.ToLower(base) == base {
		return local, nil
	}
	for _, name := range []string{local, base} {
		if _, err := q.users.Lookup(ctx, name); !errors.Is(err, passwd.ErrUnknown) {
			return local, err
		}
	}
	if more {
		return strings.ToLower(base) + "+" + detail, nil
	}
	return strings.ToLower(base), nil
}

// deliveryAddress is the address under which a recipient is delivered to: for
// a local user whom an alias named it is the user's own.
func (q *Queue) deliveryAddress(r *spooldir.Recipient) string {
	if r.Kind != spooldir.LocalUser {
		return q.qualify(r.Address)
	}
	return userAddress(r.User, r.Detail, q.config.HostName)
}

// childRecipient turns a target into a recipient; /dev/null is none.
func childRecipient(t forward.Target, addr string, x expansion) (spooldir.Recipient, bool) {
	switch t.Kind {
	case forward.Address:
		return spooldir.Recipient{Kind: spooldir.Address, Address: t.Value}, true
	case forward.User:
		return spooldir.Recipient{Kind: spooldir.LocalUser, Address: addr, User: t.Value, Detail: t.Detail}, true
	case forward.Mailbox:
		return spooldir.Recipient{Kind: spooldir.Mailbox, Address: addr, User: t.Value, Detail: t.Detail}, true
	case forward.File, forward.Maildir:
		return spooldir.Recipient{Kind: spooldir.File, Address: addr, User: x.user, Detail: x.detail, Target: t.Value, Source: x.source}, true
	case forward.Command:
		return spooldir.Recipient{Kind: spooldir.Command, Address: addr, User: x.user, Detail: x.detail, Target: t.Value, Source: x.source}, true
	}
	return spooldir.Recipient{}, false
}

// finishParents finishes the steps of the parents of a message that dma itself
// made: as long as a parent's name stands where it stood, this message must
// not leave new. It is a no-op for messages that users submitted.
func (q *Queue) finishParents(ctx context.Context, m *spooldir.Message) error {
	if m.Kind() == spooldir.Submitted || m.Kind() == spooldir.Delay {
		return nil
	}
	for _, p := range m.Parents {
		if err := q.finishNames(ctx, m, p.Name); err != nil {
			return err
		}
	}
	return nil
}

// parentsBusy returns an error that wraps spooldir.ErrBusy if another process locks a
// parent of m, so that finishParents would fail.
func (q *Queue) parentsBusy(ctx context.Context, m *spooldir.Message) error {
	for _, p := range m.Parents {
		at, err := q.spool.Find(p.Name)
		if err != nil {
			return err
		}
		for _, state := range at {
			parent, err := q.spool.Open(state, p.Name)
			if err != nil {
				continue // as finishParent does
			}
			err = parent.Lock(ctx)
			parent.Close()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// finishNames finishes the steps of one parent, wherever it stands. What a
// hand moves at this very moment is looked for again.
func (q *Queue) finishNames(ctx context.Context, m *spooldir.Message, parent spooldir.Name) error {
	for range 3 {
		at, err := q.spool.Find(parent)
		if err != nil {
			return err
		}
		moved := false
		for _, state := range at {
			err := q.finishParent(ctx, m, parent, state)
			if errors.Is(err, spooldir.ErrGone) {
				moved = true
			} else if err != nil {
				return err
			}
		}
		if !moved {
			return nil
		}
	}
	return nil
}

func (q *Queue) finishParent(ctx context.Context, m *spooldir.Message, parent spooldir.Name, state spooldir.State) error {
	// Who expands or reports a parent, perhaps again after an error, holds its
	// lock until that is done: m must not leave new meanwhile, or it would be
	// made a second time.
	p, err := q.spool.Open(state, parent)
	if errors.Is(err, spooldir.ErrGone) {
		return err
	}
	if err == nil {
		defer p.Close()
		if err := p.Lock(ctx); err != nil {
			return err
		}
	}
	reason := fmt.Sprintf("%s %s is committed", m.Kind(), m.ID)
	switch m.Kind() {
	case spooldir.Child:
		if !state.Waiting() {
			return nil
		}
		if p != nil {
			// A kill right after the commit has left the step without a record,
			// and the sender without the report that only the record asks for.
			journal, err := q.history(p)
			if err != nil {
				return err
			}
			if !journal.Has(spooldir.Expanded, parent.N) {
				q.recordExpanded(p, parent.N, state, m.Envelope, "taken up again", dueBy(&p.Recipients[parent.N-1], &m.Recipients[0]))
			}
		}
		if err := q.mover.Move(parent, state, spooldir.Sent, reason); err != nil {
			return err
		}
		return q.unordered(spooldir.Sent, parent)
	case spooldir.Bounce:
		if state == spooldir.Sent {
			return nil
		}
	case spooldir.Success:
		// A second name, linked by hand, would be reported again.
		if state == spooldir.Permfail {
			return nil
		}
	}
	if err := q.releaseLast(parent, state, reason); err != nil {
		return err
	}
	return q.unordered(state)
}

// unordered makes steps durable before a message may leave new whose going
// depends on them, where the file system does not keep their order by itself.
func (q *Queue) unordered(state spooldir.State, names ...spooldir.Name) error {
	if q.spool.FileSystem().Ordered {
		return nil
	}
	return q.spool.Sync(state, names...)
}

// releaseLast removes a name, and the journal if it was the last of its
// message.
func (q *Queue) releaseLast(name spooldir.Name, state spooldir.State, reason string) error {
	m, err := q.spool.Open(state, name)
	if err != nil {
		return err
	}
	defer m.Close()
	if err := q.release(name, state, reason); err != nil {
		return err
	}
	return q.last(m)
}
