// Package relay is the net process: it takes recipients out of remote, hands
// their messages to other hosts, and records what these said.
//
// It reads remote and appends to journals. It makes no journal, sees no other
// directory, and moves names only out of remote: to sent, tempfail or
// permfail, and to corrupt what is no message.
package relay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"time"
	"unicode"

	"dma/internal/address"
	"dma/internal/maillog"
	"dma/internal/retry"
	"dma/internal/rewrite"
	"dma/smarthost"
	"dma/spooldir"
	"dma/states"
)

// Options are the parts that New puts together.
type Options struct {
	Spool     *spooldir.Spool
	Watcher   *spooldir.Watcher // watches Remote
	Log       *maillog.Log
	Clock     states.Clock
	Retry     retry.Schedule
	Deliverer Deliverer         // to other hosts
	Rewriter  *rewrite.Rewriter // of senders; nil: they stay as they are
	HostName  string            // added to addresses without domain

	// Mailboxes, if not nil, is the server of this machine's mailboxes, and takes
	// the recipients that Mailbox knows an address there for.
	Mailboxes Deliverer
	Mailbox   func(*spooldir.Recipient) (addr string, ok bool)

	// Flushed, if not nil, is asked before each delivery. It reports whether back-off
	// is to be forgotten, and ends that request: so a message that was moved here
	// after somebody had asked is tried.
	Flushed func() bool

	Concurrency int           // messages in hand at a time
	Share       int           // of these, those that one destination may have; 0: all
	Rescan      time.Duration // between scans that nothing rang for
	Syncer      *spooldir.Syncer
}

// Relay is the net process's work on one spool.
type Relay struct {
	o     Options
	mover *states.Mover
	loop  *states.Loop
	turns *turns

	flushing sync.Mutex // held while Flushed is asked, and until that is done

	mu         sync.Mutex
	unrecorded map[string]bool // names that are delivered, which the disk did not let anybody record
}

// New makes a Relay. The caller holds the lock of the net role.
func New(o Options) *Relay {
	r := &Relay{o: o, unrecorded: make(map[string]bool)}
	bell := o.Watcher.Bell(spooldir.Remote)
	r.turns = newTurns(o.Share, bell.Ring)
	r.mover = states.NewMover(o.Spool, states.Net, o.Syncer, r.moved)
	r.loop = &states.Loop{
		Spool: o.Spool, State: spooldir.Remote, Bell: bell, Clock: o.Clock,
		Handle: r.handle, Parallel: o.Concurrency, Rescan: o.Rescan,
		Foreign: r.foreign, Also: r.turns.busy,
		Trouble: func(_ spooldir.State, name spooldir.Name, err error) {
			if name.ID != "" {
				err = fmt.Errorf("%s: %w", name.Ref(), err)
			}
			o.Log.WorkerTrouble("net", err)
		},
	}
	r.loop.Started()
	return r
}

// Ringing makes steps into a state ring a bell in the same process.
func (r *Relay) Ringing(state spooldir.State, bell *spooldir.Bell) { r.mover.Ringing(state, bell) }

// Run works until ctx ends.
func (r *Relay) Run(ctx context.Context) error {
	defer func() {
		for _, d := range r.deliverers() {
			d.Close()
		}
	}()
	return r.loop.Run(ctx)
}

// Idle reports whether there is nothing to do now.
func (r *Relay) Idle() bool { return r.loop.Idle() }

// Flush forgets the back-off of all destinations.
func (r *Relay) Flush() {
	for _, d := range r.deliverers() {
		d.Flush()
	}
}

// flushAsked does so if somebody has asked for it.
func (r *Relay) flushAsked() {
	if r.o.Flushed == nil {
		return
	}
	r.flushing.Lock()
	defer r.flushing.Unlock()
	if r.o.Flushed() {
		r.Flush()
	}
}

func (r *Relay) deliverers() []Deliverer {
	if r.o.Mailboxes == nil {
		return []Deliverer{r.o.Deliverer}
	}
	return []Deliverer{r.o.Deliverer, r.o.Mailboxes}
}

func (r *Relay) moved(name spooldir.Name, from, to spooldir.State, reason string) {
	r.mu.Lock()
	delete(r.unrecorded, name.String())
	r.mu.Unlock()
	goal := string(to)
	if to == states.Gone {
		goal = "gone"
	}
	r.o.Log.Moved(name.ID, name.N, name.Label(), string(from), goal, reason)
}

