package smarthost

import (
	"bufio"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	"dma/internal/config"
	"dma/internal/smtptest"
)

// scramServer is the server's side of SCRAM-SHA-256 as RFC 5802 section 3 has it,
// for one account, with one thing that is not as it should be.
type scramServer struct {
	user, password string
	quirk          string

	proved bool     // the client knows the password
	lines  []string // what the client said, responses decoded
}

func hmacSHA256(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// serve has one connection, with TLS from the first octet.
func (v *scramServer) serve(raw net.Conn) {
	defer raw.Close()
	c := tls.Server(raw, serverTLS("good"))
	br := bufio.NewReader(c)
	say := func(s string) { _, _ = io.WriteString(c, s+"\r\n") }
	say("220 relay.example ESMTP")
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return
		}
		verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch verb {
		case "EHLO":
			say("250-relay.example")
			say("250 AUTH SCRAM-SHA-256 PLAIN")
		case "AUTH":
			mech, initial, _ := strings.Cut(rest, " ")
			v.lines = append(v.lines, "AUTH "+mech)
			v.login(br, say, initial)
		default:
			v.lines = append(v.lines, verb)
			say("250 ok")
		}
	}
}

// login has the exchange after AUTH.
func (v *scramServer) login(br *bufio.Reader, say func(string), initial string) {
	hear := func() string {
		line, err := br.ReadString('\n')
		if err != nil {
			v.lines = append(v.lines, "gone")
			return ""
		}
		text, _ := base64.StdEncoding.DecodeString(strings.TrimSpace(line))
		v.lines = append(v.lines, string(text))
		return string(text)
	}
	first, _ := base64.StdEncoding.DecodeString(initial)
	bare, ok := strings.CutPrefix(string(first), "n,,")
	name, nonce, ok2 := strings.Cut(bare, ",r=")
	if !ok || !ok2 || name != "n="+v.user {
		say("535 5.7.8 not so")
		return
	}
	salt := []byte("any salt")
	const count = 4096
	serverFirst := fmt.Sprintf("r=%sserver's,s=%s,i=%d", nonce, base64.StdEncoding.EncodeToString(salt), count)
	say("334 " + b64(serverFirst))
	final := hear()
	without, proof, _ := strings.Cut(final, ",p=")
	salted, _ := pbkdf2.Key(sha256.New, v.password, salt, count, sha256.Size)
	message := bare + "," + serverFirst + "," + without
	stored := sha256.Sum256(hmacSHA256(salted, "Client Key"))
	key, _ := base64.StdEncoding.DecodeString(proof)
	for i, b := range hmacSHA256(stored[:], message) {
		if i < len(key) {
			key[i] ^= b
		}
	}
	v.proved = sha256.Sum256(key) == stored && without == "c=biws,r="+nonce+"server's"
	signature := hmacSHA256(hmacSHA256(salted, "Server Key"), message)
	switch v.quirk {
	case "another signature":
		signature[len(signature)-1] ^= 1
	case "short signature":
		signature = signature[:len(signature)-1]
	case "that of another message":
		signature = hmacSHA256(hmacSHA256(salted, "Server Key"), message+",")
	case "no signature":
		say("235 2.7.0 welcome")
		return
	}
	switch {
	case !v.proved && v.quirk == "says why":
		say("334 " + b64("e=invalid-proof"))
		hear()
		return
	case !v.proved:
		say("535 5.7.8 authentication failed")
		return
	}
	say("334 " + b64("v="+base64.StdEncoding.EncodeToString(signature)))
	if hear(); v.lines[len(v.lines)-1] == "gone" {
		return
	}
	if v.quirk == "refuses in the end" {
		say("535 5.7.8 disabled")
		return
	}
	say("235 2.7.0 welcome")
}

// TestScramWholeSession: each side proves to the other that it knows the password;
// a server that does not gets no mail.
func TestScramWholeSession(t *testing.T) {
	for _, c := range []struct {
		quirk, password string
		proved          bool
		want            string // "" is a session
		refused         bool
	}{
		{"", "pencil", true, "", false},
		{"", "pen", false, "535 5.7.8 authentication failed", true},
		{"says why", "pen", false, "AUTH: SCRAM-SHA-256: login refused: invalid-proof", true},
		{"refuses in the end", "pencil", true, "535 5.7.8 disabled", true},
		{"another signature", "pencil", true, "AUTH: SCRAM-SHA-256: the server's signature is wrong: it does not know the password", false},
		{"short signature", "pencil", true, "AUTH: SCRAM-SHA-256: the server's signature is wrong: it does not know the password", false},
		{"that of another message", "pencil", true, "AUTH: SCRAM-SHA-256: the server's signature is wrong: it does not know the password", false},
		{"no signature", "pencil", true, "AUTH: SCRAM-SHA-256: the relay has not shown that it knows the password", false},
	} {
		t.Run(c.quirk+" "+c.password, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				// A name that has to be escaped, and would be another one if it were not.
				v := &scramServer{user: "us=2Cer", password: "pencil", quirk: c.quirk}
				client, server := smtptest.Pipe()
				served := make(chan struct{})
				go func() {
					v.serve(server)
					close(served)
				}()
				told := 0
				creds := NewCredentials(CredentialOptions{File: writeAuth(t, "us,er|relay.example:"+c.password), Problem: func(config.Problem) { told++ }})
				cfg := Config{RootCAs: testPKI().roots, Credentials: creds, TLS: withPolicy(TLSPolicy{Level: TLSVerify, Start: StartAtOnce})}
				s, err := NewSession(t.Context(), cfg, client, Host{Name: "relay.example", Port: 465}, testIP)
				if err == nil {
					s.Close()
				}
				<-served
				got := ""
				if err != nil {
					o := connectOutcome(err)
					got = o.Text()
					if o.Verdict != Tempfail || isRefused(err) != c.refused || (told > 0) != c.refused {
						t.Errorf("%+v, told %d times", o, told)
					}
				}
				if got != c.want || v.proved != c.proved {
					t.Errorf("got %q, want %q; proved %v", got, c.want, v.proved)
				}
				said := strings.Join(v.lines, "\n")
				if strings.Contains(said, "pencil") || strings.Contains(said, "PLAIN") || strings.Contains(said, "MAIL") {
					t.Errorf("the client said %q", v.lines)
				}
				if err != nil && !c.refused && v.quirk != "no signature" && v.lines[len(v.lines)-1] != "gone" {
					t.Errorf("after the wrong signature the client said %q", v.lines[len(v.lines)-1])
				}
			})
		})
	}
}
