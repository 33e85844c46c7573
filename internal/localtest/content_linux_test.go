package localtest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// contents are messages as programs and people hand them in. A want is what
// arrives, if that is something else.
func contents() []struct{ name, text, want string } {
	h := fmt.Sprintf(head, "x")
	var octets strings.Builder
	for b := 1; b < 256; b++ {
		if b != '\r' && b != '\n' {
			octets.WriteByte(byte(b))
		}
	}
	return []struct{ name, text, want string }{
		{"8-bit", h + "\nGr\xc3\xbc\xc3\x9fe, Gr\xfc\xdfe\n" + octets.String() + "\n", ""},
		{"NUL", h + "\n\x00a\x00\x00b\n\x00\n", ""},
		{"CRLF", strings.ReplaceAll(h+"\none\n.\n\ntwo\n", "\n", "\r\n"), h + "\none\n.\n\ntwo\n"},
		{"lone CR", h + "\none\rtwo\r\rthree\n", ""},
		{"dots", h + "\n.\n..\n...x\n", ""},
		{"From_ lines", h + "\nFrom here\n>From there\n>>From elsewhere\n From inside\nfrom below\nFrom \nFrom\n\nFrom jim Thu Jan  1 00:00:00 1970\nSubject: inner\n\nx\n", ""},
		{"no newline at the end", h + "\nend", h + "\nend\n"},
		{"empty lines at the end", h + "\nend\n\n\n\n", ""},
		{"no body", h, h + "\n"},
		{"a line of 5 MB", h + "\n" + strings.Repeat("0123456789", 500_000) + "\n", ""},
		{"50 MB", h + "\n" + strings.Repeat(strings.Repeat("0123456789abcde", 5)+"\n", 660_000), ""},
	}
}

// What is submitted is what arrives, in whatever mailbox.
func TestContent(t *testing.T) {
	for _, w := range ways() {
		for _, c := range mailboxes() {
			t.Run(w.name+" "+c.name, func(t *testing.T) {
				s := w.site(t, c.conf)
				if c.name == "LMTP" {
					s.startLMTP("mail_location = maildir:~/Maildir\n")
				}
				for _, m := range contents() {
					t.Run(m.name, func(t *testing.T) { s.in(t).sameContent(c, m.text, m.want) })
				}
				// Without a header, there is one in the end; what was sent is its body.
				for _, text := range []string{"", "\n", "just a line of text\nand another\n", "\nFrom x\n"} {
					t.Run(fmt.Sprintf("no header %q", text), func(t *testing.T) {
						got := s.in(t).through(c, text)
						if header, body, ok := strings.Cut(got, "\n\n"); !ok || body != strings.TrimPrefix(text, "\n") || !strings.Contains(header, "Message-ID: ") {
							t.Errorf("arrived: %q", got)
						}
					})
				}
			})
		}
	}
}

// mailbox is where mail of users goes.
type mailbox struct {
	name, conf string
	take       func(s *site) string // and remove
}

func mailboxes() []mailbox {
	return []mailbox{
		{"mbox", "", func(s *site) string {
			data := s.take("var/mail/jim")
			_, data, ok := strings.Cut(data, "\n")
			if !ok || !strings.HasSuffix(data, "\n\n") {
				s.t.Errorf("not an mbox: ends with %q", data[max(0, len(data)-50):])
			}
			return unquote(strings.TrimSuffix(data, "\n"))
		}},
		{"Maildir", "MAILBOX maildir:~/Maildir\n", (*site).takeMaildir},
		{"pipe", "MAILBOX pipe:cat >piped\n", func(s *site) string {
			_, data, _ := strings.Cut(s.take("home/jim/piped"), "\n")
			return data
		}},
		{"LMTP", "MAILBOX lmtp:/run/dovecot/lmtp\n", (*site).takeMaildir},
	}
}

// through sends a message and returns what stands in the mailbox below dma's
// Received field.
func (s *site) through(b mailbox, text string) string {
	s.t.Helper()
	s.submit(text, "jim")
	if log := s.drain(); !strings.Contains(log, "status=sent") {
		s.t.Fatalf("not sent:\n%s", log)
	}
	return received(s.t, b.take(s))
}

// sameContent sends a message, and fails the test unless it arrives, or what is
// wanted if that is something else.
func (s *site) sameContent(b mailbox, text, want string) {
	s.t.Helper()
	got := s.through(b, text)
	if want == "" {
		want = text
	}
	if b.name == "LMTP" { // as SMTP: lines of 998 octets, and no CR inside
		want = strings.ReplaceAll(want, "\r", " ")
		if longest(want) > 1<<20 {
			if longest(got) > 999 {
				s.t.Errorf("a line of %d octets", longest(got))
			}
			_, got, _ = strings.Cut(got, "\n\n")
			_, want, _ = strings.Cut(want, "\n\n")
			got = strings.ReplaceAll(got, "\n", "") + "\n"
		}
	}
	if !strings.HasSuffix(got, "\n") { // as an mbox has it
		got += "\n"
	}
	if got != want {
		s.t.Errorf("arrived: %s\nwant %s", around(got, want), around(want, got))
	}
}

// longest is the length of the longest line.
func longest(text string) int {
	n := 0
	for line := range strings.Lines(text) {
		n = max(n, len(line))
	}
	return n
}

// around is where a text begins to differ from another.
func around(text, other string) string {
	i := 0
	for i < min(len(text), len(other)) && text[i] == other[i] {
		i++
	}
	return fmt.Sprintf("%d octets, at %d: %.200q", len(text), i, text[min(len(text), max(0, i-20)):])
}

// take returns what is in a file, and removes it.
func (s *site) take(path string) string {
	s.t.Helper()
	data, err := os.ReadFile(s.Path(path))
	s.check(err)
	s.check(os.Remove(s.Path(path)))
	return string(data)
}

func (s *site) takeMaildir() string {
	s.t.Helper()
	files, err := filepath.Glob(s.Path("home/jim/Maildir/new/*"))
	if err != nil || len(files) != 1 {
		s.t.Fatalf("%d files: %q, %v", len(files), files, err)
	}
	return s.take("home/jim/Maildir/new/" + filepath.Base(files[0]))
}

// unquote takes one > away where mboxrd has put it.
func unquote(text string) string {
	var b bytes.Buffer
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimLeft(line, ">"), "From ") {
			line = strings.TrimPrefix(line, ">")
		}
		b.WriteString(line)
	}
	return b.String()
}

// received is what stands below dma's Received field.
func received(t testing.TB, text string) string {
	t.Helper()
	before, rest, ok := strings.Cut("\n"+text, "\nReceived: by host.example (dma")
	if !ok {
		t.Fatalf("not a message of dma:\n%.1000s", text)
	}
	for line := range strings.Lines(before[1:]) {
		name, _, _ := strings.Cut(line, ":")
		switch {
		case name == "X-Dma-Delivery", name == "Return-Path", name == "Delivered-To", name == "Received", line[0] == '\t':
		default:
			t.Errorf("%q stands before dma's Received field", line)
		}
	}
	for line := range strings.Lines(rest) {
		rest = strings.TrimPrefix(rest, line)
		if !strings.HasPrefix(rest, "\t") { // no folded line follows
			break
		}
	}
	return rest
}
