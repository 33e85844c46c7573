package smarthost

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"

	"dma/internal/smtptest"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// converse has a session with a server that plays a script under TLS from the
// first octet, with credentials, and returns its error.
func converse(t *testing.T, auth, script string, change ...func(*CredentialOptions)) (*Session, *Credentials, error) {
	t.Helper()
	s, err := smtptest.ParseScript("tls good\n" + script)
	if err != nil {
		t.Fatal(err)
	}
	s.TLS = serverTLS
	o := CredentialOptions{File: writeAuth(t, auth)}
	for _, f := range change {
		f(&o)
	}
	creds := NewCredentials(o)
	client, server := smtptest.Pipe()
	served := make(chan error, 1)
	go func() { served <- s.Serve(t.Context(), server) }()
	cfg := Config{RootCAs: testPKI().roots, Credentials: creds, TLS: withPolicy(TLSPolicy{Level: TLSVerify, Start: StartAtOnce})}
	session, err := NewSession(t.Context(), cfg, client, Host{Name: "relay.example", Port: 465}, testIP)
	if err == nil {
		session.Close()
	}
	if err := <-served; err != nil {
		t.Errorf("server: %v", err)
	}
	return session, creds, err
}

func TestMechanisms(t *testing.T) {
	const account = "me|relay.example:pass word"
	refused := func(text string) string { return "relay.example[192.0.2.1]:465: AUTH: " + text }
	for _, c := range []struct{ name, auth, script, want string }{
		{"PLAIN", account, "hello AUTH LOGIN PLAIN\nL: AUTH PLAIN " + b64("\x00me\x00pass word") + "\nS: 235 ok", ""},
		{"PLAIN, asked again", account, "hello AUTH PLAIN\nC: AUTH\nS: 334\nL: " + b64("\x00me\x00pass word") + "\nS: 235 ok", ""},
		{"PLAIN, asked for ever", account, "hello AUTH PLAIN\nC: AUTH\nS: 334\nC: A\nS: 334", refused("PLAIN: the relay asks for more than the mechanism has")},
		{"PLAIN, too long for one line", "me|relay.example:" + strings.Repeat("x", 500), "hello AUTH PLAIN\nL: AUTH PLAIN\nS: 334\nL: " + b64("\x00me\x00"+strings.Repeat("x", 500)) + "\nS: 235 ok", ""},
		{"LOGIN", account, "hello AUTH=LOGIN\nL: AUTH LOGIN\nS: 334 " + b64("Username:") + "\nL: " + b64("me") + "\nS: 334 " + b64("Password:") + "\nL: " + b64("pass word") + "\nS: 235 ok", ""},
		{"LOGIN in other words", account, "hello auth login\nL: AUTH LOGIN\nS: 334 " + b64("User Name\x00") + "\nL: " + b64("me") + "\nS: 334 Passwort bitte\nL: " + b64("pass word") + "\nS: 235 ok", ""},
		{"LOGIN, asked a third time", account, "hello AUTH LOGIN\nC: AUTH\nS: 334\nL: " + b64("me") + "\nS: 334\nL: " + b64("pass word") + "\nS: 334", refused("LOGIN: the relay asks for more than the mechanism has")},
		{"LOGIN taken unseen", account, "hello AUTH LOGIN\nC: AUTH\nS: 235 ok", refused("LOGIN: the relay accepts the login without having seen it")},
		{"CRAM-MD5 (RFC 2195)", "tim|relay.example:tanstaaftanstaaf", "hello AUTH CRAM-MD5 PLAIN\nL: AUTH CRAM-MD5\nS: 334 PDE4OTYuNjk3MTcwOTUyQHBvc3RvZmZpY2UucmVzdG9uLm1jaS5uZXQ+\nL: dGltIGI5MTNhNjAyYzdlZGE3YTQ5NWI0ZTZlNzMzNGQzODkw\nS: 235 ok", ""},
		{"OAUTHBEARER", "me,you;AUTH=OAUTHBEARER|relay.example:token", "hello AUTH PLAIN XOAUTH2 OAUTHBEARER\nL: AUTH OAUTHBEARER " + b64("n,a=me=2Cyou,\x01host=relay.example\x01port=465\x01auth=Bearer token\x01\x01") + "\nS: 235 ok", ""},
		{"OAUTHBEARER refused", "me;AUTH=oauthbearer|relay.example:token", "hello AUTH OAUTHBEARER\nC: AUTH\nS: 334 " + b64(`{"status":"invalid_token"}`) + "\nL: AQ==\nS: 535 5.7.8 no", refused("SMTP error 535: no")},
		{"XOAUTH2", "me;AUTH=XOAUTH2|relay.example:token", "hello AUTH PLAIN XOAUTH2\nL: AUTH XOAUTH2 " + b64("user=me\x01auth=Bearer token\x01\x01") + "\nS: 235 ok", ""},
		{"XOAUTH2 refused", "me;AUTH=XOAUTH2|relay.example:token", "hello AUTH XOAUTH2\nC: AUTH\nS: 334 " + b64(`{"status":"401"}`) + "\nL: \r\nS: 535 5.7.8 no", refused("SMTP error 535: no")},
		{"XOAUTH2, accepted after an error", "me;AUTH=XOAUTH2|relay.example:token", "hello AUTH XOAUTH2\nC: AUTH\nS: 334 " + b64(`{"status":"401"}`) + "\nL: \r\nS: 235 ok", refused("XOAUTH2: login refused: the relay describes an error and accepts the login after it")},
		{"XOAUTH2, an error after an error", "me;AUTH=XOAUTH2|relay.example:token", "hello AUTH XOAUTH2\nC: AUTH\nS: 334 " + b64(`{"status":"401"}`) + "\nL: \r\nS: 334 " + b64(`{"status":"401"}`), refused("XOAUTH2: the relay asks for more than the mechanism has")},
		{"XOAUTH2, an error that is no base64", "me;AUTH=XOAUTH2|relay.example:token", "hello AUTH XOAUTH2\nC: AUTH\nS: 334 {}", refused("XOAUTH2: the challenge is not in base64")},
		{"XOAUTH2, the token comes back", "me;AUTH=XOAUTH2|relay.example:tokentoken", "hello AUTH XOAUTH2\nC: AUTH\nS: 334 " + b64(`{"status":"401"}`) + "\nL: \r\nS: 535 5.7.8 tokentoken is not valid", refused("SMTP error 535: (the reply repeats the secret and is not shown)")},
		{"a token where nothing else is offered", "me|relay.example:token", "hello AUTH XOAUTH2\nL: AUTH XOAUTH2 " + b64("user=me\x01auth=Bearer token\x01\x01") + "\nS: 235 ok", ""},
		{"the one that is wanted is not offered", "me;AUTH=SCRAM-SHA-256|relay.example:x", "hello AUTH PLAIN LOGIN", refused("the relay offers no AUTH mechanism that can be used: it has PLAIN LOGIN but SCRAM-SHA-256 is wanted")},
		{"the strongest will not do, the next does", account, "hello AUTH CRAM-MD5 PLAIN\nL: AUTH CRAM-MD5\nS: 504 5.5.4 not really\nL: AUTH PLAIN\nS: 235 ok", ""},
		{"refused", account, "hello AUTH PLAIN\nC: AUTH\nS: 535 5.7.8 no", refused("SMTP error 535: no")},
		{"refused for now", account, "hello AUTH PLAIN\nC: AUTH\nS: 454 4.7.0 later", refused("SMTP error 454: later")},
		{"421", account, "hello AUTH PLAIN\nC: AUTH\nS: 421 4.7.0 later", refused("SMTP error 421: later")},
		{"the reply repeats the secret", account, "hello AUTH PLAIN\nC: AUTH\nS: 535 5.7.8 not " + b64("\x00me\x00pass word"), refused("SMTP error 535: (the reply repeats the secret and is not shown)")},
		{"the reply is nonsense and repeats the secret", account, "hello AUTH PLAIN\nC: AUTH\nsend 1 \"pass word?\\r\\n\"", refused("the reply makes no sense (it is not shown)")},
		{"the challenge is nonsense", account, "hello AUTH CRAM-MD5\nC: AUTH\nS: 334 !!!", refused("CRAM-MD5: the challenge is not in base64")},
		{"the challenge has two lines", account, "hello AUTH CRAM-MD5\nC: AUTH\nsend 1 \"334-YQ==\\r\\n334 YQ==\\r\\n\"", refused("CRAM-MD5: the challenge has several lines")},
		{"closed", account, "hello AUTH PLAIN\nC: AUTH\nclose", refused("the connection was closed")},
		{"silence", account, "hello AUTH PLAIN\nC: AUTH\nsilence", refused("no answer within 2m0s")},
		{"HELO only", account, "S: 220 hi\nC: EHLO\nS: 502 what\nC: HELO\nS: 250 hi", refused("the relay offers no AUTH, and there are credentials for it")},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, _, err := converse(t, c.auth, c.script)
				got := ""
				if err != nil {
					var reply *smtp.SMTPError
					if got = err.Error(); errors.As(err, &reply) {
						got = fmt.Sprintf("relay.example[192.0.2.1]:465: AUTH: SMTP error %d: %s", reply.Code, reply.Message)
					}
					if o := connectOutcome(err); o.Verdict != Tempfail || o.TLS != "TLS1.3 verified" || strings.Contains(o.Text(), "pass word") {
						t.Errorf("%+v", o)
					}
				}
				if got != c.want {
					t.Errorf("got  %s\nwant %s", got, c.want)
				}
			})
		})
	}
}

