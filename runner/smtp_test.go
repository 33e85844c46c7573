package runner

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/emersion/go-smtp"

	"dma/internal/config"
)

// dialog has sendmail -bs on an input and an output that know no deadlines, as
// pipes that block do.
type dialog struct {
	t    *testing.T
	in   io.WriteCloser
	out  *bufio.Reader
	done chan error
}

func newDialog(t *testing.T) *dialog {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	d := &dialog{t: t, in: inW, out: bufio.NewReader(outR), done: make(chan error, 1)}
	c := config.Default()
	c.MailName = "host.example"
	go func() {
		err := runSMTP(&call{config: c, stdio: Stdio{In: inR, Out: outW, Err: io.Discard}})
		outW.Close()
		d.done <- err
	}()
	return d
}

// say writes a text and reads a reply of one line, with its first digits.
func (d *dialog) say(text, want string) {
	d.t.Helper()
	if text != "" {
		if _, err := io.WriteString(d.in, text); err != nil {
			d.t.Fatal(err)
		}
	}
	d.hear(want)
}

func (d *dialog) hear(want string) {
	d.t.Helper()
	for {
		line, err := d.out.ReadString('\n')
		if err != nil && (want != "" || err != io.EOF) {
			d.t.Fatalf("%q, %v; want %s", line, err, want)
		}
		if len(line) > 3 && line[3] == '-' {
			continue
		}
		if !strings.HasPrefix(line, want) || want == "" && line != "" {
			d.t.Fatalf("%q, want %q", line, want)
		}
		return
	}
}

const smtpBegin = "MAIL FROM:<a@host.example>\r\n"

// TestSMTPIdle: a client that says nothing more is left after five minutes, within
// a message too, and nothing of what it says later counts.
func TestSMTPIdle(t *testing.T) {
	for name, test := range map[string]struct {
		before func(d *dialog)
		want   []string
		after  time.Duration
	}{
		"a command": {func(d *dialog) { d.say("EHLO me\r\n", "250") }, []string{"421 4.4.2"}, smtpIdle},
		"half of a command": {func(d *dialog) {
			for range 4 { // each octet a minute: the bound is for the line
				_, _ = io.WriteString(d.in, "E")
				time.Sleep(time.Minute)
			}
		}, []string{"500", "421 4.4.2"}, smtpIdle},
		"half of a message": {func(d *dialog) {
			d.say("EHLO me\r\n", "250")
			d.say(smtpBegin, "250")
			d.say("RCPT TO:<b@host.example>\r\n", "250")
			d.say("DATA\r\n", "354")
			for range 10 { // slowly, but it goes on
				_, _ = io.WriteString(d.in, "x\r\n")
				time.Sleep(4 * time.Minute)
			}
		}, []string{"4", "421 4.4.2"}, 36*time.Minute + smtpIdle},
		"a message that has no end": {func(d *dialog) {
			d.say("EHLO me\r\n", "250")
			d.say(smtpBegin, "250")
			d.say("RCPT TO:<b@host.example>\r\n", "250")
			d.say("DATA\r\n", "354")
			for range 30 {
				_, _ = io.WriteString(d.in, "QUIT\r\n")
				time.Sleep(2 * time.Minute)
			}
		}, []string{"4", "421 4.4.2"}, smtpMessage},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDialog(t)
				d.hear("220")
				start := time.Now()
				test.before(d)
				for _, want := range test.want {
					d.hear(want)
				}
				d.hear("")
				if err := <-d.done; err != nil {
					t.Error(err)
				}
				if took := time.Since(start); took != test.after {
					t.Errorf("after %v, want %v", took, test.after)
				}
				d.in.Close()
			})
		})
	}
}

// TestSMTPStall: a client that does not read ends the dialog too.
func TestSMTPStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inR, inW := io.Pipe()
		outR, outW := io.Pipe()
		done := make(chan error, 1)
		go func() {
			done <- runSMTP(&call{config: config.Default(), stdio: Stdio{In: inR, Out: outW, Err: io.Discard}})
		}()
		start := time.Now()
		<-done
		if took := time.Since(start); took > 2*smtpIdle {
			t.Errorf("it took %v", took)
		}
		inW.Close()
		outR.Close()
	})
}

// TestSMTPRecipients: as many recipients as a message can have, with addresses as
// long as they can be, reach dma; what does not fit is for another transaction.
func TestSMTPRecipients(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "dma")
	script := "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done; shift\necho $# >" + dir + "/count\nfor last; do :; done\necho $last >>" + dir + "/count\n"
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	s := &submission{dma: program, conn: newStdioConn(strings.NewReader(""), io.Discard)}
	defer s.conn.Close()
	if err := s.Mail("a@host.example", nil); err != nil {
		t.Fatal(err)
	}
	last := ""
	for i := range smtpRcpts {
		last = fmt.Sprintf("%064d@%s.example", i, strings.Repeat(strings.Repeat("d", 59)+".", 3)+"e")
		last = last[:65] + strings.Repeat("f", 254-len(last)) + last[65:]
		if len(last) != 254 {
			t.Fatal(len(last))
		}
		if err := s.Rcpt(last, nil); err != nil {
			t.Fatalf("recipient %d: %v", i, err)
		}
	}
	if err := s.Data(strings.NewReader("Subject: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(dir + "/count"); err != nil || string(got) != fmt.Sprintf("%d\n%s\n", smtpRcpts, last) {
		t.Errorf("%.80s, %v", got, err)
	}
	s.size = argRoom() - 262
	var refused *smtp.SMTPError
	if err := s.Rcpt(last, nil); !errors.As(err, &refused) || refused.Code != 452 {
		t.Error(err)
	}
	s.Reset()
	if err := s.Rcpt(last, nil); err != nil || s.size != 263 {
		t.Error(err, s.size)
	}
}

// TestSMTPReply: what the end of dma means to the client.
func TestSMTPReply(t *testing.T) {
	dir := t.TempDir()
	for exit, want := range map[int]string{0: "", 64: "554 5.6.0 why", 65: "554 5.6.0 why", 75: "451 4.3.0 why", 77: "550 5.7.1 why", 78: "451 4.3.0 why", 1: "451 4.3.0 why"} {
		program := filepath.Join(dir, fmt.Sprint("dma", exit))
		if err := os.WriteFile(program, fmt.Appendf(nil, "#!/bin/sh\ncat >/dev/null\necho why >&2\nexit %d\n", exit), 0o700); err != nil {
			t.Fatal(err)
		}
		s := &submission{dma: program, conn: newStdioConn(strings.NewReader(""), io.Discard)}
		err := s.Data(strings.NewReader("x\r\n"))
		s.conn.Close()
		got := ""
		var e *smtp.SMTPError
		if errors.As(err, &e) {
			got = fmt.Sprintf("%d %d.%d.%d %s", e.Code, e.EnhancedCode[0], e.EnhancedCode[1], e.EnhancedCode[2], e.Message)
		}
		if got != want {
			t.Errorf("exit %d: %q, want %q", exit, got, want)
		}
	}
}
