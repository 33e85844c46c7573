package smarthost

import (
	"cmp"
	"context"
	"crypto/x509"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"
)

// Config says how to reach a destination. The zero value of every field but
// Hosts has a meaning; NewSession needs no Hosts.
type Config struct {
	// Name is the host name that EHLO says, before and after STARTTLS. What is
	// not fit for the wire becomes "localhost".
	Name string

	// Hosts stand in for each other: each is tried with all its addresses, in
	// this order, until one greets.
	Hosts []Host

	// Concurrency bounds the open connections. Default 10.
	Concurrency int

	// RetryMin and RetryMax bound how long a destination that cannot be reached
	// is left alone: RetryMin after the first failure, twice as long after each
	// further one. Defaults 30s and 10m.
	RetryMin, RetryMax time.Duration

	// Idle is how long a session waits for the next message. Default 5s.
	Idle time.Duration

	// Timeouts bound every wait on the peer.
	Timeouts Timeouts

	// Dial opens a connection; default is a net.Dialer. network is "tcp" and addr
	// an IP address and a port, or they are "unix" and Socket.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// LMTP says that the destination speaks LMTP (RFC 2033). NewLMTP sets it, and
	// Socket: the path of a unix socket that stands in for Hosts.
	LMTP   bool
	Socket string

	// Direct says that Hosts is the domain of recipients, and no relay that
	// somebody chose: then a DNS that says for good that it takes no mail, or
	// that it is this host itself, fails the mail for good.
	Direct bool

	// Resolver asks the DNS; default is the system's.
	Resolver Resolver

	// OwnAddresses returns the addresses of this host, of which MX routing makes
	// no target; default are those of its interfaces. Loopback counts without it.
	OwnAddresses func() []netip.Addr

	// Shuffle puts hosts of equal preference in random order; default is
	// rand.Shuffle.
	Shuffle func(n int, swap func(i, j int))

	// TLS says how the connection to a host is protected, given whether there are
	// credentials for it; default DefaultTLS. An error is temporary for the mail.
	TLS func(h Host, credentials bool) (TLSPolicy, error)

	// RootCAs are who may sign certificates; default the system's.
	RootCAs *x509.CertPool

	// CertFile is the path of our own certificate and its key in PEM, for peers
	// that ask for one. It is read each time. Default none.
	CertFile string

	// Credentials are the logins; nil has none. Where there is one for a host,
	// that host gets no mail unless the login succeeds.
	Credentials *Credentials

	// Now is the clock of the back-off and of certificates; default time.Now.
	Now func() time.Time
}

// Timeouts has a bound for each wait. A zero field takes the value of RFC 5321
// section 4.5.3.2, or the one given here. The bound of a command is for its whole
// reply, so that a peer cannot stretch it octet by octet.
type Timeouts struct {
	Lookup    time.Duration // one host name: 30s
	Connect   time.Duration // one address: 30s
	Race      time.Duration // an address that is silent, before the next is tried too: 250ms (RFC 8305)
	Greeting  time.Duration // 5m
	Hello     time.Duration // EHLO, HELO, LHLO, STARTTLS, RSET: 5m
	Handshake time.Duration // of TLS: 1m
	Auth      time.Duration // each reply to AUTH: 2m
	Mail      time.Duration // 5m
	Rcpt      time.Duration // each RCPT: 5m
	Data      time.Duration // the reply to DATA: 2m
	Block     time.Duration // writing a command or 32 KiB of content: 3m
	Dot       time.Duration // the reply to the content, with LMTP each of them: 10m
	Quit      time.Duration // saying goodbye, in all: 2s
	// Grace is how long a reply to the content is still waited for when the
	// program is to stop, since going would send the message twice: 5s. Also how
	// long the parting words of a peer that takes no more are waited for.
	Grace time.Duration
}

func (c Config) withDefaults() Config {
	t := &c.Timeouts
	*t = Timeouts{
		Lookup:    cmp.Or(t.Lookup, 30*time.Second),
		Connect:   cmp.Or(t.Connect, 30*time.Second),
		Race:      cmp.Or(t.Race, 250*time.Millisecond),
		Greeting:  cmp.Or(t.Greeting, 5*time.Minute),
		Hello:     cmp.Or(t.Hello, 5*time.Minute),
		Handshake: cmp.Or(t.Handshake, time.Minute),
		Auth:      cmp.Or(t.Auth, 2*time.Minute),
		Mail:      cmp.Or(t.Mail, 5*time.Minute),
		Rcpt:      cmp.Or(t.Rcpt, 5*time.Minute),
		Data:      cmp.Or(t.Data, 2*time.Minute),
		Block:     cmp.Or(t.Block, 3*time.Minute),
		Dot:       cmp.Or(t.Dot, 10*time.Minute),
		Quit:      cmp.Or(t.Quit, 2*time.Second),
		Grace:     cmp.Or(t.Grace, 5*time.Second),
	}
	if !token(c.Name) {
		c.Name = "localhost"
	}
	if c.Concurrency < 1 {
		c.Concurrency = 10
	}
	c.RetryMin = cmp.Or(c.RetryMin, 30*time.Second)
	c.RetryMax = max(cmp.Or(c.RetryMax, 10*time.Minute), c.RetryMin)
	c.Idle = cmp.Or(c.Idle, 5*time.Second)
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	if c.Resolver == nil {
		c.Resolver = net.DefaultResolver
	}
	if c.OwnAddresses == nil {
		c.OwnAddresses = interfaceAddresses
	}
	if c.Shuffle == nil {
		c.Shuffle = rand.Shuffle
	}
	if c.TLS == nil {
		c.TLS = DefaultTLS
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}
