package smarthost

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dma/internal/config"
)

// tableCases reads lines, each with indented lines below it that say what is to
// come of it.
func tableCases(t *testing.T, path string) (lines []string, wants map[string][]string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	wants = make(map[string][]string)
	for line := range strings.SplitSeq(string(data), "\n") {
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '\t':
			last := lines[len(lines)-1]
			wants[last] = append(wants[last], line[1:])
		default:
			lines = append(lines, line)
		}
	}
	return lines, wants
}

// showPolicy writes a policy as the file has it.
func showPolicy(p TLSPolicy) string {
	s := p.Level.String()
	switch p.Start {
	case StartTLS:
		s += " starttls"
	case StartAtOnce:
		s += " implicit"
	}
	match := append([]string(nil), p.Names...)
	for _, f := range p.Fingerprints {
		match = append(match, f.String())
	}
	if len(match) > 0 {
		s += " match=" + strings.Join(match, ",")
	}
	return s
}

func TestParsePolicies(t *testing.T) {
	lines, wants := tableCases(t, "testdata/tlspolicy.table")
	for _, line := range lines {
		entries, problems := parsePolicies("/etc/dma/tls", []byte("# first\n\n"+line+"\r\n"))
		got := ""
		switch {
		case len(problems) > 1 || len(problems) == 1 && (problems[0].Line != 3 || problems[0].File != "/etc/dma/tls"):
			t.Errorf("%s: %v", line, problems)
		case len(entries) == 1 && len(problems) == 1 && entries[0].bad:
			got = "bad: " + problems[0].Text
		case len(entries) == 1 && len(problems) == 0 && entries[0].line == 3:
			got = entries[0].name() + " " + showPolicy(entries[0].policy)
		}
		if want := wants[line][0]; got != want {
			t.Errorf("%s\ngot  %s\nwant %s", line, got, want)
		}
	}
}

// TestFindPolicy: the more a destination says, the more it counts.
func TestFindPolicy(t *testing.T) {
	text := "* may\n.example encrypt\n.b.example none\na.b.example verify\na.b.example:587 encrypt implicit\na.b.example verify starttls\n[192.0.2.1] none\nbad.example what\nmx.example fingerprint\n"
	entries, problems := parsePolicies("f", []byte(text))
	if len(problems) != 2 {
		t.Fatal(problems)
	}
	for in, want := range map[string]string{
		"x.org:25": "may", "example:25": "may", "a.example:25": "encrypt", "x.b.example:25": "none", "x.y.b.example:25": "none",
		"b.example:25": "encrypt", "a.b.example:25": "verify starttls", "a.b.example:587": "encrypt implicit", "[192.0.2.1]:9": "none", "[192.0.2.2]:9": "may",
	} {
		h, why := parseHost(in, 25)
		if e := findPolicy(entries, h); why != "" || e == nil || showPolicy(e.policy) != want {
			t.Errorf("%s: %+v, want %s", in, e, want)
		}
	}
	if e := findPolicy(entries, Host{Name: "mx.other.org", Domain: "bad.example", Port: 25}); e == nil || !e.bad || e.line != 8 {
		t.Errorf("%+v", e)
	}
	idn, _ := parsePolicies("f", []byte("b\u00fccher.example verify match=.b\u00fccher.example\n"))
	for _, name := range []string{"b\u00fccher.example", "xn--bcher-kva.example"} {
		e := findPolicy(idn, Host{Name: name, Port: 25})
		if e == nil || showPolicy(e.policy) != "verify match=.xn--bcher-kva.example" {
			t.Errorf("%s: %+v", name, e)
		}
	}
	if e := findPolicy(entries[1:], Host{Name: "x.org", Port: 25}); e != nil {
		t.Errorf("%+v", e)
	}
}

// TestKeysPolicy maps the keys of C dma: S SECURETRANSFER, T STARTTLS, O
// OPPORTUNISTIC_TLS, V VERIFYCERT yes, v VERIFYCERT no, F FINGERPRINT, I INSECURE,
// each without and with credentials.
func TestKeysPolicy(t *testing.T) {
	const print = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	for _, c := range []struct{ keys, without, with string }{
		{"", "may", "verify"},
		{"I", "may", "verify"},
		{"O", "may", "verify"},
		{"v", "may", "may"},
		{"V", "verify", "verify"},
		{"S", "encrypt implicit", "verify implicit"},
		{"SO", "encrypt implicit", "verify implicit"},
		{"Sv", "encrypt implicit", "encrypt implicit"},
		{"SV", "verify implicit", "verify implicit"},
		{"T", "encrypt starttls", "verify starttls"},
		{"ST", "encrypt starttls", "verify starttls"},
		{"STv", "encrypt starttls", "encrypt starttls"},
		{"STV", "verify starttls", "verify starttls"},
		{"TO", "may starttls", "verify starttls"},
		{"STO", "may starttls", "verify starttls"},
		{"STOv", "may starttls", "may starttls"},
		{"STOV", "verify starttls", "verify starttls"},
		{"F", "fingerprint match=" + print, "fingerprint match=" + print},
		{"STF", "fingerprint starttls match=" + print, "fingerprint starttls match=" + print},
		{"STOFv", "fingerprint starttls match=" + print, "fingerprint starttls match=" + print},
		{"SFV", "verify implicit match=" + print, "verify implicit match=" + print},
	} {
		k := config.Default()
		has := func(s string) bool { return strings.Contains(c.keys, s) }
		k.SecureTransfer, k.StartTLS, k.OpportunisticTLS, k.Insecure = has("S"), has("T"), has("O"), has("I")
		switch {
		case has("V"):
			k.VerifyCert = config.Yes
		case has("v"):
			k.VerifyCert = config.No
		}
		if has("F") {
			k.Fingerprint = print
		}
		if got := showPolicy(KeysPolicy(k, false)); got != c.without {
			t.Errorf("%s: %s, want %s", c.keys, got, c.without)
		}
		if got := showPolicy(KeysPolicy(k, true)); got != c.with {
			t.Errorf("%s with credentials: %s, want %s", c.keys, got, c.with)
		}
	}
}

