// Package rewrite gives the senders of mail that leaves this host the addresses
// that the world knows: in the envelope, and in the header fields From, Sender and
// Reply-To and their Resent- forms. It works at the last step, so that local
// copies stay as they were.
//
// # Which addresses change
//
// An address is own if it has no domain, or if its domain is localhost, the host
// name or one of Config.Local. Of the rules, the first that applies counts:
//
//  1. The null sender, and what is no address, stay as they are.
//  2. What the REWRITE map has for an address becomes of it: an entry for the user
//     name concerns all own addresses of the user, one for a whole address that
//     address, be it own or not; the latter goes first. User names match exactly,
//     else in lower case. What an entry gives is looked up again, and is not
//     touched by MASQUERADE.
//  3. MASQUERADE replaces the host of own addresses, or the user, or both. Then the
//     map is asked about the result.
//  4. An address without domain gets the host of MASQUERADE, else the host name.
//
// Addresses of other hosts, as the sender of a message that a .forward sends on,
// stay as they are unless the map has them: their bounces belong there. (C dma
// replaces the host of every envelope sender, and no header.)
//
// Rewriting what was rewritten changes nothing.
//
// # The map
//
// One entry a line: a user name or an address, white space or a colon, an address.
// An empty line and what follows # at the start of a line or after white space do
// not count. The last of several entries for one name counts. A line that cannot be
// read is a problem and costs that line; so is one of a circle of entries.
package rewrite

import (
	"slices"
	"strings"
	"sync"

	"dma/internal/address"
	"dma/internal/config"
	"dma/internal/mapfile"
)

// Config says what to rewrite. User, Host and Map may be empty.
type Config struct {
	HostName   string   // MAILNAME, added to addresses without domain
	Local      []string // further domains of this host
	User, Host string   // the halves of MASQUERADE
	Map        string   // path of the REWRITE file

	// Problem, if not nil, gets what is wrong in the map, once for each change.
	Problem func(config.Problem)
}

// Rewriter rewrites the senders of messages. It is safe for use by many
// goroutines.
type Rewriter struct {
	c     Config
	local []string

	mu   sync.Mutex
	file mapfile.File
	said mapfile.Reporter
	rules
}

// rules are what a state of the map means.
type rules struct {
	byName  map[string]address.Address // keys are user names, or addresses as String writes them
	targets map[address.Address]bool   // what entries give
}

// New returns a Rewriter; Reload reads the map.
func New(c Config) *Rewriter {
	r := &Rewriter{c: c, file: mapfile.File{Path: c.Map, Limit: maxMap}, said: mapfile.Reporter{Tell: c.Problem}}
	r.c.HostName, r.c.Host = domain(c.HostName), domain(c.Host)
	if a, err := address.Parse(c.User); err == nil {
		r.c.User = a.Local // without quotes
	}
	for _, d := range append([]string{"localhost", c.HostName}, c.Local...) {
		r.local = append(r.local, domain(d))
	}
	return r
}

// domain returns a domain as address.Address has it.
func domain(s string) string { return strings.ToLower(strings.TrimSuffix(s, ".")) }

// Reload reads the map again if it has changed, and is called before each message.
// An error is temporary: nobody knows then what the senders are to be, and mail
// should wait.
func (r *Rewriter) Reload() error {
	if r.c.Map == "" {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	text, changed, err := r.file.Read()
	if err != nil || !changed {
		return err
	}
	entries, problems := parseMap(r.c.Map, text)
	more := r.adopt(entries)
	r.said.Report(append(problems, more...))
	return nil
}

// adopt makes entries the rules, with each chain followed to its end, and returns
// those that are part of a circle or lead into one.
func (r *Rewriter) adopt(entries []entry) (problems []config.Problem) {
	r.rules = rules{byName: make(map[string]address.Address), targets: make(map[address.Address]bool)}
	for i := range entries {
		r.byName[entries[i].key] = entries[i].to
	}
	ends := make(map[string]address.Address)
	for key, a := range r.byName {
		// A chain that has no end within all entries has none.
		for range r.byName {
			next, ok := r.find(a)
			if !ok || r.complete(next) == r.complete(a) {
				ends[key] = r.complete(a)
				r.targets[ends[key]] = true
				break
			}
			a = next
		}
	}
	r.byName = ends
	for _, e := range entries {
		if _, ok := ends[e.key]; !ok {
			problems = append(problems, config.Problem{File: r.c.Map, Line: e.line, Text: "rewriting goes in a circle; the line is ignored"})
		}
	}
	return problems
}

// own reports whether a belongs to this host.
func (r *Rewriter) own(a address.Address) bool {
	return a.Domain == "" || slices.Contains(r.local, a.Domain)
}

// complete adds the domain that a bare address gets.
func (r *Rewriter) complete(a address.Address) address.Address {
	if a.Domain == "" {
		a.Domain = r.c.HostName
		if r.c.Host != "" {
			a.Domain = r.c.Host
		}
	}
	return a
}

// find returns what the map has for a.
func (r *Rewriter) find(a address.Address) (address.Address, bool) {
	if b, ok := r.byName[r.complete(a).String()]; ok {
		return b, true
	}
	if !r.own(a) {
		return address.Address{}, false
	}
	name := address.Address{Local: a.Local}
	b, ok := r.byName[name.String()]
	if !ok {
		name.Local = strings.ToLower(name.Local)
		b, ok = r.byName[name.String()]
	}
	return b, ok
}

// rewrite applies the rules to a, which is not the null sender.
func (r *Rewriter) rewrite(a address.Address) address.Address {
	r.mu.Lock()
	defer r.mu.Unlock()
	if b, ok := r.find(a); ok {
		return b
	}
	if !r.own(a) || r.targets[a] {
		return a
	}
	if r.c.User != "" {
		a.Local = r.c.User
	}
	if r.c.Host != "" {
		a.Domain = r.c.Host
	}
	a = r.complete(a)
	if b, ok := r.find(a); ok {
		return b
	}
	return a
}

// Envelope returns the envelope sender that leaves this host, without <>; "" is the
// null sender.
func (r *Rewriter) Envelope(addr string) string {
	a, err := address.ParsePath(addr)
	if err != nil || a.IsZero() {
		return addr
	}
	if b := r.rewrite(a); b != a {
		return b.String()
	}
	return addr
}
