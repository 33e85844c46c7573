package smarthost

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// writeAuth writes a credentials file and returns its path.
func writeAuth(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "auth.conf")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// relayTo returns the configuration to reach a server as relay.example, with the
// credentials for it or without.
func relayTo(t *testing.T, v *tlsServer, login bool) Config {
	cfg := Config{
		Name: "client.example.org", Dial: v.Dial, RootCAs: testPKI().roots,
		Hosts: []Host{{Name: "relay.example", Port: 25}}, Resolver: fakeResolver{"relay.example": {"192.0.2.1"}},
	}
	if login {
		cfg.Credentials = NewCredentials(CredentialOptions{File: writeAuth(t, testUser+"|relay.example:"+testSecret+"\n")})
	}
	return cfg
}

func withPolicy(p TLSPolicy) func(Host, bool) (TLSPolicy, error) {
	return func(Host, bool) (TLSPolicy, error) { return p, nil }
}

// checkSilence fails if a server has seen anything of the secret in clear text.
func (v *tlsServer) checkSilence(t *testing.T) {
	t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, s := range []string{testSecret, base64.StdEncoding.EncodeToString([]byte(testSecret)),
		base64.StdEncoding.EncodeToString([]byte("\x00" + testUser + "\x00" + testSecret))} {
		if bytes.Contains(v.clear.Bytes(), []byte(s)) {
			t.Error("the secret went over the wire in clear text")
		}
	}
	if bytes.Contains(v.clear.Bytes(), []byte("AUTH ")) {
		t.Error("AUTH went over the wire in clear text")
	}
}

// relayQuirks are what the rows of the matrix say.
var relayQuirks = map[string]*tlsServer{
	"offers STARTTLS, has a valid certificate": {},
	"has one for another name":                 {cert: "other"},
	"has one that has expired":                 {cert: "expired"},
	"has one that is not valid yet":            {cert: "early"},
	"has a self-signed one":                    {cert: "selfsigned"},
	"has one of an untrusted authority":        {cert: "untrusted"},
	"does not offer STARTTLS":                  {quirk: "no starttls"},
	"knows HELO only":                          {quirk: "helo"},
	"answers STARTTLS with 454":                {quirk: "454"},
	"answers STARTTLS with 421":                {quirk: "421"},
	"answers STARTTLS with 250":                {quirk: "250"},
	"says more before TLS begins":              {quirk: "inject"},
	"closes after STARTTLS":                    {quirk: "close"},
	"closes in the handshake":                  {quirk: "close in handshake"},
	"hangs in the handshake":                   {quirk: "hang in handshake"},
	"answers the handshake in clear text":      {quirk: "clear handshake"},
	"knows TLS 1.1 at most":                    {quirk: "tls1.1"},
	"does not offer AUTH":                      {quirk: "no auth"},
	"offers AUTH before TLS only":              {quirk: "auth before tls"},
	"offers mechanisms that nobody knows":      {quirk: "unknown auth"},
	"refuses the login":                        {quirk: "refuse login"},
	"refuses every EHLO after TLS":             {quirk: "no ehlo after tls"},
}

// cell runs one cell of the matrix.
func cell(t *testing.T, row, column string) string {
	t.Helper()
	quirk := relayQuirks[row]
	if quirk == nil {
		t.Fatalf("no such row: %q", row)
	}
	v := &tlsServer{cert: quirk.cert, quirk: quirk.quirk}
	name, login := strings.CutSuffix(column, "+login")
	words := []string{name}
	if name == "fingerprint" {
		words = append(words, "match="+testPKI().fingerprint("good").String())
	}
	policy, err := parsePolicy(words)
	if err != nil {
		t.Fatal(err)
	}
	cfg := relayTo(t, v, login)
	cfg.TLS = withPolicy(policy)
	r := New(cfg)
	out := outcomes(t.Context(), r, testMessage(0, "a@x"))[0]
	r.Close()
	v.checkSilence(t)
	commands := v.commands()
	if delivered := strings.Contains(commands, "DATA message"); delivered != (out.Verdict == Sent) {
		t.Errorf("%+v after %s", out, commands)
	}
	if with := strings.Contains(commands, "message+login"); out.Verdict == Sent && with != login {
		t.Errorf("login %v after %s", with, commands)
	}
	if out.Verdict == Permfail || out.Text() == "" || strings.Contains(out.Text(), testSecret) {
		t.Errorf("%+v", out)
	}
	state, inTLS := strings.CutPrefix(out.TLS, "TLS1.3 ")
	switch {
	case out.Verdict != Sent:
		return out.Status()
	case inTLS:
		return state
	case v.dials == 1:
		return "clear"
	case v.dials == 2:
		return "again"
	}
	return fmt.Sprintf("%d connections", v.dials)
}