// TestScramVectors has the dialogs of RFC 5802 section 5 and RFC 7677 section 3.
func TestScramVectors(t *testing.T) {
	l := &login{user: "user", secret: NewSecret("pencil")}
	old := &scram{l: l, hash: sha1.New, nonce: "fyko+d2lbbFgONRv9qkxdawL"}
	today := newScramSHA256(l, 0).(*scram)
	today.nonce = "rOprNGfwEbeRWgbNEkqO"
	for _, c := range []struct {
		m                                      *scram
		first, serverFirst, final, serverFinal string
	}{
		{old, "n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL",
			"r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
			"c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
			"v=rmF9pqV8S7suAoZWja4dJRkFsKQ="},
		{today, "n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
			"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
			"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
			"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="},
	} {
		first, err := c.m.start()
		if err != nil || string(first) != c.first {
			t.Errorf("%s, %v", first, err)
		}
		final, err := c.m.next([]byte(c.serverFirst))
		if err != nil || string(final) != c.final {
			t.Errorf("%s, %v", final, err)
		}
		if c.m.done() == nil {
			t.Error("done before the server has proved anything")
		}
		last, err := c.m.next([]byte(c.serverFinal))
		if err != nil || len(last) != 0 || c.m.done() != nil {
			t.Errorf("%q, %v, %v", last, err, c.m.done())
		}
		if _, err := c.m.next(nil); err == nil {
			t.Error("there is more than the mechanism has")
		}
	}
}

