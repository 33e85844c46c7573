package rewrite

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"dma/internal/config"
	"dma/internal/mapfile"
)

// withMap returns a Rewriter for host.example with a map of this text.
func withMap(t testing.TB, user, host, text string) (*Rewriter, []string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "map")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var problems []string
	r := New(Config{HostName: "Host.Example", Local: []string{"local.example."}, User: user, Host: host, Map: path, Problem: func(p config.Problem) {
		problems = append(problems, strings.TrimPrefix(p.String(), path+":"))
	}})
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	return r, problems
}

const testMap = `# who is who
alice: alice.a@world.example
bob   bob@world.example   # the builder
bob@local.example : b2@world.example
friend@other.example me@world.example
carol dave
dave alice
frank gina
erin erin@local.example
"a b": ab@world.example
`

func TestEnvelope(t *testing.T) {
	for _, c := range []struct{ user, host, in, want string }{
		{"", "", "", ""},
		{"u", "masq.example", "", ""},
		{"", "", "x", "x@host.example"},
		{"", "", "x@host.example", "x@host.example"},
		{"", "", "x@HOST.example.", "x@HOST.example."},
		{"", "", "x@localhost", "x@localhost"},
		{"", "", "not an address", "not an address"},
		{"", "masq.example", "x", "x@masq.example"},
		{"", "masq.example", "x@localhost", "x@masq.example"},
		{"", "masq.example", "x@Host.Example", "x@masq.example"},
		{"", "masq.example", "x@local.example", "x@masq.example"},
		{"", "masq.example", "x@sub.local.example", "x@sub.local.example"},
		{"", "masq.example", "x@other.example", "x@other.example"},
		{"", "masq.example", "x@[192.0.2.1]", "x@[192.0.2.1]"},
		{"u", "", "x", "u@host.example"},
		{"u", "", "x@local.example", "u@local.example"},
		{"u", "", "x@other.example", "x@other.example"},
		{"u", "masq.example", "x@localhost", "u@masq.example"},
		{"\"u v\"", "masq.example", "x", "\"u v\"@masq.example"},
		{"", "", "alice", "alice.a@world.example"},
		{"", "masq.example", "alice@localhost", "alice.a@world.example"},
		{"u", "masq.example", "Alice@local.example", "alice.a@world.example"},
		{"", "", "bob@host.example", "bob@world.example"},
		{"", "", "bob@local.example", "b2@world.example"},
		{"", "", "friend@other.example", "me@world.example"},
		{"", "", "alice@other.example", "alice@other.example"},
		{"", "", "carol", "alice.a@world.example"},
		{"", "masq.example", "carol", "alice.a@world.example"},
		{"", "masq.example", "frank", "gina@masq.example"},
		{"", "", "frank@localhost", "gina@host.example"},
		{"", "masq.example", "erin", "erin@local.example"},
		{"", "other.example", "friend", "me@world.example"},
		{"", "", "\"a b\"@localhost", "ab@world.example"},
	} {
		r, problems := withMap(t, c.user, c.host, testMap)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		got := r.Envelope(c.in)
		if got != c.want {
			t.Errorf("%s@%s: %s became %s, want %s", c.user, c.host, c.in, got, c.want)
		}
		if again := r.Envelope(got); again != got {
			t.Errorf("%s@%s: %s became %s, then %s", c.user, c.host, c.in, got, again)
		}
	}
}

func TestMapProblems(t *testing.T) {
	_, problems := withMap(t, "", "", "alice\n\n#x\na b c\n<>: x@y\nx: \nbad@@y z\nx y@\nok: ok@world.example\r\na: b\nb: c@localhost\nc: a\nd: a\ne#f: g\nself: self\n")
	want := []string{
		`1: an address is missing after alice; the line is ignored`,
		`4: address "b c": a blank must be in quotes; the line is ignored`,
		`5: address "<>": empty; the line is ignored`,
		`6: an address is missing after x; the line is ignored`,
		`7: address "bad@@y": more than one @; the line is ignored`,
		`8: address "y@": no domain after the @; the line is ignored`,
		`10: rewriting goes in a circle; the line is ignored`,
		`11: rewriting goes in a circle; the line is ignored`,
		`12: rewriting goes in a circle; the line is ignored`,
		`13: rewriting goes in a circle; the line is ignored`,
	}
	if !slices.Equal(problems, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(problems, "\n"), strings.Join(want, "\n"))
	}
	_, problems = withMap(t, "", "", strings.Repeat("x\n", 1000))
	if len(problems) != mapfile.MaxProblems+1 {
		t.Errorf("%d problems", len(problems))
	}
}