func TestPolicies(t *testing.T) {
	data, err := os.ReadFile("testdata/policies.matrix")
	if err != nil {
		t.Fatal(err)
	}
	var columns []string
	rows := 0
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		cells := strings.Split(line, "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if columns == nil {
			columns = cells
			continue
		}
		rows++
		for i := 1; i < len(columns); i++ {
			t.Run(cells[0]+"/"+columns[i], func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					if got := cell(t, cells[0], columns[i]); got != cells[i] {
						t.Errorf("got %s, want %s", got, cells[i])
					}
				})
			})
		}
	}
	if rows != len(relayQuirks) {
		t.Errorf("%d rows, %d behaviours", rows, len(relayQuirks))
	}
}

// TestReasons: what the log and mailq say about each trouble.
func TestReasons(t *testing.T) {
	verify, encrypt := TLSPolicy{Level: TLSVerify}, TLSPolicy{Level: TLSEncrypt}
	sum := func(name string) string { return testPKI().fingerprint(name).String() }
	for _, c := range []struct {
		row    string
		policy TLSPolicy
		login  bool
		want   string
	}{
		{"does not offer STARTTLS", verify, false, "STARTTLS: the relay does not offer STARTTLS, and its TLS policy is verify"},
		{"does not offer STARTTLS", encrypt, true, "STARTTLS: the relay does not offer STARTTLS, and there are credentials for it, which never cross a connection that is not encrypted"},
		{"answers STARTTLS with 454", encrypt, false, "454 no"},
		{"says more before TLS begins", encrypt, false, "STARTTLS: the relay said more before TLS began than the reply to STARTTLS"},
		{"has one for another name", verify, false, "STARTTLS: TLS: the certificate is for other.example, 127.0.0.1, not for relay.example"},
		{"has one that has expired", verify, false, "STARTTLS: TLS: the certificate has expired on 1995-01-01T00:00:00Z"},
		{"has one that is not valid yet", verify, false, "STARTTLS: TLS: the certificate is not valid before 2080-01-01T00:00:00Z"},
		{"has a self-signed one", verify, false, "STARTTLS: TLS: the certificate is self-signed; its SHA-256 is " + sum("selfsigned")},
		{"has one of an untrusted authority", verify, false, "STARTTLS: TLS: the certificate is signed by an authority that is not trusted here; its SHA-256 is " + sum("untrusted")},
		{"has one for another name", TLSPolicy{Level: TLSFingerprint, Fingerprints: []Fingerprint{{1}}}, false, "STARTTLS: TLS: the certificate is not the one that is expected: its SHA-256 is " + sum("other")},
		{"offers STARTTLS, has a valid certificate", TLSPolicy{Level: TLSVerify, Fingerprints: []Fingerprint{{1}}}, false, "STARTTLS: TLS: the certificate is not the one that is expected: its SHA-256 is " + sum("good")},
		{"offers STARTTLS, has a valid certificate", TLSPolicy{}, false, "STARTTLS: TLS: the policy tlslevel(0) is not known"},
		{"hangs in the handshake", encrypt, false, "STARTTLS: TLS: no answer within 1m0s"},
		{"closes in the handshake", encrypt, false, "STARTTLS: TLS: the connection was closed"},
		{"knows TLS 1.1 at most", encrypt, false, "STARTTLS: TLS: the relay broke off the handshake: remote error: tls: protocol version not supported"},
		{"answers the handshake in clear text", encrypt, false, "STARTTLS: TLS: the relay does not answer with TLS; another port, or STARTTLS instead of TLS from the first octet, may be right"},
		{"offers STARTTLS, has a valid certificate", TLSPolicy{Level: TLSNone}, true, "AUTH: the connection is not encrypted, and passwords and tokens never cross such a one"},
		{"does not offer AUTH", verify, true, "AUTH: the relay offers no AUTH, and there are credentials for it"},
		{"offers mechanisms that nobody knows", verify, true, "AUTH: the relay offers no AUTH mechanism that can be used: it has GSSAPI NTLM"},
		{"refuses the login", verify, true, "535 5.7.8 (the reply repeats the secret and is not shown)"},
	} {
		t.Run(c.want, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				quirk := relayQuirks[c.row]
				v := &tlsServer{cert: quirk.cert, quirk: quirk.quirk}
				cfg := relayTo(t, v, c.login)
				cfg.TLS = withPolicy(c.policy)
				r := New(cfg)
				defer r.Close()
				out := outcomes(t.Context(), r, testMessage(0, "a@x"))[0]
				if out.Verdict != Tempfail || out.Text() != c.want || out.Relay != "relay.example[192.0.2.1]:25" {
					t.Errorf("%v %s: %s\nwant %s", out.Verdict, out.Relay, out.Text(), c.want)
				}
			})
		})
	}
}

