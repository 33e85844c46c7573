package smarthost

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"
)

// NewLMTP returns a Relay that speaks LMTP (RFC 2033) to a server at address,
// which is the path of a unix socket, host:port or [ip]:port. Of cfg, Hosts and
// Credentials do not count. Without cfg.TLS a server on this machine is talked to
// in clear text, and another one as DefaultTLS has it. Close it at the end.
//
// Its deliveries are those of any Relay, with one difference: after the message
// the server answers for each recipient by itself, and so each is sorted. Outcomes
// name the server "lmtp:" and the path, or host[ip]:port. Since a server of
// mailboxes is the last one on the way, DSN (RFC 3461) is not asked of it.
func NewLMTP(address string, cfg Config) (*Relay, error) {
	cfg.LMTP, cfg.Socket, cfg.Hosts, cfg.Direct, cfg.Credentials = true, "", nil, false, nil
	if strings.HasPrefix(address, "/") {
		cfg.Socket = address
		cfg.TLS = func(Host, bool) (TLSPolicy, error) { return TLSPolicy{Level: TLSNone}, nil }
		return New(cfg), nil
	}
	h, why := parseHost(address, 0)
	if why == "" && h.MX {
		why = "mx: is for mail to other hosts"
	}
	if why != "" {
		return nil, fmt.Errorf("LMTP server %.100q: %s", address, why)
	}
	cfg.Hosts = []Host{h}
	if cfg.TLS == nil {
		cfg.TLS = lmtpTLS
	}
	return New(cfg), nil
}

// lmtpTLS is the policy of an LMTP server that nothing is configured for.
func lmtpTLS(h Host, credentials bool) (TLSPolicy, error) {
	if h.IP.IsLoopback() || strings.EqualFold(h.Name, "localhost") {
		return TLSPolicy{Level: TLSNone}, nil
	}
	return DefaultTLS(h, credentials)
}

// relayName is how outcomes name a peer.
func (c *Config) relayName(h Host, ip netip.Addr) string {
	switch {
	case c.Socket != "":
		return "lmtp:" + oneLine(c.Socket)
	case c.LMTP:
		return "lmtp:" + relayName(h, ip.String())
	}
	return relayName(h, ip.String())
}

// dialSocket opens a session with the server behind Config.Socket.
func dialSocket(ctx context.Context, cfg *Config) (*Session, error) {
	var h Host
	p, err := newPeer(ctx, cfg, h)
	if err != nil {
		return nil, err
	}
	conn, err := connectTo(ctx, cfg, "unix", cfg.Socket)
	if err != nil {
		err = fmt.Errorf("%s: %w", oneLine(cfg.Socket), err)
		if errors.Is(err, fs.ErrPermission) { // as the server has it where nobody has said whose it is
			err = fmt.Errorf("%w; uid %d, which delivers, has to be able to write to it", err, os.Geteuid())
		}
		return nil, &Error{Relay: cfg.relayName(h, netip.Addr{}), Command: "connect", Err: err, detail: "4.1"}
	}
	return p.open(ctx, conn, netip.Addr{})
}

// lhlo says hello (RFC 2033 section 4.1). There is nothing to fall back to: a
// server that takes no LHLO would answer once for all recipients.
func (s *Session) lhlo() error {
	const command = "LHLO"
	r, err := s.ask(command+" "+s.cfg.Name, s.wire.t.Hello)
	if err != nil || r.Code/100 != 2 {
		return s.trouble(command, r, err)
	}
	s.ext = parseExtensions(r.lines)
	s.ext.dsn = false
	return nil
}

// contentEach writes the message and reads a reply for each recipient that was
// taken, in their order (RFC 2033 section 4.2). What is decided stays so, whatever
// becomes of the connection. A refusal in the middle of the message counts for its
// recipient, as in SMTP; a success does not. 421 is believed for its recipient
// alone, since those before it may have their mail; the session ends after it.
func (t *transaction) contentEach() {
	s := t.s
	writing := s.wire.send(t.m)
	var w delivery
	written := false // w is known
	ends := false    // the session does
	wait := func() {
		if !written {
			w, written = <-writing, true
			w.check()
		}
	}
	defer wait()
	var decided []int
	defer func() { t.tell(decided) }()
	s.dirty = false
	for _, i := range t.taken {
		if s.wire.br.Buffered() == 0 {
			t.tell(decided)
			decided = nil
		}
		if written {
			s.wire.readIn(s.wire.t.Dot)
		}
		r, err := readReply(s.wire.br)
		early := !s.wire.isCommitted()
		if err != nil {
			_ = s.wire.nc.Close() // ends the writing
		}
		if err != nil || !early {
			wait()
		}
		switch {
		case err != nil || w.err != nil:
			t.giveUp(t.unanswered(w, err))
			return
		case r.Code/100 == 3, r.Code/100 == 2 && early:
			o := s.byReply(endOfData, r)
			o.Uncertain = !early
			t.giveUp(o)
			return
		}
		ends = ends || early || r.Code == 421
		o := s.byReply(endOfData, r)
		if r.Code == 421 {
			o.Verdict = Tempfail
		}
		t.settle(i, o)
		decided = append(decided, i)
	}
	if ends {
		s.abort()
		return
	}
	s.wire.uncommit()
}

// tell tells of outcomes before the transaction is at its end.
func (t *transaction) tell(indices []int) {
	if t.early == nil || len(indices) == 0 {
		return
	}
	outcomes := make([]Outcome, len(indices))
	for k, i := range indices {
		outcomes[k] = t.out[i]
	}
	t.early(indices, outcomes)
}
