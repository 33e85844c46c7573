package queue

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dma/agent"
	"dma/forward"
	"dma/internal/maillog"
	"dma/internal/passwd"
	"dma/relay"
	"dma/smarthost"
	"dma/spooldir"

	"github.com/emersion/go-smtp"
	"pgregory.net/rapid"
)

// TestModel lets random things happen to a spool, in random order: mail comes
// in, workers take single steps, an administrator moves, removes and links
// names, the process is killed and started again, time passes. Beside it goes a
// small model: what has to become of each recipient, written down as a table.
// After every step no recipient may be lost, and none may have been served
// twice; at the end everybody has got exactly what the table says, every
// failure has exactly one bounce, and the spool is empty.
func TestModel(t *testing.T) {
	set := make(map[string]bool)
	flag.Visit(func(f *flag.Flag) { set[f.Name] = true })
	for name, value := range map[string]string{"rapid.steps": "60", "rapid.checks": "30"} {
		if f := flag.Lookup(name); !set[name] {
			defer flag.Set(name, f.Value.String())
			flag.Set(name, value) // a message takes a dozen steps
		}
	}
	dir, runs := memory(t), 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		w := newWorld(t, filepath.Join(dir, strconv.Itoa(runs)))
		defer os.RemoveAll(w.dir)
		t.Repeat(map[string]func(*rapid.T){
			"":        w.check,
			"submit":  w.submits,
			"work1":   w.works,
			"work2":   w.works,
			"work3":   w.works,
			"sweep":   w.sweeps,
			"kill":    w.kills,
			"restart": w.restarts,
			"hand1":   w.hands,
			"hand2":   w.hands,
			"advance": w.advances,
			"flush":   w.flushes,
			"half":    w.halfSubmits,
		})
		w.finish()
	})
}

// plan is what has to become of a recipient.
type plan struct {
	child   []string // expanded into these
	fails   bool     // bounces
	discard bool     // goes to /dev/null
	// None of these: it is delivered.
}

// plans is the reference: what has to become of each kind of recipient, where
// nothing goes wrong for long. Recipients that are not in it are delivered.
var plans = map[string]plan{
	"address bob":                       {child: []string{"address ok.bob@remote.test", "mailbox bob"}},
	"user bob":                          {child: []string{"address ok.bob@remote.test", "mailbox bob"}},
	"address carl":                      {child: []string{"command carl=vacation"}},
	"user carl":                         {child: []string{"command carl=vacation"}},
	"address dave":                      {child: []string{"address alice", "file dave=/home/dave/mail"}},
	"user dave":                         {child: []string{"address alice", "file dave=/home/dave/mail"}},
	"address nil":                       {discard: true},
	"address lou":                       {child: []string{"address luu"}},
	"address luu":                       {child: []string{"user lou"}},
	"user lou":                          {fails: true}, // comes round a second time
	"address team":                      {child: []string{"address ok.team@remote.test", "user alice", "user bob"}},
	"address list":                      {child: []string{"address refuse.list@remote.test", "user alice", "user carl"}},
	"address owner-list":                {child: []string{"user alice"}},
	"address archive":                   {child: []string{"command daemon=filter", "file daemon=/var/archive"}},
	"address ghost":                     {fails: true},
	"address refuse.a@remote.test":      {fails: true},
	"address refuse.b@remote.test":      {fails: true},
	"address refuse.list@remote.test":   {fails: true},
	"address refuse.sender@remote.test": {fails: true},
	"address refuse.pm@remote.test":     {fails: true},
}

var modelAliases = []string{
	"team: alice, bob, ok.team@remote.test",
	"list: alice, carl, refuse.list@remote.test",
	"owner-list: alice",
	"archive: /var/archive, |filter",
	"luu: lou",
}

var modelForwards = map[string][]string{
	"bob":  {"ok.bob@remote.test", `\bob`},
	"carl": {`"|vacation"`},
	"dave": {"/home/dave/mail", "alice"},
	"nil":  {"/dev/null"},
	"lou":  {"luu"},
}