// handle hands one message over, for all its recipients that stand in remote.
func (r *Relay) handle(ctx context.Context, name spooldir.Name) (time.Time, error) {
	visit := r.turns.begin(name.ID)
	defer r.turns.end(visit, name)
	m, err := r.o.Spool.OpenAny(spooldir.Remote, name)
	var corrupt *spooldir.CorruptError
	switch {
	case errors.Is(err, spooldir.ErrGone), errors.Is(err, spooldir.ErrUncommitted):
		return time.Time{}, nil
	case errors.As(err, &corrupt):
		return time.Time{}, r.quarantine(name.String(), corrupt.Reason)
	case err != nil:
		return time.Time{}, err
	}
	defer m.Close()

	numbers, journal, err := r.gather(ctx, m)
	if err != nil || len(numbers) == 0 {
		return time.Time{}, err
	}
	h := &handling{r: r, m: m, journal: journal, start: r.o.Clock.Now(), visit: visit}
	var remote, mailboxes []int
	for _, n := range numbers {
		if r.isMailbox(&m.Recipients[n-1]) {
			mailboxes = append(mailboxes, n)
		} else {
			remote = append(remote, n)
		}
	}
	var orders []order
	if len(mailboxes) > 0 {
		orders = append(orders, r.mailboxOrder(m, mailboxes))
	}
	if len(remote) > 0 {
		message, err := r.message(m, remote)
		if err != nil {
			h.settle(ctx, remote, untried(len(remote), err))
		} else {
			orders = append(orders, order{r.o.Deliverer, message})
		}
	}
	return time.Time{}, h.carryOut(ctx, orders)
}

// quarantine moves a file that cannot be a message to corrupt and says so once.
func (r *Relay) quarantine(file, reason string) error {
	kept, err := r.o.Spool.Quarantine(spooldir.Remote, file)
	if errors.Is(err, spooldir.ErrGone) {
		return nil
	}
	if err == nil {
		r.o.Log.Corrupt(string(spooldir.Remote)+"/"+file, reason, kept)
	}
	return err
}

// foreign deals with a file that is no recipient.
func (r *Relay) foreign(file string) {
	if err := r.quarantine(file, "not the name of a recipient"); err != nil {
		r.o.Log.WorkerTrouble("net", err)
	}
}

// gather returns the recipients to hand over. It looks for them under the
// message's lock, so that the queue process is not in the middle of moving
// them. What the journal says is delivered goes to sent; without a journal,
// which only the queue process makes, everything goes to tempfail.
func (r *Relay) gather(ctx context.Context, m *spooldir.Message) ([]int, *spooldir.Journal, error) {
	if err := m.Lock(ctx); err != nil {
		return nil, nil, err
	}
	defer m.Unlock()
	numbers, err := r.o.Spool.Standing(m, spooldir.Remote)
	if err != nil || len(numbers) == 0 {
		return nil, nil, err
	}
	journal, err := r.o.Spool.ReadJournal(m.ID)
	if errors.Is(err, fs.ErrNotExist) {
		_, err := r.mover.MoveAll(names(m, numbers), spooldir.Remote, spooldir.Tempfail, "the message has no journal")
		return nil, nil, err
	}
	if err != nil {
		return nil, nil, err
	}
	rest := numbers[:0]
	for _, n := range numbers {
		var err error
		switch {
		case journal.Outcome(n) != nil, r.isUnrecorded(m.Name(n)):
			err = r.mover.Move(m.Name(n), spooldir.Remote, spooldir.Sent, "the journal says delivered")
		case r.isLocal(&m.Recipients[n-1]):
			// A hand has put it here, or MAILBOX was lmtp: when it came: no other
			// host is to get it.
			err = r.mover.Move(m.Name(n), spooldir.Remote, spooldir.Tempfail, "a local recipient")
		default:
			rest = append(rest, n)
		}
		if err != nil && !errors.Is(err, spooldir.ErrGone) {
			return nil, nil, err
		}
	}
	return rest, journal, nil
}

func names(m *spooldir.Message, numbers []int) []spooldir.Name {
	out := make([]spooldir.Name, len(numbers))
	for i, n := range numbers {
		out[i] = m.Name(n)
	}
	return out
}

// printable maps what has no place in one printable line to a blank.
func printable(c rune) rune {
	if !unicode.IsPrint(c) {
		return ' '
	}
	return c
}

// asItIs returns a message without recipients.
func asItIs(m *spooldir.Message) smarthost.Message {
	return smarthost.Message{
		ID: m.ID, Sender: m.Sender, Content: m, Size: m.ContentLength,
		EightBit: m.EightBit, UTF8: m.UTF8, Return: m.Return, EnvelopeID: m.EnvelopeID,
	}
}

// message makes what other hosts get. An error is temporary.
func (r *Relay) message(m *spooldir.Message, numbers []int) (smarthost.Message, error) {
	out := asItIs(m)
	for _, n := range numbers {
		rcpt := &m.Recipients[n-1]
		out.Recipients = append(out.Recipients, smarthost.Recipient{
			N: n, Address: r.qualify(rcpt.Address), Notify: notify(rcpt.Notify), ORCPT: rcpt.ORCPT,
		})
	}
	if r.o.Rewriter == nil {
		return out, nil
	}
	err := r.o.Rewriter.Reload()
	if err == nil {
		out.Sender = r.o.Rewriter.Envelope(m.Sender)
		out.Rewritten = out.Sender != m.Sender
		out.Content, out.Size, err = r.o.Rewriter.Header(m, m.ContentLength)
	}
	return out, err
}

func (r *Relay) qualify(addr string) string {
	a, err := address.Parse(addr)
	if err != nil || a.Domain != "" {
		return addr
	}
	a.Domain = r.o.HostName
	return a.String()
}

