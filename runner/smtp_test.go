package runner

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
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

func newDialog(t *testing.T) *dialog { return newDialogWith(t, "") }

// newDialogWith hands what it takes to a program in the place of dma.
func newDialogWith(t *testing.T, dma string) *dialog {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	d := &dialog{t: t, in: inW, out: bufio.NewReader(outR), done: make(chan error, 1)}
	c := config.Default()
	c.MailName = "host.example"
	go func() {
		err := serveSMTP(&call{config: c, stdio: Stdio{In: inR, Out: outW, Err: io.Discard}}, dma)
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

// handed makes a dma that keeps what it is given, and the function that returns
// it: for each message its arguments, then its text. It fails for a recipient that
// says so.
func handed(t *testing.T) (program string, list func() []string) {
	t.Helper()
	dir := t.TempDir()
	program = filepath.Join(dir, "dma")
	const script = `#!/bin/sh
cd "$(dirname "$0")" || exit 1
n=$(ls | grep -c '^message')
{ echo "$*"; cat; } > message$n
case "$*" in *temporary@*) exit 75 ;; *permanent@*) exit 65 ;; *denied@*) exit 77 ;; esac
`
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return program, func() []string {
		var out []string
		for i := 0; ; i++ {
			text, err := os.ReadFile(filepath.Join(dir, fmt.Sprint("message", i)))
			if errors.Is(err, fs.ErrNotExist) {
				return out
			}
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, string(text))
		}
	}
}

// TestSMTPTransaction: whatever ends a transaction, well or not, there is no RCPT,
// DATA or BDAT before the next MAIL, which gets nothing of the one before.
func TestSMTPTransaction(t *testing.T) {
	const begin, text = "MAIL FROM:<first@host.example>\r\n", "Subject: x\r\n\r\nx\r\n.\r\n"
	to := func(who string) string { return "RCPT TO:<" + who + "@host.example>\r\n" }
	type said struct{ text, want string }
	data := func(who, want string) []said {
		return []said{{begin, "250"}, {to(who), "250"}, {"DATA\r\n", "354"}, {text, want}}
	}
	for name, before := range map[string][]said{
		"nothing":                    nil,
		"a refused sender":           {{"MAIL FROM:<a@@b>\r\n", "50"}},
		"a sender with no syntax":    {{"MAIL FROM:a b\r\n", "50"}},
		"a parameter of MAIL":        {{"MAIL FROM:<a@host.example> NONSENSE=1\r\n", "50"}},
		"a message":                  data("fine", "250"),
		"a temporary failure":        data("temporary", "451"),
		"a permanent failure":        data("permanent", "554"),
		"a denial":                   data("denied", "550"),
		"RSET":                       {{begin, "250"}, {to("old"), "250"}, {"RSET\r\n", "250"}},
		"EHLO":                       {{begin, "250"}, {to("old"), "250"}, {"EHLO me\r\n", "250"}},
		"HELO":                       {{begin, "250"}, {to("old"), "250"}, {"HELO me\r\n", "250"}},
		"BDAT":                       {{begin, "250"}, {to("fine"), "250"}, {"BDAT 16 LAST\r\nSubject: x\r\n\r\nx\r", "250"}},
		"a failure of BDAT":          {{begin, "250"}, {to("temporary"), "250"}, {"BDAT 16 LAST\r\nSubject: x\r\n\r\nx\r", "451"}},
		"a failure of one of BDAT's": {{begin, "250"}, {to("permanent"), "250"}, {"BDAT 12\r\nSubject: x\r\n", "250"}, {"BDAT 4 LAST\r\n\r\nx\r", "554"}},
	} {
		t.Run(name, func(t *testing.T) {
			program, list := handed(t)
			d := newDialogWith(t, program)
			d.hear("220")
			d.say("EHLO me\r\n", "250")
			for _, s := range before {
				d.say(s.text, s.want)
			}
			had := len(list())
			for range 2 {
				d.say(to("smuggled"), "50")
				d.say("DATA\r\n", "50")
				d.say("BDAT 1 LAST\r\nx", "50")
			}
			d.say("MAIL FROM:<last@host.example>\r\n", "250")
			d.say("DATA\r\n", "50") // to nobody
			d.say("RCPT TO:<a@@b>\r\n", "501")
			d.say("DATA\r\n", "50")
			d.say(to("good"), "250")
			d.say("RCPT TO:<>\r\n", "50")
			d.say("NONSENSE\r\n", "50")
			d.say("DATA\r\n", "354")
			d.say(text, "250")
			d.say("QUIT\r\n", "221")
			d.in.Close()
			if err := <-d.done; err != nil {
				t.Error(err)
			}
			got := list()
			if len(got) != had+1 || !strings.HasPrefix(got[had], "-i -f last@host.example -- good@host.example\n") {
				t.Errorf("dma got %q, and %d before", got, had)
			}
		})
	}
}

// TestSMTPEnd: a line with nothing but a dot ends a message, and CRLF ends a line:
// what looks like it is text, and hides no second message.
func TestSMTPEnd(t *testing.T) {
	const hidden = "MAIL FROM:<hidden@host.example>\r\nRCPT TO:<b@host.example>\r\nDATA\r\nhidden\r\n"
	for _, end := range []string{"\n.\n", "\r.\r", "\n.\r\n", "\r\n.\n", "\r\n.\r", "\r.\r\n", "\r\n\x00.\r\n", "\r\n.\x00\r\n", "\n.\r", "\r\n.\r\r\n", "\r\r\n.\n"} {
		t.Run(fmt.Sprintf("%q", end), func(t *testing.T) {
			program, list := handed(t)
			d := newDialogWith(t, program)
			d.hear("220")
			d.say("EHLO me\r\n", "250")
			d.say(smtpBegin, "250")
			d.say("RCPT TO:<b@host.example>\r\n", "250")
			d.say("DATA\r\n", "354")
			go func() {
				io.WriteString(d.in, "Subject: x\r\n\r\nbefore"+end+hidden+"\r\n.\r\nQUIT\r\n")
				d.in.Close()
			}()
			replies, err := io.ReadAll(d.out)
			if err != nil || !regexp.MustCompile(`^250 [^\n]*\n221 [^\n]*\n$`).Match(replies) {
				t.Errorf("%q, %v", replies, err)
			}
			if err := <-d.done; err != nil {
				t.Error(err)
			}
			got := list()
			if len(got) != 1 || !strings.Contains(got[0], "before") || !strings.Contains(got[0], "MAIL FROM:<hidden@host.example>") {
				t.Errorf("dma got %q", got)
			}
		})
	}
}
