package machinetest

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"dma/internal/address"
	"dma/internal/smtptest"
	"dma/spooldir"
)

// transcript takes what is said in the sessions of a sink.
type transcript struct {
	mu   sync.Mutex
	text strings.Builder
}

func (c *transcript) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.Write(p)
}

func (c *transcript) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// said are the lines that the honest messages of TestForgedEnvelope have in a
// session: replies, our commands, and the messages.
var said = regexp.MustCompile(`^(?:[2-5][0-9][0-9][ -].*|EHLO host\.example|MAIL FROM:<(?:[a-z]+@host\.example)?>(?: [A-Z0-9=]+)*|` +
	`RCPT TO:<friend@example\.org>(?: [A-Z0-9=]+)*|DATA|RSET|QUIT|\.?|Subject: (?:before|after)|before|after|\t.*|` +
	`(?:Received|From|Date|Message-ID|Message-Id|To): .*)$`)

// forgery makes a message to a local and to a remote recipient, where the value
// of one field has an insertion in its middle.
func forgery(field, insertion string) intrusion {
	id := spooldir.NewID(time.Now())
	value := func(of, before, after string) string {
		if of == field {
			before += insertion
		}
		return before + after
	}
	local, remote := value("address", "bob+", "x@host.example"), value("address", "fri", "end@example.org")
	x := intrusion{
		Lines: []string{
			"id " + id, "arrival 1700000000.000000", "uid 2666", "recipients 2",
			"sender " + address.Encode(value("sender", "mal", "lory@host.example")),
			"envid " + address.Encode(value("envid", "Q", "Q")),
		},
		Content: "Subject: forged\n\nforged\n",
	}
	for i, to := range []string{local, remote} {
		line := fmt.Sprintf("to %d address address=%s", i+1, address.Encode(to))
		for key, text := range map[string]string{
			"original": value("original", "orig", "inal@host.example"),
			"detail":   value("detail", "de", "tail"),
			"notify":   value("notify", "SUCCESS,", "FAILURE"),
			"orcpt":    value("orcpt", "rfc822;bo", "b@host.example"),
		} {
			line += " " + key + "=" + address.Encode(text)
		}
		x.Lines, x.Names = append(x.Lines, line), append(x.Names, spooldir.NewName(id, i+1, to).String())
	}
	return x
}

// TestForgedEnvelope: a submitter who has taken the setgid program over writes
// spool files with right checksums, and with control characters in every field
// of the envelope. They are kept for a person, each is logged once, and nothing
// of them comes into a mailbox, a session or a report. Any other octet stays
// where it is.
func TestForgedEnvelope(t *testing.T) {
	m := newMachine(t, "RETRY_MIN 1h")
	log := &transcript{}
	sink := smtptest.NewSink(smtptest.SinkOptions{DSN: true, UTF8: true, Log: log})
	addr, err := sink.Listen("127.0.0.1:0")
	m.do(err)
	t.Cleanup(func() { sink.Close() })
	m.smarthost = addr.String()
	m.configure("RETRY_MIN 1h")
	v := m.start()
	both := func(subject string) {
		t.Helper()
		m.submit("alice", subject, "bob", "friend@example.org")
		v.await(subject, func() bool { return len(m.queued()) == len(m.in("corrupt")) })
	}
	both("before")
	before := m.mailbox("bob")

	fields := []string{"sender", "envid", "address", "original", "detail", "notify", "orcpt"}
	insertions := []string{
		"\n\nFrom x Thu Jan  1 00:00:00 2026\nSubject: injected\n\ninjected\n", "\nBcc: carol\n",
		">\r\nRCPT TO:<victim@example.org>\r\nX: <", "\r\n.\r\nMAIL FROM:<injected@example.org>\r\n", "\x7f",
	}
	for c := range 0x20 {
		insertions = append(insertions, string(rune(c)))
	}
	var list []intrusion
	for _, field := range fields {
		for _, insertion := range insertions {
			list = append(list, forgery(field, insertion))
		}
	}
	m.intrude("mallory", list...)
	v.await("a name of each forgery in corrupt", func() bool {
		ids := make(map[string]bool)
		for _, name := range m.in("corrupt") {
			id, _, _ := strings.Cut(name, ".")
			ids[id] = true
		}
		return len(ids) == len(list)
	})
	v.hangup() // the new processes look at the others
	v.await("forgeries in corrupt", func() bool { return len(m.in("new")) == 0 && len(m.in("corrupt")) == 2*len(list) })
	both("after")
	for _, x := range list {
		for i, name := range x.Names {
			if n := strings.Count(v.log(), " path=new/"+name+" "); n != 1 {
				t.Errorf("%s, %q: logged %d times", name, x.Lines[len(x.Lines)-2+i], n)
			}
		}
	}
	rest, ok := strings.CutPrefix(m.mailbox("bob"), before)
	if !ok || !regexp.MustCompile(`^From alice@host\.example .*\nX-Dma-Delivery: .*\nReturn-Path: <alice@host\.example>\nDelivered-To: bob@host\.example\nReceived: [^\n]*\n(?:\t.*\n)*`+
		`(?:(?:From|Date|Message-ID|Message-Id|Subject|To): .*\n)*\nafter\n\n$`).MatchString(rest) {
		t.Errorf("bob's mailbox:\n%s\nand then:\n%s", before, rest)
	}
	for line := range strings.Lines(strings.ReplaceAll(log.String(), "\r\n", "\n")) {
		if !said.MatchString(strings.TrimSuffix(line, "\n")) {
			t.Errorf("in a session: %q", line)
		}
	}
	if n := len(sink.Transactions()); n != 2 {
		t.Errorf("%d messages at the smarthost", n)
	}
	if n := len(m.queued()); n != 2*len(list) {
		t.Errorf("queued: %d", n) // a report, say
	}

	// What is left are octets that mean nothing to a line.
	var every strings.Builder
	for c := 0x20; c < 0x100; c++ {
		if c != 0x7f {
			every.WriteByte(byte(c))
		}
	}
	list = nil
	for _, field := range fields {
		for _, insertion := range []string{every.String(), "> SIZE=1 <", `">`, "\u0085", "\u2028"} {
			list = append(list, forgery(field, insertion))
		}
	}
	m.intrude("mallory", list...)
	v.hangup()
	v.await("an end to the others", func() bool {
		return len(m.in("new"))+len(m.in("forwarding"))+len(m.in("local"))+len(m.in("remote"))+len(m.in("sent"))+len(m.in("permfail")) == 0
	})
	marks := regexp.MustCompile(`(?m)^From [^ ]+ .*\nX-Dma-Delivery: .*\nReturn-Path: <.*>\nDelivered-To: .*\n(?:Subject: forged\n\nforged\n\n|Received: )`)
	text := m.mailbox("bob")
	if froms, n := strings.Count("\n"+text, "\nFrom "), len(marks.FindAllString(text, -1)); froms != n || n < 2 {
		t.Errorf("bob: %d From_ lines, %d messages", froms, n)
	}
	commands := regexp.MustCompile(`(?m)^(?:MAIL|RCPT) .*$`)
	for _, line := range commands.FindAllString(strings.ReplaceAll(log.String(), "\r\n", "\n"), -1) {
		if strings.Contains(line, " SIZE=1") {
			t.Errorf("in a session: %q", line)
		}
	}
	t.Logf("of the others wait %d", len(m.in("tempfail")))
	v.stop()
	m.nobodyLeft()
}