// decided leaves out what the end of this process cut off before anything was
// decided: it stays in remote, and is due at once when the process is back.
func decided(ctx context.Context, numbers []int, outcomes []smarthost.Outcome) ([]int, []smarthost.Outcome) {
	if ctx.Err() == nil {
		return numbers, outcomes
	}
	var n []int
	var o []smarthost.Outcome
	for i := range outcomes {
		if outcomes[i].Verdict == smarthost.Tempfail && outcomes[i].Refused && !outcomes[i].Uncertain {
			continue
		}
		n, o = append(n, numbers[i]), append(o, outcomes[i])
	}
	return n, o
}

// verdict is what an outcome means for a recipient.
type verdict struct {
	entry spooldir.Entry
	to    spooldir.State

	duplicate bool // the peer may have the message twice
}

// settle records outcomes and moves the recipients. An outcome is a line in
// the journal first; where one reply decides several recipients, that line is
// on disk before the first of them moves.
func (r *Relay) settle(m *spooldir.Message, journal *spooldir.Journal, numbers []int, outcomes []smarthost.Outcome, start time.Time) error {
	if len(numbers) == 0 {
		return nil
	}
	now := r.o.Clock.Now()
	var entries []spooldir.Entry
	goals := make([]spooldir.State, len(numbers))
	shared := false
	for i, n := range numbers {
		if outcomes[i].Verdict == smarthost.Sent {
			r.remember(m.Name(n), true)
		}
	}
	for i, n := range numbers {
		v := r.decide(m, journal, n, &outcomes[i], now)
		goals[i] = v.to
		entries = spooldir.Merge(entries, v.entry)
		v.duplicate = outcomes[i].Uncertain || outcomes[i].Verdict == smarthost.Sent && journal.Uncertain(n)
		r.logAttempt(m, n, &v, &outcomes[i], start)
	}
	for i := range entries {
		shared = shared || entries[i].Event == spooldir.Delivered && len(entries[i].Recipients) > 1
	}
	if err := r.o.Spool.AppendJournal(m.ID, shared, entries...); err != nil {
		// The steps themselves still say what happened.
		r.o.Log.WorkerTrouble("net", fmt.Errorf("journal of %s: %w", m.ID, err))
	}
	var errs []error
	for i, n := range numbers {
		err := r.mover.Move(m.Name(n), spooldir.Remote, goals[i], outcomes[i].Text())
		switch {
		case errors.Is(err, spooldir.ErrGone):
			r.remember(m.Name(n), false)
		case err != nil:
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// remember keeps in memory that a name is delivered, until it is moved: if it
// cannot be, it is not delivered again meanwhile.
func (r *Relay) remember(name spooldir.Name, delivered bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if delivered {
		r.unrecorded[name.String()] = true
	} else {
		delete(r.unrecorded, name.String())
	}
}

func (r *Relay) isUnrecorded(name spooldir.Name) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.unrecorded[name.String()]
}

func (r *Relay) decide(m *spooldir.Message, journal *spooldir.Journal, n int, o *smarthost.Outcome, now time.Time) verdict {
	v := verdict{entry: spooldir.Entry{
		Time: now, Recipients: []int{n}, Status: o.Status(), Relay: o.Relay, Reply: o.Text(),
	}}
	switch o.Verdict {
	case smarthost.Sent:
		v.to, v.entry.Event, v.entry.DSN = spooldir.Sent, spooldir.Delivered, o.DSN
	case smarthost.Permfail:
		v.to, v.entry.Event = spooldir.Permfail, spooldir.Failed
	default:
		v.to, v.entry.Event, v.entry.Uncertain = spooldir.Tempfail, spooldir.Deferred, o.Uncertain
		if o.Refused {
			v.entry.Event = spooldir.Refused
		}
		v.entry.Next = r.o.Retry.Next(m.ID, journal.Attempts(n)+1, m.Arrival, now)
	}
	return v
}

// logAttempt writes the one line that an attempt for one recipient has.
func (r *Relay) logAttempt(m *spooldir.Message, n int, v *verdict, o *smarthost.Outcome, start time.Time) {
	rcpt := &m.Recipients[n-1]
	d := maillog.Delivery{
		ID: m.ID, N: n, From: m.Sender, To: rcpt.Address, OrigTo: rcpt.Original, Relay: o.Relay, TLS: o.TLS,
		Delay: v.entry.Time.Sub(m.Arrival), DSN: v.entry.Status, Reply: v.entry.Reply, Next: v.entry.Next, Duplicate: v.duplicate,
		Delays: maillog.Delays{Queue: start.Sub(m.Arrival), Transfer: v.entry.Time.Sub(start)},
	}
	switch v.to {
	case spooldir.Sent:
		d.Status = maillog.Sent
	case spooldir.Permfail:
		d.Status = maillog.Bounced
	default:
		d.Status = maillog.Deferred
	}
	r.o.Log.Delivery(d)
}

// notify takes the value of NOTIFY apart.
func notify(value string) []string {
	if value == "" {
		return nil
	}
	return strings.Split(value, ",")
}