var (
	modelRecipients = []string{
		"alice", "alice@host.test", "bob", "carl", "dave", "nil@localhost", "lou", "team", "list", "archive", "ghost",
		"ok.1@remote.test", "ok.2@remote.test", "ok.3@remote.test", "refuse.a@remote.test", "refuse.b@remote.test",
	}
	modelSenders = []string{"alice@host.test", "ok.sender@remote.test", "", "ghost@host.test", "refuse.sender@remote.test", "bob@host.test"}
	modelNotify  = []string{"", "", "NEVER", "SUCCESS,FAILURE", "SUCCESS", "FAILURE,DELAY"}
)

// describe is the key of a recipient in plans.
func describe(r *spooldir.Recipient) string {
	switch r.Kind {
	case spooldir.Address:
		a := strings.TrimSuffix(strings.TrimSuffix(r.Address, "@"+testHost), "@localhost")
		return "address " + a
	case spooldir.LocalUser, spooldir.Mailbox:
		return r.Kind.String() + " " + r.User
	}
	return r.Kind.String() + " " + r.User + "=" + r.Target
}

// key is one recipient of one message.
type key struct {
	id string
	n  int
}

// entity is what the model knows of a recipient.
type entity struct {
	key
	name     spooldir.Name
	what     string // key of plans
	notify   string
	sender   string
	arrival  time.Time
	last     bool // a report to the postmaster: nobody hears of its failure
	unlisted bool // a file or command that its owner did not list at some time

	delivered, expanded, bounced, reported, noticed int

	discarded bool
	silent    bool // ended without a bounce that nobody wanted
	removed   bool // by hand
	uncertain int  // deliveries that a kill kept from being recorded
	deferrals int
	parked    spooldir.State
}

func (e *entity) settled() bool {
	return e.delivered > 0 || e.expanded > 0 || e.bounced > 0 || e.discarded || e.silent
}

type killed struct{}

// world is the spool, the processes that work on it, and the model.
type world struct {
	*fixture
	rt       *rapid.T
	relay    *relay.Relay
	netClock *fakeClock

	plans    map[string]plan
	entities map[key]*entity
	order    []*entity
	inodes   map[string]string // by id: of the file
	reports  map[string]bool   // ids of reports to the postmaster, and what came of them
	batchesW []batch
	down     bool
	deaths   int  // kills so far
	clean    bool // no trouble from now on

	mu        sync.Mutex
	killAfter int // cut points until the process dies; 0: it lives
	dead      bool
	mood      int          // 0: everything goes well
	boxes     map[key]bool // what stands in mailboxes and files
	served    []key        // in this step
	wrong     []string
	hand      func(name spooldir.Name, at spooldir.State) // in the middle of a delivery
}

func newWorld(t *rapid.T, dir string) *world {
	w := &world{
		rt: t, plans: maps.Clone(plans), entities: make(map[key]*entity), inodes: make(map[string]string),
		reports: make(map[string]bool), boxes: make(map[key]bool),
	}
	w.fixture = newFixture(t, dir)
	w.users = newUsers("root", "alice", "bob", "carl", "dave", "nil", "lou", "daemon")
	lines := modelAliases
	if rapid.Bool().Draw(t, "postmaster unreachable") {
		lines = append(slices.Clone(lines), "postmaster: refuse.pm@remote.test")
		w.plans["address postmaster"] = plan{child: []string{"address refuse.pm@remote.test"}}
	}
	w.writeAliases(lines...)
	forwards := make(map[string]forward.Result)
	for user, lines := range modelForwards {
		forwards[user] = forwardTo(t, "/home/"+user+"/.forward", lines...)
	}
	w.users.point, w.clock.point, w.log.on = w.point, w.point, w.event
	w.agent.forward = func(u passwd.User, _ string) (forward.Result, error) {
		w.point()
		if w.chance("forward "+u.Name, 4) {
			return forward.Result{}, errors.New("cannot read it now")
		}
		return forwards[u.Name], nil
	}
	w.agent.deliver = w.deliverLocal
	w.start()
	return w
}

// start starts the processes again.
func (w *world) start() {
	w.fixture.start()
	w.batchesW, w.down, w.dead, w.killAfter = nil, false, false, 0
}

// newRelay makes the net process, whose loop keeps nothing that matters.
func (w *world) newRelay() {
	w.relay = relay.New(relay.Options{
		Spool: w.spool, Watcher: w.spool.Unwatched(spooldir.Remote), Log: maillog.New(slog.New(w.log)),
		Clock: w.netClock, Retry: testSchedule, Deliverer: w, HostName: testHost, Concurrency: 1, Rescan: time.Hour,
	})
}

