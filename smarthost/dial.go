package smarthost

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
)

// maxAddresses bounds the addresses of one host that are tried.
const maxAddresses = 20

// dialHosts opens a session with the first host, and the first of its addresses,
// that greets. The error is an *Error: that of the last address tried.
func dialHosts(ctx context.Context, cfg *Config) (*Session, error) {
	last := &Error{Command: "connect", Err: errors.New("no relay is configured"), detail: "3.5"}
	for _, h := range cfg.Hosts {
		addrs, err := addresses(ctx, cfg, h)
		if err != nil {
			last = &Error{Command: "connect", Err: err, detail: "4.3"}
		}
		for _, ip := range addrs {
			s, err := dialAddress(ctx, cfg, h, ip)
			if err == nil {
				return s, nil
			}
			if !errors.As(err, &last) {
				last = &Error{Relay: relayName(h, ip), Command: "connect", Err: err, detail: "4.1"}
			}
			if ctx.Err() != nil {
				return nil, last
			}
		}
	}
	return nil, last
}

// addresses returns the IP addresses of a host in the order in which they are
// tried.
func addresses(ctx context.Context, cfg *Config, h Host) ([]string, error) {
	if h.IP.IsValid() {
		return []string{h.IP.String()}, nil
	}
	if h.MX {
		return nil, fmt.Errorf("the MX of %s cannot be asked", h.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeouts.Lookup)
	defer cancel()
	list, err := cfg.LookupHost(ctx, h.Name)
	if err != nil {
		var dns *net.DNSError
		if errors.As(err, &dns) {
			return nil, fmt.Errorf("looking up %s: %s", h.Name, dns.Err)
		}
		return nil, fmt.Errorf("looking up %s: %w", h.Name, err)
	}
	var ips []string
	for _, s := range list {
		if _, err := netip.ParseAddr(s); err == nil && len(ips) < maxAddresses {
			ips = append(ips, s)
		}
	}
	if len(ips) == 0 {
		return nil, fmt.Errorf("looking up %s: no address", h.Name)
	}
	return ips, nil
}

func dialAddress(ctx context.Context, cfg *Config, h Host, ip string) (*Session, error) {
	dialing, cancel := context.WithTimeout(ctx, cfg.Timeouts.Connect)
	conn, err := cfg.Dial(dialing, "tcp", net.JoinHostPort(ip, strconv.Itoa(h.Port)))
	cancel()
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Err != nil {
			err = op.Err // the outcome names the address
		}
		return nil, err
	}
	return NewSession(ctx, *cfg, conn, relayName(h, ip))
}