// scramTo returns the SCRAM exchange after the first message of RFC 7677.
func scramTo(serverFirst string) (*scram, error) {
	m := newScramSHA256(&login{user: "user", secret: NewSecret("pencil")}, 0).(*scram)
	m.nonce = "rOprNGfwEbeRWgbNEkqO"
	if _, err := m.start(); err != nil {
		return nil, err
	}
	_, err := m.next([]byte(serverFirst))
	return m, err
}

func TestScramRefuses(t *testing.T) {
	const good = "r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
	if _, err := scramTo(good); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{
		"", "x", "r=", "m=ext," + good, "r=rOprNGfwEbeRWgbNEkqO,s=W22Z,i=4096", "r=other,s=W22Z,i=4096",
		"r=rOprNGfwEbeRWgbNEkqOx,s=,i=4096", "r=rOprNGfwEbeRWgbNEkqOx,s=!,i=4096", "r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=4095",
		"r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=99999999", "r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=-1", "r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=",
		"s=W22Z,r=rOprNGfwEbeRWgbNEkqOx,i=4096",
	} {
		if _, err := scramTo(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	for last, class := range map[string]bool{"e=invalid-proof": true, "v=": false, "v=AAAA": false, "": false, "v=!": false} {
		m, err := scramTo(good)
		if err != nil {
			t.Fatal(err)
		}
		_, err = m.next([]byte(last))
		if err == nil || errors.Is(err, errLogin) != class || m.done() == nil {
			t.Errorf("%q: %v, %v", last, err, m.done())
		}
	}
}

func FuzzScramServer(f *testing.F) {
	f.Add("r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
	f.Add("r=rOprNGfwEbeRWgbNEkqO,s=,i=", "e=other-error")
	f.Add("m=x", "v=,")
	f.Fuzz(func(t *testing.T, first, last string) {
		if i := strings.LastIndex(first, "i="); i >= 0 && len(first)-i > 6 {
			return // the work is bounded; a fuzzer has better things to do with it
		}
		m, err := scramTo(first)
		if err != nil {
			return
		}
		_, err = m.next([]byte(last))
		if (err == nil) != (m.done() == nil) {
			t.Fatalf("%v, but %v", err, m.done())
		}
		if err == nil && !strings.HasPrefix(last, "v="+base64.StdEncoding.EncodeToString(m.signature)) {
			t.Fatalf("%q is taken for a signature", last)
		}
	})
}

// TestScramSession: a server that does not know the password cannot end the
// exchange well, whatever it says.
func TestScramSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, script := range []string{
			"hello AUTH SCRAM-SHA-256 PLAIN\nL: AUTH SCRAM-SHA-256 biwsbj1tZSxyP\nS: 235 welcome",
			"hello AUTH SCRAM-SHA-256 PLAIN\nC: AUTH\nS: 334 " + b64("r=x,s=W22Z,i=4096"),
		} {
			_, _, err := converse(t, "me|relay.example:x", script)
			if o := connectOutcome(err); err == nil || o.Status() != "4.7.0" || !strings.Contains(o.Text(), "SCRAM-SHA-256: ") {
				t.Errorf("%v", err)
			}
		}
	})
}