// point is a place where the process can be killed.
func (w *world) point() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.killAfter > 0 {
		w.killAfter--
		w.dead = w.dead || w.killAfter == 0
	}
	if w.dead {
		panic(killed{})
	}
}

// chance is true once in n times, if the mood is bad. It does not depend on
// the order in which a directory lists its names.
func (w *world) chance(what string, n uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.clean || w.mood == 0 {
		return false
	}
	h := fnv.New64a()
	fmt.Fprint(h, what, w.mood, len(w.log.events))
	return h.Sum64()>>7%n == 0
}

func (w *world) complain(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wrong = append(w.wrong, fmt.Sprintf(format, args...))
}

// event is told of each line of the log.
func (w *world) event(e logEvent) {
	n, _ := strconv.Atoi(e.attrs["n"])
	w.mu.Lock()
	if x := w.entities[key{e.attrs["id"], n}]; x != nil {
		switch {
		case e.name == maillog.EventDelivery && e.attrs["status"] == string(maillog.Deferred):
			x.deferrals++
		case e.name == maillog.EventDelivery && strings.HasSuffix(e.attrs["reply"], ": discarded"):
			x.discarded = true
		case e.name == maillog.EventMoved && e.attrs["reason"] == "the sender asked for no report":
			x.silent = true
		}
	}
	w.mu.Unlock()
	switch e.name {
	case maillog.EventCorrupt:
		w.complain("%s", e)
	case maillog.EventWorkerTrouble, maillog.EventBounced, maillog.EventDoubleBounce:
		// A kill right here would leave a lock in the hands of this very
		// process. The next point does as well.
	default:
		w.point()
	}
}

// serve notes that the message has reached a recipient.
func (w *world) serve(k key) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.entities[k]
	if e == nil {
		w.wrong = append(w.wrong, fmt.Sprintf("%v was delivered and nobody sent it", k))
		return
	}
	e.delivered++
	w.served = append(w.served, k)
	if e.delivered > 1+e.uncertain {
		w.wrong = append(w.wrong, fmt.Sprintf("%s (%s) was delivered %d times", e.name, e.what, e.delivered))
	}
	if p := w.plans[e.what]; p.fails || p.discard || p.child != nil {
		w.wrong = append(w.wrong, fmt.Sprintf("%s (%s) was delivered", e.name, e.what))
	}
}

// deliverLocal is the agent of all users.
func (w *world) deliverLocal(jobs []*agent.Job, done func(*agent.Job)) {
	var written []*agent.Job
	for _, j := range jobs {
		w.point()
		k := key{j.Message.ID, j.Message.Recipient}
		m := j.Message.Content.(*spooldir.Message)
		what := fmt.Sprint(k, j.Kind)
		if w.hand != nil && w.chance("hand "+what, 4) {
			w.hand(m.Name(k.n), spooldir.Local)
		}
		j.Place = "a place"
		w.mu.Lock()
		e := w.entities[k]
		w.mu.Unlock()
		if e == nil {
			w.complain("%v: a job for nobody", k)
			continue
		}
		switch {
		case w.chance("before "+what, 6):
			j.Err = errors.New("no room")
		case j.Kind != spooldir.Mailbox && m.Depth < 6 && w.chance("unlisted "+what, 4):
			e.unlisted = true
			j.Err = agent.ErrUnlisted
		case j.Kind == spooldir.Command:
			w.serve(k)
		case j.Message.Suspect && w.boxes[k]:
			j.Already = true
		default:
			if w.boxes[k] {
				w.complain("%s (%s) stands twice in its mailbox", e.name, e.what)
			} else {
				w.serve(k)
			}
			w.boxes[k] = true
			if w.chance("after "+what, 3) {
				j.Err = errors.New("the sync failed") // and yet it is there
				e.uncertain++
			}
		}
		written = append(written, j)
		w.point()
		if w.chance("each "+what, 2) {
			for _, j := range written {
				done(j)
			}
			written = nil
		}
	}
	for _, j := range written {
		done(j)
	}
}

