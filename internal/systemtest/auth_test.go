package systemtest

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dma/spooldir"
)

// strict is a relay that takes mail after a login only, by TLS from the first
// octet, and no login while it is locked.
type strict struct {
	addr, fingerprint string

	locked atomic.Bool
	logins atomic.Int64
	mails  atomic.Int64
}

func newStrict(t *testing.T) *strict {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(1, 0, 0)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	v := &strict{addr: l.Addr().String(), fingerprint: fmt.Sprintf("%x", sha256.Sum256(cert))}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go v.serve(conn)
		}
	}()
	return v
}

func (v *strict) serve(conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	say := func(s string) { _, _ = io.WriteString(conn, s+"\r\n") }
	say("220 strict.example")
	for r := bufio.NewReader(conn); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		switch verb, _, _ := strings.Cut(strings.TrimSpace(line), " "); verb {
		case "EHLO":
			say("250-strict.example\r\n250 AUTH PLAIN")
		case "AUTH":
			v.logins.Add(1)
			if v.locked.Load() {
				say("535 5.7.8 the account of secret.login is locked")
			} else {
				say("235 welcome")
			}
		case "DATA":
			say("354 go")
			for line != ".\r\n" {
				if line, err = r.ReadString('\n'); err != nil {
					return
				}
			}
			v.mails.Add(1)
			say("250 ok")
		case "QUIT":
			say("221 bye")
			return
		default:
			say("250 ok")
		}
	}
}

// A wrong password is not tried by each drain that cron starts: what one has
// learned the next one knows. The administrator hears of it with the login and the
// file, and mailq ends with it; what is said of single mails, as in a bounce, has
// neither.
func TestRefusedLoginOutlivesDrain(t *testing.T) {
	t.Parallel()
	v := newStrict(t)
	v.locked.Store(true)
	dir := t.TempDir()
	s := newSiteWith(t, siteOptions{dir: dir, smarthost: v.addr, conf: "SECURETRANSFER\nFINGERPRINT " + v.fingerprint + "\nAUTHPATH " + dir + "/auth.conf\n"})
	auth := s.path("auth.conf")
	s.write(auth, "# the relay's\nsecret.login|127.0.0.1:geheim\n")
	expect := func(what string, logins int64) {
		t.Helper()
		if n := v.logins.Load(); n != logins {
			t.Errorf("%s: %d logins, want %d", what, n, logins)
		}
	}
	var told strings.Builder
	for range 3 {
		s.post("x", "-f", "alice", "friend@far.example")
		told.WriteString(s.drain().stderr)
		expect("drain", 1)
	}
	if log := told.String(); !strings.Contains(log, "secret.login") || !strings.Contains(log, auth) || strings.Contains(log, "geheim") {
		t.Errorf("the log says %s", log)
	}
	waiting := s.mailq()
	if len(waiting) != 3 {
		t.Fatalf("%+v", waiting)
	}
	shown := ""
	for _, w := range waiting {
		shown += w.Reason + "\n"
		if !strings.Contains(w.Reason, "535") {
			t.Errorf("mailq says %s", w.Reason)
		}
	}
	journals, err := filepath.Glob(filepath.Join(s.queue, spooldir.LogDir, "*"))
	if err != nil || len(journals) != 3 {
		t.Fatal(journals, err)
	}
	for _, path := range journals {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		shown += string(text)
	}
	if strings.Contains(shown, "secret.login") || strings.Contains(shown, auth) || strings.Contains(shown, "geheim") {
		t.Errorf("senders can see %s", shown)
	}
	if out := s.must("mailq").stdout; strings.Count(out, "secret.login") != 2 || strings.Contains(out, "geheim") ||
		!strings.Contains(out, "\nlogin of secret.login refused by ") || !strings.Contains(out, " 1 time, last at ") {
		t.Errorf("mailq says %s", out)
	}
	kept, err := os.ReadFile(filepath.Join(s.queue, spooldir.LockDir, "logins"))
	if err != nil || strings.Contains(string(kept), "geheim") {
		t.Errorf("%s, %v", kept, err)
	}

	s.flush()
	expect("the first flush", 2)
	s.flush()
	expect("the next one", 2)
	if r := s.dmaRunner("check"); !strings.Contains(r.stdout, "has refused the login of secret.login 2 times") {
		t.Errorf("check says %s", r.stdout)
	}

	v.locked.Store(false)
	s.write(auth, "# mended\nsecret.login|127.0.0.1:other\n")
	s.flush()
	if v.logins.Load() < 3 {
		t.Error("another password was not tried")
	}
	if n := v.mails.Load(); n != 3 || len(s.in(spooldir.Tempfail)) != 0 {
		t.Errorf("%d of 3 mails have arrived", n)
	}
}
