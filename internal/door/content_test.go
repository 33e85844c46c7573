package door

import (
	"net/mail"
	"strings"
	"testing"
	"time"

	"dma/spooldir"
)

// TestReceived reads the trace field with another's parser.
func TestReceived(t *testing.T) {
	when := time.Date(2026, time.March, 4, 5, 6, 7, 0, time.UTC)
	const id = "20260304T050607-0123456789abcdef"
	field := Received("m.example", 1001, id, when.In(time.FixedZone("", -3*3600-1800)))
	m, err := mail.ReadMessage(strings.NewReader(field + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	clauses, date, _ := strings.Cut(m.Header.Get("Received"), ";")
	if want := "by m.example (dma, from userid 1001) id " + id; clauses != want {
		t.Errorf("clauses %q, want %q", clauses, want)
	}
	if got, err := mail.ParseDate(strings.TrimSpace(date)); err != nil || !got.Equal(when) {
		t.Errorf("date %v, %v", got, err)
	}
}

func TestContentCheck(t *testing.T) {
	const bad = "the content does not begin with a header"
	long := strings.Repeat("n", maxFieldName)
	for _, tc := range []struct{ content, want string }{
		{"\n", ""},
		{"\nbody: x\n", ""},
		{"A: b\n", "the content ends within its header"},
		{"A: b", "the content ends within its header"},
		{"", "the content ends within its header"},
		{"A: b\n c\n\td:\nB \t: c\n\n anything\x00\r\n", ""},
		{"A: \x00\x01\r\n\n", ""},
		{" (from userid 0)\nA: b\n\n", bad},
		{"\tA: b\n\n", bad},
		{"text\n\n", bad},
		{"From al@x Mon\nA: b\n\n", bad},
		{"A: b\ntext\n\n", bad},
		{": b\n\n", bad},
		{" : b\n\n", bad},
		{"A\x00: b\n\n", bad},
		{"A: b\n\r\n", bad},
		{long + ":\n\n", ""},
		{long + "n:\n\n", bad},
		{"A: b\n\n\xff", "the content has octets above 127, and the envelope says nothing of them"},
		{strings.Repeat("a:\n", maxFields+1), "the header is longer than 64 MiB, or has more than 100100 fields"},
		{"a:" + strings.Repeat("x", maxHeader), "the header is longer than 64 MiB, or has more than 100100 fields"},
	} {
		for _, step := range []int{1, 7, 1 << 30} {
			if step <= 7 && len(tc.content) > 1000000 {
				continue
			}
			var c contentCheck
			got := ""
			for rest := []byte(tc.content); len(rest) > 0 && got == ""; {
				n := min(step, len(rest))
				if err := c.write(rest[:n]); err != nil {
					got = err.Error()
				}
				rest = rest[n:]
			}
			if err := c.end(&spooldir.Envelope{}); err != nil && got == "" {
				got = err.Error()
			}
			if got != tc.want {
				t.Errorf("%.60q by %d: %q, want %q", tc.content, step, got, tc.want)
			}
		}
	}
}

// FuzzContent: what is let through continues the Received field in no way, and
// it makes no difference how it comes.
func FuzzContent(f *testing.F) {
	for _, s := range []string{"A: b\n\n", " x\n\n", "A: b\n c\n\nd", "\n", "A b: c\n\n", "A:\r\n\r\n"} {
		f.Add(s, 3)
	}
	f.Fuzz(func(t *testing.T, content string, at int) {
		at = max(0, min(at, len(content)))
		var whole, parts contentCheck
		a := whole.write([]byte(content))
		b := parts.write([]byte(content[:at]))
		if b == nil {
			b = parts.write([]byte(content[at:]))
		}
		if (a == nil) != (b == nil) || a == nil && whole != parts {
			t.Fatalf("%v %+v as a whole, %v %+v in parts", a, whole, b, parts)
		}
		if a != nil || whole.end(&spooldir.Envelope{EightBit: true}) != nil {
			return
		}
		for i, line := range strings.Split(content, "\n") {
			if line == "" {
				return
			}
			if name, _, ok := strings.Cut(line, ":"); line[0] != ' ' && line[0] != '\t' && (!ok || strings.TrimRight(name, " \t") == "") || i == 0 && line[0] <= ' ' {
				t.Fatalf("line %q in the header", line)
			}
		}
		t.Fatal("no end of the header")
	})
}