// Deliver is the smarthost.
func (w *world) Deliver(_ context.Context, m smarthost.Message, done func([]int, []smarthost.Outcome)) {
	w.point()
	out := make([]smarthost.Outcome, len(m.Recipients))
	indices := make([]int, len(out))
	for i, r := range m.Recipients {
		k := key{m.ID, r.N}
		what := fmt.Sprint(k)
		file := m.Content.(*spooldir.Message)
		if w.hand != nil && w.chance("hand "+what, 4) {
			w.hand(file.Name(k.n), spooldir.Remote)
		}
		o := smarthost.Outcome{Verdict: smarthost.Sent, Relay: "relay.test[192.0.2.1]:25", Reply: smtp.SMTPError{Code: 250, Message: "thanks"}}
		switch {
		case w.chance("refused "+what, 6):
			o = smarthost.Outcome{Verdict: smarthost.Tempfail, Refused: true, Reply: smtp.SMTPError{Message: "left alone"}}
		case w.chance("deferred "+what, 3):
			o.Verdict, o.Reply = smarthost.Tempfail, smtp.SMTPError{Code: 451, Message: "later"}
		case strings.HasPrefix(r.Address, "refuse."):
			o.Verdict, o.Reply = smarthost.Permfail, smtp.SMTPError{Code: 550, Message: "never"}
		case !strings.HasPrefix(r.Address, "ok."):
			w.complain("the smarthost got %q", r.Address)
		default:
			w.serve(k)
		}
		out[i], indices[i] = o, i
	}
	w.point()
	done(indices, out)
}

// Flush does nothing: the smarthost has no back-off.
func (w *world) Flush() {}

// Close does nothing: it has no connections.
func (w *world) Close() {}

// guard runs one step of the processes. A kill in it leaves them down.
func (w *world) guard(step func()) {
	w.served = nil
	func() {
		defer func() {
			if r := recover(); r != nil {
				if _, ok := r.(killed); !ok {
					panic(r)
				}
			}
		}()
		step()
	}()
	if w.dead {
		w.buried()
	}
	w.killAfter, w.mood = 0, 0
}

// buried does what the kernel does after a kill, and takes down which
// deliveries nobody has recorded.
func (w *world) buried() {
	w.down, w.dead = true, false
	w.deaths++
	// What a message was opened with is closed by the collector.
	runtime.GC()
	for _, k := range w.served {
		j, err := w.spool.ReadJournal(k.id)
		if err == nil && !j.Delivered(k.n) {
			w.entities[k].uncertain++
		}
	}
}

// net runs the relay until it has nothing to do.
func (w *world) net() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w.netClock = &fakeClock{now: w.clock.now, wait: func() {
		if w.relay.Idle() {
			cancel()
		}
	}}
	w.newRelay()
	w.relay.Run(ctx)
	if w.dead {
		panic(killed{})
	}
}

// job is something that a worker can do now.
type job struct {
	what  string
	state spooldir.State
	name  spooldir.Name
	batch int // of batchesW, -1: none
}

// jobs lists what the workers can do now.
func (w *world) jobs() []job {
	var list []job
	for i, b := range w.batchesW {
		list = append(list, job{what: fmt.Sprintf("agent of %s: %s %v", b.user, b.state, b.names), batch: i})
	}
	for _, state := range States() {
		for _, n := range w.names(state) {
			list = append(list, job{string(state) + "/" + n.String(), state, n, -1})
		}
	}
	if len(w.names(spooldir.Remote)) > 0 {
		list = append(list, job{what: "net", state: spooldir.Remote, batch: -1})
	}
	return list
}

// do does a job and returns the trouble that its handler met.
func (w *world) do(j job) (err error) {
	switch {
	case j.batch >= 0:
		b := w.batchesW[j.batch]
		w.batchesW = slices.Delete(w.batchesW, j.batch, j.batch+1)
		w.run(b)
	case j.state == spooldir.Remote:
		w.net()
	default:
		_, err = w.handle(j.state, j.name)
		w.batchesW = append(w.batchesW, w.take()...)
	}
	return err
}

func (w *world) submits(t *rapid.T) {
	if len(w.jobs()) > 40 {
		t.Skip("enough to do")
	}
	env := spooldir.Envelope{Sender: rapid.SampledFrom(modelSenders).Draw(t, "sender")}
	for _, a := range rapid.SliceOfN(rapid.SampledFrom(modelRecipients), 1, 4).Draw(t, "recipients") {
		env.Recipients = append(env.Recipients, spooldir.Recipient{
			Address: a, Notify: rapid.SampledFrom(modelNotify).Draw(t, "notify"),
		})
	}
	w.submit(env, "Subject: test\n\nbody\n")
}

