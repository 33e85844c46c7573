package smarthost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"dma/internal/config"
)

func TestParseAuth(t *testing.T) {
	lines, wants := tableCases(t, "testdata/credentials.table")
	for _, line := range lines {
		entries, problems := parseAuth("/etc/dma/auth.conf", []byte("# login|host:password\n\n"+line+"\r\n"), true)
		if len(entries) != 1 || entries[0].line != 3 || len(problems) > 1 || len(problems) == 1 && problems[0].Line != 3 {
			t.Errorf("%s: %v, %v", line, entries, problems)
			continue
		}
		e := &entries[0]
		var got []string
		switch {
		case e.bad:
			got = append(got, "bad: "+problems[0].Text)
		default:
			secret := "-"
			if !e.secret.IsZero() {
				secret = fmt.Sprintf("%q", e.secret.reveal())
			}
			got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", destinationName(e.host), e.user, secret, e.mechanism)))
			if len(problems) > 0 {
				got = append(got, "problem: "+problems[0].Text)
			}
		}
		if strings.Join(got, "\n") != strings.Join(wants[line], "\n") {
			t.Errorf("%s\ngot  %s\nwant %s", line, got, wants[line])
		}
	}
	_, problems := parseAuth("f", []byte("me|a\n"), false)
	if len(problems) != 1 || !strings.Contains(problems[0].Text, "no PASSWORDCMD") {
		t.Error(problems)
	}
}

func TestFindAuth(t *testing.T) {
	text := "1|a.example:x\n2|a.example:587:x\n3|a.example:x\n4|domain.example:x\n5|[192.0.2.1]:x\n|bad.example:x\n|both.example:x\n8|both.example:x\n"
	entries, _ := parseAuth("f", []byte(text), false)
	for _, c := range []struct {
		h    Host
		want string
	}{
		{Host{Name: "a.example", Port: 25}, "3"},
		{Host{Name: "a.example", Port: 587}, "2"},
		{Host{Name: "mx.example", Domain: "domain.example", Port: 25}, "4"},
		{Host{Name: "a.example", Domain: "domain.example", Port: 25}, "3"},
		{Host{Name: "both.example", Port: 25}, "8"},
		{Host{Name: "bad.example", Port: 25}, "bad 6"},
		{Host{Name: "other.example", Port: 25}, ""},
	} {
		got := ""
		if e := findAuth(entries, c.h); e != nil {
			if got = e.user; e.bad {
				got = fmt.Sprint("bad ", e.line)
			}
		}
		if got != c.want {
			t.Errorf("%+v: %q, want %q", c.h, got, c.want)
		}
	}
	// A line that could be for any host is: better no mail than mail without login.
	entries, _ = parseAuth("f", []byte("1|a.example:x\nme other.example x\n"), false)
	if e := findAuth(entries, Host{Name: "other.example", Port: 25}); e == nil || !e.bad {
		t.Errorf("%+v", e)
	}
	if e := findAuth(entries, Host{Name: "a.example", Port: 25}); e == nil || e.bad {
		t.Errorf("%+v", e)
	}
}

