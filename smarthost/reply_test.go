package smarthost

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestReadReply(t *testing.T) {
	for _, c := range []struct {
		in   string
		want string // code, status, text
		err  error
	}{
		{in: "250 ok\r\n", want: "250 [0 0 0] ok"},
		{in: "250\r\n", want: "250 [0 0 0] "},
		{in: "250 \n", want: "250 [0 0 0] "},
		{in: "250-a\r\n250-\r\n250 b\r\n", want: "250 [0 0 0] a b"},
		{in: "250-a\r\n250\r\n", want: "250 [0 0 0] a"},
		{in: "550 5.1.1 no  such\tuser\r\n", want: "550 [5 1 1] no such user"},
		{in: "550-5.7.1 one\r\n550-5.7.1 two\r\n550 5.7.1 three\r\n", want: "550 [5 7 1] one two three"},
		{in: "550-one\r\n550 5.7.1 two\r\n", want: "550 [5 7 1] one two"},
		{in: "550-5.7.1 one\r\n550 5.1.1 two\r\n", want: "550 [5 7 1] one 5.1.1 two"},
		{in: "550 4.7.1 one\r\n", want: "550 [0 0 0] 4.7.1 one"},
		{in: "550 5.1.1\r\n", want: "550 [5 1 1] "},
		{in: "550 5.01.1 x\r\n", want: "550 [0 0 0] 5.01.1 x"},
		{in: "550 5.1.1000 x\r\n", want: "550 [0 0 0] 5.1.1000 x"},
		{in: "550 5.+1.1 x\r\n", want: "550 [0 0 0] 5.+1.1 x"},
		{in: "554 a\x00b\x1b[0m\xff\u202e\u00e9\r\n", want: "554 [0 0 0] a b [0m??\u00e9"},
		{in: "550 " + strings.Repeat("x", 2000) + "\r\n", want: "550 [0 0 0] " + strings.Repeat("x", 997) + "..."},

		{in: "", err: io.EOF},
		{in: "250", err: io.ErrUnexpectedEOF},
		{in: "250-a\r\n", err: io.ErrUnexpectedEOF},
		{in: "\r\n", err: errReply},
		{in: "25\r\n", err: errReply},
		{in: "250_x\r\n", err: errReply},
		{in: "2500 x\r\n", err: errReply},
		{in: "150 x\r\n", err: errReply},
		{in: "650 x\r\n", err: errReply},
		{in: "2\u0665\u0660 x\r\n", err: errReply},
		{in: " 250 x\r\n", err: errReply},
		{in: "250-a\r\n251 b\r\n", err: errReply},
		{in: "250-a\r\n b\r\n", err: errReply},
		{in: "250 " + strings.Repeat("x", maxReplyLine) + "\r\n", err: errReply},
		{in: strings.Repeat("250-x\r\n", maxReplyLines+1), err: errReply},
		{in: strings.Repeat("250-"+strings.Repeat("x", 4000)+"\r\n", 20), err: errReply},
	} {
		r, err := readReply(bufio.NewReaderSize(strings.NewReader(c.in), maxReplyLine))
		if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
			t.Errorf("%.60q: error %v, want %v", c.in, err, c.err)
			continue
		}
		if got := fmt.Sprint(r.Code, r.EnhancedCode, " ", r.Message); err == nil && got != c.want {
			t.Errorf("%.60q:\ngot  %q\nwant %q", c.in, got, c.want)
		}
	}
}

func FuzzReadReply(f *testing.F) {
	for _, s := range []string{
		"250 ok\r\n", "550-5.1.1 a\r\n550 5.1.1 b\r\n", "250-x\n250-SIZE 10\n250 LIMITS RCPTMAX=3", "354\r\n", "2 \xff\x00",
		"421 4.3.2 \x1b\r\r\n", "550 5.1.1 \nDispatcher: x\n", "250-AUTH=LOGIN PLAIN\r\n250 AUTH \r\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		r, err := readReply(bufio.NewReaderSize(strings.NewReader(in), maxReplyLine))
		if err != nil {
			return
		}
		if r.Code < 200 || r.Code > 599 || len(r.lines) == 0 || len(r.lines) > maxReplyLines {
			t.Fatalf("code %d with %d lines", r.Code, len(r.lines))
		}
		if c := r.EnhancedCode[0]; c != 0 && c != r.Code/100 {
			t.Fatalf("status %v of code %d", r.EnhancedCode, r.Code)
		}
		if len(r.Message) > maxText || !utf8.ValidString(r.Message) || strings.ContainsFunc(r.Message, func(c rune) bool { return c < ' ' || c == 0x7f }) {
			t.Fatalf("text %q", r.Message)
		}
		if again := oneLine(r.Message); again != r.Message {
			t.Fatalf("text %q becomes %q", r.Message, again)
		}
		e := parseExtensions(r.lines)
		if e.maxSize < 0 || e.rcptMax < 0 || e.mailMax < 0 {
			t.Fatalf("extensions %+v", e)
		}
		s := &Session{relay: "x"}
		for _, command := range []string{"MAIL", "RCPT"} {
			o := s.byReply(command, r)
			if status := o.Status(); len(status) < 5 || strings.Count(status, ".") != 2 {
				t.Fatalf("status %q", status)
			}
		}
	})
}
