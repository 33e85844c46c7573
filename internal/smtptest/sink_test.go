package smtptest

import (
	"errors"
	"fmt"
	"net/smtp"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseRule(t *testing.T) {
	for _, c := range []struct{ in, address, want string }{
		{"accept *", "a@b", "0 [0 0 0] "},
		{"defer Later@*", "later@B", "451 [4 3 0] Try again later"},
		{"refuse *@nowhere.example", "a@nowhere.example", "550 [5 1 1] No such user here"},
		{"refuse full 552 5.2.2 Mailbox full", "full", "552 [5 2 2] Mailbox full"},
		{"defer x 450 not now", "x", "450 [0 0 0] not now"},
		{"refuse", "", ""}, {"deny *", "", ""}, {"refuse [", "", ""}, {"refuse * x", "", ""}, {"refuse * 99", "", ""}, {"", "", ""},
	} {
		r, err := ParseRule(c.in)
		if (err == nil) != (c.want != "") {
			t.Errorf("%q: %v", c.in, err)
		}
		if err != nil {
			continue
		}
		if got := fmt.Sprint(r.Reply.Code, r.Reply.EnhancedCode, " ", r.Reply.Message); got != c.want {
			t.Errorf("%q: %s", c.in, got)
		}
		if !r.matches(c.address) || r.matches("other@other.example") && r.Pattern != "*" {
			t.Errorf("%q: what it matches is wrong", c.in)
		}
	}
}

// TestSink talks to a Sink with another client than the project's own.
func TestSink(t *testing.T) {
	dir := t.TempDir()
	first, err := ParseRule("defer once@*")
	if err != nil {
		t.Fatal(err)
	}
	first.Times = 2
	sink := NewSink(SinkOptions{Rules: []Rule{first}, Dir: dir, Data: func(tr *Transaction) error {
		if tr.From == "bad@x" {
			return errors.New("no")
		}
		return nil
	}})
	addr, err := sink.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	for i := 1; i <= 3; i++ {
		c, err := smtp.Dial(addr.String())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Mail("s@x"); err != nil {
			t.Fatal(err)
		}
		err = c.Rcpt("once@x")
		var reply *textproto.Error
		if deferred := errors.As(err, &reply) && reply.Code == 451; deferred != (i <= 2) {
			t.Errorf("time %d: %v", i, err)
		}
		c.Close()
	}
	if err := smtp.SendMail(addr.String(), nil, "bad@x", []string{"a@x"}, []byte("x\r\n")); err == nil {
		t.Error("the content was not refused")
	}
	if err := smtp.SendMail(addr.String(), nil, "s@x", []string{"a@x", "b@x"}, []byte("Subject: x\r\n\r\n.y\r\n")); err != nil {
		t.Fatal(err)
	}
	list := sink.Transactions()
	if len(list) != 2 || list[0].Accepted || !list[1].Accepted || strings.Join(list[1].To, " ") != "a@x b@x" || list[1].Connection != 5 {
		t.Errorf("%+v", list)
	}
	if c := sink.Counts(); c.Connections != 5 || c.Mails != 5 || c.Transactions != 1 || c.Recipients != 2 {
		t.Errorf("%+v", c)
	}
	data, err := os.ReadFile(filepath.Join(dir, "000001.eml"))
	if want := "MAIL FROM:<s@x>\nRCPT TO:<a@x>\nRCPT TO:<b@x>\n\nSubject: x\n\n.y\n"; err != nil || string(data) != want {
		t.Errorf("%q, %v", data, err)
	}
}

func TestParseScenarios(t *testing.T) {
	list, err := ParseScenarios(strings.NewReader("# note\n== one\nto a b\nto c\ncontent 5\nhello A, B\nC: MAIL RCPT\nS: 250 a | 250 b\nL: RCPT TO:<a b>\nsend 2 \"x\\r\\n\"\nclose\nexpect  a  sent\nsession open\n\n== two\n"))
	if err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	s := list[0]
	if s.Name != "one" || len(s.To) != 2 || s.Content != 5 || len(s.Script.steps) != 10 || s.Expect[0] != "a sent" || s.Session != "open" || !s.Script.Has("close") || s.Script.Has("reset") {
		t.Errorf("%+v", s)
	}
	for _, bad := range []string{"to a\n", "== x\nsay hello\n", "== x\nsend x \"y\"\n", "== x\nsend 1 y\n", "== x\ncontent x\n", "== x\nclose it\n", "== x\nread\n"} {
		if _, err := ParseScenarios(strings.NewReader(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestScriptNotices(t *testing.T) {
	for _, says := range []string{"RCPT TO:<a>\r\n", "MAIL\n", "MAIL FROM:<>\r\nMAIL\r\n", ""} {
		s, err := ParseScript("C: MAIL")
		if err != nil {
			t.Fatal(err)
		}
		client, server := Pipe()
		served := make(chan error, 1)
		go func() { served <- s.Serve(t.Context(), server) }()
		_, _ = client.Write([]byte(says))
		client.Close()
		if err := <-served; err == nil {
			t.Errorf("%q is taken", says)
		}
	}
}
