// Package queue is the queue process: it takes recipients through all states
// but remote. It routes and expands what is new, has .forward files read and
// mailboxes written by agents, lets what failed for now wait, reports what
// failed for good, and lets go of what is done.
//
// Everything it knows stands in the spool. What it keeps in memory only spares
// it work, so it may be killed at any system call.
package queue

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"dma/agent"
	"dma/forward"
	"dma/internal/address"
	"dma/internal/maillog"
	"dma/internal/passwd"
	"dma/internal/retry"
	"dma/spooldir"
	"dma/states"
)

// Config is what a Queue needs to know.
type Config struct {
	HostName     string       // name of this machine in headers and reports
	LocalDomains []string     // in lower case, besides none and localhost; HostName has to be among them
	NullClient   bool         // everything goes to the smarthost
	Relay        func() error // nil if mail for other hosts can be sent; else why not
	LMTP         bool         // mailboxes are served by LMTP, which the net process speaks

	AliasUser   string // runs commands and writes files of the aliases
	FullBounce  bool
	Retry       retry.Schedule
	DelayNotice time.Duration // 0: never
	MinFree     func() int64  // octets below which the disk is full
}

// Queue is the queue process's work on one spool.
type Queue struct {
	config  Config
	spool   *spooldir.Spool
	mover   *states.Mover
	syncer  *spooldir.Syncer
	log     *maillog.Log
	clock   states.Clock
	aliases *forward.AliasFile
	users   passwd.Source
	agent   agent.Agent
	watcher *spooldir.Watcher

	forwarding *states.Lanes[spooldir.Name]
	slowly     *states.Lanes[spooldir.Name] // as forwarding, of the users in slow
	local      *states.Lanes[spooldir.Name] // mailboxes and files
	commands   *states.Lanes[spooldir.Name] // of users and of the aliases
	large      *states.Lanes[spooldir.Name] // messages in new that take long to read, by who submitted them
	loops      []*states.Loop

	mu         sync.Mutex
	started    time.Time                    // of this process, by the clock of the file system
	fresh      map[string]bool              // messages committed since, and taken up here first
	gathered   map[string]spooldir.Name     // failed, and waiting for the rest of their message
	released   map[string]map[int]time.Time // when recipients went from tempfail to new, by id and number
	flushed    time.Time                    // what failed before is due
	onFlush    func()
	journals   spooldir.Deliveries
	told       troubles
	logged     reasons
	removed    map[string]bool            // names in local that are delivered, and that the full disk let go of no other way
	unfinished map[string][]unfinished    // by place, in the order in which they were begun
	orphaned   map[string][]spooldir.Name // messages of dma's own whose parents' steps could not be finished at start, by the id of the parent
	unrecorded map[string]result          // of names in local that are delivered, which the disk did not let anybody record
	slow       map[string]bool            // users whose .forward took long to read the last time
	stopping   <-chan struct{}
}

// How much is in hand at a time.
const (
	parallelMessages = 8
	parallelForwards = 8  // .forward files being read, of as many users
	parallelSlow     = 2  // and of those for which it took long the last time
	parallelAgents   = 12 // users whose mailboxes and files are written
	parallelCommands = 8  // users whose commands run: most agents never have any
	parallelLarge    = 4  // submitters whose large messages are looked at
	agentBatch       = 64 // messages an agent gets at a time
	laneItems        = 20000

	// What comes for a user so soon after other mail shares an agent's turn, and
	// the sync of a mailbox, with what comes meanwhile.
	restForwards = 100 * time.Millisecond
	restAgents   = 200 * time.Millisecond
)

// Options are the parts that New puts together.
type Options struct {
	Config  Config
	Spool   *spooldir.Spool
	Watcher *spooldir.Watcher // watches States()
	Log     *maillog.Log
	Clock   states.Clock
	Aliases *forward.AliasFile
	Users   passwd.Source
	Agent   agent.Agent
	Rescan  time.Duration // between scans that nothing rang for
	Syncer  *spooldir.Syncer
	OnFlush func() // called when everything is to be tried now; may be nil
}

// States lists the states that the queue process watches.
func States() []spooldir.State {
	return []spooldir.State{spooldir.New, spooldir.Forwarding, spooldir.Local, spooldir.Tempfail, spooldir.Permfail, spooldir.Sent}
}

