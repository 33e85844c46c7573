package runner

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"

	"dma/forward"
	"dma/internal/address"
)

// The names that a branch treats as package forward does.
const (
	catchAll    = "*"
	includeMark = ":include:"
	maxNested   = 60 // nodes within nodes; an expansion that counts has fewer
)

// branch prints one expansion by the aliases. What forward.Expand said of it
// counts; the branch goes the same way once more, for the places on it.
type branch struct {
	*verifier
	way    way    // of the targets, but for the indent
	parent string // the address for which mail is expanded, qualified
	head   string // what the first node says in place of what it is
	// stuck says that the mail stays where it is: nothing is followed beyond
	// the aliases.
	stuck bool

	lists []forward.Target // what Expand returned: who is a list of its own
	path  []string         // the nodes above, as in forward: aliases and included files
	met   map[string]bool
	seen  map[forward.Target]bool // without file and line
}

// node prints a node of the expansion.
func (b *branch) node(indent int, label, text string) {
	if b.head != "" {
		text, b.head = b.head, ""
	}
	if text == "" {
		b.say(way{indent: indent}, "", "%s", label)
		return
	}
	b.say(way{indent: indent}, label, "%s", text)
}

// name prints what a local part leads to: an alias, else a user, else the same
// for the part before a +, else the catch-all, which goes before users if the
// name was submitted.
func (b *branch) name(indent int, label, local string, t forward.Target, submitted bool) {
	all, allIs, _ := b.aliases.Lookup(catchAll)
	for _, part := range parts(local) {
		if list := b.list(part); list != "" {
			t.Kind, t.Value, t.Detail = forward.Address, list, ""
			b.leaf(indent, label, t)
			return
		}
		targets, ok, err := b.aliases.Lookup(part)
		if err != nil {
			b.node(indent, label, b.trouble(err))
			return
		}
		if ok {
			b.alias(indent, label, part, targets)
			return
		}
		if user := b.account(part); user != "" && !(submitted && allIs) {
			t.Kind, t.Value, t.Detail = forward.User, user, strings.TrimPrefix(local[len(part):], "+")
			b.leaf(indent, label, t)
			return
		}
	}
	lower := strings.ToLower(local)
	switch {
	case allIs && submitted:
		b.node(indent, label, "no alias")
		b.alias(indent+1, catchAll, catchAll, all)
	case standsForRoot(lower):
		b.through(indent, label, "stands for root", lower, lower, func() {
			b.name(indent+1, "root", "root", t, false)
		})
	case allIs:
		b.through(indent, label, "no alias and no user", lower, lower, func() {
			b.alias(indent+1, catchAll, catchAll, all)
		})
	default:
		t.Kind, t.Value, t.Detail = forward.Address, address.Address{Local: local}.String(), ""
		b.leaf(indent, label, t)
	}
}

// standsForRoot reports whether a name in lower case leads to root where it is
// neither an alias nor a user.
func standsForRoot(name string) bool { return name == "postmaster" || name == "mailer-daemon" }

// list returns the target that name is as a list of its own, or "".
func (b *branch) list(name string) string {
	owner, ok := b.aliases.Owner(name)
	if !ok {
		return ""
	}
	list := address.Address{Local: strings.TrimPrefix(owner, "owner-")}.String()
	if !slices.ContainsFunc(b.lists, func(t forward.Target) bool { return t.Kind == forward.Address && t.Value == list }) {
		return ""
	}
	return list
}

// account returns the name of the account of a local part, if there is one.
func (b *branch) account(name string) string {
	for _, n := range slices.Compact([]string{name, strings.ToLower(name)}) {
		if ok, err := b.isUser(n); err == nil && ok {
			return n
		}
	}
	return ""
}

// parts returns what of a local part can be a name.
func parts(local string) []string {
	if user, _, ok := strings.Cut(local, "+"); ok && user != "" {
		return []string{local, user}
	}
	return []string{local}
}

func (b *branch) alias(indent int, label, name string, targets []forward.Target) {
	what := "alias"
	if owner, ok := b.aliases.Owner(name); ok {
		what += ", owner " + owner
	}
	b.through(indent, label, what, name, strings.ToLower(name), func() { b.follow(indent+1, targets) })
}

