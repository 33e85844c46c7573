package smarthost

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"dma/internal/mapfile"
)

// peer is a host to connect to, with what is known about it before that.
type peer struct {
	cfg    *Config
	host   Host
	login  *login // nil: no credentials
	policy TLSPolicy
	clear  bool // TLS has failed, and the policy lets mail go without
}

// newPeer finds the credentials and the policy for a host. The error is an *Error,
// and trouble of our own side.
func newPeer(ctx context.Context, cfg *Config, h Host) (*peer, error) {
	p := &peer{cfg: cfg, host: h}
	var err error
	if p.login, err = cfg.Credentials.lookup(ctx, h); err != nil {
		var refused *refusedError
		if errors.As(err, &refused) {
			return nil, &Error{Command: "AUTH", Err: err, detail: "7.8", refused: true, untried: true}
		}
		return nil, &Error{Command: "credentials", Err: err, detail: "3.5"}
	}
	if p.policy, err = cfg.TLS(h, p.login != nil); err != nil {
		return nil, &Error{Command: "TLS", Err: err, detail: "3.5"}
	}
	return p, nil
}

// session makes a session with a peer over conn. If TLS has failed and the policy
// lets mail go without, it connects again.
func (p *peer) session(ctx context.Context, conn net.Conn, ip netip.Addr) (*Session, error) {
	s, err := p.open(ctx, conn, ip)
	var e *Error
	if err == nil || !errors.As(err, &e) || !e.tlsFailed || !p.mayGoClear() || p.policy.atOnce(p.host.Port) || ctx.Err() != nil {
		return s, err
	}
	again := *p
	again.clear = true
	if conn, err = dialAddress(ctx, p.cfg, p.host, ip); err != nil {
		return nil, err
	}
	return again.open(ctx, conn, ip)
}

// mayGoClear reports whether mail may go without TLS. Where there are credentials
// it may not: they could not, and without them the peer is not to be used.
func (p *peer) mayGoClear() bool { return !p.policy.required() && p.login == nil }

// secure has STARTTLS and what follows, where the policy asks for it.
func (s *Session) secure() error {
	p := s.peer
	if s.tls != "" || p.policy.Level == TLSNone || p.clear {
		return nil
	}
	const command = "STARTTLS"
	if !s.ext.startTLS {
		if p.mayGoClear() {
			return nil
		}
		return s.failure(command, "7.4", "the relay does not offer STARTTLS, and "+p.why())
	}
	r, err := s.ask(command, s.wire.t.Hello)
	switch {
	case err != nil:
		e := s.trouble(command, r, err)
		e.tlsFailed = !errors.Is(err, errStopped)
		return e
	case r.Code/100 != 2 && r.Code != 421 && p.mayGoClear():
		return nil
	case r.Code != 220:
		e := s.trouble(command, r, nil)
		e.detail, e.tlsFailed = "7.4", r.Code/100 == 2 // whatever that was to mean
		return e
	case s.wire.br.Buffered() > 0:
		// Somebody between the hosts put it there, for it to count as said
		// under TLS. This is not trouble that clear text would mend.
		return s.failure(command, "5.0", "the relay said more before TLS began than the reply to STARTTLS")
	}
	if err := s.handshake(command); err != nil {
		return err
	}
	// What was said before does not count (RFC 3207 section 4.2).
	s.ext = extensions{}
	return s.ehlo()
}

// why says why clear text will not do.
func (p *peer) why() string {
	if p.login != nil {
		return "there are credentials for it, which never cross a connection that is not encrypted"
	}
	return fmt.Sprintf("its TLS policy is %v", p.policy.Level)
}

// failure makes the error of something that is not as it has to be.
func (s *Session) failure(command, detail, text string) *Error {
	return &Error{Relay: s.relay, Command: command, Err: errors.New(oneLine(text)), TLS: s.tls, detail: detail}
}