// halfSubmits leaves what a submitter leaves that dies before its commit.
func (w *world) halfSubmits(t *rapid.T) {
	w.ids++
	id := fmt.Sprintf("20400101T000000-%016x", w.ids)
	w.half(id, rapid.IntRange(1, 3).Draw(t, "names"))
}

func (w *world) half(id string, names int) {
	tmp := filepath.Join(w.spool.Path(), "tmp", id)
	if err := os.WriteFile(tmp, []byte("dma-message 1 crc"), 0o600); err != nil {
		w.t.Fatal(err)
	}
	for n := range names {
		if err := os.Link(tmp, w.file(spooldir.New, spooldir.NewName(id, n+1, "alice"))); err != nil {
			w.t.Fatal(err)
		}
	}
}

// works lets the workers do some of what they can do, in any order.
func (w *world) works(t *rapid.T) { w.some(t, 0) }

func (w *world) some(t *rapid.T, killAfter int) {
	if w.down || len(w.jobs()) == 0 {
		t.Skip("nobody works")
	}
	mood := rapid.IntRange(0, 50).Draw(t, "mood")
	for n := rapid.IntRange(1, 25).Draw(t, "steps"); n > 0 && !w.down; n-- {
		list := w.jobs()
		if len(list) == 0 {
			break
		}
		j := list[rapid.IntRange(0, len(list)-1).Draw(t, "job")]
		t.Logf("%s", j.what)
		w.mood = mood
		if n == 1 {
			w.killAfter = killAfter // in the last one
		}
		w.guard(func() { w.do(j) })
		w.learn()
	}
}

func (w *world) kills(t *rapid.T) {
	w.some(t, rapid.IntRange(1, 30).Draw(t, "dies after"))
	if !w.down {
		w.down, w.deaths = true, w.deaths+1 // between two steps
	}
	w.learn()
	// It may have died while it made a child, too.
	if rapid.Bool().Draw(t, "half a child") {
		for _, state := range []spooldir.State{spooldir.New, spooldir.Forwarding} {
			for _, n := range w.names(state) {
				id := spooldir.DeriveID(n.ID, n.N, spooldir.Child)
				if _, ok := w.inodes[id]; !ok && w.entities[key{n.ID, n.N}] != nil {
					w.half(id, 2)
					return
				}
			}
		}
	}
}

func (w *world) restarts(t *rapid.T) {
	w.start()
	if rapid.Bool().Draw(t, "and dies again") {
		w.killAfter = rapid.IntRange(1, 30).Draw(t, "dies after")
	}
	w.guard(w.recovers)
}

func (w *world) recovers() {
	if err := w.q.recover(context.Background()); err != nil {
		w.complain("recovery: %v", err)
	}
	w.q.wait()
	w.batchesW = append(w.batchesW, w.take()...)
}

// sweeps lets the workers do everything that they can do at once.
func (w *world) sweeps(t *rapid.T) {
	if w.down {
		t.Skip("nobody works")
	}
	mood := rapid.IntRange(0, 50).Draw(t, "mood")
	for _, j := range w.jobs() {
		if j.batch >= 0 {
			j.batch = 0
		}
		w.mood = mood
		w.guard(func() { w.do(j) })
	}
}

func (w *world) advances(t *rapid.T) {
	d := rapid.SampledFrom([]time.Duration{time.Minute, 10 * time.Minute, time.Hour, 5 * time.Hour, 30 * time.Hour}).Draw(t, "time")
	w.clock.advance(d)
}

func (w *world) flushes(t *rapid.T) {
	if err := w.spool.RequestFlush(); err != nil {
		t.Fatal(err)
	}
	if !w.down && !w.q.flush() {
		t.Fatal("the request was not taken")
	}
}

