package smarthost

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/emersion/go-smtp"
)

// Session is one connection to a peer that has said hello. It carries one
// transaction at a time.
type Session struct {
	cfg   *Config
	peer  *peer
	relay string
	wire  *wire
	ext   extensions
	tls   string // version and what is known of the peer; "" without TLS

	sent   int  // MAIL commands that were answered
	dirty  bool // a transaction is open; RSET has to end it
	broken bool // closed, or nobody knows what the next reply belongs to
	last   bool // takes no further transaction
	stale  bool // died before the first reply of a transaction, after an earlier one
}

// Error is trouble between two hosts before a transaction: it is temporary and
// says nothing about a message, unless the DNS says that there is no second host.
type Error struct {
	Relay   string          // host[ip]:port
	Command string          // credentials, connect, TLS, greeting, EHLO, HELO, LHLO, STARTTLS, AUTH
	Reply   *smtp.SMTPError // nil if there was none
	Err     error           // nil if there is a Reply
	TLS     string          // as in Outcome
	detail  string

	tlsFailed bool // without TLS it might have been better
	untried   bool // nothing was sent to the host
	refused   bool // the login was
	permanent bool // the destination is none for the mail, now and later
}

func (e *Error) Error() string {
	var err error = e.Reply
	if e.Reply == nil {
		err = e.Err
	}
	if e.Relay == "" {
		return fmt.Sprintf("%s: %v", e.Command, err)
	}
	return fmt.Sprintf("%s: %s: %v", e.Relay, e.Command, err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error {
	if e.Reply != nil {
		return e.Reply
	}
	return e.Err
}

// NewSession makes a session with h over conn, a connection to its address ip: it
// reads the greeting, says hello, and has TLS and AUTH as Config asks for them. If
// there is an error, it is an *Error, and conn is closed.
func NewSession(ctx context.Context, cfg Config, conn net.Conn, h Host, ip netip.Addr) (*Session, error) {
	cfg = cfg.withDefaults()
	p, err := newPeer(ctx, &cfg, h)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return p.open(ctx, conn, ip)
}

// open makes a session with a peer, as NewSession does.
func (p *peer) open(ctx context.Context, conn net.Conn, ip netip.Addr) (*Session, error) {
	s := &Session{cfg: p.cfg, peer: p, relay: p.cfg.relayName(p.host, ip)}
	s.wire = newWire(conn, &s.cfg.Timeouts)
	unwatch := s.wire.watch(ctx)
	defer unwatch()
	if err := s.begin(ctx); err != nil {
		s.abort()
		return nil, err
	}
	return s, nil
}

// begin has all that comes before the first transaction.
func (s *Session) begin(ctx context.Context) error {
	if s.peer.policy.atOnce(s.peer.host.Port) {
		if err := s.handshake("TLS"); err != nil {
			return err
		}
	}
	r, err := s.wire.reply(s.wire.t.Greeting)
	if err != nil || r.Code/100 != 2 {
		return s.trouble("greeting", r, err)
	}
	if err := s.ehlo(); err != nil {
		return err
	}
	if err := s.secure(); err != nil {
		return err
	}
	return s.auth(ctx)
}

func (s *Session) ehlo() error {
	t := s.wire.t
	if s.cfg.LMTP {
		return s.lhlo()
	}
	r, err := s.ask("EHLO "+s.cfg.Name, t.Hello)
	if err == nil && r.Code/100 == 2 {
		s.ext = parseExtensions(r.lines)
		return nil
	}
	// A host without extensions refuses EHLO for good. Some do it with codes
	// other than 500 and 502, which the RFC has.
	if err != nil || r.Code/100 != 5 {
		return s.trouble("EHLO", r, err)
	}
	r, err = s.ask("HELO "+s.cfg.Name, t.Hello)
	if err != nil || r.Code/100 != 2 {
		return s.trouble("HELO", r, err)
	}
	return nil
}

// trouble makes the error of a reply that is not the one hoped for, or of a reply
// that did not come.
func (s *Session) trouble(command string, r reply, err error) *Error {
	e := &Error{Relay: s.relay, Command: command, Err: err, TLS: s.tls, detail: lostDetail(err)}
	if err == nil {
		e.Reply = &r.SMTPError
		e.detail = "3.2"
	}
	return e
}

// ask sends one command and waits for its reply.
func (s *Session) ask(command string, d time.Duration) (reply, error) {
	if err := s.wire.write([]byte(command+"\r\n"), s.wire.t.Block); err != nil {
		// The peer may have said why before it closed the connection.
		if r, readErr := s.wire.reply(s.wire.t.Grace); readErr == nil {
			return r, nil
		}
		return reply{}, err
	}
	return s.wire.reply(d)
}

// abort gives the connection up without a word.
func (s *Session) abort() {
	s.broken = true
	_ = s.wire.nc.Close()
}

// Usable reports whether the session can carry another transaction.
func (s *Session) Usable() bool {
	return !s.broken && !s.last && !s.wire.isStopped() && (s.ext.mailMax == 0 || s.sent < s.ext.mailMax)
}

// Close says goodbye, if there is somebody who listens, and closes the
// connection. It takes Timeouts.Quit at most.
func (s *Session) Close() {
	if s.broken {
		return
	}
	if !s.wire.isStopped() {
		d := s.wire.t.Quit / 2
		if s.wire.write([]byte("QUIT\r\n"), d) == nil {
			if _, err := s.wire.reply(d); err == nil {
				s.wire.goodbye()
			}
		}
	}
	s.abort()
}
