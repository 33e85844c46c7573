package smarthost

import (
	"cmp"
	"context"
	"net/netip"
	"strings"
	"sync"
	"time"

	"dma/internal/address"
)

// RouterConfig says where a Router sends mail.
type RouterConfig struct {
	// Config is that of each destination. Its Hosts, if there are any, are the
	// smarthosts for all mail; else each domain's mail goes to its MX.
	Config

	// Senders have relays of their own, instead of Hosts; nil: none has.
	Senders *SenderRelays

	// Waits, if not nil, says why mail of all other senders has to wait.
	Waits error

	// Port of the hosts of a domain. Default 25.
	Port int

	// Parallel bounds the destinations of one message that are served at a time.
	// Default 20.
	Parallel int

	// Destinations bounds how many are remembered, of those that nothing is being
	// delivered to. Default 1000.
	Destinations int

	// Keep is how long a destination without mail is remembered, with its
	// back-off. Default: twice RetryMax.
	Keep time.Duration
}

// Router delivers to any destination: it has a Relay for each next hop. It is safe
// for use by many goroutines.
type Router struct {
	cfg RouterConfig

	mu      sync.Mutex
	known   map[string]*destination
	swept   time.Time // when what is too old was last looked for
	closed  bool
	closing sync.WaitGroup
}

// destination is a Relay that the Router remembers.
type destination struct {
	*Relay
	uses int       // deliveries in progress
	used time.Time // the end of the last one
}

// NewRouter returns a Router. Close it at the end.
func NewRouter(cfg RouterConfig) *Router {
	cfg.Config = cfg.withDefaults()
	cfg.Port = cmp.Or(cfg.Port, smtpPort)
	cfg.Parallel = max(cmp.Or(cfg.Parallel, 20), 1)
	cfg.Destinations = max(cmp.Or(cfg.Destinations, 1000), 1)
	cfg.Keep = cmp.Or(cfg.Keep, 2*cfg.RetryMax)
	return &Router{cfg: cfg, known: make(map[string]*destination)}
}

// hop is the part of a message that has one next hop.
type hop struct {
	key        string
	hosts      []Host
	direct     bool
	recipients []int // by index
}

// Deliver hands m over to the next hop of each recipient. It tells done of
// recipients, by index, and of their outcomes, as each hop decides them: each
// recipient exactly once, in the goroutine of the caller; none is Later. Each hop
// gets what Relay.Deliver promises; m.Content may be read by several of them at
// the same time. It returns when the last hop has answered.
//
// A domain outside ASCII is written as the DNS has it where the local part is
// ASCII, so that it needs no SMTPUTF8.
func (r *Router) Deliver(ctx context.Context, m Message, done func(indices []int, outcomes []Outcome)) {
	plan := r.plan(&m)
	if len(plan.none) > 0 {
		done(plan.none, plan.why)
	}
	m.Sender = asciiAddress(m.Sender)
	if len(plan.hops) == 1 {
		r.serve(ctx, m, &plan, plan.hops[0], done)
		return
	}

	type part struct {
		indices  []int
		outcomes []Outcome
		fault    any // a panic outside of a transaction
	}
	parts := make(chan part)
	gone := make(chan struct{}) // nobody receives
	defer close(gone)
	send := func(p part) {
		select {
		case parts <- p:
		case <-gone:
		}
	}
	todo := make(chan *hop, len(plan.hops))
	for _, h := range plan.hops {
		todo <- h
	}
	close(todo)
	var workers sync.WaitGroup
	for range min(r.cfg.Parallel, len(plan.hops)) {
		workers.Go(func() {
			for h := range todo {
				func() {
					defer func() {
						if v := recover(); v != nil {
							send(part{fault: v})
						}
					}()
					r.serve(ctx, m, &plan, h, func(indices []int, outcomes []Outcome) { send(part{indices: indices, outcomes: outcomes}) })
				}()
			}
		})
	}
	go func() {
		workers.Wait()
		close(parts)
	}()
	var fault any
	for p := range parts {
		if p.fault == nil {
			done(p.indices, p.outcomes)
			continue
		}
		if _, fatal := p.fault.(Unaccounted); fatal {
			panic(p.fault)
		}
		fault = p.fault
	}
	if fault != nil {
		panic(fault)
	}
}

// serve hands m over to one hop.
func (r *Router) serve(ctx context.Context, m Message, plan *plan, h *hop, done func([]int, []Outcome)) {
	part := m
	part.Recipients = make([]Recipient, len(h.recipients))
	for k, i := range h.recipients {
		part.Recipients[k] = m.Recipients[i]
		part.Recipients[k].Address = plan.to[i]
	}
	d := r.take(h)
	defer r.release(h.key, d)
	d.Deliver(ctx, part, func(indices []int, outcomes []Outcome) {
		of := make([]int, len(indices))
		for k, i := range indices {
			of[k] = h.recipients[i]
		}
		done(of, outcomes)
	})
}

// Destinations names the destination of each recipient of m, in a form that means
// something only to compare with; "" is that of a recipient for whom Deliver asks
// no other host.
func (r *Router) Destinations(m *Message) []string {
	plan := r.plan(m)
	keys := make([]string, len(m.Recipients))
	for _, h := range plan.hops {
		for _, i := range h.recipients {
			keys[i] = h.key
		}
	}
	return keys
}

// plan says where the recipients of a message go.
type plan struct {
	hops []*hop // in the order in which they first occur
	to   []string
	none []int // those that have no next hop
	why  []Outcome
}

