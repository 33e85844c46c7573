package peertest

import (
	"fmt"
	"io"
	"maps"
	"mime/quotedprintable"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// peer is a submission service of Postfix, with logins by Dovecot, in a root
// that also holds dma. It delivers mail for peer.example into Maildirs.
type peer struct {
	*Root
	t       testing.TB
	postfix *Service
	dovecot *Service
	client  pair
	self    pair // of port 2590
}

// Ports of the peer: 25 asks for no login; 587 and 465 are the submission
// service, with a certificate for smtp.example; the others differ as they say.
const peerServices = `127.0.0.1:25 inet n - n - - smtpd
  -o smtpd_authorized_xclient_hosts=127.0.0.1
127.0.0.1:587 inet n - n - - smtpd
  -o smtpd_tls_security_level=encrypt
  -o smtpd_sasl_auth_enable=yes
  -o smtpd_tls_auth_only=yes
  -o smtpd_client_restrictions=permit_sasl_authenticated,reject
127.0.0.1:465 inet n - n - - smtpd
  -o smtpd_tls_wrappermode=yes
  -o smtpd_sasl_auth_enable=yes
  -o smtpd_client_restrictions=permit_sasl_authenticated,reject
127.0.0.1:2580 inet n - n - - smtpd
  -o smtpd_discard_ehlo_keywords=8bitmime,smtputf8
127.0.0.1:2581 inet n - n - - smtpd
  -o smtpd_discard_ehlo_keywords=pipelining,dsn,smtputf8,enhancedstatuscodes
127.0.0.1:2582 inet n - n - - smtpd
  -o smtpd_tls_req_ccert=yes
  -o smtpd_tls_security_level=encrypt
127.0.0.1:2583 inet n - n - - smtpd
  -o smtpd_recipient_restrictions=check_recipient_access,texthash:/etc/postfix/recipients,permit
  -o smtpd_relay_restrictions=reject_unauth_destination
127.0.0.1:2584 inet n - n - - smtpd
  -o message_size_limit=20000
127.0.0.1:2585 inet n - n - - smtpd
  -o smtpd_recipient_limit=10
127.0.0.1:2590 inet n - n - - smtpd
  -o smtpd_tls_security_level=encrypt
  -o smtpd_tls_chain_files=/etc/postfix/self.pem
127.0.0.1:2591 inet n - n - - smtpd
  -o smtpd_tls_security_level=encrypt
  -o smtpd_tls_chain_files=/etc/postfix/expired.pem
`

func newPeer(t testing.TB) *peer {
	t.Helper()
	p := &peer{Root: NewRoot(t, Peers()), t: t}
	p.InstallDMA()
	for i, name := range []string{"bob", "carol", "dave"} {
		p.User(name, 2010+i)
	}
	ca := newAuthority(t)
	later := time.Now().Add(24 * time.Hour)
	p.client = issue(t, ca, "client.example", later)
	p.self = issue(t, nil, "smtp.example", later)
	p.Write("etc/ssl/certs/ca-certificates.crt", ca.pem)
	p.Write("etc/postfix/ca.pem", ca.pem)
	p.Write("etc/postfix/smtp.pem", issue(t, ca, "smtp.example", later).pem)
	p.Write("etc/postfix/self.pem", p.self.pem)
	p.Write("etc/postfix/expired.pem", issue(t, ca, "smtp.example", time.Now().Add(-time.Hour)).pem)
	p.Write("etc/postfix/recipients", "refused@peer.example REJECT we do not want this\nlater@peer.example 451 4.7.1 not now\n")
	p.Write("etc/dovecot/users", "relay:{PLAIN}geheim:::::\n")
	p.dovecot = p.StartDovecot(`service auth {
  unix_listener /var/spool/postfix/private/auth {
    mode = 0666
  }
}
`)
	p.postfix = p.StartPostfix(`smtpd_tls_chain_files = /etc/postfix/smtp.pem
smtpd_tls_CAfile = /etc/postfix/ca.pem
smtpd_tls_security_level = may
smtpd_tls_received_header = yes
smtpd_sasl_type = dovecot
smtpd_sasl_path = private/auth
smtputf8_enable = yes
recipient_delimiter = +
`, peerServices)
	p.postfix.AwaitPort("127.0.0.1:2591")
	return p
}

// in is the same peer for a subtest.
func (p *peer) in(t testing.TB) *peer {
	in := *p
	in.t, in.Root = t, p.Root.In(t)
	return &in
}

// content is what dma has sent of a delivered message: all that stands below
// what Postfix has added, less dma's own Received field.
func content(t testing.TB, mail string) string {
	t.Helper()
	_, rest, ok := strings.Cut(mail, "\nReceived: by host.example (dma")
	if !ok {
		t.Fatalf("not a message of dma:\n%.1000s", mail)
	}
	for line := range strings.Lines(rest) {
		rest = strings.TrimPrefix(rest, line)
		if !strings.HasPrefix(rest, "\t") { // no folded line follows
			break
		}
	}
	return rest
}

// mails returns what is in a user's Maildir, as Postfix has delivered it, when
// at least n messages are there.
func (p *peer) mails(user string, n int) []string {
	p.t.Helper()
	dir := p.Path("home", user, "Maildir/new")
	var files []string
	p.Await("mail for "+user, func() bool {
		var err error
		if files, err = filepath.Glob(dir + "/*"); err != nil {
			p.t.Fatal(err)
		}
		return len(files) >= n
	})
	var list []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			p.t.Fatal(err)
		}
		list = append(list, string(data))
	}
	return list
}

