package parent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"dma/agent"
	"dma/internal/passwd"
	"dma/internal/wire"
	"dma/spooldir"
)

// MaxAgents is how many agents may live, at work or kept for a moment.
const MaxAgents = 128

const maxDoomed = 256 // killed, and not gone: hanging in the kernel, on a file system that does not answer

// nobodyUID is that of nobody where no such user is known. Whatever group nobody
// has, who writes for root has another one, this or that of the mailboxes: a process
// cannot be traced by one with another gid, so no program of nobody's gets at
// root's mailbox. To kill the writer, which delays root's mail, it has the right.
const (
	nobodyUID = 65534
	nobodyGID = 65533
)

// agents are those that live.
type agents struct {
	mu      sync.Mutex
	live    []*entry
	closing bool // none is started any more
}

// entry is an agent that lives, or is being started.
type entry struct {
	name string // as the queue process wrote it
	uid  int
	role agent.Role

	child  child   // nil: being started
	tether *tether // with child
	doomed bool    // to be killed as soon as it is started
	gone   chan struct{}
}

// reserve takes a place for an agent.
func (a *agents) reserve(name string, uid int, role agent.Role) (*entry, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	doomed := 0
	for _, e := range a.live {
		if e.uid == uid && e.role == role {
			return nil, agent.ErrBusy
		}
		if e.doomed {
			doomed++
		}
	}
	switch {
	case a.closing:
		return nil, errors.New("the service ends")
	case len(a.live)-doomed >= MaxAgents:
		return nil, fmt.Errorf("%d agents are at work", MaxAgents)
	case doomed >= maxDoomed:
		return nil, fmt.Errorf("%d agents were killed and do not end", maxDoomed)
	}
	e := &entry{name: name, uid: uid, role: role, gone: make(chan struct{})}
	a.live = append(a.live, e)
	return e, nil
}

// release gives the place of an agent that is gone, or never came, back.
func (a *agents) release(e *entry) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.live = slices.DeleteFunc(a.live, func(x *entry) bool { return x == e })
	close(e.gone)
}

// started fills the place of an agent.
func (a *agents) started(e *entry, c child, t *tether) {
	a.mu.Lock()
	e.child, e.tether = c, t
	if e.doomed {
		c.kill()
	}
	a.mu.Unlock()
	go func() {
		<-c.ended()
		t.cut()
		a.release(e)
	}()
}

// stop kills the agent of a user and role, if there is one, and waits until it
// is gone. The user is not looked up: only what we started is found.
func (a *agents) stop(ctx context.Context, name string, role agent.Role) error {
	a.mu.Lock()
	var e *entry
	for _, x := range a.live {
		if x.name == name && x.role == role {
			e = x
		}
	}
	if e != nil {
		a.kill(e)
	}
	a.mu.Unlock()
	if e == nil {
		return nil
	}
	select {
	case <-e.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the agent of %s does not end", name)
	}
}

// kill kills an agent. The caller holds the lock.
func (a *agents) kill(e *entry) {
	e.doomed = true
	if e.child != nil {
		e.child.kill()
	}
}

// living are the agents that live now. Last says that no other one is started.
func (a *agents) living(last bool) []*entry {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closing = a.closing || last
	return slices.Clone(a.live)
}

// end asks agents to end, and kills those that have not after grace. It returns
// when they are gone, or can not be made to go.
func (a *agents) end(clock Clock, grace time.Duration, ending []*entry) {
	a.mu.Lock()
	for _, e := range ending {
		if e.child != nil {
			e.tether.cut()
		}
	}
	a.mu.Unlock()
	if wait(clock, grace, ending) {
		return
	}
	a.mu.Lock()
	for _, e := range ending {
		a.kill(e)
	}
	a.mu.Unlock()
	wait(clock, grace, ending)
}

// wait waits until all of entries are gone, and reports whether they are.
func wait(clock Clock, most time.Duration, entries []*entry) bool {
	over, stop := clock.After(most)
	defer stop()
	for _, e := range entries {
		select {
		case <-e.gone:
		case <-over:
			return false
		}
	}
	return true
}

// startAgent starts an agent, and returns the other end of its connection. The
// queue process sends no socket for that: to close what it sent instead might
// never end.
func (p *parent) startAgent(ctx context.Context, name string, role agent.Role) (*os.File, error) {
	o := p.options()
	setup, account, err := p.plan(ctx, o, name, role)
	if err != nil {
		return nil, err
	}
	ours, theirs, err := wire.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	e, err := p.agents.reserve(name, setup.User.UID, role)
	if err == nil {
		if err = p.launch(ctx, e, &setup, account, theirs); err != nil {
			p.agents.release(e)
		}
	}
	if err != nil {
		ours.Close()
		return nil, err
	}
	return ours, nil
}

// launch starts the agent for which a place is taken.
func (p *parent) launch(ctx context.Context, e *entry, setup *agent.Setup, account Account, conn *os.File) error {
	files := []*os.File{conn, nil, nil, nil}
	if !setup.ReadOnly {
		lock, err := p.locks.take(e.uid, e.role)
		if err != nil {
			return err
		}
		defer lock.Close()
		files[3] = lock
	}
	if e.role == agent.MailboxRole {
		mail, gid, err := p.mailboxWithin(ctx, setup.Mailbox, setup.User, account.GID)
		if err != nil {
			return err
		}
		if mail != nil {
			defer mail.Close()
			files = append(files, mail)
		}
		account.GID, setup.GID, setup.MailFile = gid, gid, mail != nil
	}
	var text bytes.Buffer
	if err := agent.WriteSetup(&text, *setup); err != nil {
		return fmt.Errorf("%w: %w", agent.ErrNotServed, err)
	}
	t, err := newTether()
	if err != nil {
		return err
	}
	files[1], files[2] = t.setup, t.life
	c, err := p.starter.start(spec{
		title: "agent " + setup.User.Name + " " + string(e.role), role: RoleAgent, account: account, env: environment(), files: files,
	})
	if err != nil {
		t.failed()
		return err
	}
	t.started(text.Bytes())
	p.agents.started(e, c, t)
	return nil
}

