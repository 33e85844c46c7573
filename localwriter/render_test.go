package localwriter

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

func TestRender(t *testing.T) {
	const head = "From alice@example.org Wed Mar  4 05:06:07 2026\nX-Dma-Delivery: 20260304T050607-0123456789abcdef.2\nReturn-Path: <alice@example.org>\nDelivered-To: bob\n"
	tests := []struct{ name, content, want string }{
		{"plain", "Subject: x\n\nbody\n", "Subject: x\n\nbody\n\n"},
		{"no final newline", "Subject: x\n\nbody", "Subject: x\n\nbody\n\n"},
		{"empty", "", "\n"},
		{"from", "a: b\n\nFrom me\n>From you\n>>>From them\n From\nFrom\nfrom me\nx From me\n> From me\n",
			"a: b\n\n>From me\n>>From you\n>>>>From them\n From\nFrom\nfrom me\nx From me\n> From me\n\n"},
		{"from first", "From here\n", ">From here\n\n"},
		{"from twice in a line", "From From From \n", ">From From From \n\n"},
		{"from at the end", "a: b\n\nFrom ", "a: b\n\n>From \n\n"},
		{"beginning of from at the end", "a: b\n\n>From", "a: b\n\n>From\n\n"},
		{"crlf", "a: b\r\n\r\nFrom x\r\n", "a: b\r\n\r\n>From x\r\n\n"},
		{"nul", "a: b\n\n\x00\nFrom \x00\n\x00", "a: b\n\n\x00\n>From \x00\n\x00\n\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := testMessage("20260304T050607-0123456789abcdef", 2, test.content)
			sameText(t, "rendering", rendering(t, m), head+test.want)
		})
	}
}

func TestFromLine(t *testing.T) {
	for sender, want := range map[string]string{
		"":                        "From MAILER-DAEMON Wed",
		"a@b":                     "From a@b Wed",
		"a b\nFrom x@y":           "From a_b_From_x@y Wed",
		"a\r\t\x00\x7fb":          "From a____b Wed",
		strings.Repeat("x", 5000): "From " + strings.Repeat("x", maxSender) + " Wed",
	} {
		m := testMessage("id", 1, "")
		m.Sender = sender
		line := m.fromLine()
		if !strings.HasPrefix(line, want) || strings.Count(line, "\n") != 1 || len(m.head()) > maxHead {
			t.Errorf("%q: %q", sender, line)
		}
	}
}

// unquote undoes mboxrd quoting.
func unquote(s string) string {
	lines := strings.SplitAfter(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ">") && strings.HasPrefix(strings.TrimLeft(l, ">"), "From ") {
			lines[i] = l[1:]
		}
	}
	return strings.Join(lines, "")
}

func TestQuotingRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.SampledFrom([]string{"From ", "From", "Fro", ">", ">>>", "\n", "\n\n", "x", " ", "\x00", "\r\n", strings.Repeat("y", 100)})
		content := strings.Join(rapid.SliceOfN(word, 0, 60).Draw(t, "content"), "")
		read := rapid.SampledFrom([]func(io.Reader) io.Reader{
			func(r io.Reader) io.Reader { return r }, iotest.OneByteReader, iotest.HalfReader, iotest.DataErrReader,
		}).Draw(t, "reader")
		q := &quoter{src: read(strings.NewReader(content)), buf: make([]byte, rapid.IntRange(5, 40).Draw(t, "buffer")), start: true, last: '\n'}
		b, err := io.ReadAll(q)
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(string(b)) {
			if strings.HasPrefix(l, "From ") {
				t.Fatalf("unquoted line %q", l)
			}
		}
		want := content
		if want != "" && !strings.HasSuffix(want, "\n") {
			want += "\n"
		}
		if got := unquote(string(b)); got != want+"\n" {
			t.Fatalf("got %q, want %q", got, want+"\n")
		}
	})
}

func FuzzQuoter(f *testing.F) {
	f.Add([]byte("From a\n>From b\n"), 5)
	f.Add([]byte("\n>>>>>>>>>>>>From From "), 7)
	f.Fuzz(func(t *testing.T, content []byte, size int) {
		q := &quoter{src: bytes.NewReader(content), buf: make([]byte, 5+max(0, size%100)), start: true, last: '\n'}
		b, err := io.ReadAll(q)
		if err != nil {
			t.Fatal(err)
		}
		want := string(content)
		if want != "" && !strings.HasSuffix(want, "\n") {
			want += "\n"
		}
		if got := unquote(string(b)); got != want+"\n" {
			t.Fatalf("got %q, want %q", got, want+"\n")
		}
	})
}

func TestShortContent(t *testing.T) {
	m := testMessage("id", 1, "Subject: x\n\nbody\n")
	m.Size += 5
	for name, r := range map[string]io.Reader{"mbox": m.render(), "file": m.file(), "command": m.Reader(true)} {
		if _, err := io.ReadAll(r); err == nil {
			t.Errorf("%s: content that ends early passed for a message", name)
		}
	}
}

func TestReader(t *testing.T) {
	m := testMessage("id", 1, "Subject: x\n\nFrom me")
	b, err := io.ReadAll(m.Reader(true))
	if err != nil {
		t.Fatal(err)
	}
	sameText(t, "with From_ line", string(b), m.fromLine()+string(m.Header)+"Subject: x\n\nFrom me")
	b, _ = io.ReadAll(m.Reader(false))
	sameText(t, "without", string(b), string(m.Header)+"Subject: x\n\nFrom me")
}

func TestCheck(t *testing.T) {
	for name, change := range map[string]func(*Message){
		"no id":           func(m *Message) { m.ID = "" },
		"id with newline": func(m *Message) { m.ID = "a\nb" },
		"id with slash":   func(m *Message) { m.ID = "../a" },
		"id with dot":     func(m *Message) { m.ID = "a.b" },
		"no recipient":    func(m *Message) { m.Recipient = 0 },
		"header cut":      func(m *Message) { m.Header = []byte("a: b") },
		"header ends":     func(m *Message) { m.Header = []byte("a: b\n\n") },
		"no content":      func(m *Message) { m.Content = nil },
	} {
		m := testMessage("id", 1, "x")
		change(&m)
		if m.check() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if m := testMessage("20260304T050607-0123456789abcdefc", 1, "x"); m.check() != nil {
		t.Error(m.check())
	}
}
