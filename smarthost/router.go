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

	// Port of the hosts of a domain. Default 25.
	Port int

	// Parallel bounds the destinations of one message that are served at a time.
	// Default 10.
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
	cfg.Parallel = max(cmp.Or(cfg.Parallel, 10), 1)
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

// Deliver hands m over to the next hop of each recipient and returns their
// outcomes, in their order; none is Later. Each hop gets what Relay.Deliver
// promises; m.Content may be read by several of them at the same time. It returns
// when the last hop has answered.
//
// A domain outside ASCII is written as the DNS has it where the local part is
// ASCII, so that it needs no SMTPUTF8.
func (r *Router) Deliver(ctx context.Context, m Message) []Outcome {
	out := make([]Outcome, len(m.Recipients))
	hops, to := r.split(&m, out)
	m.Sender = asciiAddress(m.Sender)
	slots := make(chan struct{}, r.cfg.Parallel)
	var wg sync.WaitGroup
	for _, h := range hops {
		part := m
		part.Recipients = make([]Recipient, len(h.recipients))
		for k, i := range h.recipients {
			part.Recipients[k] = m.Recipients[i]
			part.Recipients[k].Address = to[i]
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			d := r.take(h)
			defer r.release(h.key, d)
			for k, o := range d.Deliver(ctx, part) {
				out[h.recipients[k]] = o
			}
		})
	}
	wg.Wait()
	return out
}

// split sorts the recipients of m by next hop, in the order in which these first
// occur, and returns their addresses for the wire. Those that have none get their
// outcome.
func (r *Router) split(m *Message, out []Outcome) (hops []*hop, to []string) {
	to = make([]string, len(m.Recipients))
	if len(r.cfg.Hosts) > 0 && len(m.Recipients) > 0 {
		all := &hop{hosts: r.cfg.Hosts, direct: r.cfg.Direct}
		for i := range m.Recipients {
			to[i] = asciiAddress(m.Recipients[i].Address)
			all.recipients = append(all.recipients, i)
		}
		return []*hop{all}, to
	}
	byKey := make(map[string]*hop)
	none := new(Session) // the outcomes name no peer
	for i := range m.Recipients {
		to[i] = asciiAddress(m.Recipients[i].Address)
		a, err := address.Parse(to[i])
		switch {
		case err != nil:
			out[i] = none.local(Permfail, "RCPT", "1.3", "the address is not fit for SMTP")
			continue
		case a.Domain == "":
			out[i] = none.local(Permfail, "RCPT", "1.2", "the address has no domain, and there is no smarthost")
			continue
		}
		h := byKey[a.Domain]
		if h == nil {
			h = &hop{key: a.Domain, hosts: []Host{r.domainHost(a.Domain)}, direct: true}
			byKey[a.Domain] = h
			hops = append(hops, h)
		}
		h.recipients = append(h.recipients, i)
	}
	return hops, to
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

// Flush ends the rest of all destinations that could not be reached.
func (r *Router) Flush() {
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
