// Package config reads dma.conf: the file format, the name and the keys of the
// DragonFly Mail Agent, and the keys that this program adds in the same style.
//
// A line is a key, white space and a value; white space around the value does
// not count. A # at the start of a line or after white space begins a comment;
// elsewhere it belongs to the value. Keys are in capitals. A key given twice
// has its last value. A switch is on when its key stands alone, or says yes,
// no, true, false, on or off. A time is "90s", "5m", "3h", "5d" or several of
// these together, the larger unit first, "1h30m". A list is separated by commas
// or white space. A relative path counts from the folder of the configuration
// file.
//
// What is wrong in the file is a Problem and costs that line only: no mistake
// in it stops the mail.
//
// The package is linked into the small program that every submission starts; it
// needs neither net nor regexp.
package config

import (
	"cmp"
	"io"
	"strings"
	"time"
)

// DefaultFile is the configuration file where no other is named.
const DefaultFile = "/etc/dma/dma.conf"

// Config has the value of every key. Default and Load make it.
type Config struct {
	// File is the absolute path of the file that was read, or empty.
	File string

	// Smarthost (SMARTHOST, list, default none) has the relays for all mail that
	// is not local, in the order in which they are tried. Each has one of the
	// forms host, host:port, [ip], [ip]:port, mx:name; their syntax is checked.
	Smarthost []string

	// SmarthostBad says that SMARTHOST is given and not one relay of it can be
	// read: mail that is not local has to wait then, since going to the MX
	// instead is not what was asked for.
	SmarthostBad bool

	// Port (PORT, 1 to 65535, default 25) is for relays without a port, and for
	// the MX of recipients.
	Port int

	// Resolver (RESOLVER, list, default none: those of /etc/resolv.conf) has the
	// DNS servers that are asked for relays and for the MX of recipients, each in
	// one of the forms ip, ip:port, [ip]:port.
	Resolver []string

	// Aliases (ALIASES, list of paths, default /etc/aliases).
	Aliases []string

	// SpoolDir (SPOOLDIR, path, default /var/spool/dma).
	SpoolDir string

	// Socket (SOCKET, path, default none) is where the service takes mail from
	// who can't write in the spool. Door has the path that counts.
	Socket string

	// AuthPath (AUTHPATH, path, default none) is the file with the credentials
	// for the relays, login|host:password. A relay with credentials gets no mail
	// without TLS and login.
	AuthPath string

	// CertFile (CERTFILE, path, default none) has our own certificate and key
	// in PEM, for relays that ask for one.
	CertFile string

	// SecureTransfer (SECURETRANSFER, switch, default no) demands TLS; from the
	// first octet unless StartTLS is on.
	SecureTransfer bool

	// StartTLS (STARTTLS, switch, default no) demands TLS that begins with
	// STARTTLS. Without StartTLS and SecureTransfer TLS is used where it is
	// offered.
	StartTLS bool

	// OpportunisticTLS (OPPORTUNISTIC_TLS, switch, default no) goes on without
	// TLS where StartTLS is on and STARTTLS not to be had; not with credentials.
	OpportunisticTLS bool

	// VerifyCert (VERIFYCERT, switch, default unset) demands a valid certificate
	// of the relay; unset, it does where there are credentials and no Fingerprint.
	VerifyCert Choice

	// Fingerprint (FINGERPRINT, SHA-256 in 64 hex digits, colons allowed,
	// default none) is the one certificate to accept, in lower case without
	// colons. A value that cannot be read turns VERIFYCERT on instead: a typing
	// error is not to open what was meant to be closed.
	Fingerprint string

	// Insecure (INSECURE, switch, default no) was C dma's leave to send a
	// password without TLS. It is read for its files' sake, and changes nothing.
	Insecure bool

	// Defer (DEFER, switch, default no) only queues; delivery begins when the
	// queue is run.
	Defer bool

	// FullBounce (FULLBOUNCE, switch, default no) returns whole messages.
	FullBounce bool

	// MailName (MAILNAME, a host name or the absolute path of a file that holds
	// one, default empty: the system's host name). HostName resolves it.
	MailName string

	// Masquerade (MASQUERADE, [user@][host], default none) replaces the user or
	// the host or both in addresses of this host that are senders, of mail for
	// other hosts. The form is checked; MasqueradeParts takes it apart.
	Masquerade string

	// NullClient (NULLCLIENT, switch, default no) sends everything to the
	// smarthost, mail for local users too.
	NullClient bool

	// Mailbox (MAILBOX, default mbox:/var/mail/%u) is where local mail goes:
	// mbox:PATH, maildir:PATH, pipe:COMMAND, lmtp:/SOCKET, lmtp:HOST:PORT. A PATH
	// begins with / or ~/ and is a pattern for ExpandPath.
	Mailbox string

	// MboxLock (MBOXLOCK, fcntl or flock, default none: that of the system) is the
	// kernel lock of an mbox. MboxFlock has what counts.
	MboxLock string

	// Forward (FORWARD, default ~/.forward) is a pattern for ExpandPath.
	Forward string

	// LocalDomains (LOCALDOMAINS, list, default none) are local besides
	// localhost, the host name and MAILNAME; in lower case.
	LocalDomains []string

	// Users (USERS, path, default none: the system's users) is a file in the
	// format of passwd(5).
	Users string

	// RetryMin and RetryMax (RETRY_MIN, time, default 5m; RETRY_MAX, time,
	// default 3h) bound the wait between two attempts. RetryMax is not below
	// RetryMin.
	RetryMin, RetryMax time.Duration

	// Expire (EXPIRE, time, default 5d) is the age at which mail that still
	// fails for now has failed for good.
	Expire time.Duration

	// DelayNotice (DELAYNOTICE, time, default 4h; 0s: never) is the age at which
	// the sender hears of a delay.
	DelayNotice time.Duration

	// CommandTime (COMMANDTIME, time, default 10m) is what a user's command may
	// take.
	CommandTime time.Duration

	// Concurrency (CONCURRENCY, 1 to 1000, default 10) is the greatest number of
	// sessions with one destination.
	Concurrency int

	// MinUID (MINUID, uid, default 1000): users below it, root excepted, get their
	// mail in the mailbox and have no .forward.
	MinUID int

	// ForwardUsers (FORWARDUSERS, list, default none) are users below MINUID who
	// may have a .forward all the same.
	ForwardUsers []string

	// AliasUser (ALIASUSER, user, default none) runs the commands and writes the
	// files of the aliases file.
	AliasUser string

	// MinFree (MINFREE, octets, also with K, M, G, or a share as 5%, default
	// 16M; 0: none) is the free space below which the spool takes no new mail.
	MinFree Space

	// PasswordCmd (PASSWORDCMD, command for the shell, default none) prints the
	// password or token of a login in AuthPath that has none.
	PasswordCmd string

	// TokenUser (TOKENUSER, user, default none: who serves the spool) is who runs
	// PasswordCmd. Where one uid serves everything nobody else can.
	TokenUser string

	// TLSPolicy (TLSPOLICY), SenderRelay (SENDERRELAY) and Rewrite (REWRITE) are
	// paths of map files, default none: TLS by destination, relays by sender,
	// sender addresses by user.
	TLSPolicy, SenderRelay, Rewrite string

	// Metrics (METRICS, path, default none) is the file that gets the figures
	// for Prometheus.
	Metrics string
}