// hands is an administrator with a shell.
func (w *world) hands(t *rapid.T) {
	type place struct {
		state spooldir.State
		name  spooldir.Name
	}
	var list []place
	for _, state := range spooldir.States() {
		if state.Waiting() {
			for _, n := range w.names(state) {
				kind, _ := spooldir.IDKind(n.ID)
				if w.entities[key{n.ID, n.N}] != nil && kind != spooldir.Delay {
					list = append(list, place{state, n})
				}
			}
		}
	}
	if len(list) == 0 {
		t.Skip("nothing to move")
	}
	p := rapid.SampledFrom(list).Draw(t, "name")
	t.Logf("%s/%s", p.state, p.name)
	w.byHand(p.name, p.state, rapid.IntRange(0, 5).Draw(t, "move"))
	// What happens in the middle of the next delivery.
	if next := rapid.IntRange(0, 3).Draw(t, "and in the middle of a delivery"); next > 0 {
		w.hand = func(name spooldir.Name, at spooldir.State) {
			w.hand = nil
			if _, err := os.Lstat(w.file(at, name)); err != nil {
				return
			}
			switch next {
			case 1:
				w.byHand(name, at, 0)
			case 2:
				w.byHand(name, at, 4)
			case 3: // away and back again
				w.byHand(name, at, 0)
				w.byHand(name, spooldir.Hold, 1)
			}
		}
	}
}

func (w *world) byHand(name spooldir.Name, at spooldir.State, how int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.entities[key{name.ID, name.N}]
	mv := func(to spooldir.State) {
		// As mv(1) does it: a second link to the same file is removed.
		if _, err := os.Lstat(w.file(to, name)); err == nil {
			os.Remove(w.file(at, name))
			return
		}
		if err := os.Rename(w.file(at, name), w.file(to, name)); err != nil {
			w.wrong = append(w.wrong, err.Error())
		}
	}
	switch {
	case at == spooldir.Hold && how <= 2:
		to := e.parked
		if to == "" {
			to = spooldir.New
		}
		mv(to)
	case at == spooldir.Tempfail && how <= 2:
		mv(spooldir.New)
	case at != spooldir.Hold && how <= 3:
		e.parked = at
		mv(spooldir.Hold)
	case how == 4:
		os.Remove(w.file(at, name))
		if in, err := w.spool.Find(name); err == nil && len(in) == 0 {
			e.removed = true
		}
	case how == 5:
		for _, to := range []spooldir.State{spooldir.Hold, spooldir.Tempfail, spooldir.New} {
			if to != at {
				os.Link(w.file(at, name), w.file(to, name)) // it may be there
				break
			}
		}
	}
}

// learn takes new messages into the model and checks what made them.
func (w *world) learn() {
	for _, state := range []spooldir.State{spooldir.New, spooldir.Hold} {
		for _, name := range w.names(state) {
			kind, _ := spooldir.IDKind(name.ID)
			if _, ok := w.entities[key{name.ID, name.N}]; ok {
				if kind != spooldir.Submitted {
					w.once(state, name)
				}
				continue
			}
			m, err := w.spool.Open(state, name)
			if errors.Is(err, spooldir.ErrUncommitted) {
				continue
			}
			if err != nil {
				w.complain("%s/%s: %v", state, name, err)
				continue
			}
			w.learnMessage(m)
			w.once(state, name)
			m.Close()
		}
	}
}

func (w *world) learnMessage(m *spooldir.Message) {
	var parents []*entity
	for _, p := range m.Parents {
		e := w.entities[key{p.Name.ID, p.Name.N}]
		if e == nil {
			w.complain("%s has the parent %s, which nobody knows", m.ID, p.Name)
			return
		}
		parents = append(parents, e)
	}
	last := false
	switch m.Kind() {
	case spooldir.Child:
		last = parents[0].last || w.reports[parents[0].id] && parents[0].what == "address postmaster"
		w.learnChild(m, parents[0])
	case spooldir.Bounce:
		for _, e := range parents {
			e.bounced++
			w.mayFail(e)
		}
		w.addressee(m, parents[0])
	case spooldir.Success:
		for _, e := range parents {
			e.reported++
			if e.delivered == 0 && !e.discarded && len(w.plans[e.what].child) < 2 {
				w.complain("the delivery of %s (%s) was reported, and there was none", e.name, e.what)
			}
		}
		w.addressee(m, parents[0])
	case spooldir.Delay:
		for _, e := range parents {
			e.noticed++
			if !strings.Contains(e.notify, "DELAY") || w.clock.now.Sub(e.arrival) < w.config.DelayNotice {
				w.complain("nobody asked for a notice of delay of %s (%s)", e.name, e.what)
			}
		}
		w.addressee(m, parents[0])
	}
	if m.Kind() != spooldir.Child && (m.Kind() != spooldir.Submitted || w.isNotice(m)) && m.Recipients[0].Address == "postmaster" {
		w.reports[m.ID] = true
	}
	for i := range m.Recipients {
		r := &m.Recipients[i]
		e := &entity{
			key: key{m.ID, i + 1}, name: m.Name(i + 1), what: describe(r), notify: r.Notify,
			sender: m.Sender, arrival: m.Arrival, last: last || w.reports[m.ID],
		}
		w.mu.Lock()
		w.entities[e.key] = e
		w.mu.Unlock()
		w.order = append(w.order, e)
	}
}

