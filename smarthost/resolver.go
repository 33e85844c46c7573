package smarthost

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
)

// Resolver asks the DNS. A *net.Resolver is one. Names that are complete end with
// a dot, so that no search list is added to them.
type Resolver interface {
	// LookupMX returns the MX records of a domain. Where there are records and an
	// error, the records count.
	LookupMX(ctx context.Context, name string) ([]*net.MX, error)

	// LookupNetIP returns the addresses of a host; network is "ip".
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// ResolverAt returns a Resolver that asks DNS servers, as 192.0.2.53, 192.0.2.53:53
// or [2001:db8::53]:53, for what the host's own files do not know. It stays with
// one of them until that does not answer.
func ResolverAt(servers ...string) *net.Resolver {
	list := make([]string, len(servers))
	for i, s := range servers {
		if ip, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
			s = netip.AddrPortFrom(ip, 53).String()
		}
		list[i] = s
	}
	var current atomic.Int64 // of list, in turn
	return &net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			n := current.Load()
			next := func() { current.CompareAndSwap(n, n+1) }
			conn, err := new(net.Dialer).DialContext(ctx, network, list[n%int64(len(list))])
			if err != nil {
				next()
				return nil, err
			}
			if udp, ok := conn.(*net.UDPConn); ok {
				return &dnsPackets{udp, next}, nil
			}
			return &dnsStream{conn, next}, nil
		},
	}
}

// dnsPackets and dnsStream are connections to a DNS server that notice when it
// does not answer. The first is a net.PacketConn, by which the resolver knows it.
type dnsPackets struct {
	*net.UDPConn
	failed func()
}

func (c *dnsPackets) Read(p []byte) (int, error) {
	n, err := c.UDPConn.Read(p)
	if err != nil {
		c.failed()
	}
	return n, err
}

type dnsStream struct {
	net.Conn
	failed func()
}

func (c *dnsStream) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.failed()
	}
	return n, err
}

// isNotFound reports whether err is an answer of the DNS, and the answer is that
// there is no such name, or nothing of that kind for it.
func isNotFound(err error) bool {
	var dns *net.DNSError
	return errors.As(err, &dns) && dns.IsNotFound && !dns.IsTemporary && !dns.IsTimeout
}

// lookupError puts an error of a resolver into plain words.
func lookupError(what string, err error) *Error {
	why := err.Error()
	var dns *net.DNSError
	if errors.As(err, &dns) {
		why = dns.Err // the name and its server say nothing new
	}
	return &Error{Command: "connect", Err: &failedLookup{"looking up " + what + ": " + why, err}, detail: "4.3"}
}

type failedLookup struct {
	text  string
	cause error
}

func (e *failedLookup) Error() string { return e.text }
func (e *failedLookup) Unwrap() error { return e.cause }

// addresses returns the IP addresses of a host in the order in which they are
// tried: the two families in turn, so that one that does not work costs little.
// complete says that no search list is to be added to the name.
func addresses(ctx context.Context, cfg *Config, h Host, complete bool) ([]netip.Addr, error) {
	if h.IP.IsValid() {
		return []netip.Addr{h.IP}, nil
	}
	name, _, err := asciiDomain(h.Name)
	if err != nil {
		return nil, lookupError(h.Name, err)
	}
	if complete {
		name += "."
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeouts.Lookup)
	defer cancel()
	list, err := cfg.Resolver.LookupNetIP(ctx, "ip", name)
	if err != nil {
		return nil, lookupError(h.Name, err)
	}
	ips := inTurn(list)
	if len(ips) == 0 {
		return nil, lookupError(h.Name, errors.New("no address"))
	}
	return ips[:min(len(ips), maxAddresses)], nil
}

// inTurn returns the addresses of list, each once, IPv4 and IPv6 in turn and else
// in their order; the family of the first comes first.
func inTurn(list []netip.Addr) []netip.Addr {
	var families [2][]netip.Addr // the first's, the other
	for _, ip := range list {
		ip = ip.Unmap()
		if !ip.IsValid() {
			continue
		}
		f := &families[0]
		if len(*f) > 0 && (*f)[0].Is4() != ip.Is4() {
			f = &families[1]
		}
		if !slices.Contains(*f, ip) {
			*f = append(*f, ip)
		}
	}
	var ips []netip.Addr
	for i := range max(len(families[0]), len(families[1])) {
		for _, f := range families {
			if i < len(f) {
				ips = append(ips, f[i])
			}
		}
	}
	return ips
}