func TestCredentialsFile(t *testing.T) {
	path := writeAuth(t, "me|relay.example:one\n")
	var problems []config.Problem
	c := NewCredentials(CredentialOptions{File: path, Problem: func(p config.Problem) { problems = append(problems, p) }})
	h := Host{Name: "relay.example", Port: 25}
	expect := func(secret string, wantProblems int) {
		t.Helper()
		l, err := c.lookup(t.Context(), h)
		got := ""
		if l != nil {
			got = l.secret.reveal()
		}
		if err != nil || got != secret || len(problems) != wantProblems {
			t.Errorf("%q, %v, %v", got, err, problems)
		}
	}
	expect("one", 0)
	if err := os.WriteFile(path, []byte("me|relay.example:two\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect("two", 0)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	expect("two", 1)
	expect("two", 1) // said once
	if want := path + ": its mode is 0644: everybody on this host can read the passwords; chmod o-rw " + path; problems[0].String() != want {
		t.Error(problems[0])
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	expect("", 1)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for range 2 { // said once
		if _, err := c.lookup(t.Context(), h); !errors.Is(err, os.ErrNotExist) || err.Error() != "our logins cannot be read" {
			t.Error(err)
		}
	}
	if want := path + ": the logins cannot be read, and mail waits: no such file or directory"; len(problems) != 2 || problems[1].String() != want {
		t.Error(problems)
	}
	var none *Credentials
	if l, err := none.lookup(t.Context(), h); l != nil || err != nil {
		t.Error(l, err)
	}
}

// TestRefusalForgotten: a file that has changed gives a login another chance.
func TestRefusalForgotten(t *testing.T) {
	path := writeAuth(t, "me|relay.example:one\n")
	c := NewCredentials(CredentialOptions{File: path})
	h := Host{Name: "relay.example", Port: 25}
	l, err := c.lookup(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if c.refused(l, &Error{Command: "AUTH", Err: errors.New("no")}) {
			t.Error("there is no other secret")
		}
	}
	var refused *refusedError
	if _, err := c.lookup(t.Context(), h); !errors.As(err, &refused) || strings.Contains(err.Error(), "one;") {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte("# mended\nme|relay.example:one\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.lookup(t.Context(), h); err != nil {
		t.Error(err)
	}
}

// TestCommandTrouble: a command that fails, hangs or prints what is no secret is
// trouble of our own side, and is asked again the next time.
func TestCommandTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var say string
		var fail error
		told := ""
		tell := func(p config.Problem) { told = fmt.Sprintf("%d: %s", p.Line, p.Text) }
		c := NewCredentials(CredentialOptions{File: writeAuth(t, "me|relay.example\n"), Problem: tell, Command: func(ctx context.Context, _, _ string) (string, error) {
			if say == "hang" {
				<-ctx.Done()
				return "", ctx.Err()
			}
			return say, fail
		}})
		for _, x := range []struct {
			say  string
			fail error
			want string
		}{
			{"", errors.New("exit status 1"), "PASSWORDCMD for me: exit status 1"},
			{"\n", nil, "PASSWORDCMD for me: what it prints is empty"},
			{"a\nb\n", nil, "PASSWORDCMD for me: what it prints has control characters or more than one line"},
			{strings.Repeat("x", maxSecret+1), nil, "PASSWORDCMD for me: what it prints is longer than 8192 octets"},
			{"hang", nil, "PASSWORDCMD for me: context deadline exceeded"},
		} {
			say, fail = x.say, x.fail
			start := time.Now()
			_, err := c.lookup(t.Context(), Host{Name: "relay.example", Port: 25})
			if err == nil || err.Error() != "our password for it cannot be had" || told != "1: "+x.want || time.Since(start) > 30*time.Second {
				t.Errorf("%v, told %s, want %s", err, told, x.want)
			}
		}
		say, fail = "good\r\n", nil
		if l, err := c.lookup(t.Context(), Host{Name: "relay.example", Port: 25}); err != nil || l.secret.reveal() != "good" || l.given {
			t.Error(l, err)
		}
		say = "better"
		if l, err := c.lookup(t.Context(), Host{Name: "relay.example", Port: 25}); err != nil || l.secret.reveal() != "good" || !l.given {
			t.Error(l, err)
		}
	})
}

// TestSecretsStayIn: whatever a server answers to a login, and whatever is wrong
// with the file, no error, outcome or problem has the secret in it.
func TestSecretsStayIn(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		secret := rapid.StringMatching(`[!-~]{6,40}`).Draw(rt, "secret")
		forms := []string{secret, b64(secret), b64("\x00me\x00" + secret)}
		show := rapid.SampledFrom(append(forms, "nothing")).Draw(rt, "show")
		code := rapid.SampledFrom([]string{"535 5.7.8", "535", "454", "421", "250", "500", "334", "xyz", "535-a\r\n535", "354"}).Draw(rt, "code")
		mech := rapid.SampledFrom([]string{"PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256", "XOAUTH2", "OAUTHBEARER"}).Draw(rt, "mechanism")
		answer := fmt.Sprintf("send 1 %q\nsilence", code+" "+show+"\r\n")
		script := "hello AUTH " + mech + "\nC: AUTH\n" + answer
		if rapid.Bool().Draw(rt, "later") {
			script = "hello AUTH " + mech + "\nC: AUTH\nS: 334 " + b64("a challenge") + "\n" + answer
		}
		var seen strings.Builder
		synctest.Test(t, func(t *testing.T) {
			state := filepath.Join(t.TempDir(), "logins")
			_, creds, err := converse(t, "me|relay.example "+secret, script, func(o *CredentialOptions) {
				o.State, o.Problem = state, func(p config.Problem) { fmt.Fprint(&seen, p) }
			})
			if kept, err := os.ReadFile(state); err == nil {
				fmt.Fprintf(&seen, "%s", kept)
			}
			if err != nil {
				o := connectOutcome(err)
				fmt.Fprintf(&seen, "%v %+v %#v %v %+v %s", err, err, err, o, o, o.Text())
				if text, err := json.Marshal(o); err == nil {
					seen.Write(text)
				}
			}
			l, err := creds.lookup(t.Context(), Host{Name: "relay.example", Port: 465})
			fmt.Fprintf(&seen, "%v %+v %#v %v %+v %#v %+v %#v", l, l, l, err, creds.entries, creds.entries, creds.refusals, creds)
		})
		for _, bad := range []string{
			"me relay.example ", "|relay.example:", "me|:", "me|[x ", "me;AUTH=X|relay.example:", "me|relay.example:\x00",
		} {
			_, problems := parseAuth("f", []byte(bad+secret), false)
			fmt.Fprint(&seen, problems)
		}
		for _, s := range forms {
			if strings.Contains(seen.String(), s) {
				rt.Fatalf("%q is in %s", s, seen.String())
			}
		}
	})
}

func FuzzParseAuth(f *testing.F) {
	for _, s := range []string{"me|relay.example:secret\n", "me;AUTH=PLAIN|[::1]:587:x", "a|b c\nd|e\tf\n|", "x|y:1:2:3", "\xff|a:b", "a|[", "a|b:\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		entries, problems := parseAuth("f", []byte(s), true)
		for _, p := range problems {
			if p.Text != oneLine(p.Text) || p.Line < 1 {
				t.Fatalf("%q: %+v", s, p)
			}
		}
		for i := range entries {
			e := &entries[i]
			if e.bad {
				continue
			}
			user := e.user
			if e.mechanism != "" {
				user += ";AUTH=" + e.mechanism
			}
			line := user + "|" + destinationName(e.host) + ":" + e.secret.reveal()
			if e.host.Port == 0 {
				line = user + "|" + destinationName(e.host) + "|" + e.secret.reveal()
			}
			again, _ := parseAuth("f", []byte(line), true)
			if len(again) != 1 || again[0].bad || again[0].user != e.user || again[0].host != e.host || !again[0].secret.equal(e.secret) || again[0].mechanism != e.mechanism {
				t.Fatalf("%q: %q is read as %+v, not %+v", s, line, again, e)
			}
		}
	})
}