// isNotice reports whether m tells postmaster of a .forward. There is no such
// message before mail has waited for long.
func (w *world) isNotice(m *spooldir.Message) bool {
	if m.Sender != "" || !strings.Contains(content(w.rt, m), "\nSubject: Mail for ") {
		return false
	}
	if !slices.ContainsFunc(w.order, func(e *entity) bool { return m.Arrival.Sub(e.arrival) >= forwardNotice }) {
		w.complain("postmaster is told of mail that has just come:\n%s", content(w.rt, m))
	}
	return true
}

// once checks that a name belongs to the file that the model knows: a message
// of dma's own that was made twice has the same names.
func (w *world) once(state spooldir.State, name spooldir.Name) {
	info, err := os.Lstat(w.file(state, name))
	if err != nil {
		return
	}
	if ino := fmt.Sprint(info.Sys().(*syscall.Stat_t).Ino); w.inodes[name.ID] == "" {
		w.inodes[name.ID] = ino
		w.stamp(w.file(state, name)) // the process wrote it just now
	} else if w.inodes[name.ID] != ino {
		w.inodes[name.ID] = ino
		e := w.entities[key{name.ID, name.N}]
		switch kind, _ := spooldir.IDKind(name.ID); {
		case w.deaths > 0 && kind == spooldir.Delay:
			// A kill may cost its being noted; then it is sent again.
			e.uncertain++
		case w.deaths > 0 && e.removed:
			// Nothing of it was left that could tell of it.
		default:
			w.complain("%s was made twice", name)
		}
	}
}

// learnChild compares a child with what its parent has to expand into.
func (w *world) learnChild(m *spooldir.Message, parent *entity) {
	if parent.expanded++; parent.expanded > 1 {
		w.complain("%s (%s) was expanded %d times", parent.name, parent.what, parent.expanded)
	}
	want := slices.Clone(w.plans[parent.what].child)
	if parent.unlisted {
		user, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(parent.what, "command "), "file "), "=")
		if want = []string{"user " + user}; user == "daemon" {
			want = []string{"address archive"}
		}
	}
	var got []string
	for i := range m.Recipients {
		got = append(got, describe(&m.Recipients[i]))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		w.complain("%s (%s) was expanded into %q, want %q", parent.name, parent.what, got, want)
	}
}

// addressee checks who gets a report.
func (w *world) addressee(m *spooldir.Message, parent *entity) {
	want := parent.sender
	if want == "" {
		want = "postmaster"
	}
	if len(m.Recipients) != 1 || m.Recipients[0].Address != want || m.Sender != "" {
		w.complain("report %s about mail from <%s> goes from <%s> to %v", m.ID, parent.sender, m.Sender, m.Recipients)
	}
}

// mayFail checks that a recipient was bounced with reason.
func (w *world) mayFail(e *entity) {
	old := w.clock.now.Sub(e.arrival) >= testSchedule.Expire && e.deferrals >= 5
	switch {
	case !w.plans[e.what].fails && !old:
		w.complain("%s (%s) bounced, and it should not fail", e.name, e.what)
	case e.bounced > 1:
		w.complain("%s (%s) bounced %d times", e.name, e.what, e.bounced)
	case e.expanded > 0 || e.delivered > e.uncertain:
		w.complain("%s (%s) bounced, and was delivered %d times and expanded %d times", e.name, e.what, e.delivered, e.expanded)
	case e.notify == "NEVER" && e.sender != "":
		w.complain("%s (%s) bounced, and nobody wanted a bounce", e.name, e.what)
	}
}