// authBackend is a server of another hand: it knows one account.
type authBackend struct {
	smtp.Session
	mechanisms []string
	logins     *int
}

func (b *authBackend) AuthMechanisms() []string { return b.mechanisms }

func (b *authBackend) Auth(mech string) (sasl.Server, error) {
	check := func(user, password string) error {
		if user != testUser || password != testSecret {
			return smtp.ErrAuthFailed
		}
		*b.logins++
		return nil
	}
	if mech == "PLAIN" {
		return sasl.NewPlainServer(func(_, user, password string) error { return check(user, password) }), nil
	}
	return &loginServer{check: check}, nil
}

func (b *authBackend) Mail(string, *smtp.MailOptions) error { return nil }
func (b *authBackend) Rcpt(string, *smtp.RcptOptions) error { return nil }
func (b *authBackend) Data(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}
func (b *authBackend) Reset()        {}
func (b *authBackend) Logout() error { return nil }

// loginServer is the server's side of LOGIN.
type loginServer struct {
	user  string
	turn  int
	check func(user, password string) error
}

func (s *loginServer) Next(response []byte) ([]byte, bool, error) {
	s.turn++
	switch s.turn {
	case 1:
		return []byte("Your name, please"), false, nil
	case 2:
		s.user = string(response)
		return []byte("Your secret"), false, nil
	}
	return nil, true, s.check(s.user, string(response))
}

// TestAuthServer logs in at a server of another hand, over STARTTLS.
func TestAuthServer(t *testing.T) {
	for _, mech := range []string{"PLAIN", "LOGIN"} {
		for _, secret := range []string{testSecret, "wrong"} {
			logins := 0
			server := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) {
				return &authBackend{mechanisms: []string{mech}, logins: &logins}, nil
			}))
			server.Domain, server.TLSConfig, server.ErrorLog = "relay.example", serverTLS("good"), log.New(io.Discard, "", 0)
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			go func() { _ = server.Serve(l) }()
			port := l.Addr().(*net.TCPAddr).Port
			r := New(Config{
				Hosts: []Host{{IP: netip.MustParseAddr("127.0.0.1"), Port: port}}, RootCAs: testPKI().roots,
				Credentials: NewCredentials(CredentialOptions{File: writeAuth(t, testUser+"|[127.0.0.1]:"+secret)}),
			})
			out := outcomes(t.Context(), r, testMessage(0, "a@x"))[0]
			r.Close()
			server.Close()
			if ok := secret == testSecret; ok != (out.Verdict == Sent) || ok != (logins == 1) || out.TLS != "TLS1.3 verified" {
				t.Errorf("%s with %s: %+v", mech, secret, out)
			}
		}
	}
}