// Default returns the configuration of an empty file.
func Default() *Config {
	return &Config{
		Port:        25,
		Aliases:     []string{"/etc/aliases"},
		SpoolDir:    "/var/spool/dma",
		Mailbox:     "mbox:/var/mail/%u",
		Forward:     "~/.forward",
		RetryMin:    5 * time.Minute,
		RetryMax:    3 * time.Hour,
		Expire:      5 * day,
		DelayNotice: 4 * time.Hour,
		CommandTime: 10 * time.Minute,
		Concurrency: 10,
		MinUID:      1000,
		MinFree:     Space{Bytes: 16 << 20},
	}
}

// DefaultSocket is the socket of the host's own service, where SOCKET names no
// other.
const DefaultSocket = RunDir + "/submit.sock"

// Door returns the path of the socket over which mail reaches the service of
// this configuration: SOCKET, else DefaultSocket for the configuration of the
// host, DefaultFile, whether that exists or not. For another file without SOCKET
// it is empty: the host's service would put the mail into another queue than the
// file names.
func (c *Config) Door() string {
	if c.Socket == "" && (c.File == "" || c.File == DefaultFile) {
		return DefaultSocket
	}
	return c.Socket
}

// MboxFlock reports whether an mbox is locked with flock(2) instead of fcntl(2):
// MBOXLOCK, else what the mail programs of the system do.
func (c *Config) MboxFlock() bool {
	return cmp.Or(c.MboxLock, systemMboxLock) == "flock"
}

// Choice is a switch that can also be left to the program.
type Choice int8

// The values of a Choice.
const (
	Unset Choice = iota
	No
	Yes
)

// Space is an amount of a file system, in octets or, if Percent is not zero, as
// a share of the whole.
type Space struct {
	Bytes   int64
	Percent int
}

// Of returns the octets that s is of a file system of total octets.
func (s Space) Of(total uint64) uint64 {
	if s.Percent > 0 {
		return total / 100 * uint64(s.Percent)
	}
	return uint64(max(s.Bytes, 0))
}

// MasqueradeParts returns the user and the host of MASQUERADE; an empty one
// leaves that half of an address as it is.
func (c *Config) MasqueradeParts() (user, host string) {
	i := strings.LastIndexByte(c.Masquerade, '@')
	if i < 0 {
		return "", c.Masquerade
	}
	return c.Masquerade[:i], c.Masquerade[i+1:]
}

// ExpandPath puts a user into a pattern of Mailbox or Forward: ~ before a slash
// at its beginning is home, %u is the user name, %% a percent sign. It returns
// an empty string where the pattern needs a home and there is none.
func ExpandPath(pattern, user, home string) string {
	var b strings.Builder
	if rest, ok := strings.CutPrefix(pattern, "~/"); ok {
		if home == "" {
			return ""
		}
		b.WriteString(strings.TrimRight(home, "/"))
		pattern = "/" + rest
	}
	for i := 0; i < len(pattern); i++ {
		if pattern[i] == '%' && i+1 < len(pattern) {
			i++
			if pattern[i] == 'u' {
				b.WriteString(user)
				continue
			}
		}
		b.WriteByte(pattern[i])
	}
	return b.String()
}

// Write prints the value of every key in the syntax of the file, one a line; a
// key that is not set is a comment.
func (c *Config) Write(w io.Writer) error {
	var b strings.Builder
	for _, k := range keys(c, "") {
		v := k.get()
		if v == "" {
			b.WriteString("# " + k.name + "\n")
			continue
		}
		b.WriteString(k.name + " " + v + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}