// check is what holds after every step: nothing is lost.
func (w *world) check(t *rapid.T) {
	w.learn()
	standing := make(map[string]bool)
	for _, state := range spooldir.States() {
		for _, n := range w.names(state) {
			standing[n.String()] = true
		}
	}
	for _, e := range w.order {
		if !e.settled() && !e.removed && !standing[e.name.String()] {
			w.complain("%s (%s) is lost", e.name, e.what)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.wrong) > 0 {
		w.story()
		t.Fatalf("%s", strings.Join(w.wrong, "\n"))
	}
}

func (w *world) story() {
	for _, e := range w.log.events {
		w.rt.Logf("  %s", e)
	}
}

// finish lets everything come to its end without trouble and looks at what it
// was.
func (w *world) finish() {
	w.clean = true
	if w.down {
		w.start()
		w.recovers()
	}
	w.q.flush()
	var trouble []error
	for range 300 {
		before := len(w.log.events)
		trouble = nil
		for _, n := range w.names(spooldir.Hold) {
			w.byHand(n, spooldir.Hold, 1)
		}
		for _, j := range w.jobs() {
			if j.batch >= 0 {
				j.batch = 0
			}
			if err := w.do(j); err != nil {
				trouble = append(trouble, err)
			}
		}
		w.learn() // what a round makes, it does not take up
		if len(w.log.events) == before && len(w.names(spooldir.Hold)) == 0 && len(w.batchesW) == 0 {
			if len(w.names(spooldir.Tempfail)) == 0 {
				break
			}
			w.clock.advance(time.Hour)
		}
	}
	if len(trouble) > 0 {
		w.complain("trouble that does not end: %v", trouble)
	}
	w.check(w.rt)

	// What a submitter left that died, and journals of what a hand removed.
	if _, err := w.spool.Clean(w.clock.now); err != nil {
		w.complain("cleaner: %v", err)
	}
	w.start()
	w.recovers()
	kept := make(map[string]bool)
	for _, e := range w.order {
		w.end(e, kept)
	}
	for _, state := range append(spooldir.States(), spooldir.Tmp, spooldir.Corrupt, spooldir.LogDir) {
		files, err := os.ReadDir(filepath.Join(w.spool.Path(), string(state)))
		if err != nil {
			w.complain("%v", err)
		}
		for _, f := range files {
			id, _, _ := strings.Cut(f.Name(), ".")
			if state == spooldir.Permfail && kept[f.Name()] || state == spooldir.LogDir && kept[id] {
				continue
			}
			w.complain("%s/%s is left over", state, f.Name())
		}
	}
	w.check(w.rt)
}

// end checks what has become of a recipient.
func (w *world) end(e *entity, kept map[string]bool) {
	p := w.plans[e.what]
	failed := e.bounced > 0 || e.silent
	if !e.settled() {
		if e.last && !e.removed {
			kept[e.name.String()], kept[e.id] = true, true
			if w.where(e.name) != string(spooldir.Permfail) {
				w.complain("%s (%s) has to be in permfail for a person", e.name, e.what)
			}
			return
		}
		if !e.removed {
			w.complain("nothing became of %s (%s)", e.name, e.what)
		}
		return
	}
	switch {
	case failed:
	case e.unlisted && e.expanded == 1:
	case p.child != nil && e.expanded != 1, p.discard && !e.discarded, p.child == nil && !p.discard && e.delivered == 0:
		w.complain("%s (%s) ended as %+v", e.name, e.what, *e)
	}
	// Several targets: "expanded" is reported, and nothing of their deliveries.
	several := e.expanded > 0 && len(w.plans[e.what].child) > 1
	reported := strings.Contains(e.notify, "SUCCESS") && e.sender != "" && !failed &&
		((e.delivered > 0 || e.discarded) && e.expanded == 0 || several)
	if want := map[bool]int{true: 1}[reported]; e.reported != want && !(e.removed && e.reported < want) && e.uncertain == 0 {
		w.complain("the delivery of %s (%s) was reported %d times, want %d", e.name, e.what, e.reported, want)
	}
	if e.noticed > 1+w.deaths {
		w.complain("the delay of %s (%s) was noticed %d times", e.name, e.what, e.noticed)
	}
}
