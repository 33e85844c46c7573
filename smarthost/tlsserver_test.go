package smarthost

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"io"
	"net"
	"strings"
	"sync"

	"dma/internal/smtptest"
)

const (
	testUser   = "somebody"
	testSecret = "open sesame, 1001 nights"
)

// tlsServer is a relay that does TLS and AUTH, and one thing as it should not.
type tlsServer struct {
	cert     string // "" is good
	quirk    string
	implicit bool
	clients  bool // asks for a certificate

	mu    sync.Mutex
	clear bytes.Buffer // all that came in clear text, of all connections
	lines []string     // the commands, with "TLS" where it began
	dials int
	said  string // SNI
	names []string
}

// Dial is that of a Config: it connects to the server.
func (v *tlsServer) Dial(_ context.Context, _, addr string) (net.Conn, error) {
	v.mu.Lock()
	v.dials++
	v.mu.Unlock()
	client, server := smtptest.Pipe()
	go v.serve(server)
	return client, nil
}

// recorded keeps what is read.
type recorded struct {
	net.Conn
	v *tlsServer
}

func (r *recorded) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	r.v.mu.Lock()
	defer r.v.mu.Unlock()
	r.v.clear.Write(b[:n]) // what TLS makes of it is no clear text either
	return n, err
}

func (v *tlsServer) config() *tls.Config {
	name := v.cert
	if name == "" {
		name = "good"
	}
	c := serverTLS(name)
	c.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.said = h.ServerName
		return nil, nil
	}
	if v.clients {
		c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, testPKI().roots
	}
	if v.quirk == "tls1.1" {
		c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	}
	return c
}

func (v *tlsServer) note(line string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.lines = append(v.lines, line)
}

// commands returns the commands of all connections, without arguments.
func (v *tlsServer) commands() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return strings.Join(v.lines, " ")
}

// serve has one connection. Errors end it: the client says what it made of that.
func (v *tlsServer) serve(raw net.Conn) {
	defer raw.Close()
	conn := net.Conn(&recorded{raw, v})
	br := bufio.NewReader(conn)
	secure, login := false, false
	say := func(s string) { _, _ = io.WriteString(conn, s+"\r\n") }
	begin := func() bool {
		c := tls.Server(conn, v.config())
		if c.Handshake() != nil {
			return false
		}
		v.note("TLS")
		v.mu.Lock()
		for _, cert := range c.ConnectionState().PeerCertificates {
			v.names = append(v.names, cert.DNSNames...)
		}
		v.mu.Unlock()
		conn, secure = c, true
		br.Reset(conn)
		return true
	}
	if v.implicit && !begin() {
		return
	}
	say("220 relay.example ESMTP")
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSpace(line)
		verb, rest, _ := strings.Cut(line, " ")
		v.note(verb)
		switch verb {
		case "EHLO":
			if v.quirk == "helo" || v.quirk == "no ehlo after tls" && secure {
				say("502 what")
				continue
			}
			say("250-relay.example")
			if !secure && v.quirk != "no starttls" {
				say("250-STARTTLS")
			}
			switch {
			case v.quirk == "no auth", v.quirk == "auth before tls" && secure:
			case v.quirk == "unknown auth":
				say("250-AUTH GSSAPI NTLM")
			default:
				say("250-AUTH PLAIN LOGIN")
			}
			say("250 PIPELINING")
		case "STARTTLS":
			switch v.quirk {
			case "454", "421", "250":
				say(v.quirk + " no")
				continue
			case "inject":
				say("220 go\r\n250 2.0.0 from somebody else")
				_, _ = io.Copy(io.Discard, br)
				return
			case "close":
				return
			}
			say("220 go")
			switch v.quirk {
			case "close in handshake":
				_, _ = br.ReadByte()
				return
			case "hang in handshake":
				_, _ = io.Copy(io.Discard, br)
				return
			case "clear handshake":
				_, _ = br.ReadByte()
				go func() { _, _ = io.Copy(io.Discard, br) }()
				say("500 what is this supposed to be, please?")
				return
			}
			if !begin() {
				return
			}
		case "AUTH":
			want := "PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00"+testUser+"\x00"+testSecret))
			if login = rest == want && v.quirk != "refuse login"; login {
				say("235 2.7.0 welcome")
			} else {
				say("535 5.7.8 go away, " + rest)
			}
		case "MAIL", "RCPT", "RSET", "HELO":
			say("250 ok")
		case "DATA":
			say("354 go")
			for line := ""; err == nil && line != ".\r\n"; {
				line, err = br.ReadString('\n')
			}
			state := "message"
			if login {
				state = "message+login"
			}
			v.note(state)
			say("250 ok")
		case "QUIT":
			say("221 bye")
			return
		default:
			say("500 what")
		}
	}
}