func (p *peer) empty(user string) {
	p.t.Helper()
	if err := os.RemoveAll(p.Path("home", user, "Maildir")); err != nil {
		p.t.Fatal(err)
	}
}

// head is a header that needs nothing added.
const head = "From: alice@host.example\nTo: bob@peer.example\nDate: Thu, 1 Jan 2026 00:00:00 +0000\nMessage-ID: <1@host.example>\nSubject: x\n"

// What TLS and login of a real submission service make of the mail. A message
// that may not be sent waits, and no password has crossed.
func TestSubmission(t *testing.T) {
	Need(t)
	p := newPeer(t)
	for _, c := range []struct {
		name  string
		conf  string
		auth  string // the file of AUTHPATH; empty: none
		want  string
		tls   string // what the log says of it
		login string // the mechanism in Postfix's log; empty: nobody logs in
		reply string // part of the reason
	}{
		{"STARTTLS and SCRAM", "SMARTHOST smtp.example:587\n", "relay|smtp.example:geheim", "sent 2.0.0", "TLS1.3", "SCRAM-SHA-256", ""},
		{"implicit TLS and SCRAM", "SMARTHOST smtp.example:465\n", "relay|smtp.example:geheim", "sent 2.0.0", "TLS1.3", "SCRAM-SHA-256", ""},
		{"CRAM-MD5", "SMARTHOST smtp.example:587\n", "relay;AUTH=CRAM-MD5|smtp.example:geheim", "sent 2.0.0", "TLS1.3", "CRAM-MD5", ""},
		{"PLAIN", "SMARTHOST smtp.example:587\n", "relay;AUTH=PLAIN|smtp.example:geheim", "sent 2.0.0", "TLS1.3", "PLAIN", ""},
		{"LOGIN", "SMARTHOST smtp.example:465\n", "relay;AUTH=LOGIN|smtp.example:geheim", "sent 2.0.0", "TLS1.3", "LOGIN", ""},
		{"mechanism not offered", "SMARTHOST smtp.example:587\n", "relay;AUTH=XOAUTH2|smtp.example:geheim", "deferred 4.7.4", "", "", "XOAUTH2"},
		{"password of a command", "SMARTHOST smtp.example:587\nPASSWORDCMD echo geheim\n", "relay|smtp.example", "sent 2.0.0", "TLS1.3", "SCRAM-SHA-256", ""},
		{"no login", "SMARTHOST smtp.example:587\n", "", "bounced 5.7.1", "", "", "Client host rejected"},
		{"another name", "SMARTHOST other.example:587\n", "relay|other.example:geheim", "deferred 4.7.5", "", "", "certificate"},
		{"another name, implicit", "SMARTHOST other.example:465\n", "relay|other.example:geheim", "deferred 4.7.5", "", "", "certificate"},
		{"another name that will do", "SMARTHOST other.example:587\nTLSPOLICY @/tlspolicy\n", "relay|other.example:geheim", "sent 2.0.0", "TLS1.3", "SCRAM-SHA-256", ""},
		{"self-signed", "SMARTHOST smtp.example:2590\nVERIFYCERT\n", "", "deferred 4.7.5", "", "", "certificate"},
		{"self-signed, unverified", "SMARTHOST smtp.example:2590\n", "", "sent 2.0.0", "unverified", "", ""},
		{"self-signed, its fingerprint", "SMARTHOST smtp.example:2590\nFINGERPRINT " + p.self.fingerprint + "\n", "", "sent 2.0.0", "TLS1.3", "", ""},
		{"another fingerprint", "SMARTHOST smtp.example:2590\nFINGERPRINT " + p.client.fingerprint + "\n", "", "deferred 4.7.5", "", "", "its SHA-256 is"},
		{"expired", "SMARTHOST smtp.example:2591\nVERIFYCERT\n", "", "deferred 4.7.5", "", "", "certificate"},
		{"client certificate", "SMARTHOST smtp.example:2582\nCERTFILE @/client.pem\n", "", "sent 2.0.0", "TLS1.3", "", ""},
		{"no client certificate", "SMARTHOST smtp.example:2582\n", "", "deferred 4.7.1", "", "", "certificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := p.in(t)
			p.empty("bob")
			conf := c.conf
			if c.auth != "" {
				conf += "AUTHPATH @/auth.conf\n"
			}
			s := newSite(t, p.Root, conf)
			s.file("auth.conf", c.auth+"\n")
			s.file("client.pem", p.client.pem)
			s.file("tlspolicy", "* verify match=smtp.example\n")
			before := len(p.postfix.String())
			s.submit(head+"\ntext\n", "bob@peer.example")
			got := s.drain()
			log := p.postfix.String()[before:]
			o := got["bob@peer.example"]
			bounces := 0
			if strings.HasPrefix(c.want, "bounced") {
				bounces = 1
			}
			s.expect(got, map[string]string{"bob@peer.example": c.want}, bounces)
			if !strings.Contains(o.line, c.tls) || !strings.Contains(o.line, c.reply) {
				t.Errorf("want TLS %q and the reason %q: %s", c.tls, c.reply, o.line)
			}
			if login := strings.Contains(log, "sasl_method="); login != (c.login != "") || login && !strings.Contains(log, "sasl_method="+c.login+",") {
				t.Errorf("want a login by %q; Postfix says\n%s", c.login, log)
			}
			if strings.Contains(o.line, "geheim") {
				t.Errorf("the log tells the password: %s", o.line)
			}
			if strings.HasPrefix(c.want, "sent") {
				if mails := p.mails("bob", 1); len(mails) != 1 || content(t, mails[0]) != head+"\ntext\n" {
					t.Errorf("bob has %q", mails)
				}
			}
		})
	}
	t.Run("wrong password", func(t *testing.T) { wrongPassword(t, p.in(t)) })
	t.Run("content", func(t *testing.T) { contents(t, p) })
	t.Run("recipients", func(t *testing.T) { recipients(t, p) })
	t.Run("reports", func(t *testing.T) { reports(t, p) })
}

