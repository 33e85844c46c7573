package smarthost

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func contentOf(s string) *Message {
	return &Message{ID: "test", Content: strings.NewReader(s), Size: int64(len(s))}
}

// onWire returns what writeContent writes.
func onWire(t interface{ Fatalf(string, ...any) }, m *Message) string {
	var b bytes.Buffer
	ended := false
	err := writeContent(m, func(block []byte, last bool) error {
		if ended || len(block) > 32*1024 || last != bytes.HasSuffix(block, []byte(".\r\n")) && last {
			t.Fatalf("a block of %d octets, last %v", len(block), last)
		}
		ended = last
		b.Write(block)
		return nil
	})
	if err != nil || !ended {
		t.Fatalf("error %v, ended %v", err, ended)
	}
	return b.String()
}

func TestContent(t *testing.T) {
	x := strings.Repeat("x", 2000)
	for _, c := range []struct{ name, in, want string }{
		{"empty", "", ".\r\n"},
		{"one line", "a\n", "a\r\n.\r\n"},
		{"no end", "a", "a\r\n.\r\n"},
		{"crlf", "a\r\nb\r\n", "a\r\nb\r\n.\r\n"},
		{"bare cr", "a\rb\r\r\nc\r", "a b \r\nc \r\n.\r\n"},
		{"dots", ".\n..\n.a\n\n.", "..\r\n...\r\n..a\r\n\r\n..\r\n.\r\n"},
		{"smuggling", "a\n\r.\r\nb\r.\r\nc\n.\r\n", "a\r\n .\r\nb .\r\nc\r\n..\r\n.\r\n"},
		{"nul", "a\x00b\n", "a\x00b\r\n.\r\n"},
		{"998 octets", "\n" + x[:998] + "\n", "\r\n" + x[:998] + "\r\n.\r\n"},
		{"999 octets", "\n" + x[:999] + "\n", "\r\n" + x[:998] + "\r\nx\r\n.\r\n"},
		{"998 octets and crlf", "\n" + x[:998] + "\r\n", "\r\n" + x[:998] + "\r\n.\r\n"},
		{"2000 octets without end", "\n" + x, "\r\n" + x[:998] + "\r\n" + x[:998] + "\r\nxxxx\r\n.\r\n"},
		{"a dot at the break", "\n" + x[:998] + ".y\n", "\r\n" + x[:998] + "\r\n..y\r\n.\r\n"},
		{"a space to break at", "\n" + x[:900] + " " + x[:900] + "\n", "\r\n" + x[:900] + " \r\n" + x[:900] + "\r\n.\r\n"},
		{"a character at the break", "\n" + x[:997] + "\u00e9y\n", "\r\n" + x[:997] + "\r\n\u00e9y\r\n.\r\n"},
		{"not utf-8", "\n" + strings.Repeat("\x80", 1000) + "\n", "\r\n" + strings.Repeat("\x80", 998) + "\r\n\x80\x80\r\n.\r\n"},
		{"header with spaces", "S: " + x[:900] + " " + x[:900] + "\n\n", "S: " + x[:900] + "\r\n " + x[:900] + "\r\n\r\n.\r\n"},
		{"header without spaces", x[:1000] + "\n\n", x[:998] + "\r\n xx\r\n\r\n.\r\n"},
		{"folded header without spaces", "S:\n " + x[:1000] + "\n\n", "S:\r\n " + x[:997] + "\r\n xxx\r\n\r\n.\r\n"},
	} {
		if got := onWire(t, contentOf(c.in)); got != c.want {
			t.Errorf("%s:\ngot  %q\nwant %q", c.name, got, c.want)
		}
	}
}

func TestMeasure(t *testing.T) {
	for _, c := range []struct {
		in             string
		size           int64
		eight, header8 bool
	}{
		{"", 0, false, false},
		{"a: b\n\n.c\n", 12, false, false},
		{"a: \u00e9\n\nc\n", 12, true, true},
		{"a: b\n\n\u00e9", 12, true, false},
	} {
		got, err := measure(contentOf(c.in))
		if err != nil || got.size != c.size || got.eightBit != c.eight || got.header8Bit != c.header8 {
			t.Errorf("%q: %+v, %v", c.in, got, err)
		}
	}
}

func TestContentUnreadable(t *testing.T) {
	short := contentOf("abc")
	short.Size = 4
	broken := &Message{Content: brokenReader{}, Size: 100}
	for _, m := range []*Message{short, broken} {
		ended := false
		err := writeContent(m, func(_ []byte, last bool) error { ended = last; return nil })
		if !errors.Is(err, errContent) || ended {
			t.Errorf("error %v, ended %v", err, ended)
		}
	}
}

type brokenReader struct{}

func (brokenReader) ReadAt(b []byte, off int64) (int, error) {
	return copy(b[:10], "xxxxxxxxxx"), errors.New("input/output error")
}

// dull reads one octet at a time.
type dull struct{ io.ReaderAt }

func (d dull) ReadAt(b []byte, off int64) (int, error) {
	return d.ReaderAt.ReadAt(b[:min(len(b), 1)], off)
}

// TestContentProperties: whatever the content, lines are short and end with CRLF,
// no CR or LF stands alone, and apart from white space nothing is lost.
func TestContentProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b strings.Builder
		for range rapid.IntRange(0, 12).Draw(t, "parts") {
			part := rapid.SampledFrom([]string{"\n", "\r\n", "\r", ".", " ", "a", "\x00", "\u00e9", "\u20ac", "\xff", "\t"}).Draw(t, "part")
			b.WriteString(strings.Repeat(part, rapid.SampledFrom([]int{1, 1, 1, 2, 2, 500, 997, 998, 999, 33000}).Draw(t, "times")))
		}
		in := b.String()
		m := contentOf(in)
		out := onWire(t, m)
		lines := strings.Split(strings.TrimSuffix(out, "\r\n"), "\r\n")
		if lines[len(lines)-1] != "." {
			t.Fatalf("the end is %q", lines[len(lines)-1])
		}
		valid := utf8.ValidString(in)
		var size int64
		var text strings.Builder
		for _, l := range lines[:len(lines)-1] {
			if l == "." || strings.ContainsAny(l, "\r\n") {
				t.Fatalf("line %q", l)
			}
			l = strings.TrimPrefix(l, ".")
			if len(l) > maxLine {
				t.Fatalf("line of %d octets", len(l))
			}
			if valid && !utf8.ValidString(l) {
				t.Fatalf("broken in a character: %q", l)
			}
			size += int64(len(l)) + 2
			text.WriteString(l)
		}
		bare := strings.NewReplacer("\r", "", "\n", "", " ", "", "\t", "")
		if bare.Replace(text.String()) != bare.Replace(in) {
			t.Fatalf("%q became %q", in, out)
		}
		c, err := measure(m)
		if err != nil || c.size != size {
			t.Fatalf("measured %d octets, counted %d, %v", c.size, size, err)
		}
		m.Content = dull{m.Content}
		if len(in) < 5000 && onWire(t, m) != out {
			t.Fatal("it depends on how it is read")
		}
	})
}