// TestNextHost: a host whose certificate will not do is passed over.
func TestNextHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad, good := &tlsServer{cert: "expired"}, &tlsServer{}
		cfg := relayTo(t, good, true)
		cfg.Resolver = fakeResolver{"relay.example": {"192.0.2.1", "192.0.2.2"}}
		cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == "192.0.2.1:25" {
				return bad.Dial(ctx, network, addr)
			}
			return good.Dial(ctx, network, addr)
		}
		r := New(cfg)
		defer r.Close()
		out := outcomes(t.Context(), r, testMessage(0, "a@x"))[0]
		if out.Verdict != Sent || out.Relay != "relay.example[192.0.2.2]:25" || out.TLS != "TLS1.3 verified" || bad.commands() != "EHLO STARTTLS" {
			t.Errorf("%+v; %s", out, bad.commands())
		}
	})
}

// TestHello: our own name is said before TLS and after it, and the dialog is what
// it should be.
func TestHello(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &tlsServer{}
		r := New(relayTo(t, v, true))
		outcomes(t.Context(), r, testMessage(0, "a@x"))
		outcomes(t.Context(), r, testMessage(0, "a@x"))
		r.Close()
		synctest.Wait()
		want := "EHLO STARTTLS TLS EHLO AUTH MAIL RCPT DATA message+login MAIL RCPT DATA message+login QUIT"
		if got := v.commands(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if !bytes.HasPrefix(v.clear.Bytes(), []byte("EHLO client.example.org\r\nSTARTTLS\r\n")) || v.said != "relay.example" {
			t.Errorf("%.60q, SNI %q", v.clear.Bytes(), v.said)
		}
	})
}

// TestImplicit: port 465, or the policy, begins with TLS; without TLS there is
// nothing to go on with.
func TestImplicit(t *testing.T) {
	for _, c := range []struct {
		port   int
		policy TLSPolicy
		server bool
		want   string
	}{
		{465, TLSPolicy{Level: TLSMay}, true, "a@x sent 2.0.0 end-of-data 250 TLS1.3/unverified"},
		{465, TLSPolicy{Level: TLSVerify}, true, "a@x sent 2.0.0 end-of-data 250 TLS1.3/verified"},
		{465, TLSPolicy{Level: TLSVerify, Start: StartTLS}, false, "a@x sent 2.0.0 end-of-data 250 TLS1.3/verified"},
		{25, TLSPolicy{Level: TLSEncrypt, Start: StartAtOnce}, true, "a@x sent 2.0.0 end-of-data 250 TLS1.3/unverified"},
		{25, TLSPolicy{Level: TLSMay, Start: StartAtOnce}, false, "a@x tempfail 4.7.5 TLS -"},
		{25, TLSPolicy{Level: TLSMay}, true, "a@x tempfail 4.4.2 greeting -"},
	} {
		synctest.Test(t, func(t *testing.T) {
			v := &tlsServer{implicit: c.server}
			cfg := relayTo(t, v, false)
			cfg.Hosts[0].Port = c.port
			cfg.TLS = withPolicy(c.policy)
			r := New(cfg)
			out := outcomes(t.Context(), r, testMessage(0, "a@x"))
			r.Close()
			if got := describe("a@x", &out[0]); got != c.want || v.dials != 1 {
				t.Errorf("%+v: %s (%s)", c, got, out[0].Text())
			}
		})
	}
}

