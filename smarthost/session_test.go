package smarthost

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dma/internal/smtptest"
)

// scripted returns a session with a server that plays a script, and what Serve
// returns.
func scripted(t *testing.T, script string) (*Session, <-chan error) {
	t.Helper()
	s, err := smtptest.ParseScript(script)
	if err != nil {
		t.Fatal(err)
	}
	client, server := smtptest.Pipe()
	served := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go func() { served <- s.Serve(ctx, server) }()
	session, err := NewSession(ctx, Config{Name: "client.example.org"}, client, testHost, testIP)
	if err != nil {
		t.Fatal(err)
	}
	return session, served
}

// check closes a session and looks at what came of a message.
func check(t *testing.T, s *Session, served <-chan error, m Message, out []Outcome, want ...string) {
	t.Helper()
	s.Close()
	if err := <-served; err != nil {
		t.Errorf("server: %v", err)
	}
	for i := range out {
		if got := describe(m.Recipients[i].Address, &out[i]); got != want[i] {
			t.Errorf("got  %s\nwant %s", got, want[i])
		}
	}
}

func TestParameters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testMessage(0, "a@x", "b@x")
		m.Content, m.Size = strings.NewReader("Subject: \u00e9\n\n"), 13
		m.Return, m.EnvelopeID = "HDRS", "id+2B1"
		m.Recipients[0].Notify, m.Recipients[0].ORCPT = []string{"SUCCESS", "DELAY"}, "rfc822;a+2Bb@x"
		m.Recipients[1].ORCPT = "rfc822;not\r\nfit"
		s, served := scripted(t, `
			hello PIPELINING,SIZE 1000,8BITMIME,DSN,SMTPUTF8
			L: MAIL FROM:<s@example.org> SIZE=15 BODY=8BITMIME RET=HDRS ENVID=id+2B1
			L: RCPT TO:<a@x> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+2Bb@x
			L: RCPT TO:<b@x>
			L: DATA
			S: 250 ok | 250 ok | 250 ok | 354 go
			data
			S: 250 ok`)
		check(t, s, served, m, s.Send(t.Context(), m), "a@x sent 2.0.0 end-of-data 250 dsn", "b@x sent 2.0.0 end-of-data 250 dsn")

		// Without the extensions nothing of it is said.
		s, served = scripted(t, `
			hello PIPELINING
			L: MAIL FROM:<s@example.org>
			L: RCPT TO:<a@x>
			L: RCPT TO:<b@x>
			L: DATA
			S: 250 ok | 250 ok | 250 ok | 354 go
			data
			S: 250 ok`)
		check(t, s, served, m, s.Send(t.Context(), m), "a@x sent 2.0.0 end-of-data 250", "b@x sent 2.0.0 end-of-data 250")
	})
}

func TestUnfitAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testMessage(0, "a@x", "b@x\r\nRCPT TO:<evil@x>", "\u00e9@x", "", "<c@x>", "\"q r\"@x")
		s, served := scripted(t, `
			hello PIPELINING
			L: MAIL FROM:<s@example.org>
			L: RCPT TO:<a@x>
			L: RCPT TO:<"q r"@x>
			L: DATA
			S: 250 ok | 250 ok | 250 ok | 354 go
			data
			S: 250 ok`)
		check(t, s, served, m, s.Send(t.Context(), m),
			"a@x sent 2.0.0 end-of-data 250",
			"b@x\r\nRCPT TO:<evil@x> permfail 5.1.3 RCPT -",
			"\u00e9@x permfail 5.6.7 RCPT -",
			" permfail 5.1.3 RCPT -",
			"<c@x> permfail 5.1.3 RCPT -",
			"\"q r\"@x sent 2.0.0 end-of-data 250")

		m = testMessage(0, "a@x")
		m.Sender = "s@x> BODY=8BITMIME\n"
		s, served = scripted(t, "hello PIPELINING")
		check(t, s, served, m, s.Send(t.Context(), m), "a@x permfail 5.1.7 MAIL -")

		m = testMessage(0, "\u00e9@x")
		m.Sender = ""
		s, served = scripted(t, `
			hello PIPELINING,SMTPUTF8
			L: MAIL FROM:<> SMTPUTF8
			C: RCPT DATA
			S: 250 ok | 250 ok | 354 go
			data
			S: 250 ok`)
		check(t, s, served, m, s.Send(t.Context(), m), "\u00e9@x sent 2.0.0 end-of-data 250")

		// A header in UTF-8 needs the extension; asking for it is not enough.
		for header, want := range map[string]string{
			"Subject: \u00e9\n\n": "a@x permfail 5.6.7 MAIL -", "Subject: e\n\n": "a@x sent 2.0.0 end-of-data 250",
		} {
			m = testMessage(0, "a@x")
			m.UTF8, m.Content, m.Size = true, strings.NewReader(header), int64(len(header))
			script := "hello"
			if header[len(header)-3] == 'e' {
				script += "\nC: MAIL\nS: 250 ok\nC: RCPT\nS: 250 ok\nC: DATA\nS: 354 go\ndata\nS: 250 ok"
			}
			s, served = scripted(t, script)
			check(t, s, served, m, s.Send(t.Context(), m), want)
		}
	})
}

// TestUnreadable: when the message cannot be read to its end, no final dot goes
// out.
func TestUnreadable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testMessage(100_000, "a@x", "b@x")
		s, served := scripted(t, `
			hello PIPELINING
			C: MAIL RCPT RCPT DATA
			S: 250 ok | 250 ok | 550 no | 354 go
			silence`)
		m.Content = &failing{Message: m, after: 2}
		check(t, s, served, m, s.Send(t.Context(), m), "a@x tempfail 4.3.0 end-of-data -", "b@x permfail 5.1.0 RCPT 550")

		s, served = scripted(t, `hello PIPELINING`)
		m.Content = brokenReader{}
		check(t, s, served, m, s.Send(t.Context(), m), "a@x tempfail 4.3.0 MAIL -", "b@x tempfail 4.3.0 MAIL -")
	})
}

// failing is a message that can be read from its beginning to its end once, and
// less far the second time.
type failing struct {
	Message
	starts, after int
}

func (f *failing) ReadAt(b []byte, off int64) (int, error) {
	if off == 0 {
		f.starts++
	}
	if f.starts >= f.after && off > 40_000 {
		return 0, errors.New("input/output error")
	}
	return f.Content.ReadAt(b, off)
}

// TestStop: a program that is to stop gives a transaction up at once, but waits
// for the reply once the message is out.
func TestStop(t *testing.T) {
	const flight = "hello PIPELINING\nC: MAIL RCPT DATA\n"
	for _, c := range []struct {
		name, script, want string
		takes              time.Duration
	}{
		{"before MAIL is answered", "hello PIPELINING\nsilence", "a@x tempfail 4.4.2 MAIL - refused", 0},
		{"before MAIL is read", "hello PIPELINING\nstall", "a@x tempfail 4.4.2 MAIL - refused", 0},
		{"before DATA is answered", flight + "S: 250 ok | 250 ok\nsilence", "a@x tempfail 4.4.2 DATA - refused", 0},
		{"in the content", flight + "S: 250 ok | 250 ok | 354 go\nread 50000\nstall", "a@x tempfail 4.4.2 end-of-data - refused", 0},
		{"after the content", flight + "S: 250 ok | 250 ok | 354 go\ndata\nsilence", "a@x tempfail 4.4.2 end-of-data - uncertain", 5 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := testMessage(200_000, "a@x")
				s, served := scripted(t, c.script)
				ctx, cancel := context.WithCancel(t.Context())
				var out []Outcome
				done := make(chan struct{})
				go func() {
					defer close(done)
					out = s.Send(ctx, m)
				}()
				synctest.Wait() // everybody waits for somebody
				start := time.Now()
				cancel()
				<-done
				if d := time.Since(start); d != c.takes {
					t.Errorf("it took %v, want %v", d, c.takes)
				}
				if got := describe("a@x", &out[0]); got != c.want {
					t.Errorf("got  %s\nwant %s", got, c.want)
				}
				s.Close()
				if strings.HasSuffix(c.script, "silence") {
					if err := <-served; err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
}

// TestStopAndReply: the reply that comes in time counts.
func TestStopAndReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := smtptest.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		script, err := smtptest.ParseScript("hello PIPELINING\nC: MAIL RCPT DATA\nS: 250 ok | 250 ok | 354 go\ndata")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_ = script.Serve(t.Context(), &lateReply{Conn: server, cancel: cancel})
		}()
		s, err := NewSession(ctx, Config{}, client, testHost, testIP)
		if err != nil {
			t.Fatal(err)
		}
		m := testMessage(0, "a@x")
		out := s.Send(ctx, m)
		if got := describe("a@x", &out[0]); got != "a@x sent 2.0.0 end-of-data 250" {
			t.Error(got)
		}
		if s.Usable() {
			t.Error("the session is usable after the stop")
		}
		s.Close()
	})
}