func TestReload(t *testing.T) {
	r, _ := withMap(t, "", "", "a: one@world.example\n")
	expect := func(want string) {
		t.Helper()
		if err := r.Reload(); err != nil {
			t.Fatal(err)
		}
		if got := r.Envelope("a"); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	expect("one@world.example")
	if err := os.WriteFile(r.c.Map, []byte("a: two@world.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect("two@world.example")
	if err := os.Remove(r.c.Map); err != nil {
		t.Fatal(err)
	}
	if err := r.Reload(); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := New(Config{HostName: "h"}).Reload(); err != nil {
		t.Error(err)
	}
}

// header runs Header and returns all of the result.
func header(t interface{ Fatalf(string, ...any) }, r *Rewriter, in string) string {
	src, size, err := r.Header(strings.NewReader(in), int64(len(in)))
	if err != nil {
		t.Fatalf("%v: %q", err, in)
	}
	out, err := io.ReadAll(io.NewSectionReader(src, 0, size))
	if err != nil || int64(len(out)) != size {
		t.Fatalf("%d octets of %d, %v: %q", len(out), size, err, in)
	}
	return string(out)
}

func TestHeader(t *testing.T) {
	r, _ := withMap(t, "", "masq.example", testMap)
	for _, c := range []struct{ in, want string }{
		{"From: root (Cron Daemon)\n\nFrom: root\n", "From: root@masq.example (Cron Daemon)\n\nFrom: root\n"},
		{"From: x@localhost\r\nTo: x@localhost\r\n\r\n", "From: x@masq.example\r\nTo: x@localhost\r\n\r\n"},
		{"FROM :\n\t\"Smith, \\\"J\\\"\" <alice@host.example>\nX: <alice>\n", "FROM :\n\t\"Smith, \\\"J\\\"\" <alice.a@world.example>\nX: <alice>\n"},
		{"Sender: alice\nReply-To: bob, Carl <x@local.example> (c), y@other.example\n\n", "Sender: alice.a@world.example\nReply-To: bob@world.example, Carl <x@masq.example> (c), y@other.example\n\n"},
		{"Resent-From: alice\nResent-Sender: <x>\nResent-Reply-To: x\nResent-To: x\n\n", "Resent-From: alice.a@world.example\nResent-Sender: <x@masq.example>\nResent-Reply-To: x@masq.example\nResent-To: x\n\n"},
		{"Reply-To: team: alice, <x>;, undisclosed:;\n\n", "Reply-To: team: alice.a@world.example, <x@masq.example>;, undisclosed:;\n\n"},
		{"From: <@a,@b:x@localhost>\n\n", "From: <@a,@b:x@localhost>\n\n"},
		{"From: x @ localhost\n\n", "From: x @ localhost\n\n"},
		{"From: \"Full Name\"\n\n", "From: \"Full Name\"\n\n"},
		{"From: Full Name\n\n", "From: Full Name\n\n"},
		{"From: \"a b\"@localhost\n\n", "From: ab@world.example\n\n"},
		{"From: <>\nSender: <\nReply-To: (x\n\n", "From: <>\nSender: <\nReply-To: (x\n\n"},
		{"From: x, <y> z\n\n", "From: x, <y> z\n\n"},
		{"From: X@LOCALHOST\n\n", "From: X@masq.example\n\n"},
		{"From: =?utf-8?q?J=C3=B6rg?= <x>\n\n", "From: =?utf-8?q?J=C3=B6rg?= <x@masq.example>\n\n"},
		{"From: J\u00f6rg <x>\n\n", "From: J\u00f6rg <x@masq.example>\n\n"},
		{"From: x", "From: x@masq.example"},
		{"From x Mon\nFrom: x\n", "From x Mon\nFrom: x@masq.example\n"},
		{"no colon\n From: x\nFrom: x\n\n", "no colon\n From: x\nFrom: x@masq.example\n\n"},
		{"", ""}, {"\nFrom: x\n", "\nFrom: x\n"},
	} {
		if got := header(t, r, c.in); got != c.want {
			t.Errorf("%q\ngot  %q\nwant %q", c.in, got, c.want)
		}
		if again := header(t, r, c.want); again != c.want {
			t.Errorf("%q is not stable: %q", c.want, again)
		}
	}
}

// TestHeaderLarge: what is beyond the bound stays, and a field across it too.
func TestHeaderLarge(t *testing.T) {
	r, _ := withMap(t, "", "masq.example", "")
	filler := strings.Repeat("X: "+strings.Repeat("y", 60)+"\n", maxHeader/64)
	for _, c := range []struct{ in, want string }{
		{filler[64*100:] + "From: x\n\n", filler[64*100:] + "From: x@masq.example\n\n"},
		{"From: x\n" + filler + "Sender: x\n\nbody", "From: x@masq.example\n" + filler + "Sender: x\n\nbody"},
		{filler[:maxHeader-7] + "\nFrom: x,\n y\n\n", ""},
		{"From: x,\n " + strings.Repeat("y,\n ", maxHeader/4) + "\n\n", ""},
		{"From: x\n\n" + filler, "From: x@masq.example\n\n" + filler},
	} {
		if c.want == "" {
			c.want = c.in
		}
		if got := header(t, r, c.in); got != c.want {
			t.Errorf("%.80q of %d octets became %d", c.in, len(c.in), len(got))
		}
	}
}

func TestHeaderUnreadable(t *testing.T) {
	r, _ := withMap(t, "", "masq.example", "")
	in := "From: x\n\nbody\n"
	if _, _, err := r.Header(strings.NewReader(in), 100); !errors.Is(err, io.ErrUnexpectedEOF) {
		// The header ends before the missing octets; they are missed later.
		src, size, err := r.Header(strings.NewReader(in), int64(len(in))+1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(io.NewSectionReader(src, 0, size)); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Error(err)
		}
	}
	if _, _, err := r.Header(errorReader{}, 10); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	src, size, err := r.Header(strings.NewReader(in), int64(len(in)))
	if err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(io.NewSectionReader(src, 0, size), []byte("From: x@masq.example\n\nbody\n")); err != nil {
		t.Error(err)
	}
	if n, err := src.ReadAt(make([]byte, 1), size); n != 0 || err != io.EOF {
		t.Error(n, err)
	}
}

type errorReader struct{}

func (errorReader) ReadAt([]byte, int64) (int, error) { return 0, syscall.EIO }

var pieces = []string{"From", ":", "Sender: ", "Reply-To:", "alice", "bob", "@", "localhost", "host.example", "other.example", "<", ">", "\"", "\\", "(", ")", ",", ";", " ", "\t", "\n", "\r\n", "\n ", "[1.2.3.4]", "\u00e9", "\xff", "x", "carol@local.example"}

// TestHeaderProperties: lines stay lines, only senders change, and a second time
// changes nothing.
func TestHeaderProperties(t *testing.T) {
	r, _ := withMap(t, "", "masq.example", testMap)
	rapid.Check(t, func(t *rapid.T) {
		in := strings.Join(rapid.SliceOfN(rapid.SampledFrom(pieces), 0, 40).Draw(t, "in"), "")
		checkHeader(t, r, in)
	})
}

func checkHeader(t interface{ Fatalf(string, ...any) }, r *Rewriter, in string) {
	out := header(t, r, in)
	if again := header(t, r, out); again != out {
		t.Fatalf("%q became %q, then %q", in, out, again)
	}
	before, after := strings.SplitAfter(in, "\n"), strings.SplitAfter(out, "\n")
	if len(before) != len(after) {
		t.Fatalf("%q became %q", in, out)
	}
	body, sender := false, false
	for i, line := range before {
		if strings.TrimRight(line, "\r\n") == "" && strings.HasSuffix(line, "\n") {
			body = true
		}
		if !strings.HasPrefix(line, " ") && !strings.HasPrefix(line, "\t") {
			sender = senderField([]byte(line)) > 0
		}
		if line != after[i] && (body || !sender) {
			t.Fatalf("line %d of %q became %q", i+1, in, after[i])
		}
		if strings.Count(line, "\r") != strings.Count(after[i], "\r") {
			t.Fatalf("line %d of %q became %q", i+1, in, after[i])
		}
	}
}

// TestEnvelopeProperties: with any map, a second time changes nothing.
func TestEnvelopeProperties(t *testing.T) {
	names := []string{"a", "b", "c", "A", "a@local.example", "b@masq.example", "c@host.example", "a@other.example", "b@localhost", "u@masq.example", "u"}
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		var text bytes.Buffer
		for range rapid.IntRange(0, 8).Draw(t, "entries") {
			text.WriteString(rapid.SampledFrom(names).Draw(t, "key") + ": " + rapid.SampledFrom(names).Draw(t, "to") + "\n")
		}
		path := filepath.Join(dir, "map")
		if err := os.WriteFile(path, text.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		r := New(Config{
			HostName: "host.example", Local: []string{"local.example", rapid.SampledFrom([]string{"masq.example", "x.example"}).Draw(t, "local")},
			User: rapid.SampledFrom([]string{"", "u", "a"}).Draw(t, "user"), Host: rapid.SampledFrom([]string{"", "masq.example"}).Draw(t, "host"), Map: path,
		})
		if err := r.Reload(); err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			once := r.Envelope(n)
			if twice := r.Envelope(once); twice != once {
				t.Fatalf("%s became %s, then %s, with\n%s", n, once, twice, text.String())
			}
			if !strings.Contains(once, "@") {
				t.Fatalf("%s has no domain", once)
			}
		}
		if r.Envelope("") != "" {
			t.Fatal("the null sender has become another")
		}
	})
}

func FuzzHeader(f *testing.F) {
	f.Add("From: root (Cron Daemon)\nSender: \"x\" <alice@localhost>\n\nbody")
	f.Add("Reply-To: team: alice, <x>;\r\n\r\n")
	f.Add("From:\n \n\t<@a:b>\n")
	r, _ := withMap(f, "", "masq.example", testMap)
	f.Fuzz(func(t *testing.T, in string) { checkHeader(t, r, in) })
}

func FuzzParseMap(f *testing.F) {
	f.Add(testMap)
	f.Add("a:b\n\"x:y\" z@[1.2.3.4]\n\\:a b")
	f.Fuzz(func(t *testing.T, text string) {
		entries, problems := parseMap("map", []byte(text))
		for _, p := range problems {
			if p.Line < 1 || strings.ContainsAny(p.Text, "\r\n\x00") {
				t.Fatalf("%+v", p)
			}
		}
		for _, e := range entries {
			if e.key == "" || e.to.IsZero() || e.line < 1 {
				t.Fatalf("%+v", e)
			}
		}
	})
}
