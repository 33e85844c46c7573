package smarthost

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"dma/internal/smtptest"
)

var (
	testHost = Host{Name: "test", Port: 25}
	testIP   = netip.MustParseAddr("192.0.2.1")
)

// testMessage returns a message of about size octets.
func testMessage(size int, to ...string) Message {
	text := []byte("Subject: test\n\n.a dot\nlast line\n")
	for len(text) < size {
		text = append(text, "0123456789012345678901234567890123456789012345678901234567890123456789\n"...)
	}
	m := Message{ID: "test", Sender: "s@example.org", Content: bytes.NewReader(text), Size: int64(len(text))}
	for i, a := range to {
		m.Recipients = append(m.Recipients, Recipient{Address: a, N: i + 1})
	}
	return m
}

// describe writes an outcome as scenarios expect it.
func describe(address string, o *Outcome) string {
	code := "-"
	if o.Reply.Code != 0 {
		code = o.Text()[:3]
	}
	words := []string{address, o.Verdict.String(), o.Status(), strings.ReplaceAll(o.Command, " ", "-"), code}
	for _, f := range []struct {
		set  bool
		name string
	}{{o.TLS != "", strings.ReplaceAll(o.TLS, " ", "/")}, {o.Uncertain, "uncertain"}, {o.Refused, "refused"}, {o.DSN, "dsn"}} {
		if f.set {
			words = append(words, f.name)
		}
	}
	return strings.Join(words, " ")
}

// play runs a scenario between the two ends of a connection.
func play(t *testing.T, sc *smtptest.Scenario, client, server net.Conn) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	served := make(chan error, 1)
	sc.Script.TLS = serverTLS
	go func() { served <- sc.Script.Serve(ctx, server) }()

	var got []string
	relay := "test[192.0.2.1]:25"
	if sc.LMTP {
		relay = "lmtp:" + relay
	}
	s, err := NewSession(t.Context(), Config{Name: "client.example.org", LMTP: sc.LMTP}, client, testHost, testIP)
	for _, to := range sc.To {
		m := testMessage(sc.Content, to...)
		var out []Outcome
		if err == nil {
			early := make([]Outcome, len(to))
			out = s.send(t.Context(), m, func(indices []int, outcomes []Outcome) {
				for k, i := range indices {
					if early[i].Verdict != 0 {
						t.Errorf("%s is told of twice", to[i])
					}
					early[i] = outcomes[k]
				}
			})
			for i := range early {
				if early[i].Verdict != 0 && early[i] != out[i] {
					t.Errorf("%s was %+v and became %+v", to[i], early[i], out[i])
				}
			}
		} else {
			for range to {
				out = append(out, connectOutcome(err))
			}
		}
		for i, a := range to {
			got = append(got, describe(a, &out[i]))
			if text := out[i].Text(); text != oneLine(text) || text == "" && out[i].Verdict != Later {
				t.Errorf("%s: the text is %q", a, text)
			}
			if out[i].Relay != relay {
				t.Errorf("%s: the relay is %q", a, out[i].Relay)
			}
		}
	}
	state := "closed"
	if err == nil {
		if s.Usable() {
			state = "open"
		}
		s.Close()
	}
	cancel()
	if err := <-served; err != nil {
		t.Errorf("server: %v", err)
	}
	if want := strings.Join(sc.Expect, "\n"); strings.Join(got, "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
	if sc.Session != "" && state != sc.Session {
		t.Errorf("the session is %s, want %s", state, sc.Session)
	}
}

// TestScenarios runs each scenario on a connection without any buffer and with a
// clock that does not run; what needs neither clock nor sudden ends runs on a TCP
// connection too.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scenarios", err)
	}
	count := 0
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		list, err := smtptest.ParseScenarios(f)
		f.Close()
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, sc := range list {
			count++
			if len(sc.To) == 0 || len(sc.Expect) == 0 {
				t.Fatalf("%s: %s: nothing is sent or expected", file, sc.Name)
			}
			name := strings.TrimSuffix(filepath.Base(file), ".txt") + "/" + sc.Name
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					client, server := smtptest.Pipe()
					play(t, sc, client, server)
				})
			})
			if sc.Script.Has("send", "silence", "stall", "close", "reset") {
				continue
			}
			t.Run(name+"/tcp", func(t *testing.T) {
				client, server := tcpPair(t)
				play(t, sc, client, server)
			})
		}
	}
	if count < 40 {
		t.Errorf("only %d scenarios", count)
	}
}

func tcpPair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return client, server
}
