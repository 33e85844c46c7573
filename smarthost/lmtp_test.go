package smarthost

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"dma/internal/smtptest"

	"github.com/emersion/go-smtp"
)

func TestNewLMTP(t *testing.T) {
	for address, want := range map[string]string{
		"/run/lmtp":      "lmtp:/run/lmtp",
		"localhost:24":   "lmtp:localhost[192.0.2.1]:24",
		"127.0.0.1:24":   "lmtp:[127.0.0.1]:24",
		"[::1]:24":       "lmtp:[::1]:24",
		"localhost":      "",
		"run/lmtp":       "",
		"":               "",
		"mx:localhost:5": "",
		"host:0":         "",
	} {
		r, err := NewLMTP(address, Config{Hosts: []Host{testHost}, Credentials: new(Credentials)})
		if err != nil {
			if want != "" {
				t.Errorf("%q: %v", address, err)
			}
			continue
		}
		ip := testIP
		var h Host
		if len(r.cfg.Hosts) == 1 {
			if h = r.cfg.Hosts[0]; h.IP.IsValid() {
				ip = h.IP
			}
		}
		if got := r.cfg.relayName(h, ip); got != want {
			t.Errorf("%q: the relay is %q, want %q", address, got, want)
		}
		if p, err := r.cfg.TLS(h, false); err != nil || p.Level != TLSNone {
			t.Errorf("%q: TLS %v, %v", address, p.Level, err)
		}
		if !r.cfg.LMTP || r.cfg.Credentials != nil {
			t.Errorf("%q: %+v", address, r.cfg)
		}
	}
	r, err := NewLMTP("mail.example.org:24", Config{})
	if err != nil {
		t.Fatal(err)
	}
	if p, err := r.cfg.TLS(r.cfg.Hosts[0], false); err != nil || p.Level != TLSMay {
		t.Errorf("another host: TLS %v, %v", p.Level, err)
	}
}

// lmtpSink starts an LMTP server behind a socket or a port, and makes a Relay to it.
func lmtpSink(t *testing.T, unix bool, o smtptest.SinkOptions, cfg Config) (*smtptest.Sink, *Relay, string) {
	t.Helper()
	o.LMTP = true
	sink := smtptest.NewSink(o)
	t.Cleanup(func() { sink.Close() })
	address := filepath.Join(t.TempDir(), "lmtp")
	if unix {
		if err := sink.ListenUnix(address); err != nil {
			t.Fatal(err)
		}
	} else {
		a, err := sink.Listen("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address = a.String()
	}
	r, err := NewLMTP(address, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return sink, r, address
}

// TestLMTPServer: many messages on one session, by socket and by port, and each
// recipient by its own answer.
func TestLMTPServer(t *testing.T) {
	for name, unix := range map[string]bool{"socket": true, "port": false} {
		t.Run(name, func(t *testing.T) {
			refuse := func(_ *smtptest.Transaction, to string) error {
				switch {
				case strings.HasPrefix(to, "full"):
					return &smtp.SMTPError{Code: 452, EnhancedCode: smtp.EnhancedCode{4, 2, 2}, Message: "over quota"}
				case strings.HasPrefix(to, "gone"):
					return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 2, 1}, Message: "disabled"}
				}
				return nil
			}
			sink, r, _ := lmtpSink(t, unix, smtptest.SinkOptions{Each: refuse, MaxRecipients: 3}, Config{})
			for range 20 {
				m := testMessage(0, "a@x", "full@x", "user+detail@x", "gone@x", "b@x")
				out := outcomes(t.Context(), r, m)
				want := []string{
					"a@x sent 2.0.0 end-of-data 250", "full@x tempfail 4.2.2 end-of-data 452",
					"user+detail@x sent 2.0.0 end-of-data 250", "gone@x permfail 5.2.1 end-of-data 550",
					"b@x sent 2.0.0 end-of-data 250",
				}
				for i := range out {
					if got := describe(m.Recipients[i].Address, &out[i]); got != want[i] {
						t.Errorf("got  %s\nwant %s", got, want[i])
					}
				}
			}
			if c := sink.Counts(); c.Connections != 1 || c.Hellos != 1 || c.Transactions != 40 || c.Recipients != 60 {
				t.Errorf("%+v", c)
			}
		})
	}
}

// TestLMTPConcurrency: the server's sessions have a bound of their own.
func TestLMTPConcurrency(t *testing.T) {
	sink, r, _ := lmtpSink(t, true, smtptest.SinkOptions{}, Config{Concurrency: 2})
	var group sync.WaitGroup
	for range 30 {
		group.Go(func() {
			m := testMessage(0, "a@x")
			if out := outcomes(t.Context(), r, m); out[0].Verdict != Sent {
				t.Errorf("%+v", out[0])
			}
		})
	}
	group.Wait()
	if c := sink.Counts(); c.Connections > 2 || c.Transactions != 30 {
		t.Errorf("%+v", c)
	}
}