// TestRefusedLogin: a wrong password costs one login, not one for each message,
// and none at the other addresses; what is known of it is said each time.
func TestRefusedLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &tlsServer{quirk: "refuse login"}
		cfg := relayTo(t, v, true)
		cfg.Resolver = fakeResolver{"relay.example": {"192.0.2.1", "192.0.2.2"}}
		cfg.RetryMin, cfg.RetryMax = time.Second, time.Second // shorter than the patience with logins
		r := New(cfg)
		defer r.Close()
		logins := func() int { return strings.Count(v.commands(), "AUTH") }
		for range 240 {
			out := outcomes(t.Context(), r, testMessage(0, "a@x"))[0]
			if out.Verdict != Tempfail || out.Status() != "4.7.8" || !strings.Contains(out.Text(), "535 5.7.8") {
				t.Fatalf("%+v", out)
			}
			time.Sleep(time.Second)
		}
		if logins() != 1 || v.dials != 1 {
			t.Errorf("%d logins, %d connections in 4 minutes", logins(), v.dials)
		}
		for range 24 * 60 {
			outcomes(t.Context(), r, testMessage(0, "a@x"))
			time.Sleep(time.Minute)
		}
		// After 5, 10, 20, 40 minutes, then each hour.
		if n := logins(); n < 24 || n > 29 {
			t.Errorf("%d logins in a day", n)
		}
	})
}

// TestPasswordCommand: what the command gives is kept until it is refused, then
// asked for once more.
func TestPasswordCommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &tlsServer{}
		tokens := []string{testSecret, "stale", testSecret, "wrong", "wrong", "wrong"}
		asked := 0
		cfg := relayTo(t, v, false)
		cfg.Idle = time.Millisecond // each message needs a login
		cfg.RetryMin, cfg.RetryMax = time.Second, time.Second
		cfg.Credentials = NewCredentials(CredentialOptions{
			File: writeAuth(t, testUser+"|relay.example\n"),
			Command: func(_ context.Context, user, host string) (string, error) {
				if user != testUser || host != "relay.example" {
					t.Errorf("asked for %s at %s", user, host)
				}
				asked++
				return tokens[asked-1] + "\n", nil
			},
		})
		r := New(cfg)
		defer r.Close()
		deliver := func(want string, wantAsked int) {
			t.Helper()
			out := outcomes(t.Context(), r, testMessage(0, "a@x"))
			if got := describe("a@x", &out[0]); got != "a@x "+want || asked != wantAsked {
				t.Errorf("%s, asked %d times; want %s, %d", got, asked, want, wantAsked)
			}
			time.Sleep(2 * time.Second)
		}
		const good = "sent 2.0.0 end-of-data 250 TLS1.3/verified"
		deliver(good, 1)
		deliver(good, 1) // kept
		cfg.Credentials.mu.Lock()
		for k := range cfg.Credentials.given {
			cfg.Credentials.given[k] = NewSecret("expired")
		}
		cfg.Credentials.mu.Unlock()
		deliver("tempfail 4.7.8 AUTH 535 TLS1.3/verified", 2) // the new one is stale too
		deliver(good, 3)
		v.mu.Lock()
		v.quirk = "refuse login"
		v.mu.Unlock()
		deliver("tempfail 4.7.8 AUTH 535 TLS1.3/verified", 4)
		deliver("tempfail 4.7.8 AUTH - refused", 5) // the same again is not tried
	})
}

func TestSecretIsHidden(t *testing.T) {
	s := NewSecret("hunter2")
	l := &login{user: "me", secret: s}
	e := authEntry{login: *l}
	p := &peer{login: l}
	session := Session{peer: p}
	var buf bytes.Buffer
	for _, v := range []any{s, &s, *l, l, e, &e, p, *p, session, &session, []Secret{s}, map[string]Secret{"x": s}, &plain{l: l}, refusal{secret: s}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&buf, verb, v)
		}
	}
	text, err := s.MarshalText()
	buf.Write(text)
	if err != nil || s.String() != redacted || s.LogValue().String() != redacted || fmt.Sprint(s) != redacted {
		t.Error("not redacted")
	}
	func() {
		defer func() { fmt.Fprint(&buf, recover()) }()
		panic(fmt.Sprintf("%+v", l))
	}()
	for _, bad := range []string{"hunter2", fmt.Sprintf("%x", "hunter2"), fmt.Sprintf("%X", "hunter2"), b64("hunter2")} {
		if strings.Contains(buf.String(), bad) {
			t.Errorf("%q shows", bad)
		}
	}
	if s.reveal() != "hunter2" || !s.equal(NewSecret("hunter2")) || s.equal(NewSecret("hunter")) || !(Secret{}).IsZero() || (Secret{}).reveal() != "" {
		t.Error("the secret is not what it was")
	}
}