// lateReply cancels when the final dot has been read, and answers a little later.
type lateReply struct {
	net.Conn
	cancel func()
	seen   string
}

func (l *lateReply) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	l.seen += string(b[:n])
	if strings.HasSuffix(l.seen, "\r\n.\r\n") && n > 0 {
		l.cancel()
		synctest.Wait()
		time.Sleep(time.Second) // of the bubble's clock
		_, err = l.Conn.Write([]byte("250 ok\r\n"))
	}
	return n, err
}

// TestSlowServer: a server that takes its time, but stays within the bounds, gets
// the message, however long that is in all.
func TestSlowServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := smtptest.Pipe()
		script, err := smtptest.ParseScript("hello PIPELINING\nC: MAIL RCPT DATA\nS: 250 ok | 250 ok | 354 go\ndata\nS: 250 ok")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- script.Serve(t.Context(), &slow{server}) }()
		s, err := NewSession(t.Context(), Config{}, client, testHost, testIP)
		if err != nil {
			t.Fatal(err)
		}
		m := testMessage(10_000, "a@x")
		start := time.Now()
		out := s.Send(t.Context(), m)
		check(t, s, served, m, out, "a@x sent 2.0.0 end-of-data 250")
		if d := time.Since(start); d < 100*time.Second {
			t.Errorf("it took only %v", d)
		}
	})
}

// slow reads 100 octets a second.
type slow struct{ net.Conn }

func (s *slow) Read(b []byte) (int, error) {
	time.Sleep(time.Second) // of the bubble's clock
	return s.Conn.Read(b[:min(len(b), 100)])
}

func TestUnaccounted(t *testing.T) {
	recovered := func(f func()) (text string) {
		defer func() { u, _ := recover().(Unaccounted); text = string(u) }()
		f()
		return ""
	}
	m := testMessage(0, "a@x", "b@x")
	s := &Session{}
	tr := &transaction{s: s, m: &m, out: make([]Outcome, 2)}
	tr.settle(0, Outcome{Verdict: Sent})
	if text := recovered(func() { tr.settle(0, Outcome{Verdict: Permfail}) }); !strings.Contains(text, "recipient 0 is sent") {
		t.Errorf("settled twice: %q", text)
	}
	if text := recovered(tr.finish); !strings.Contains(text, "recipient 1 of 2 has no outcome") {
		t.Errorf("left over: %q", text)
	}
	tr = &transaction{s: s, m: &m, out: make([]Outcome, 2), later: []int{0, 1}}
	if text := recovered(tr.finish); !strings.Contains(text, "decided nothing") {
		t.Errorf("nothing decided: %q", text)
	}
}