// New makes a Queue. The caller holds the lock of the queue role.
func New(o Options) *Queue {
	q := &Queue{
		config: o.Config, spool: o.Spool, log: o.Log, clock: o.Clock, aliases: o.Aliases,
		users: passwd.NewRecent(o.Users, o.Clock.Now), agent: o.Agent, watcher: o.Watcher, syncer: o.Syncer, onFlush: o.OnFlush,
		started: time.Now(), fresh: make(map[string]bool), gathered: make(map[string]spooldir.Name),
		released: make(map[string]map[int]time.Time), unrecorded: make(map[string]result),
		unfinished: make(map[string][]unfinished), orphaned: make(map[string][]spooldir.Name), slow: make(map[string]bool),
		told: make(troubles), logged: make(reasons), removed: make(map[string]bool),
	}
	q.mover = states.NewMover(o.Spool, states.Queue, o.Syncer, q.moved)
	lanes := func(state spooldir.State, total int, rest time.Duration, run func(context.Context, string, []spooldir.Name)) *states.Lanes[spooldir.Name] {
		return &states.Lanes[spooldir.Name]{
			PerKey: 1, Total: total, Batch: agentBatch, Most: laneItems,
			Rest: rest, Clock: o.Clock,
			Run:      run,
			Spare:    func() { q.bell(state).RingAll() },
			Panicked: q.panicked(state),
		}
	}
	q.forwarding = lanes(spooldir.Forwarding, parallelForwards, restForwards, q.runForwarding)
	q.slowly = lanes(spooldir.Forwarding, parallelSlow, restForwards, q.runSlowly)
	q.local = lanes(spooldir.Local, parallelAgents, restAgents, q.runLocal)
	q.commands = lanes(spooldir.Local, parallelCommands, 0, q.runLocal)
	q.large = lanes(spooldir.New, parallelLarge, 0, q.runLarge)
	q.large.Batch = 1 // each has its turn
	handlers := map[spooldir.State]func(context.Context, spooldir.Name) (time.Time, error){
		spooldir.New: q.handleNew, spooldir.Forwarding: q.handleForwarding, spooldir.Local: q.handleLocal,
		spooldir.Tempfail: q.handleTempfail, spooldir.Permfail: q.handlePermfail, spooldir.Sent: q.handleSent,
	}
	for _, state := range States() {
		l := &states.Loop{
			Spool: o.Spool, State: state, Bell: q.bell(state), Clock: o.Clock,
			Handle: handlers[state], Parallel: parallelMessages, Rescan: o.Rescan,
			Foreign: func(file string) { q.quarantine(state, file, "not the name of a recipient") },
			Trouble: q.trouble,
		}
		switch state {
		case spooldir.New:
			l.Also = q.large.Busy
		case spooldir.Forwarding:
			l.Also = func() bool { return q.forwarding.Busy() || q.slowly.Busy() }
		case spooldir.Local:
			l.Also = func() bool { return q.local.Busy() || q.commands.Busy() }
		case spooldir.Tempfail:
			l.Flush = q.flush
		}
		l.Started()
		q.mover.Ringing(state, l.Bell)
		q.loops = append(q.loops, l)
	}
	return q
}

func (q *Queue) bell(state spooldir.State) *spooldir.Bell { return q.watcher.Bell(state) }

// Run works until ctx ends and everything in hand is put down.
func (q *Queue) Run(ctx context.Context) error {
	q.stopping = ctx.Done()
	for _, l := range q.lanes() {
		l.Start(ctx)
	}
	if err := q.recover(ctx); err != nil {
		return err
	}
	var group sync.WaitGroup
	for _, l := range q.loops {
		group.Go(func() { l.Run(ctx) })
	}
	group.Go(func() { q.housekeeping(ctx) })
	group.Wait()
	for _, l := range q.lanes() {
		l.Wait()
	}
	return nil
}

func (q *Queue) lanes() []*states.Lanes[spooldir.Name] {
	return []*states.Lanes[spooldir.Name]{q.large, q.forwarding, q.slowly, q.local, q.commands}
}

// Ringing makes steps into a state ring a bell in the same process.
func (q *Queue) Ringing(state spooldir.State, bell *spooldir.Bell) { q.mover.Ringing(state, bell) }

// Idle reports whether there is nothing to do now.
func (q *Queue) Idle() bool {
	for _, l := range q.loops {
		if !l.Idle() {
			return false
		}
	}
	return true
}

// Rescan makes every loop look at its directory.
func (q *Queue) Rescan() {
	for _, state := range States() {
		q.bell(state).RingAll()
	}
}

// housekeepingEvery is the time between two visits of the cleaner.
const housekeepingEvery = 10 * time.Minute