// TestTLSPolicies: the file counts before the keys, is read when it has changed,
// and a file that is not there lets nothing pass.
func TestTLSPolicies(t *testing.T) {
	c := config.Default()
	c.File, c.Insecure = "/etc/dma/dma.conf", true
	var problems []string
	tell := func(p config.Problem) { problems = append(problems, p.String()) }
	p := NewTLSPolicies(c, tell)
	if len(problems) != 1 || !strings.HasPrefix(problems[0], "/etc/dma/dma.conf: INSECURE has no effect") {
		t.Error(problems)
	}
	a := Host{Name: "a.example", Port: 25}
	if got, err := p.For(a, true); err != nil || got.Level != TLSVerify {
		t.Error(got, err)
	}
	c.Insecure, c.TLSPolicy = false, filepath.Join(t.TempDir(), "tls")
	p = NewTLSPolicies(c, tell)
	problems = nil
	if _, err := p.For(a, false); err == nil || !strings.Contains(err.Error(), c.TLSPolicy) {
		t.Error(err)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(c.TLSPolicy, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("b.example none\nbad.example x\n* may\n")
	for range 2 {
		if got, err := p.For(a, false); err != nil || got.Level != TLSMay {
			t.Error(got, err)
		}
	}
	if _, err := p.For(Host{Name: "bad.example", Port: 25}, false); err == nil || !strings.Contains(err.Error(), c.TLSPolicy+":2: the policy for bad.example") {
		t.Error(err)
	}
	if len(problems) != 1 {
		t.Error(problems)
	}
	// A destination that cannot be read may be any: only who has a line of its own
	// does not wait, and no line for many hosts stands in for it.
	problems = nil
	write("b.example encrypt\n* may\n.example may\na..example verify\n")
	if _, err := p.For(a, false); err == nil || err.Error() != c.TLSPolicy+":4 cannot be read, and may be for a.example:25" {
		t.Error(err)
	}
	if got, err := p.For(Host{Name: "b.example", Port: 25}, false); err != nil || got.Level != TLSEncrypt {
		t.Error(got, err)
	}
	if len(problems) != 1 || !strings.HasPrefix(problems[0], c.TLSPolicy+":4: destination \"a..example\"") {
		t.Error(problems)
	}
	write("a.example encrypt\n")
	if got, err := p.For(a, false); err != nil || got.Level != TLSEncrypt {
		t.Error(got, err)
	}
}

func FuzzParsePolicies(f *testing.F) {
	for _, s := range []string{"a verify match=.b,c\n", "* none\n.x may\n", "[::1]:25 fingerprint match=" + strings.Repeat("00:", 31) + "00", "a:0 b\n", ". x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		entries, problems := parsePolicies("f", []byte(s))
		for _, p := range problems {
			if p.Text != oneLine(p.Text) || p.Line < 1 {
				t.Fatalf("%q: %+v", s, p)
			}
		}
		for _, e := range entries {
			if e.bad {
				continue
			}
			line := e.name() + " " + showPolicy(e.policy)
			again, problems := parsePolicies("f", []byte(line))
			if len(problems) > 0 || len(again) != 1 || again[0].name()+" "+showPolicy(again[0].policy) != line {
				t.Fatalf("%q: %q is read as %v, %v", s, line, again, problems)
			}
		}
	})
}

// TestOwnTrouble: a policy or a credentials file that cannot be read is trouble of
// our own side; nobody is connected to.
func TestOwnTrouble(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "no such file")
	c := config.Default()
	c.TLSPolicy = missing
	var problems []string
	for name, cfg := range map[string]Config{
		"a@x tempfail 4.3.5 TLS -": {TLS: NewTLSPolicies(c, nil).For},
		"a@x tempfail 4.3.5 credentials -": {Credentials: NewCredentials(CredentialOptions{File: missing, Problem: func(p config.Problem) {
			problems = append(problems, p.String())
		}})},
	} {
		v := &tlsServer{}
		base := relayTo(t, v, false)
		cfg.Dial, cfg.Hosts, cfg.Resolver = base.Dial, base.Hosts, base.Resolver
		r := New(cfg)
		out := outcomes(context.Background(), r, testMessage(0, "a@x"))
		r.Close()
		if got := describe("a@x", &out[0]); got != name || v.dials != 0 || strings.Contains(out[0].Text(), missing) != strings.Contains(name, "TLS") {
			t.Errorf("%s; %s; %d connections", got, out[0].Text(), v.dials)
		}
	}
	if len(problems) != 1 || problems[0] != missing+": the logins cannot be read, and mail waits: no such file or directory" {
		t.Errorf("%q", problems)
	}
	if fmt.Sprint(TLSLevel(0), TLSLevel(99), TLSVerify) != "tlslevel(0) tlslevel(99) verify" {
		t.Error(TLSLevel(0), TLSLevel(99))
	}
}