// TestLMTPClosed: who may not use the socket learns which, and who has to.
func TestLMTPClosed(t *testing.T) {
	r, err := NewLMTP("/run/lmtp", Config{Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)}
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out := outcomes(t.Context(), r, testMessage(0, "a@x"))
	want := fmt.Sprintf("connect: /run/lmtp: permission denied; uid %d, which delivers, has to be able to write to it", os.Geteuid())
	if got := describe("a@x", &out[0]); got != "a@x tempfail 4.4.1 connect -" || out[0].Text() != want {
		t.Errorf("%s: %s", got, out[0].Text())
	}
}

// TestLMTPDown: a server that is not there costs one attempt, and is named.
func TestLMTPDown(t *testing.T) {
	dials := 0
	path := filepath.Join(t.TempDir(), "lmtp")
	now := time.Unix(1e9, 0)
	r, err := NewLMTP(path, Config{
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			dials++
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
		Now: func() time.Time { return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for i, want := range []string{"a@x tempfail 4.4.1 connect -", "a@x tempfail 4.4.1 connect - refused"} {
		out := outcomes(t.Context(), r, testMessage(0, "a@x"))
		if got := describe("a@x", &out[0]); got != want {
			t.Errorf("%d: %s", i, got)
		}
		if out[0].Relay != "lmtp:"+path || out[0].Text() != "connect: "+path+": no such file or directory" {
			t.Errorf("%d: %s: %s", i, out[0].Relay, out[0].Text())
		}
	}
	if dials != 1 {
		t.Errorf("%d dials", dials)
	}
	now = now.Add(time.Minute)
	sink := smtptest.NewSink(smtptest.SinkOptions{LMTP: true})
	defer sink.Close()
	if err := sink.ListenUnix(path); err != nil {
		t.Fatal(err)
	}
	if out := outcomes(t.Context(), r, testMessage(0, "a@x")); out[0].Verdict != Sent {
		t.Errorf("%+v", out[0])
	}
}

// TestLMTPEarly: what is decided is told before the last recipient is.
func TestLMTPEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := smtptest.Pipe()
		script, err := smtptest.ParseScript("lhlo PIPELINING\nC: MAIL RCPT RCPT RCPT DATA\nS: 250 ok | 250 ok | 250 ok | 250 ok | 354 go\ndata\nS: 250 ok | 550 no\nsilence")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- script.Serve(t.Context(), server) }()
		ctx, cancel := context.WithCancel(t.Context())
		s, err := NewSession(ctx, Config{LMTP: true}, client, testHost, testIP)
		if err != nil {
			t.Fatal(err)
		}
		var told []string
		m := testMessage(0, "a@x", "b@x", "c@x")
		var out []Outcome
		done := make(chan struct{})
		go func() {
			defer close(done)
			out = s.send(ctx, m, func(indices []int, outcomes []Outcome) {
				for k, i := range indices {
					told = append(told, describe(m.Recipients[i].Address, &outcomes[k]))
				}
			})
		}()
		synctest.Wait()
		if got := strings.Join(told, "; "); got != "a@x sent 2.0.0 end-of-data 250; b@x permfail 5.0.0 end-of-data 550" {
			t.Errorf("told: %s", got)
		}
		// The stop waits for what is left of the replies, and no longer.
		start := time.Now()
		cancel()
		<-done
		if d := time.Since(start); d != 5*time.Second {
			t.Errorf("it took %v", d)
		}
		if got := describe("c@x", &out[2]); got != "c@x tempfail 4.4.2 end-of-data - uncertain" || len(told) != 2 {
			t.Errorf("%s, %d told", got, len(told))
		}
		s.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

// TestLMTPSevenBit: a server without 8BITMIME gets what it can take.
func TestLMTPSevenBit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := smtptest.Pipe()
		script, err := smtptest.ParseScript(`
			lhlo PIPELINING
			L: MAIL FROM:<s@example.org>
			C: RCPT DATA
			S: 250 ok | 250 ok | 354 go
			L: X: y
			L: MIME-Version: 1.0
			L: Content-Type: text/plain; charset=unknown-8bit
			L: Content-Transfer-Encoding: quoted-printable
			L:
			L: =E9
			L: .
			S: 250 ok`)
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- script.Serve(t.Context(), server) }()
		s, err := NewSession(t.Context(), Config{LMTP: true}, client, testHost, testIP)
		if err != nil {
			t.Fatal(err)
		}
		m := testMessage(0, "a@x")
		m.Content, m.Size = strings.NewReader("X: y\n\n\xe9\n"), 8
		out := s.Send(t.Context(), m)
		check(t, s, served, m, out, "a@x sent 2.0.0 end-of-data 250")
	})
}