// plan sorts the recipients of m by next hop, and writes their addresses for the
// wire.
func (r *Router) plan(m *Message) plan {
	p := plan{to: make([]string, len(m.Recipients))}
	for i := range m.Recipients {
		p.to[i] = asciiAddress(m.Recipients[i].Address)
	}
	nobody := new(Session) // the outcomes name no peer
	hosts, direct, err := r.relays(m.Sender)
	if err != nil {
		for i := range m.Recipients {
			p.refuse(i, nobody.local(Tempfail, "routing", "3.5", err.Error()))
		}
		return p
	}
	byKey := make(map[string]*hop)
	add := func(i int, key string, hosts []Host, direct bool) {
		h := byKey[key]
		if h == nil {
			h = &hop{key: key, hosts: hosts, direct: direct}
			byKey[key] = h
			p.hops = append(p.hops, h)
		}
		h.recipients = append(h.recipients, i)
	}
	if len(hosts) > 0 {
		key := hostsKey(hosts)
		for i := range m.Recipients {
			add(i, key, hosts, direct)
		}
		return p
	}
	for i := range m.Recipients {
		a, err := address.Parse(p.to[i])
		switch {
		case err != nil:
			p.refuse(i, nobody.local(Permfail, "RCPT", "1.3", "the address is not fit for SMTP"))
		case a.Domain == "":
			p.refuse(i, nobody.local(Permfail, "RCPT", "1.2", "the address has no domain, and there is no smarthost"))
		default:
			add(i, a.Domain, []Host{r.domainHost(a.Domain)}, true)
		}
	}
	return p
}

func (p *plan) refuse(i int, o Outcome) { p.none, p.why = append(p.none, i), append(p.why, o) }

// relays returns the relays for mail from a sender; without one it goes to the
// MX. The error is temporary.
func (r *Router) relays(sender string) (hosts []Host, direct bool, err error) {
	hosts, err = r.cfg.Senders.For(sender)
	switch {
	case err != nil:
		return nil, false, err
	case len(hosts) > 0:
		return hosts, false, nil
	}
	return r.cfg.Hosts, r.cfg.Direct, r.cfg.Waits
}

// hostsKey names a list of relays, with their logins; no domain has such a name.
func hostsKey(hosts []Host) string {
	var b strings.Builder
	for _, h := range hosts {
		b.WriteString(h.Login + "|" + h.String() + " ")
	}
	return b.String()
}

// domainHost returns where the mail of a domain goes: to its MX, or to the
// address that it is (RFC 5321 section 4.1.3).
func (r *Router) domainHost(domain string) Host {
	if literal, ok := strings.CutPrefix(domain, "["); ok {
		literal = strings.TrimPrefix(strings.TrimSuffix(literal, "]"), "IPv6:")
		if ip, err := netip.ParseAddr(literal); err == nil {
			return Host{IP: ip.Unmap(), Port: r.cfg.Port}
		}
	}
	return Host{Name: domain, MX: true, Port: r.cfg.Port}
}

// asciiAddress writes the domain of an address as the DNS has it, if the address
// becomes ASCII by that and there is only one way to do it; else it returns addr.
func asciiAddress(addr string) string {
	if isASCII(addr) {
		return addr
	}
	a, err := address.Parse(addr)
	if err != nil || !isASCII(a.Local) {
		return addr
	}
	name, exact, err := asciiDomain(a.Domain)
	if err != nil || !exact {
		return addr
	}
	a.Domain = name
	return a.String()
}

// take returns the destination of a hop, for one delivery.
func (r *Router) take(h *hop) *destination {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.known[h.key]
	if d == nil {
		r.makeRoom()
		cfg := r.cfg.Config
		cfg.Hosts, cfg.Direct = h.hosts, h.direct
		d = &destination{Relay: New(cfg)}
		r.known[h.key] = d
	}
	d.uses++
	return d
}

func (r *Router) release(key string, d *destination) {
	r.mu.Lock()
	d.uses--
	d.used = r.cfg.Now()
	late := r.closed
	if late {
		delete(r.known, key)
	}
	r.mu.Unlock()
	if late {
		d.Close() // it may have been made after Close
	}
}

// makeRoom forgets what nothing was delivered to for long, and what was used
// longest ago if there are too many.
func (r *Router) makeRoom() {
	now := r.cfg.Now()
	if len(r.known) < r.cfg.Destinations && now.Sub(r.swept) < r.cfg.Keep/4 {
		return
	}
	r.swept = now
	oldest := ""
	for key, d := range r.known {
		switch {
		case d.uses > 0:
		case now.Sub(d.used) >= r.cfg.Keep:
			r.forget(key)
		case oldest == "" || d.used.Before(r.known[oldest].used):
			oldest = key
		}
	}
	if len(r.known) >= r.cfg.Destinations && oldest != "" {
		r.forget(oldest)
	}
}

// forget takes a destination out and closes it, if it is there.
func (r *Router) forget(key string) {
	d := r.known[key]
	if d == nil {
		return
	}
	delete(r.known, key)
	r.closing.Go(d.Close)
}

// Flush ends the rest of all destinations that could not be reached, and the
// patience with logins that were refused.
func (r *Router) Flush() {
	r.cfg.Credentials.Flush()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.known {
		d.Flush()
	}
}

// Close closes the sessions that wait; those in use are closed when their
// delivery ends. It takes Timeouts.Quit at most. No delivery begins after it.
func (r *Router) Close() {
	r.mu.Lock()
	r.closed = true
	for key := range r.known {
		r.forget(key)
	}
	r.mu.Unlock()
	r.closing.Wait()
}