// A password that is refused is tried once a pass at most, not once a message; the
// mail waits, mailq says why, nothing bounces; the right one in the file sends all.
func wrongPassword(t *testing.T, p *peer) {
	p.empty("bob")
	s := newSite(t, p.Root, "SMARTHOST smtp.example:587\nAUTHPATH @/auth.conf\nCONCURRENCY 1\n")
	s.file("auth.conf", "relay|smtp.example:falsch\n")
	var to []string
	for i := range 5 {
		to = append(to, fmt.Sprintf("bob+%d@peer.example", i))
		s.submit(head+"\ntext\n", to[i])
	}
	refused := func() int { return strings.Count(p.postfix.String(), "SASL SCRAM-SHA-256 authentication failed") }
	before := refused()
	s.expect(s.drain(), all(to, "deferred 4.7.8"), 0)
	s.expect(s.flush(), all(to, "deferred 4.7.8"), 0)
	if n := refused() - before; n < 1 || n > 2 {
		t.Errorf("%d logins refused, want one or two for five messages in two passes", n)
	}
	queue := s.Must(s.runner("mailq"), "")
	if strings.Count(queue, "authentication failed") < 1 || strings.Contains(queue, "falsch") {
		t.Errorf("mailq:\n%s", queue)
	}
	s.file("auth.conf", "relay|smtp.example:geheim\n# so that the file is another one\n")
	s.expect(s.flush(), all(to, "sent 2.0.0"), 0)
	if n := len(p.mails("bob", 5)); n != 5 {
		t.Errorf("bob has %d messages", n)
	}
}

