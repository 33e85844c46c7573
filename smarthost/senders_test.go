package smarthost

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"

	"dma/internal/config"
	"dma/internal/smtptest"
)

const senderText = `# relays by sender
alice@example.org    relay.example
Bob@Example.ORG:     bob@provider.example|relay.example:587, mx:other.example [192.0.2.1]:26
"odd one"@example.org  odd.example
@example.net         [2001:db8::1]
@b` + "\u00fc" + `cher.example      books.example
dave@example.org     relay.example :x:
erin@example.org
frank@example.org    |relay.example
nobody               relay.example
@a@b                 relay.example
twice@example.org    one.example
twice@example.org    two.example
`

func TestSenders(t *testing.T) {
	file := filepath.Join(t.TempDir(), "senders")
	if err := os.WriteFile(file, []byte(senderText), 0o600); err != nil {
		t.Fatal(err)
	}
	var problems []string
	s := NewSenderRelays(file, 25, func(p config.Problem) { problems = append(problems, fmt.Sprintf("%d %s", p.Line, p.Text)) })
	for sender, want := range map[string]string{
		"alice@example.org":       "|relay.example:25 ",
		"ALICE@Example.Org":       "|relay.example:25 ",
		"bob@example.org":         "bob@provider.example|relay.example:587 |mx:other.example:25 |[192.0.2.1]:26 ",
		`"odd one"@example.org`:   "|odd.example:25 ",
		"x@example.net":           "|[2001:db8::1]:25 ",
		"x@sub.example.net":       "",
		"x@b\u00fccher.example":   "|books.example:25 ",
		"x@xn--bcher-kva.example": "|books.example:25 ",
		"alice+x@example.org":     "",
		"nobody@example.org":      "",
		"":                        "",
		"not an address":          "",
		"dave@example.org":        "? line 7",
		"erin@example.org":        "? line 8",
		"frank@example.org":       "? line 9",
		"twice@example.org":       "|two.example:25 ",
	} {
		hosts, err := s.For(sender)
		got := hostsKey(hosts)
		if err != nil {
			got = "? " + err.Error()
			if prefix := "? SENDERRELAY: "; !strings.HasPrefix(got, prefix) || len(hosts) > 0 {
				t.Errorf("%s: %v %v", sender, hosts, err)
			} else {
				got = "? " + got[len(prefix):len(prefix)+len("line 7")]
			}
		}
		if got != want {
			t.Errorf("%s: %q, want %q (%v)", sender, got, want, err)
		}
	}
	var lines []string
	for _, p := range problems {
		n, _, _ := strings.Cut(p, " ")
		lines = append(lines, n)
		if waits := strings.Contains(p, "waits until"); waits != (n == "7" || n == "8" || n == "9") {
			t.Errorf("problem %s", p)
		}
	}
	if want := []string{"7", "8", "9", "10", "11"}; !slices.Equal(lines, want) {
		t.Errorf("problems %q", problems)
	}

	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := s.For("x@example.org"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without the file: %v", err)
	}
	if hosts, err := s.For(""); err != nil || hosts != nil {
		t.Errorf("the null sender without the file: %v, %v", hosts, err)
	}
	if hosts, err := (*SenderRelays)(nil).For("x@example.org"); err != nil || hosts != nil {
		t.Errorf("without SENDERRELAY: %v, %v", hosts, err)
	}
}

func FuzzSenders(f *testing.F) {
	f.Add(senderText, "alice@example.org")
	f.Add("@x y|z:1\n", "a@x")
	f.Fuzz(func(t *testing.T, text, sender string) {
		entries, problems := parseSenders("senders", []byte(text), 25)
		for key, e := range entries {
			if (e.why == "") != (len(e.hosts) > 0) || key != strings.ToLower(key) || !strings.Contains(key, "@") {
				t.Fatalf("%q: %+v", key, e)
			}
		}
		for _, p := range problems {
			if p.Line < 1 || oneLine(p.Text) != p.Text {
				t.Fatalf("%+v", p)
			}
		}
		if exact, domain, err := senderKeys(sender); err == nil && (!strings.HasPrefix(domain, "@") || exact == "") {
			t.Fatalf("%q: %q %q", sender, exact, domain)
		}
	})
}

// provider is a relay for several logins, each with the password "secret of" it.
type provider struct {
	mu    sync.Mutex
	said  []string // login and MAIL
	conns int
}

type providerSession struct {
	p    *provider
	user string
}