// plan decides what an agent for a user is: nothing that is told here comes
// from the queue process but the name and the role.
func (p *parent) plan(ctx context.Context, o Options, name string, role agent.Role) (agent.Setup, Account, error) {
	refuse := func(format string, args ...any) (agent.Setup, Account, error) {
		return agent.Setup{}, Account{}, fmt.Errorf("%w: %s", agent.ErrNotServed, fmt.Sprintf(format, args...))
	}
	if !role.Valid() {
		return refuse("there is no such role")
	}
	if o.Agent.ReadOnly && role != agent.UserRole {
		return refuse("nothing is delivered now")
	}
	u, err := o.Users.Lookup(ctx, name)
	if errors.Is(err, passwd.ErrUnknown) {
		return refuse("%v", err)
	} else if err != nil {
		return agent.Setup{}, Account{}, err
	}
	forMailbox := agent.RoleFor(o.Agent.Mailbox, spooldir.Mailbox)
	account := Account{UID: u.UID, GID: u.GID}
	switch {
	case role == agent.MailboxRole && forMailbox != agent.MailboxRole:
		return refuse("MAILBOX %s needs the rights of the user", o.Agent.Mailbox)
	case u.UID == o.Queue.UID || u.UID == o.Net.UID:
		return refuse("user %s is the mail system; name a person in the aliases", u.Name)
	case u.UID == 0 && role == agent.MailboxRole:
		if account, err = nobody(ctx, o); err != nil {
			return agent.Setup{}, Account{}, err
		}
	case u.UID <= 0:
		return refuse("nothing runs as %s; name a person in the aliases", u.Name)
	case role == agent.UserRole && forMailbox == agent.MailboxRole && u.UID < o.Agent.MinUID && !listed(o, u.Name):
		return refuse("user %s is below MINUID %d", u.Name, o.Agent.MinUID)
	case role == agent.UserRole:
		if account.Groups, err = o.Users.Groups(ctx, u); err != nil {
			return agent.Setup{}, Account{}, err
		}
	}
	s := o.Agent
	s.User, s.Role, s.MailFile = u, role, false
	s.UID, s.GID, s.Groups = account.UID, account.GID, account.Groups
	return s, account, nil
}

// listed reports whether an account below MINUID is a person all the same.
func listed(o Options, name string) bool {
	return slices.Contains(o.Agent.Listed, name) || name == o.Agent.AliasUser && name != ""
}

// nobody returns who writes the mailbox of root, which is opened for it.
func nobody(ctx context.Context, o Options) (Account, error) {
	a := Account{UID: nobodyUID, GID: nobodyGID}
	u, err := o.Users.Lookup(ctx, "nobody")
	switch {
	case err == nil:
		a.UID = u.UID
	case !errors.Is(err, passwd.ErrUnknown):
		return Account{}, err
	}
	if a.UID <= 0 || a.UID == o.Queue.UID || a.UID == o.Net.UID {
		return Account{}, fmt.Errorf("user nobody (uid %d) cannot write the mailbox of root", a.UID)
	}
	return a, nil
}

// mailboxWithin is mailbox, and does not wait beyond the end of ctx for a file
// system that does not answer: the place of the agent is free again. So many may
// wait for good.
func (p *parent) mailboxWithin(ctx context.Context, mailbox string, u passwd.User, gid int) (*os.File, int, error) {
	select {
	case p.opening <- struct{}{}:
	default:
		return nil, 0, errors.New("mail directories do not answer")
	}
	type result struct {
		mail *os.File
		gid  int
		err  error
	}
	done := make(chan result)
	go func() {
		defer func() { <-p.opening }()
		mail, gid, err := p.mailbox(mailbox, u, gid)
		select {
		case done <- result{mail, gid, err}:
		case <-ctx.Done():
			if mail != nil {
				mail.Close()
			}
		}
	}()
	select {
	case r := <-done:
		return r.mail, r.gid, r.err
	case <-ctx.Done():
		return nil, 0, fmt.Errorf("the mail directory of %s: %w", u.Name, ctx.Err())
	}
}

// mailbox does what a mailbox writer needs root for. It returns the group to
// run with, and for root the open mailbox.
func (p *parent) mailbox(mailbox string, u passwd.User, gid int) (*os.File, int, error) {
	pattern, ok := mboxPattern(mailbox)
	if !ok {
		return nil, gid, nil
	}
	dir, err := p.openMailDir(pattern, u)
	if errors.Is(err, errForeign) && u.UID != 0 {
		return nil, gid, nil // the user's own matter
	} else if err != nil {
		return nil, 0, err
	}
	defer dir.dir.Close()
	if g, ok := dir.group(); ok {
		gid = g
	}
	if u.UID == 0 {
		f, err := dir.openRoots()
		return f, gid, err
	}
	return nil, gid, dir.create(u)
}