// housekeeping cleans up after dead submitters and keeps the ballast.
func (q *Queue) housekeeping(ctx context.Context) {
	for {
		cleaned, err := q.spool.Clean(q.clock.Now())
		for _, c := range cleaned {
			q.log.Cleaned(c.File + ": " + c.What)
		}
		if err != nil {
			q.trouble(spooldir.New, spooldir.Name{}, err)
		}
		floor := q.config.MinFree()
		if err := q.spool.KeepBallast(floor); err != nil {
			q.trouble(spooldir.New, spooldir.Name{}, err)
		}
		if err := q.watcher.Arm(); err != nil {
			q.trouble(spooldir.New, spooldir.Name{}, err)
		}
		journals, err := q.spool.CleanJournals()
		for _, c := range journals {
			q.journals.Forget(path.Base(c.File))
			q.log.Cleaned(c.File + ": " + c.What)
		}
		if err != nil {
			q.trouble(spooldir.New, spooldir.Name{}, err)
		}
		timer, stop := q.clock.After(housekeepingEvery)
		select {
		case <-ctx.Done():
			stop()
			return
		case <-timer:
		}
	}
}

// recover mends the spool, finishes the steps of parents whose children are
// committed, and lines up what a kill has left in local before anything fresh
// can come behind it.
func (q *Queue) recover(ctx context.Context) error {
	r, err := q.spool.Recover(q.clock.Now())
	for _, d := range r.Done {
		q.log.Recovered(d.File, d.What)
	}
	if err != nil {
		return err
	}
	for _, err := range r.Trouble {
		q.trouble(spooldir.New, spooldir.Name{}, err)
	}
	for _, name := range r.Children {
		// Trouble with one is no reason to leave the others: take does the same
		// before it lets a parent go, and handleNew before it lets a child go.
		if err := q.recoverChild(ctx, name); err != nil && !errors.Is(err, spooldir.ErrBusy) {
			q.trouble(spooldir.New, name, err)
		}
	}
	var standing []spooldir.Name
	if err := q.spool.Scan(spooldir.Local, func(n spooldir.Name) bool {
		standing = append(standing, n)
		return true
	}, nil); err != nil {
		return err
	}
	// The older first: what was cut off stands before what was to follow it.
	slices.SortFunc(standing, func(a, b spooldir.Name) int { return strings.Compare(a.ID, b.ID) })
	done := make(map[string]bool)
	for _, n := range standing {
		if done[n.ID] {
			continue
		}
		done[n.ID] = true
		_, err := q.handleLocal(ctx, n)
		if errors.Is(err, spooldir.ErrBusy) {
			err = q.lineUpBusy(ctx, n)
		}
		if err != nil {
			q.trouble(spooldir.Local, n, err)
		}
	}
	return nil
}

// recoverChild finishes the steps of the parents of one committed child or
// report.
func (q *Queue) recoverChild(ctx context.Context, name spooldir.Name) error {
	at, err := q.spool.Find(name)
	if err != nil || len(at) == 0 {
		return err
	}
	m, err := q.open(at[0], name)
	if m == nil {
		return err
	}
	defer m.Close()
	if err := q.finishParents(ctx, m); err != nil {
		q.mu.Lock()
		defer q.mu.Unlock()
		for _, p := range m.Parents {
			if list := q.orphaned[p.Name.ID]; !slices.Contains(list, name) {
				q.orphaned[p.Name.ID] = append(list, name)
			}
		}
		return err
	}
	return nil
}

// recoverChildren finishes the steps of a message that recover could not finish.
func (q *Queue) recoverChildren(ctx context.Context, id string) error {
	q.mu.Lock()
	children := q.orphaned[id]
	q.mu.Unlock()
	for _, name := range children {
		if err := q.recoverChild(ctx, name); err != nil {
			return err
		}
	}
	if children != nil {
		q.mu.Lock()
		delete(q.orphaned, id)
		q.mu.Unlock()
	}
	return nil
}

// open opens a message for a worker. A nil message without error means that
// there is nothing to do with the name: it has gone, is not committed, or was
// no message and is in corrupt now.
func (q *Queue) open(state spooldir.State, name spooldir.Name) (*spooldir.Message, error) {
	return q.opened(state, name, q.spool.Open)
}

func (q *Queue) opened(state spooldir.State, name spooldir.Name, open func(spooldir.State, spooldir.Name) (*spooldir.Message, error)) (*spooldir.Message, error) {
	m, err := open(state, name)
	var corrupt *spooldir.CorruptError
	switch {
	case err == nil:
		return m, nil
	case errors.Is(err, spooldir.ErrGone), errors.Is(err, spooldir.ErrUncommitted):
		return nil, nil
	case errors.As(err, &corrupt):
		q.quarantine(state, name.String(), corrupt.Reason)
		return nil, nil
	}
	return nil, err
}