func (s *providerSession) AuthMechanisms() []string { return []string{"PLAIN"} }
func (s *providerSession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if password != "secret of "+user {
			return &smtp.SMTPError{Code: 535, EnhancedCode: smtp.EnhancedCode{5, 7, 8}, Message: "no"}
		}
		s.user = user
		return nil
	}), nil
}
func (s *providerSession) Mail(from string, _ *smtp.MailOptions) error {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.p.said = append(s.p.said, s.user+" "+from)
	return nil
}
func (s *providerSession) Rcpt(string, *smtp.RcptOptions) error { return nil }
func (s *providerSession) Data(r io.Reader) error               { _, err := io.Copy(io.Discard, r); return err }
func (s *providerSession) Reset()                               {}
func (s *providerSession) Logout() error                        { return nil }

// TestSenderLogins: two users of one provider log in as themselves, on sessions of
// their own; one without the login that is named sends nothing, and one who has no
// relay goes to the smarthost, even the same host, with its login.
func TestSenderLogins(t *testing.T) {
	p := &provider{}
	server := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.conns++
		return &providerSession{p: p}, nil
	}))
	server.Domain, server.TLSConfig, server.ErrorLog = "relay.example", serverTLS("good"), log.New(io.Discard, "", 0)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	at := l.Addr().(*net.TCPAddr)
	host := fmt.Sprintf("[127.0.0.1]:%d", at.Port)
	file := filepath.Join(t.TempDir(), "senders")
	text := "alice@x.example alice.w|" + host + "\nbob@x.example bob@p.example|" + host + "\ncarol@x.example carol|" + host + "\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r := NewRouter(RouterConfig{
		Senders: NewSenderRelays(file, 25, nil),
		Config: Config{
			Hosts: []Host{{IP: netip.MustParseAddr("127.0.0.1"), Port: at.Port}}, RootCAs: testPKI().roots, Idle: time.Minute,
			Credentials: NewCredentials(CredentialOptions{File: writeAuth(t, "alice.w|[127.0.0.1]:secret of alice.w\n"+
				"bob@p.example|"+host+":secret of bob@p.example\nhost|"+host+":secret of host\n")}),
		},
	})
	defer r.Close()
	for range 2 {
		for from, want := range map[string]Verdict{"alice@x.example": Sent, "bob@x.example": Sent, "carol@x.example": Tempfail, "dave@x.example": Sent, "": Sent} {
			m := testMessage(0, "a@y.example")
			m.Sender = from
			if o := outcomes(t.Context(), r, m)[0]; o.Verdict != want {
				t.Errorf("%s: %+v", from, o)
			}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	slices.Sort(p.said)
	want := []string{
		"alice.w alice@x.example", "alice.w alice@x.example", "bob@p.example bob@x.example", "bob@p.example bob@x.example",
		"host ", "host ", "host dave@x.example", "host dave@x.example",
	}
	if !slices.Equal(p.said, want) {
		t.Errorf("got  %q\nwant %q", p.said, want)
	}
	if p.conns != 2*3 { // EHLO before TLS and after it, for each login
		t.Errorf("%d sessions", p.conns)
	}
}

// TestResolverAt: a server that is not there costs one question.
func TestResolverAt(t *testing.T) {
	dns, err := smtptest.NewDNS(map[string][]string{"a.example": {"A 192.0.2.1"}, "b.example": {"MX 10 a.example"}})
	if err != nil {
		t.Fatal(err)
	}
	defer dns.Close()
	r := ResolverAt("127.0.0.1:1", "[127.0.0.1]:1", dns.Addr())
	for range 3 {
		ips, err := r.LookupNetIP(t.Context(), "ip", "a.example.")
		if err == nil && len(ips) == 1 {
			break
		}
		t.Log(err) // the resolver has given up before it came to the third
	}
	for range 3 {
		if mx, err := r.LookupMX(t.Context(), "b.example."); err != nil || len(mx) != 1 {
			t.Errorf("%v, %v", mx, err)
		}
	}
}

// TestUnsure: a domain is not said to have no address when only one family of
// addresses has been asked for with success.
func TestUnsure(t *testing.T) {
	dns, err := smtptest.NewDNS(map[string][]string{"six.example": {"SERVFAIL AAAA"}, "four.example": {"SERVFAIL A"}, "none.example": {}})
	if err != nil {
		t.Fatal(err)
	}
	defer dns.Close()
	r := NewRouter(RouterConfig{Config: Config{Resolver: ResolverAt(dns.Addr())}})
	defer r.Close()
	for domain, want := range map[string]string{"six.example": "4.4.3", "four.example": "4.4.3", "none.example": "5.1.2"} {
		if o := outcomes(t.Context(), r, testMessage(0, "a@"+domain))[0]; o.Status() != want {
			t.Errorf("%s: %s %s", domain, o.Status(), o.Text())
		}
	}
}
