package smarthost

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// maxExchangers bounds the MX records of a domain that are looked at.
const maxExchangers = 20

// smtpPort is where mail between hosts goes (RFC 5321 section 4.5.4.2).
const smtpPort = 25

// dialMX opens a session with a host that takes the mail of a domain (RFC 5321
// section 5.1): the MX with the lowest preference first, those of equal
// preference in random order, and the domain itself if it has no MX. This host,
// by its name or by one of its addresses, ends the list with all of the same
// preference: handing mail to itself or to a worse one would be a loop.
func dialMX(ctx context.Context, cfg *Config, domain Host) (*Session, error) {
	levels, itself, err := exchangers(ctx, cfg, domain)
	if err != nil {
		return nil, err
	}
	var last error
	left := maxAddresses
	for _, level := range levels {
		ips := make([][]netip.Addr, len(level))
		for i, h := range level {
			var err error
			if ips[i], err = addresses(ctx, cfg, h, true); err != nil {
				last = err
				if itself && isNotFound(err) {
					if last = unsure(ctx, cfg, h); last != nil {
						continue
					}
					last = nowhere(cfg, domain)
				}
			}
			if slices.ContainsFunc(ips[i], cfg.isOwn(h.Port)) {
				if last == nil {
					last = loop(cfg, domain, fmt.Sprintf("%s has an address of this host", h.Name))
				}
				return nil, last
			}
		}
		for i, h := range level {
			n := min(len(ips[i]), left)
			if n == 0 {
				continue
			}
			left -= n
			s, err := dialAddresses(ctx, cfg, h, ips[i][:n])
			if err == nil {
				return s, nil
			}
			if last = err; ctx.Err() != nil {
				return nil, last
			}
		}
	}
	return nil, last
}

// unsure returns why it cannot be told that a domain without MX has no address.
// A resolver that gets an answer for one family of addresses does not tell of
// trouble with the other.
func unsure(ctx context.Context, cfg *Config, h Host) error {
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeouts.Lookup)
	defer cancel()
	for _, family := range []string{"ip4", "ip6"} {
		ips, err := cfg.Resolver.LookupNetIP(ctx, family, h.Name+".")
		if err == nil {
			err = fmt.Errorf("there are %d addresses now, and were none before", len(ips))
		}
		if !isNotFound(err) {
			return lookupError(h.Name, err)
		}
	}
	return nil
}

// exchangers returns the hosts that take the mail of a domain, by preference; it
// does not return an empty list. If the domain has no MX, it stands for itself;
// whether it is there at all, its addresses say then, unless itself is false.
func exchangers(ctx context.Context, cfg *Config, domain Host) (levels [][]Host, itself bool, err error) {
	name, exact, err := asciiDomain(domain.Name)
	if err != nil {
		return nil, false, lookupError(domain.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeouts.Lookup)
	defer cancel()
	records, err := cfg.Resolver.LookupMX(ctx, name+".")
	if len(records) == 0 && err != nil && !isNotFound(err) {
		return nil, false, lookupError("the MX of "+domain.Name, err)
	}
	type exchanger struct {
		Host
		pref uint16
	}
	var list []exchanger
	for _, mx := range records {
		if mx == nil {
			continue
		}
		host := strings.ToLower(strings.TrimSuffix(mx.Host, "."))
		if host == "" {
			if len(records) == 1 {
				return nil, false, final(cfg, "1.10", "%s takes no mail: it has a null MX", domain.Name)
			}
			continue // senseless beside others (RFC 7505 section 3)
		}
		list = append(list, exchanger{Host{Name: host, Port: domain.Port, Login: domain.Login, Domain: name}, mx.Pref})
	}
	if len(records) == 0 {
		// A name that may be the wrong one says nothing for good.
		itself = exact
		list = []exchanger{{Host: Host{Name: name, Port: domain.Port, Login: domain.Login, Domain: name}}}
	}
	cfg.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	slices.SortStableFunc(list, func(a, b exchanger) int { return int(a.pref) - int(b.pref) })
	for i, x := range list[:min(len(list), maxExchangers)] {
		if i == 0 || x.pref != list[i-1].pref {
			levels = append(levels, nil)
		}
		k := len(levels) - 1
		levels[k] = append(levels[k], x.Host)
	}
	for k, level := range levels {
		if slices.ContainsFunc(level, func(h Host) bool { return strings.EqualFold(h.Name, strings.TrimSuffix(cfg.Name, ".")) }) {
			if levels = levels[:k]; k == 0 {
				return nil, false, loop(cfg, domain, "this host is its best MX")
			}
			break
		}
	}
	if len(levels) == 0 {
		return nil, false, lookupError("the MX of "+domain.Name, errors.New("no host in it"))
	}
	return levels, itself, nil
}

// nowhere is the error of a domain that does not exist, or not for mail.
func nowhere(cfg *Config, domain Host) error {
	return final(cfg, "1.2", "the domain %s has neither MX nor address", domain.Name)
}

func loop(cfg *Config, domain Host, why string) error {
	return final(cfg, "4.6", "mail for %s loops back to this host: %s", domain.Name, why)
}

// Permanent reports whether the error is that of a domain that takes no mail from
// here, whatever the network does.
func (e *Error) Permanent() bool { return e.permanent }

// final makes the error of a domain that takes no mail from here, whatever the
// network does. Only for the domain of a recipient that is final for the mail.
func final(cfg *Config, detail, format string, args ...any) error {
	return &Error{Command: "connect", Err: fmt.Errorf(format, args...), detail: detail, permanent: cfg.Direct}
}

// isOwn returns the function that reports whether an address is one of this
// host's. On other ports than that of SMTP it is none: what listens there is not
// where the mail for this host comes in.
func (c *Config) isOwn(port int) func(netip.Addr) bool {
	if port != smtpPort {
		return func(netip.Addr) bool { return false }
	}
	own := c.OwnAddresses()
	return func(ip netip.Addr) bool {
		return ip.IsLoopback() || ip.IsUnspecified() || slices.Contains(own, ip)
	}
}

// interfaceAddresses returns the addresses of this host's interfaces, as far as
// they can be known.
func interfaceAddresses() []netip.Addr {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var own []netip.Addr
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own = append(own, p.Addr().Unmap())
		}
	}
	return own
}