// take opens a message, locks it, and returns the numbers of its recipients
// that stand in state. The name stands for all of them, and may itself have
// gone. The caller closes the message unless it is nil. If another process keeps it
// locked, the error wraps spooldir.ErrBusy.
func (q *Queue) take(ctx context.Context, state spooldir.State, name spooldir.Name) (*spooldir.Message, []int, error) {
	m, err := q.opened(state, name, q.spool.OpenAny)
	if m == nil {
		return nil, nil, err
	}
	err = q.recoverChildren(ctx, m.ID)
	if err == nil {
		err = m.Lock(ctx)
	}
	if err != nil {
		m.Close()
		return nil, nil, err
	}
	numbers, err := q.spool.Standing(m, state)
	if err != nil || len(numbers) == 0 {
		m.Close()
		return nil, nil, err
	}
	return m, numbers, nil
}

// quarantine moves a file that cannot be a message to corrupt and says so
// once.
func (q *Queue) quarantine(state spooldir.State, file, reason string) {
	kept, err := q.spool.Quarantine(state, file)
	switch {
	case errors.Is(err, spooldir.ErrGone):
	case err != nil:
		q.trouble(state, spooldir.Name{}, err)
	default:
		q.log.Corrupt(string(state)+"/"+file, reason, kept)
	}
}

// panicked makes what a batch of a lane does when it panics: it is logged, and
// its names are looked at again after a pause.
func (q *Queue) panicked(state spooldir.State) func(string, []spooldir.Name, any) {
	return func(user string, names []spooldir.Name, reason any) {
		q.trouble(state, names[0], fmt.Errorf("panic while working for %s: %v", user, reason))
		for _, n := range names {
			q.pause(state, n)
		}
	}
}

// trouble logs trouble of the machine.
func (q *Queue) trouble(state spooldir.State, name spooldir.Name, err error) {
	if name.ID != "" {
		err = fmt.Errorf("%s: %w", name.Ref(), err)
	}
	q.log.WorkerTrouble("queue/"+string(state), err)
}

// moved is told of every step.
func (q *Queue) moved(name spooldir.Name, from, to spooldir.State, reason string) {
	goal := string(to)
	if to == states.Gone {
		goal = "gone"
	}
	q.mu.Lock()
	delete(q.unrecorded, name.String())
	if from == spooldir.Local && to == states.Gone {
		q.removed[name.String()] = true
	}
	q.mu.Unlock()
	q.log.Moved(name.ID, name.N, name.Label(), string(from), goal, reason)
	q.left(name.ID)
}

// left makes permfail look again at a message that a recipient of has come to
// rest: what failed may have waited for it.
func (q *Queue) left(id string) {
	q.mu.Lock()
	name, ok := q.gathered[id]
	q.mu.Unlock()
	if ok {
		q.bell(spooldir.Permfail).Ring(name)
	}
}

// flush takes a request to try everything now. What failed before this moment
// is due.
func (q *Queue) flush() bool {
	if !q.spool.TakeFlush() {
		return false
	}
	q.mu.Lock()
	q.flushed = q.clock.Now()
	q.mu.Unlock()
	if q.onFlush != nil {
		q.onFlush()
	}
	return true
}

// history reads the journal of a message. A missing one says nothing and is no
// trouble; whatever else keeps it from being read is, since it may say that a
// recipient is delivered.
func (q *Queue) history(m *spooldir.Message) (*spooldir.Journal, error) {
	journal, err := q.spool.ReadJournal(m.ID)
	if errors.Is(err, fs.ErrNotExist) {
		return &spooldir.Journal{}, nil
	}
	return journal, err
}

// isFresh reports whether a message was committed after this process started,
// so that no delivery of it can have been interrupted. A journal alone does not
// tell: a power cut may have taken it, and left what stands in the mailbox.
func (q *Queue) isFresh(id string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.fresh[id]
}

// doubt makes deliveries of a message look first whether it is there.
func (q *Queue) doubt(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.fresh, id)
}

// isLocal is Config.IsLocal.
func (q *Queue) isLocal(a address.Address) (string, bool) { return q.config.IsLocal(a) }

// sameAddress compares two addresses the way loops are found: a missing domain
// is the host name, and case does not matter.
func (q *Queue) sameAddress(a, b string) bool {
	return strings.EqualFold(q.qualify(a), q.qualify(b))
}

// qualify is Config.qualify.
func (q *Queue) qualify(addr string) string { return q.config.qualify(addr) }
