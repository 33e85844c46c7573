package runner

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"time"

	"dma/agent"
	"dma/forward"
	"dma/internal/address"
	"dma/internal/config"
	"dma/internal/maillog"
	"dma/internal/passwd"
	"dma/smarthost"
	"dma/spooldir"
)

// The bounds of a tree.
const (
	maxLines      = 100_000
	maxExpansions = 20 // by aliases and .forward files, as in the queue
)

// verifier follows addresses the way the queue does and prints each place that
// it comes to: one node a line, its children below it.
type verifier struct {
	ctx     context.Context
	config  *config.Config
	host    string
	users   passwd.Source
	aliases *forward.Aliases

	agent     agent.Agent // who serves users, and reads their .forward files
	aliasUser string      // whose are the commands and files of the aliases; empty: nobody's

	caller int
	owner  int                  // of the spool
	known  bool                 // owner is
	ids    *spooldir.Identities // who serves a spool that all users share; nil: the owner serves it alone
	all    bool                 // the caller may see every .forward

	router  *smarthost.Router // nil until mail for another host comes up
	routes  map[string]route  // by domain
	noRoute error             // why there are none
	sender  string            // for which they are
	until   time.Time         // the end of all questions to the DNS

	out    *bufio.Writer
	stderr io.Writer
	lines  int
	read   map[string]answer // the .forward files, by user+detail

	// What there was, for the exit code.
	returned, waits, untold bool
}

// answer is what became of reading a .forward.
type answer struct {
	result forward.Result
	err    error
}

// way is what a message has behind it where the tree stands.
type way struct {
	indent    int
	depth     int      // expansions
	delivered []string // the Delivered-To fields, qualified
}

// in is the way of the children of a node.
func (w way) in() way {
	w.indent++
	return w
}

// expanded is the way of what takes the place of the recipient addr.
func (w way) expanded(addr string) way {
	w.depth++
	w.delivered = append(slices.Clone(w.delivered), addr)
	return w
}

// say prints a node.
func (v *verifier) say(w way, label, format string, args ...any) {
	if v.lines++; v.lines > maxLines {
		return
	}
	text := fmt.Sprintf(format, args...)
	if label != "" {
		text = label + ": " + text
	}
	fmt.Fprintf(v.out, "%s%s\n", strings.Repeat("  ", w.indent), printable(text))
}

// over reports whether there is no sense in going on.
func (v *verifier) over() bool { return v.lines > maxLines || v.ctx.Err() != nil }

// unknown prints a node for a user who does not exist.
func (v *verifier) unknown(w way, label string) {
	v.returned = true
	v.say(w, label, "no such user")
}

// loops prints a node and reports true if the message was delivered to addr
// before, or comes from too many expansions.
func (v *verifier) loops(w way, label, addr string) bool {
	switch {
	case w.depth > maxExpansions:
		v.say(w, label, "loop: more than %d expansions by aliases and .forward files; the mail is returned", maxExpansions)
	case slices.Contains(w.delivered, addr):
		v.say(w, label, "loop: the message was delivered to %s before; the mail is returned", addr)
	default:
		return false
	}
	v.returned = true
	return true
}

// address prints what becomes of a recipient that is an address.
func (v *verifier) address(w way, label string, a address.Address) {
	local, here := v.isLocal(a)
	self := v.qualify(a)
	if !here {
		if !v.loops(w, label, "") {
			v.remote(w, label, a)
		}
		return
	}
	if v.loops(w, label, self) {
		return
	}
	submitted := w.depth == 0
	x, err := v.aliases.Expand(v.ctx, local, forward.Host{IsUser: v.isUser, IsLocal: v.isLocal, Submitted: submitted})
	switch {
	case errors.Is(err, forward.ErrNoUser):
		v.unknown(w, label)
		return
	case err == nil && len(x.Trail) == 0 && len(x.Targets) == 1 && x.Targets[0].Kind == forward.User:
		v.user(w, label, x.Targets[0].Value, x.Targets[0].Detail, self)
		return
	case err == nil:
		err = v.noAliasUser(x.Targets)
	}
	b := branch{verifier: v, way: w.expanded(self), parent: self, met: make(map[string]bool), seen: make(map[forward.Target]bool)}
	if err != nil {
		b.stuck = true
		b.head = v.trouble(err)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		// The file that did not answer would not do so here.
		v.say(w, label, "%s", b.head)
		return
	}
	b.lists = x.Targets
	b.name(w.indent, label, local, forward.Target{}, submitted)
}

// The bounds of asking the DNS for the hosts of domains.
const (
	dnsTime    = 10 * time.Second // one name
	dnsTimeAll = 30 * time.Second // all of them
)

// remote prints where mail for another host goes. Each domain is asked for once.
func (v *verifier) remote(w way, label string, a address.Address) {
	if v.router == nil {
		v.openRoutes()
	}
	key := strings.ToLower(a.Domain)
	route, ok := v.routes[key]
	if !ok {
		if v.noRoute != nil {
			route.err = v.noRoute
		} else {
			ctx, cancel := context.WithDeadline(v.ctx, v.until)
			route.text, route.err = v.router.Describe(ctx, v.sender, a.String())
			cancel()
		}
		v.routes[key] = route
	}
	var e *smarthost.Error
	switch {
	case errors.As(route.err, &e) && e.Permanent():
		v.returned = true
		v.say(w, label, "remote, the mail is returned: %v", e.Err)
	case errors.As(route.err, &e):
		v.say(w, label, "remote, %s", v.trouble(e.Err))
	case v.ids != nil && errors.Is(route.err, fs.ErrPermission):
		// The net process may read what another one may not.
		v.untold = true
		v.say(w, label, "remote, cannot be told: %v", route.err)
	case route.err != nil:
		v.say(w, label, "remote, %s", v.trouble(route.err))
	default:
		v.say(w, label, "remote, %s", route.text)
	}
}