// through prints the node key, which is written as name here, and below it what
// f prints. A node that is open is a loop: the first account on it gets the
// mail.
func (b *branch) through(indent int, label, what, name, key string, f func()) {
	if i := slices.Index(b.path, key); i >= 0 {
		for j, on := range append([]string{name}, b.path[i:]...) {
			if on == catchAll || strings.HasPrefix(on, includeMark) {
				continue
			}
			user := b.account(on)
			if user == "" {
				continue
			}
			t := forward.Target{Kind: forward.User, Value: user}
			if j == 0 {
				b.leaf(indent, label, t)
			} else {
				b.node(indent, label, "leads back to "+key+", which stands for the user "+user)
				b.leaf(indent+1, user, t)
			}
			return
		}
		b.node(indent, label, "loop, leads back to "+key)
		return
	}
	if b.met[key] {
		b.node(indent, label, what+", as above")
		return
	}
	b.met[key] = true
	if len(b.path) == maxNested {
		b.node(indent, label, what+", not followed")
		return
	}
	b.node(indent, label, what)
	b.path = append(b.path, key)
	f()
	b.path = b.path[:len(b.path)-1]
}

// follow prints targets as they are written.
func (b *branch) follow(indent int, targets []forward.Target) {
	for _, t := range targets {
		if b.over() {
			return
		}
		switch t.Kind {
		case forward.Include:
			b.include(indent, t)
			continue
		case forward.Address:
			if a, err := address.Parse(t.Value); err == nil {
				if local, ok := b.isLocal(a); ok {
					b.name(indent, where(t), local, t, false)
					continue
				}
			}
		case forward.Mailbox:
			label := where(t)
			names := parts(t.Value)
			if standsForRoot(strings.ToLower(t.Value)) {
				names = append(names, "root")
			}
			for _, name := range names {
				if user := b.account(name); user != "" {
					_, detail, _ := strings.Cut(strings.TrimPrefix(t.Value, name), "+")
					t.Value, t.Detail = user, detail
					break
				}
			}
			b.leaf(indent, label, t)
			continue
		}
		b.leaf(indent, where(t), t)
	}
}

// include prints the targets of an included file.
func (b *branch) include(indent int, t forward.Target) {
	b.through(indent, where(t), "included file", includeMark+t.Value, includeMark+t.Value, func() {
		targets, err := readList(t.Value)
		if err != nil {
			// What it means for the mail is said by the first node.
			b.say(way{indent: indent + 1}, "", "(not shown: %v)", err)
			return
		}
		if err := b.doubt(t.Value, targets); err != nil {
			b.untold = true
			b.say(way{indent: indent + 1}, "", "(cannot be told: %v)", err)
		}
		b.follow(indent+1, targets)
	})
}

// leaf prints a target that the aliases lead to.
func (b *branch) leaf(indent int, label string, t forward.Target) {
	place := forward.Target{Kind: t.Kind, Value: t.Value, Detail: t.Detail}
	again := b.seen[place]
	b.seen[place] = true
	w := b.way
	w.indent = indent
	switch {
	case b.stuck:
		b.node(indent, label, "")
	case again:
		b.node(indent, label, "as above")
	case t.Kind == forward.User:
		// An alias may name the user of its own name: then the Delivered-To
		// field comes from this very expansion.
		local := t.Value
		if t.Detail != "" {
			local += "+" + t.Detail
		}
		self := b.qualify(address.Address{Local: local, Domain: b.host})
		before := self
		if self == b.parent {
			before = ""
		}
		if b.loops(w, label, before) {
			return
		}
		b.user(w, label, t.Value, t.Detail, self)
	case t.Kind == forward.Address:
		if a, err := address.Parse(t.Value); err == nil {
			b.verifier.address(w, label, a)
		}
	default:
		b.place(w, label, t, b.aliasUser)
	}
}

// readList reads the targets of an included file, as far as the caller may.
// Where the file is wrong, forward.Expand says how.
func readList(path string) ([]forward.Target, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, forward.MaxInclude+1))
	if err != nil {
		return nil, err
	}
	if len(data) > forward.MaxInclude {
		return nil, errors.New("too large")
	}
	var all []forward.Target
	line := 0
	for text := range bytes.Lines(data) {
		// No entry of such a file goes beyond its line. A line may be longer and
		// have more entries than a .forward; then it is not shown.
		targets, err := forward.ParseForward(path, bytes.TrimSuffix(text, []byte("\n")))
		if p := (forward.Problem{}); errors.As(err, &p) {
			p.Line = max(p.Line, 1) + line
			return nil, p
		} else if err != nil {
			return nil, err
		}
		for _, t := range targets {
			t.Line += line
			all = append(all, t)
		}
		line++
	}
	return all, nil
}
