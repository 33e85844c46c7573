package forward

import (
	"fmt"
	"slices"
	"strings"

	"dma/internal/address"
)

// name follows a local part, which t names. Submitted is as in Host.
func (x *expander) name(local string, t Target, submitted bool) error {
	all := submitted && x.aliases.has(catchAll)
	for _, part := range parts(local) {
		if x.list(part) {
			t.Kind, t.Value, t.Detail = Address, quoteLocal(strings.ToLower(part)), ""
			return x.add(t)
		}
		targets, ok, err := x.aliases.Lookup(part)
		if err != nil {
			return err
		}
		if ok {
			return x.alias(strings.ToLower(part), part, targets)
		}
		if all {
			continue
		}
		user, ok, err := x.user(part)
		if err != nil {
			return err
		}
		if ok {
			t.Kind, t.Value, t.Detail = User, user, strings.TrimPrefix(local[len(part):], "+")
			return x.add(t)
		}
	}
	lower := strings.ToLower(local)
	p, doubtful := x.aliases.doubtful[lower]
	targets, ok, err := x.aliases.Lookup(catchAll)
	switch {
	case doubtful:
		return p
	case !all && standsForRoot(lower):
		return x.root(lower, t)
	case err != nil:
		return err
	case ok && all:
		return x.alias(catchAll, catchAll, targets)
	case ok:
		return x.through(lower, lower, func() error { return x.alias(catchAll, catchAll, targets) })
	case len(x.path) == 0:
		if err := x.aliases.unsettled(local, x.host.Now()); err != nil {
			return err
		}
		return fmt.Errorf("%s: %w", show(local), ErrNoUser)
	}
	t.Kind, t.Value, t.Detail = Address, address.Address{Local: local}.String(), ""
	return x.add(t)
}

// list reports whether name is a list of its own: an alias with an owner that a
// first alias leads to. One that leads back to where we are is none: its child
// would be taken for a message that loops.
func (x *expander) list(name string) bool {
	key := strings.ToLower(name)
	if _, met := x.nodes[key]; x.ahead || met || len(x.trail) == 0 || !x.aliases.has(key) {
		return false
	}
	if _, ok := x.aliases.Owner(key); !ok {
		return false
	}
	return x.seen[same{kind: Address, value: quoteLocal(key)}] || !x.leadsBack(key)
}

// leadsBack reports whether the alias key leads to a node that is being
// expanded. If that cannot be found out, it is for who expands the alias to say.
func (x *expander) leadsBack(key string) bool {
	y := expander{ctx: x.ctx, aliases: x.aliases, host: x.host, nodes: make(map[string]*node), seen: make(map[same]bool), ahead: true}
	for _, n := range x.path {
		outer := &node{key: n.key, open: true, outer: true}
		y.nodes[n.key] = outer
		y.path = append(y.path, outer)
	}
	targets, ok, err := x.aliases.Lookup(key)
	if ok && err == nil {
		_ = y.alias(key, key, targets)
	}
	return y.back
}

// root is who gets the mail for names that have to lead somewhere.
const root = "root"

// standsForRoot reports whether a name in lower case is one of them.
func standsForRoot(name string) bool { return name == "postmaster" || name == "mailer-daemon" }

// root follows root in place of name, which has to lead somewhere and is
// neither an alias nor an account. The trail does not show it.
func (x *expander) root(name string, t Target) error {
	if !x.aliases.has(root) && !x.aliases.has(catchAll) {
		if _, ok, err := x.user(root); err != nil {
			return err
		} else if !ok {
			return fmt.Errorf("%s is no alias, and there is no user root to stand for it; add the alias %[1]s with a user's name", name)
		}
	}
	return x.through(name, name, func() error { return x.name(root, t, false) })
}

// parts returns what of a local part can be a name: all of it, and what is
// before the +.
func parts(local string) []string {
	if user, _, ok := strings.Cut(local, "+"); ok && user != "" {
		return []string{local, user}
	}
	return []string{local}
}

// user returns the account of a name: exactly, or else in lower case.
func (x *expander) user(name string) (string, bool, error) {
	for _, n := range slices.Compact([]string{name, strings.ToLower(name)}) {
		ok, err := x.host.IsUser(n)
		if err != nil {
			return "", false, fmt.Errorf("%s: looking for the user: %w", show(name), err)
		}
		if ok {
			return n, true, nil
		}
	}
	return "", false, nil
}