// What is submitted is what is delivered.
func contents(t *testing.T, p *peer) {
	eightBit := head + "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n"
	var bytes strings.Builder
	for b := 1; b < 256; b++ {
		if b != '\r' && b != '\n' {
			bytes.WriteByte(byte(b))
		}
	}
	long := strings.Repeat("0123456789", 500_000)
	for _, c := range []struct {
		name, message string
		port          int
		check         func(got string) bool // nil: the same octets
	}{
		{"dots", head + "\n.\n..\n...x\n.x\n\n.\n", 25, nil},
		{"8-bit", eightBit + "Grüße, 世界\n" + bytes.String() + "\n", 25, nil},
		{"8-bit without a label", head + "\nGr\xfc\xdfe\n", 25, nil},
		{"From lines", head + "\nFrom here on\n>From there\n", 25, nil},
		{"trailing blanks", head + "\nblank \ntab\t\n \n\n\n", 25, nil},
		{"no body", head + "\n", 25, nil},
		{"lines of 998", head + "\n" + strings.Repeat("x", 998) + "\n" + strings.Repeat(".", 998) + "\n", 25, nil},
		{"CRLF", strings.ReplaceAll(head+"\nCRLF\n.\n\n", "\n", "\r\n"), 25, func(got string) bool { return got == head+"\nCRLF\n.\n\n" }},
		{"a line of 5 MB", head + "\n" + long + "\n", 25, func(got string) bool {
			body, ok := strings.CutPrefix(got, head+"\n")
			for line := range strings.Lines(body) {
				ok = ok && len(line) <= 999
			}
			return ok && strings.ReplaceAll(body, "\n", "") == long
		}},
		{"5 MB of lines", head + "\n" + strings.Repeat(strings.Repeat("y", 75)+"\n", 65_000), 25, nil},
		{"8-bit, no 8BITMIME", eightBit + "Grüße, 世界\n.\n= =\n", 2580, func(got string) bool {
			header, body, _ := strings.Cut(got, "\n\n")
			text, err := io.ReadAll(quotedprintable.NewReader(strings.NewReader(body)))
			return err == nil && string(text) == "Grüße, 世界\n.\n= =\n" && strings.Contains(header, "Content-Transfer-Encoding: quoted-printable") &&
				!strings.ContainsFunc(got, func(r rune) bool { return r > 126 })
		}},
		{"no pipelining", eightBit + ".\nGrüße\n", 2581, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := p.in(t)
			p.empty("bob")
			s := newSite(t, p.Root, fmt.Sprintf("SMARTHOST smtp.example:%d\n", c.port))
			s.submit(c.message, "bob@peer.example")
			s.expect(s.drain(), map[string]string{"bob@peer.example": "sent 2.0.0"}, 0)
			mails := p.mails("bob", 1)
			got := content(t, mails[0])
			switch {
			case c.check == nil && got != c.message, c.check != nil && !c.check(got):
				t.Errorf("bob has %d octets\n%.2000q\nof %d\n%.2000q", len(got), got, len(c.message), c.message)
			case !strings.Contains(mails[0], "\nReceived: from host.example ("): // no XCLIENT
				t.Errorf("Postfix took it from another host:\n%.1000s", mails[0])
			}
		})
	}
}