// openRoutes gets ready what says where mail for other hosts goes. Where that
// depends on the sender, it is the caller.
func (v *verifier) openRoutes() {
	c := v.config
	v.routes = make(map[string]route)
	hosts, err := smarthost.ParseHosts(c.Smarthost, c.Port)
	if err != nil && len(hosts) == 0 {
		v.noRoute = err
	}
	cfg := routes(c, v.host, hosts, nil)
	cfg.Timeouts.Lookup = dnsTime
	v.router = smarthost.NewRouter(cfg)
	v.until = time.Now().Add(dnsTimeAll)
	if c.SenderRelay == "" {
		return
	}
	u, err := v.users.LookupID(v.ctx, v.caller)
	if errors.Is(err, passwd.ErrUnknown) {
		return // nobody with a relay
	}
	if err != nil {
		v.noRoute = fmt.Errorf("which relay it is depends on the sender: %w", err)
		return
	}
	senders := rewriter(c, v.host, maillog.New(slog.New(slog.DiscardHandler)))
	if err := senders.Reload(); err != nil {
		v.noRoute = err
		return
	}
	v.sender = senders.Envelope(address.Address{Local: u.Name, Domain: v.host}.String())
	if _, err := cfg.Senders.For(v.sender); errors.Is(err, fs.ErrPermission) {
		v.noRoute = err
	}
}

// route is where the mail for a domain goes, or why it does not.
type route struct {
	text string
	err  error
}

// find looks a user up whom a target names, and prints a node if there is none
// to deliver to now.
func (v *verifier) find(w way, label, name string) (passwd.User, bool) {
	u, err := v.users.Lookup(v.ctx, name)
	switch {
	case errors.Is(err, passwd.ErrUnknown):
		v.unknown(w, label)
	case err != nil:
		v.say(w, label, "%s", v.trouble(fmt.Errorf("cannot look up user %s: %w", name, err)))
	default:
		if err = v.serves(u); err != nil {
			v.say(w, label, "%s", v.trouble(err))
		}
	}
	return u, err == nil
}

// user prints what the .forward of a user does with mail for addr, the address
// of name+detail or another one that means it.
func (v *verifier) user(w way, label, name, detail, addr string) {
	u, ok := v.find(w, label, name)
	if !ok {
		return
	}
	r, err := v.forward(u, detail)
	switch {
	case errors.Is(err, errNotShown):
		v.say(w, label, "user")
		others := " and root"
		if v.ids == nil {
			others = ", root and the owner of the spool"
		}
		v.say(w.in(), "", "(.forward of %s: only %[1]s%s see it)", u.Name, others)
		return
	case err != nil:
		v.say(w, label, "%s", v.trouble(err))
		return
	case !r.Forwards():
		v.mailbox(w, label, "", u, detail)
		return
	}
	v.say(w, label, "user, %s", r.Path)
	from := r.Path
	children := w.in().expanded(addr)
	for _, t := range forward.KeepOwn(r.Targets, u.Name, v.isLocal) {
		if v.over() {
			return
		}
		if t.File != from {
			if from, children.indent = t.File, w.indent+1; from != r.Path {
				v.say(children, "", ":include:%s", from)
				children.indent++
			}
		}
		if a, err := address.Parse(t.Value); t.Kind == forward.Address && err == nil {
			v.address(children, where(t), a)
			continue
		}
		v.place(children, where(t), t, u.Name)
	}
}

// place prints a target that is no address: a mailbox, or what user, who lists
// it, runs or writes to.
func (v *verifier) place(w way, label string, t forward.Target, user string) {
	if v.loops(w, label, "") {
		return
	}
	switch t.Kind {
	case forward.Discard:
		v.say(w, label, "discarded")
		return
	case forward.Mailbox:
		if u, ok := v.find(w, label, t.Value); ok {
			v.mailbox(w, label, "kept copy, ", u, t.Detail)
		}
		return
	}
	if !v.known && user == "" {
		user = "the user who serves the spool"
	} else if u, ok := v.find(w, label, user); !ok {
		return
	} else if err := v.barred(u, true); err != nil {
		v.say(w, label, "%s", v.trouble(err))
		return
	}
	v.say(w, label, "%s, as %s", t.Kind, user)
}

// mailbox prints what MAILBOX is for a user.
func (v *verifier) mailbox(w way, label, kept string, u passwd.User, detail string) {
	scheme, rest, _ := strings.Cut(v.config.Mailbox, ":")
	path := forward.ExpandPath(rest, u.Name, u.Home)
	err := v.barred(u, false)
	switch {
	case err != nil && scheme != "lmtp":
		v.say(w, label, "%s%s", kept, v.trouble(err))
	case scheme == "pipe":
		v.say(w, label, "%smailbox, command %s, as %s", kept, rest, u.Name)
	case scheme == "lmtp":
		name := u.Name
		if detail != "" {
			name += "+" + detail
		}
		v.say(w, label, "%smailbox %s, by LMTP to %s", kept, address.Address{Local: name, Domain: v.host}, rest)
	case path == "":
		v.say(w, label, "%s%s", kept, v.trouble(fmt.Errorf("user %s has no home directory, and MAILBOX %s needs one", u.Name, v.config.Mailbox)))
	case scheme == "mbox":
		v.say(w, label, "%smailbox %s", kept, path)
	case detail != "":
		v.say(w, label, "%smaildir %s/, or its folder %s", kept, path, detail)
	default:
		v.say(w, label, "%smaildir %s/", kept, path)
	}
}

// where is a target as it is written, and the place where it is.
func where(t forward.Target) string { return fmt.Sprintf("%s (%s:%d)", t, t.File, t.Line) }