// TestClientCertificate: CERTFILE is shown to a server that asks, and one that
// cannot be read is said.
func TestClientCertificate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cert.pem")
	for _, c := range []struct {
		name string
		file []byte
		text string
	}{
		{"good", testPKI().pem("client"), "250 ok"},
		{"missing", nil, "STARTTLS: TLS: our own certificate: open " + path + ": no such file or directory"},
		{"garbage", []byte("hello"), "STARTTLS: TLS: our own certificate in " + path + ": tls: failed to find any PEM data in certificate input"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_ = os.Remove(path)
				if c.file != nil {
					if err := os.WriteFile(path, c.file, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				v := &tlsServer{clients: true}
				cfg := relayTo(t, v, false)
				cfg.TLS, cfg.CertFile = withPolicy(TLSPolicy{Level: TLSVerify}), path
				r := New(cfg)
				out := outcomes(t.Context(), r, testMessage(0, "a@x"))[0]
				r.Close()
				if out.Text() != c.text || (out.Verdict == Sent) != (len(v.names) == 1 && v.names[0] == "client.example") {
					t.Errorf("%s; the server knows %v", out.Text(), v.names)
				}
			})
		})
	}
}

// TestNamesOfMX: the hosts that the MX records of a smarthost's domain name have to
// be of that domain, because the records can be forged; with credentials those of
// a recipient's domain too.
func TestNamesOfMX(t *testing.T) {
	direct := func(p *peer) *peer {
		p.cfg.Direct = true
		return p
	}
	account := func(host string, p *peer) *peer {
		p.login.host.Name = host
		return p
	}
	policy := func(secret bool, names ...string) *peer {
		p := &peer{cfg: &Config{RootCAs: testPKI().roots, Now: time.Now}, host: Host{Name: "other.example", Domain: "domain.example", Port: 25}}
		p.policy = TLSPolicy{Level: TLSVerify, Names: names}
		if secret {
			p.login = &login{host: Host{Name: "domain.example"}}
		}
		return p
	}
	for _, c := range []struct {
		p    *peer
		cert string
		ok   bool
	}{
		{policy(false), "other", false},
		{policy(false), "below", true},
		{policy(false, "other.example"), "other", true},
		{direct(policy(false)), "other", true},
		{direct(policy(false)), "below", false},
		{direct(policy(true)), "other", false},
		{account("other.example", policy(true)), "other", true},
		{policy(true), "other", false},
		{policy(true), "below", true},
		{policy(true, "other.example"), "other", true},
		{policy(true, "no.example", ".example"), "other", true},
		{policy(false, ".domain.example"), "below", true},
		{policy(false, ".mx1.domain.example"), "below", false},
	} {
		cert := testPKI().certs[c.cert]
		state, err := c.p.verify(tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert.Leaf}}, c.p.host.Name)
		if (err == nil) != c.ok || c.ok && state != "verified" {
			t.Errorf("%v with login %v, direct %v, %s: %q, %v", c.p.policy.Names, c.p.login != nil, c.p.cfg.Direct, c.cert, state, err)
		}
	}
}

// TestLoginOfMX: with SMARTHOST mx:domain and credentials for that domain, a host
// below it gets the login, and a host of another name gets nothing.
func TestLoginOfMX(t *testing.T) {
	for mx, want := range map[string]string{
		"mx1.domain.example": "a@x sent 2.0.0 end-of-data 250 TLS1.3/verified",
		"other.example":      "a@x tempfail 4.7.5 STARTTLS -",
	} {
		synctest.Test(t, func(t *testing.T) {
			v := &tlsServer{cert: "below"}
			if mx == "other.example" {
				v.cert = "other"
			}
			cfg := relayTo(t, v, false)
			cfg.Hosts = []Host{{Name: "domain.example", MX: true, Port: 25}}
			cfg.Resolver = fakeResolver{"domain.example": {"MX 10 " + mx}, mx: {"192.0.2.1"}}
			cfg.Credentials = NewCredentials(CredentialOptions{File: writeAuth(t, testUser+"|domain.example:"+testSecret)})
			r := New(cfg)
			out := outcomes(t.Context(), r, testMessage(0, "a@x"))
			r.Close()
			if got := describe("a@x", &out[0]); got != want {
				t.Errorf("%s: %s (%s)", mx, got, out[0].Text())
			}
		})
	}
}
