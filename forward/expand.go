package forward

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"dma/internal/address"
)

const (
	maxRecipients = 10_000 // targets of one expansion: the most of one message
	maxDepth      = 50     // aliases within aliases
	maxNesting    = 10     // included files within included files
	maxIncludes   = 100    // included files of one expansion
)

// ErrNoUser says that a name is no alias and no user, and that whoever knows
// the users said so. It is the only final error.
var ErrNoUser = errors.New("no such user")

// Host tells Expand what the aliases do not.
type Host struct {
	// IsUser reports whether there is an account of exactly this name. An
	// error means that nobody can tell now; then Expand fails with it.
	IsUser func(name string) (bool, error)

	// IsLocal reports whether mail for a belongs here, and for which name.
	// Nil: addresses without a domain do.
	IsLocal func(a address.Address) (local string, ok bool)

	// Submitted says that the name is one that the message was submitted for,
	// and not one that an alias or a .forward names. Then the catch-all goes
	// before the accounts.
	Submitted bool

	// Now is the clock by which a change of the aliases files is a moment ago.
	// Nil: that of the system.
	Now func() time.Time
}

// Expansion is where mail for a name goes.
type Expansion struct {
	// Targets has no two that are the same place. A name of this machine is in
	// it as a User if there is such an account, and as an Address if it is
	// neither an alias nor an account, or a list of its own: an alias with an
	// owner, in lower case.
	Targets []Target

	// Owner is the local part of the sender that the message has from here on,
	// or empty: it keeps its own. It belongs to the first name in Trail. Other
	// aliases that have an owner are among the Targets and not followed, so that
	// their members, and nobody else, get the message from that owner. One that
	// leads back to a name in Trail is followed, and its owner does not count.
	Owner string

	// Trail has the aliases, in lower case, in the order in which they were
	// met. It is empty if name is not an alias.
	Trail []string
}

// Expand returns where mail for name goes. Name is a local part.
//
// An alias is asked for first, then an account, then the same for the part
// before a +, then the catch-all, which goes before the accounts if the name
// was submitted. Aliases within aliases are followed, but for those that have
// an owner. One that leads back to itself stands for the account of that name
// or, if there is none, of another name on the way. So "jim: jim, bob" keeps a
// copy for jim, and "jim: james", "james: jim" delivers to the one that has an
// account. If there is no account on the way and no other target, the mail must
// wait.
//
// Postmaster and MAILER-DAEMON without an alias and an account stand for root.
//
// The error is [ErrNoUser] if name is neither an alias nor an account. Every
// other one is temporary: a mistake in the line for the alias, an included
// file that cannot be read, a loop, too many targets, aliases files that
// changed a moment ago ([Unsettled]). There is never a part of an expansion.
func (a *Aliases) Expand(ctx context.Context, name string, h Host) (Expansion, error) {
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	if h.Now == nil {
		h.Now = time.Now
	}
	x := expander{ctx: ctx, aliases: a, host: h, nodes: make(map[string]*node), seen: make(map[same]bool)}
	if err := x.name(name, Target{}, h.Submitted); err != nil {
		return Expansion{}, err
	}
	if err := x.empty(); err != nil {
		return Expansion{}, err
	}
	owner := ""
	if len(x.trail) > 0 {
		owner, _ = a.Owner(x.trail[0])
	}
	return Expansion{x.targets, owner, x.trail}, nil
}

// node is an alias, or an included file, that was met.
type node struct {
	key   string
	leads []string // keys of the nodes that it leads to
	open  bool     // it is being expanded
	outer bool     // by the expander that looks ahead
	ends  bool     // a target is reached from it
}

type expander struct {
	ctx     context.Context
	aliases *Aliases
	host    Host

	nodes    map[string]*node
	order    []*node // in the order in which they were met
	path     []*node // from name to where we are
	includes int

	seen    map[same]bool
	targets []Target
	trail   []string

	ahead bool // a list is followed to see whether it leads back
	back  bool // it does
}

// alias follows the targets of the alias key, which is written as name where
// we are.
func (x *expander) alias(key, name string, targets []Target) error {
	if err := x.aliases.cut(key, x.host.Now()); err != nil {
		return err
	}
	if _, ok := x.nodes[key]; !ok {
		x.trail = append(x.trail, key)
	}
	return x.through(key, name, func() error { return x.follow(targets) })
}

// loop handles an alias, written as name, that leads back to the node n, which
// is being expanded: the first account on the loop gets the message.
func (x *expander) loop(n *node, name string) error {
	names := []string{name}
	for _, on := range x.path[slices.Index(x.path, n):] {
		names = append(names, on.key)
	}
	for _, name := range names {
		if name == catchAll || strings.HasPrefix(name, includeMark) {
			continue
		}
		user, ok, err := x.user(name)
		if err != nil {
			return err
		}
		if ok {
			return x.add(Target{Kind: User, Value: user})
		}
	}
	return nil
}