// handshake begins TLS. It takes Timeouts.Handshake at most.
func (s *Session) handshake(command string) error {
	p := s.peer
	name := inASCII(p.host.Name)
	if p.host.IP.IsValid() {
		name = p.host.IP.WithZone("").String()
	}
	var refused error // by us
	state := ""
	c := tls.Client(s.wire.nc, &tls.Config{
		MinVersion: tls.VersionTLS12,
		ServerName: name, // crypto/tls sends no address as SNI
		// What is verified, and how, the policy says, in VerifyConnection.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			state, refused = p.verify(cs, name)
			return refused
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			var cert *tls.Certificate
			cert, refused = loadCertificate(p.cfg.CertFile)
			return cert, refused
		},
		// Latency does not count here, and a record has its price.
		DynamicRecordSizingDisabled: true,
	})
	d := s.wire.t.Handshake
	s.wire.readIn(d)
	s.wire.writeIn(d)
	if err := c.Handshake(); err != nil {
		if refused == nil {
			refused = s.wire.explainTLS(err, d)
		}
		e := s.failure(command, "7.5", "TLS: "+refused.Error())
		e.tlsFailed = !s.wire.isStopped()
		return e
	}
	s.wire.replace(&tlsConn{c, s.wire.nc})
	s.tls = versionName(c.ConnectionState().Version) + " " + state
	return nil
}

// tlsConn closes the connection below without a word: saying goodbye could take as
// long as the peer likes.
type tlsConn struct {
	*tls.Conn
	raw net.Conn
}

func (c *tlsConn) Close() error { return c.raw.Close() }

// Read takes an end without a goodbye for an end. SMTP says itself where its
// replies and sessions end.
func (c *tlsConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return n, err
}

// explainTLS puts an error of a handshake into plain words.
func (w *wire) explainTLS(err error, d time.Duration) error {
	var plain tls.RecordHeaderError
	var alert tls.AlertError
	var op *net.OpError
	switch {
	case errors.As(err, &plain):
		return errors.New("the relay does not answer with TLS; another port, or STARTTLS instead of TLS from the first octet, may be right")
	case errors.As(err, &alert), errors.As(err, &op) && op.Op == "remote error":
		return fmt.Errorf("the relay broke off the handshake: %w", err)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, io.EOF), op != nil:
		return w.explain(err, d)
	}
	return err
}

// versionName returns TLS1.2, TLS1.3: the log's values have no blanks inside.
func versionName(v uint16) string { return strings.ReplaceAll(tls.VersionName(v), " ", "") }

// verify judges the certificate of a peer, and says in a word what it found.
func (p *peer) verify(cs tls.ConnectionState, name string) (state string, err error) {
	if len(cs.PeerCertificates) == 0 {
		return "", errors.New("the relay has no certificate")
	}
	leaf := cs.PeerCertificates[0]
	state = "unverified"
	switch p.policy.Level {
	case TLSMay, TLSEncrypt, TLSFingerprint:
	case TLSVerify:
		if err := p.verifyChain(cs.PeerCertificates, name); err != nil {
			return "", err
		}
		state = "verified"
	default:
		return "", fmt.Errorf("the policy %v is not known", p.policy.Level)
	}
	if len(p.policy.Fingerprints) > 0 || p.policy.Level == TLSFingerprint {
		print := Fingerprint(sha256.Sum256(leaf.Raw))
		if !slices.Contains(p.policy.Fingerprints, print) {
			return "", fmt.Errorf("the certificate is not the one that is expected: its SHA-256 is %v", print)
		}
		if state != "verified" {
			state = "fingerprint"
		}
	}
	return state, nil
}

