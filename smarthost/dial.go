package smarthost

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"
)

// maxAddresses bounds the addresses of one host, and of all MX of a domain, that
// are tried.
const maxAddresses = 20

// dialHosts opens a session with the first host, and the first of its addresses,
// that greets. The error is an *Error: that of the last address tried.
func dialHosts(ctx context.Context, cfg *Config) (*Session, error) {
	if cfg.Socket != "" {
		return dialSocket(ctx, cfg)
	}
	var last error = &Error{Command: "connect", Err: errors.New("no relay is configured"), detail: "3.5"}
	for _, h := range cfg.Hosts {
		s, err := dialHost(ctx, cfg, h)
		if err == nil {
			return s, nil
		}
		// A refused login does not mend by itself: it is what is to be seen.
		if !isRefused(last) {
			last = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, last
}

func dialHost(ctx context.Context, cfg *Config, h Host) (*Session, error) {
	if h.MX {
		return dialMX(ctx, cfg, h)
	}
	ips, err := addresses(ctx, cfg, h, false)
	if err != nil {
		return nil, err
	}
	if cfg.Direct && slices.ContainsFunc(ips, cfg.isOwn(h.Port)) {
		return nil, loop(cfg, h, "it has an address of this host")
	}
	return dialAddresses(ctx, cfg, h, ips)
}

// dialAddresses opens a session with the first address of a host that greets.
// There has to be one.
func dialAddresses(ctx context.Context, cfg *Config, h Host, ips []netip.Addr) (*Session, error) {
	p, err := newPeer(ctx, cfg, h)
	if err != nil {
		return nil, err
	}
	for {
		d, rest := race(ctx, cfg, h, ips)
		err := d.err
		if err == nil {
			var s *Session
			if s, err = p.session(ctx, d.conn, d.ip); err == nil {
				return s, nil
			}
		}
		var e *Error
		if !errors.As(err, &e) {
			err = &Error{Relay: cfg.relayName(h, d.ip), Command: "connect", Err: err, detail: "4.1"}
		}
		if len(rest) == 0 || ctx.Err() != nil || isRefused(err) {
			return nil, err
		}
		ips = rest
	}
}

// dialed is how the dial of an address ended.
type dialed struct {
	ip   netip.Addr
	conn net.Conn
	err  error
}

// race connects to the first of some addresses that answers (RFC 8305 section 5):
// the next one is tried when those before have failed, or have been silent for
// Timeouts.Race. It returns the connection, or the last failure, and the addresses
// that have not failed besides.
func race(ctx context.Context, cfg *Config, h Host, ips []netip.Addr) (won dialed, rest []netip.Addr) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan dialed, len(ips))
	rest = slices.Clone(ips)
	open := 0
	start := func() {
		ip := ips[0]
		ips = ips[1:]
		open++
		go func() {
			conn, err := dialAddress(ctx, cfg, h, ip)
			results <- dialed{ip, conn, err}
		}()
	}
	start()
	timer := time.NewTimer(cfg.Timeouts.Race)
	defer timer.Stop()
	for open > 0 {
		select {
		case <-timer.C:
		case won = <-results:
			open--
			k := slices.Index(rest, won.ip)
			rest = slices.Delete(rest, k, k+1)
			if won.err == nil {
				go closeAll(results, open)
				return won, rest
			}
		}
		if len(ips) > 0 && ctx.Err() == nil {
			start()
			timer.Reset(cfg.Timeouts.Race)
		}
	}
	return won, rest
}

// closeAll closes the connections that come too late.
func closeAll(results <-chan dialed, open int) {
	for range open {
		if d := <-results; d.conn != nil {
			_ = d.conn.Close()
		}
	}
}

func dialAddress(ctx context.Context, cfg *Config, h Host, ip netip.Addr) (net.Conn, error) {
	return connectTo(ctx, cfg, "tcp", net.JoinHostPort(ip.String(), strconv.Itoa(h.Port)))
}

// connectTo dials. What an error says of the address and of the call is left out,
// since outcomes name them.
func connectTo(ctx context.Context, cfg *Config, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeouts.Connect)
	defer cancel()
	conn, err := cfg.Dial(ctx, network, addr)
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		err = op.Err
	}
	var call *os.SyscallError
	if errors.As(err, &call) {
		err = call.Err
	}
	return conn, err
}