// through makes the node key, written as name where we are, and runs f on it.
// A node that there is already has been dealt with, or is a loop.
func (x *expander) through(key, name string, f func() error) error {
	n, ok := x.nodes[key]
	if !ok {
		n = &node{key: key}
		x.nodes[key] = n
		x.order = append(x.order, n)
	}
	x.lead(n)
	if n.open {
		x.back = x.back || n.outer
		return x.loop(n, name)
	}
	if ok {
		return nil
	}
	if len(x.path) == maxDepth {
		return fmt.Errorf("more than %d aliases within aliases, from %s on; flatten them", maxDepth, show(x.path[0].key))
	}
	n.open = true
	x.path = append(x.path, n)
	err := f()
	x.path = x.path[:len(x.path)-1]
	n.open = false
	return err
}

// lead notes that the node where we are leads to n.
func (x *expander) lead(n *node) {
	if len(x.path) > 0 {
		at := x.path[len(x.path)-1]
		at.leads = append(at.leads, n.key)
	}
}

// follow follows targets as they are written.
func (x *expander) follow(targets []Target) error {
	for _, t := range targets {
		if err := x.target(t); err != nil {
			return err
		}
	}
	return nil
}

func (x *expander) target(t Target) error {
	switch t.Kind {
	case Include:
		return x.include(t)
	case Address:
		a, err := address.Parse(t.Value)
		if err != nil {
			return t.problem("%v", err)
		}
		if local, ok := x.local(a); ok {
			return x.name(local, t, false)
		}
	case Mailbox:
		names := parts(t.Value)
		if standsForRoot(strings.ToLower(t.Value)) {
			names = append(names, root)
		}
		for _, name := range names {
			user, ok, err := x.user(name)
			if err != nil {
				return err
			}
			if ok {
				_, detail, _ := strings.Cut(strings.TrimPrefix(t.Value, name), "+")
				t.Value, t.Detail = user, detail
				break
			}
		}
	}
	return x.add(t)
}

func (x *expander) local(a address.Address) (string, bool) {
	if x.host.IsLocal != nil {
		return x.host.IsLocal(a)
	}
	return a.Local, a.Domain == ""
}

// include follows the targets of an included file.
func (x *expander) include(t Target) error {
	key := includeMark + t.Value
	depth := 0
	for i, n := range x.path {
		if n.key == key {
			return t.problem("include loop: %s; remove one of these entries", chain(append(x.path[i:len(x.path):len(x.path)], n)))
		}
		if strings.HasPrefix(n.key, includeMark) {
			depth++
		}
	}
	if n, ok := x.nodes[key]; ok {
		x.lead(n)
		return nil
	}
	if depth == maxNesting {
		return t.problem("more than %d included files within each other; flatten them", maxNesting)
	}
	if x.includes++; x.includes > maxIncludes {
		return t.problem("more than %d included files for one recipient; put them together", maxIncludes)
	}
	targets, err := x.aliases.include(x.ctx, t)
	if err != nil {
		return err
	}
	return x.through(key, key, func() error { return x.follow(targets) })
}

// add takes up a final target.
func (x *expander) add(t Target) error {
	if len(x.path) > 0 {
		x.path[len(x.path)-1].ends = true
	}
	if x.seen[t.same()] {
		return nil
	}
	if len(x.targets) == maxRecipients {
		return fmt.Errorf("more than %d targets; split the list, or use a mailing list program", maxRecipients)
	}
	x.seen[t.same()] = true
	x.targets = append(x.targets, t)
	return nil
}

// empty returns an error if there is an alias from which no target is reached:
// it leads back to itself only, or to an included file without targets.
func (x *expander) empty() error {
	for changed := true; changed; {
		changed = false
		for _, n := range slices.Backward(x.order) {
			if !n.ends && slices.ContainsFunc(n.leads, func(key string) bool { return x.nodes[key].ends }) {
				n.ends, changed = true, true
			}
		}
	}
	i := slices.IndexFunc(x.order, func(n *node) bool { return !n.ends })
	if i < 0 {
		return nil
	}
	var walked []*node
	for n := x.order[i]; ; n = x.nodes[n.leads[0]] {
		if j := slices.Index(walked, n); j >= 0 {
			return fmt.Errorf("alias loop: %s; name a user in one of them", chain(append(walked[j:], n)))
		}
		walked = append(walked, n)
		if len(n.leads) == 0 {
			return fmt.Errorf("no recipient in %s; add one, or write /dev/null", chain(walked))
		}
	}
}

// chain returns the names of nodes with arrows between them.
func chain(nodes []*node) string {
	var b strings.Builder
	for i, n := range nodes {
		if i > 0 {
			b.WriteString(" -> ")
		}
		b.WriteString(n.key)
	}
	return printable(b.String())
}