func (p *peer) verifyChain(chain []*x509.Certificate, name string) error {
	leaf := chain[0]
	o := x509.VerifyOptions{Roots: p.cfg.RootCAs, Intermediates: x509.NewCertPool(), CurrentTime: p.cfg.Now()}
	for _, c := range chain[1:] {
		o.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(o); err != nil {
		return chainProblem(err, leaf, o.CurrentTime)
	}
	names := p.policy.Names
	if len(names) == 0 {
		names = p.defaultNames(name)
	}
	for _, n := range names {
		if certificateFor(leaf, n) {
			return nil
		}
	}
	return fmt.Errorf("the certificate is for %s, not for %s", certificateNames(leaf), strings.Join(names, " or "))
}

// defaultNames returns for which names a certificate may be where the policy names
// none. The MX records that led to a host may be forged, so the name of the host
// proves nothing (RFC 7672 section 1.3.2): the certificate must be for the domain
// that somebody wrote down, or for a host below it, unless the host itself is
// written down, in the credentials. The domains of recipients are served by hosts
// that are called anything; their name has to do, as in Postfix at this level.
func (p *peer) defaultNames(name string) []string {
	if p.host.Domain == "" || p.login != nil && p.login.host.Name == name || p.login == nil && p.cfg.Direct {
		return []string{name}
	}
	domain := inASCII(p.host.Domain)
	return []string{domain, "." + domain}
}

// certificateFor reports whether a certificate is for a host, or, if name begins
// with a dot, for one below that domain.
func certificateFor(leaf *x509.Certificate, name string) bool {
	if name[0] != '.' {
		return leaf.VerifyHostname(name) == nil
	}
	return slices.ContainsFunc(leaf.DNSNames, func(have string) bool {
		return strings.HasSuffix(strings.ToLower(have), name) && len(have) > len(name)
	})
}

// certificateNames lists for whom a certificate is, for people.
func certificateNames(leaf *x509.Certificate) string {
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	const most = 5
	if len(names) > most {
		names = append(names[:most], "others")
	}
	if len(names) == 0 {
		return "no host"
	}
	return strings.Join(names, ", ")
}

// chainProblem says in plain words why a certificate is not trusted.
func chainProblem(err error, leaf *x509.Certificate, now time.Time) error {
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	var noRoots x509.SystemRootsError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		what := "the certificate"
		if invalid.Cert != nil && !invalid.Cert.Equal(leaf) {
			what = "the certificate of an authority"
		} else {
			invalid.Cert = leaf
		}
		if now.Before(invalid.Cert.NotBefore) {
			return fmt.Errorf("%s is not valid before %s", what, invalid.Cert.NotBefore.UTC().Format(time.RFC3339))
		}
		return fmt.Errorf("%s has expired on %s", what, invalid.Cert.NotAfter.UTC().Format(time.RFC3339))
	case errors.As(err, &noRoots):
		return fmt.Errorf("the system's root certificates cannot be read: %w", noRoots.Err)
	case errors.As(err, &unknown):
		print := Fingerprint(sha256.Sum256(leaf.Raw))
		if bytes.Equal(leaf.RawIssuer, leaf.RawSubject) {
			return fmt.Errorf("the certificate is self-signed; its SHA-256 is %v", print)
		}
		return fmt.Errorf("the certificate is signed by an authority that is not trusted here; its SHA-256 is %v", print)
	}
	return err
}

// loadCertificate reads our own certificate and key, in any order, from one file
// in PEM. Without a file we have none.
func loadCertificate(path string) (*tls.Certificate, error) {
	if path == "" {
		return new(tls.Certificate), nil
	}
	f := mapfile.File{Path: path}
	data, _, err := f.Read()
	if err != nil {
		return nil, fmt.Errorf("our own certificate: %w", err)
	}
	var certs, key []byte
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if strings.HasSuffix(block.Type, "PRIVATE KEY") {
			key = append(key, pem.EncodeToMemory(block)...)
		} else {
			certs = append(certs, pem.EncodeToMemory(block)...)
		}
	}
	cert, err := tls.X509KeyPair(certs, key)
	if err != nil {
		return nil, fmt.Errorf("our own certificate in %s: %w", path, err)
	}
	return &cert, nil
}