// Recipients that the peer sorts, and limits.
func recipients(t *testing.T, p *peer) {
	many := make([]string, 25)
	for i := range many {
		many[i] = fmt.Sprintf("bob+%d@peer.example", i)
	}
	for _, c := range []struct {
		name    string
		port    int
		size    int
		want    map[string]string
		bounces int
		mails   int // that bob gets
	}{
		{"one of three refused", 2583, 0, map[string]string{"bob@peer.example": "sent 2.0.0", "refused@peer.example": "bounced 5.7.1", "later@peer.example": "deferred 4.7.1"}, 1, 1},
		{"nobody there", 25, 0, map[string]string{"bob@peer.example": "sent 2.0.0", "nobody-here@peer.example": "bounced 5.1.1"}, 1, 1},
		{"not relayed", 2583, 0, map[string]string{"bob@peer.example": "sent 2.0.0", "x@elsewhere.example": "bounced 5.7.1"}, 1, 1},
		{"too large", 2584, 50_000, map[string]string{"bob@peer.example": "bounced 5.3.4"}, 1, 0},
		{"just not too large", 2584, 18_000, map[string]string{"bob@peer.example": "sent 2.0.0"}, 0, 1},
		{"more than a transaction takes", 2585, 0, all(many, "sent 2.0.0"), 0, 25},
		{"UTF-8", 25, 0, map[string]string{"bob+grüße@peer.example": "sent 2.0.0"}, 0, 1},
		{"UTF-8 where it is not offered", 2581, 0, map[string]string{"bob+grüße@peer.example": "bounced 5.6.7"}, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := p.in(t)
			p.empty("bob")
			s := newSite(t, p.Root, fmt.Sprintf("SMARTHOST smtp.example:%d\n", c.port))
			s.submit(head+"\n"+strings.Repeat("0123456789012345678\n", c.size/20), slices.Sorted(maps.Keys(c.want))...)
			s.expect(s.drain(), c.want, c.bounces)
			if n := len(p.mails("bob", c.mails)); n != c.mails {
				t.Errorf("bob has %d messages, want %d", n, c.mails)
			}
		})
	}
}

// Who reports to the sender, and with what: the peer where it offers DSN, dma
// where not; nobody if the sender wants none. The sender is carol at the peer.
func reports(t *testing.T, p *peer) {
	for _, c := range []struct {
		name string
		port int
		args []string
		to   string
		want []string // what lines of the report begin with; none: there is no report
	}{
		{"success by the peer", 25, []string{"-N", "success", "-V", "env+1"}, "bob@peer.example",
			[]string{"Reporting-MTA: dns; smtp.example", "Original-Envelope-Id: env+1", "Original-Recipient: rfc822;bob@peer.example", "Action: delivered"}},
		{"success by dma", 2581, []string{"-N", "success", "-V", "env+1"}, "bob@peer.example",
			[]string{"Reporting-MTA: dns; host.example", "Original-Envelope-Id: env+1", "Final-Recipient: rfc822; bob@peer.example", "Action: relayed"}},
		{"failure by dma", 25, []string{"-N", "failure", "-V", "env+1", "-R", "hdrs"}, "nobody-here@peer.example",
			[]string{"Reporting-MTA: dns; host.example", "Original-Envelope-Id: env+1", "Final-Recipient: rfc822; nobody-here@peer.example", "Action: failed", "Status: 5.1.1",
				"Remote-MTA: dns; smtp.example", "Content-Type: text/rfc822-headers"}},
		{"failure, never", 25, []string{"-N", "never"}, "nobody-here@peer.example", nil},
		{"success, never", 25, []string{"-N", "never"}, "bob@peer.example", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			p.empty("carol")
			p := p.in(t)
			p.empty("bob")
			s := newSite(t, p.Root, fmt.Sprintf("SMARTHOST smtp.example:%d\n", c.port))
			s.submit(head+"\ntext\n", append(append([]string{"-f", "carol@peer.example"}, c.args...), c.to)...)
			s.drain()
			if left := s.states(); len(left) != 0 {
				t.Errorf("in the spool: %q", left)
			}
			if len(c.want) == 0 {
				// A report would have left by now, or Postfix would say so.
				if mails := p.mails("carol", 0); len(mails) != 0 || strings.Contains(p.queue(), "carol") {
					t.Errorf("carol has %q", mails)
				}
				return
			}
			mails := p.mails("carol", 1)
			if len(mails) != 1 {
				t.Errorf("carol has %d reports", len(mails))
			}
			for _, line := range c.want {
				if !strings.Contains(mails[0], "\n"+line) {
					t.Errorf("the report lacks %q:\n%s", line, mails[0])
				}
			}
		})
	}
}

// queue is what mailq of Postfix shows.
func (p *peer) queue() string {
	p.t.Helper()
	return p.Must(p.Command("postqueue", "-p"), "")
}
