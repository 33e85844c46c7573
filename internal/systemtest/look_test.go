package systemtest

import (
	"bufio"
	"encoding/json"
	"io"
	"mime"
	"mime/multipart"
	netmail "net/mail"
	"net/textproto"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"dma/spooldir"
)

// eventually waits until ok holds, looking 50 times a second, a minute at most.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("no %s within a minute", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// event is one line of a log.
type event map[string]string

// events returns the lines of a log that tell of an event.
func events(log, name string) []event {
	var list []event
	for line := range strings.Lines(log) {
		fields := logFields(strings.TrimSuffix(line, "\n"))
		if len(fields) < 3 || fields[2] != name {
			continue
		}
		e := event{"level": fields[1]}
		for _, f := range fields[3:] {
			key, value, _ := strings.Cut(f, "=")
			if u, err := strconv.Unquote(value); err == nil {
				value = u
			}
			e[key] = value
		}
		list = append(list, e)
	}
	return list
}

// logFields cuts a log line at blanks outside of quotes.
func logFields(line string) []string {
	var fields []string
	begin, quoted := 0, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\\' && quoted:
			i++
		case c == '"':
			quoted = !quoted
		case c == ' ' && !quoted:
			fields = append(fields, line[begin:i])
			begin = i + 1
		}
	}
	return append(fields, line[begin:])
}

// queued is one line of "mailq --json".
type queued struct {
	ID, Name, State, Recipient, Sender, Status, Reason string
	N, Attempts                                        int
	Next                                               *time.Time
}

// mailq lists the queue; every line has to be JSON, and nobody stands in it
// twice.
func (s *site) mailq() []queued {
	s.t.Helper()
	return parseMailq(s.t, s.must("mailq", "--json").stdout)
}

func parseMailq(t testing.TB, text string) []queued {
	t.Helper()
	var list []queued
	seen := make(map[string]bool)
	for line := range strings.Lines(text) {
		var q queued
		if err := json.Unmarshal([]byte(line), &q); err != nil {
			t.Fatalf("mailq --json printed %q: %v", line, err)
		}
		if seen[q.Name] {
			t.Errorf("%s is listed twice:\n%s", q.Name, text)
		}
		seen[q.Name] = true
		list = append(list, q)
	}
	return list
}

// only returns the only element of a list.
func only[T any](t testing.TB, what string, list []T) T {
	t.Helper()
	if len(list) != 1 {
		t.Fatalf("%d times %s instead of once: %+v", len(list), what, list)
	}
	return list[0]
}

// equal compares two lists without regard to their order.
func equal(t testing.TB, what string, got, want []string) {
	t.Helper()
	count := make(map[string]int)
	for _, g := range got {
		count[g]++
	}
	for _, w := range want {
		count[w]--
	}
	var more, less []string
	for item, n := range count {
		switch {
		case n > 0:
			more = append(more, item)
		case n < 0:
			less = append(less, item)
		}
	}
	if len(more)+len(less) > 0 {
		t.Errorf("%s: too much is %q, missing is %q", what, more, less)
	}
}

// empty fails the test if anything is left of any message.
func (s *site) empty() {
	s.t.Helper()
	if left := s.spool(); len(left) > 0 {
		s.t.Errorf("left in the spool: %q", left)
	}
}

// labels are the readable parts of names in a state.
func (s *site) labels(state spooldir.State) []string {
	s.t.Helper()
	var list []string
	for _, file := range s.in(state) {
		n, err := spooldir.ParseName(file)
		if err != nil {
			s.t.Fatal(err)
		}
		list = append(list, n.Label())
	}
	return list
}

// post hands a message in that has nothing but a subject, and leaves it.
func (s *site) post(subject string, args ...string) {
	s.t.Helper()
	r := s.dma("Subject: "+subject+"\n\nhello\n", append([]string{"-odq"}, args...)...)
	if r.code != 0 {
		s.t.Fatalf("dma %q: exit %d\n%s", args, r.code, r.stderr)
	}
}

// subjects returns the subjects of messages, one for each.
func subjects(list []mail) []string {
	var out []string
	for _, m := range list {
		for line := range strings.Lines(m.text) {
			if rest, ok := strings.CutPrefix(line, "Subject: "); ok {
				out = append(out, strings.TrimSpace(rest))
				break
			}
			if line == "\n" {
				out = append(out, "")
				break
			}
		}
	}
	return out
}

// startWorking starts the service and returns when it has mended and scanned
// what it found at its start, which a mail to a user shows.
func (s *site) startWorking(user string) *service {
	s.t.Helper()
	before := len(s.mailbox(user))
	v := s.start()
	s.post("ready", user)
	v.await("mail", func(log string) bool {
		return len(s.mailbox(user)) > before && len(s.in(spooldir.Local)) == 0 && len(s.in(spooldir.Sent)) == 0
	})
	return v
}

// move renames a file of the spool, as a person does it with mv.
func (s *site) move(from, to string) {
	s.t.Helper()
	if err := os.Rename(s.path("spool", from), s.path("spool", to)); err != nil {
		s.t.Fatal(err)
	}
}

// report is a delivery status notification, as RFC 3464 has it.
type report struct {
	header     netmail.Header
	text       string // for people
	message    textproto.MIMEHeader
	recipients []textproto.MIMEHeader
	returned   string
}

// finals are the addresses that it reports about.
func (r report) finals() []string {
	var list []string
	for _, h := range r.recipients {
		_, addr, _ := strings.Cut(h.Get("Final-Recipient"), ";")
		list = append(list, strings.TrimSpace(addr))
	}
	return list
}

// parseReport takes a report apart with the readers that mail programs use.
func parseReport(t testing.TB, text string) report {
	t.Helper()
	m, err := netmail.ReadMessage(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	media, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || media != "multipart/report" || params["report-type"] != "delivery-status" {
		t.Fatalf("no report: %s, %v, %v\n%s", media, params, err, text)
	}
	r := report{header: m.Header}
	parts := multipart.NewReader(m.Body, params["boundary"])
	for i := 0; ; i++ {
		p, err := parts.NextRawPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("part %d: %v\n%s", i, err, text)
		}
		data, err := io.ReadAll(p)
		if err != nil {
			t.Fatal(err)
		}
		switch i {
		case 0:
			r.text = string(data)
		case 1:
			groups := textproto.NewReader(bufio.NewReader(strings.NewReader(strings.TrimRight(string(data), "\n") + "\n\n")))
			for {
				h, err := groups.ReadMIMEHeader()
				if len(h) == 0 {
					break
				}
				if err != nil {
					t.Fatalf("%v\n%s", err, data)
				}
				if r.message == nil {
					r.message = h
				} else {
					r.recipients = append(r.recipients, h)
				}
			}
		case 2:
			r.returned = string(data)
		}
	}
	return r
}

// slurp reads a file; one that does not exist is empty.
func slurp(t testing.TB, elem ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(elem...))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(data)
}

// holder says who serves the spool: "service", "drain" or nobody.
func (s *site) holder() string {
	s.t.Helper()
	who, err := s.open().Holder(spooldir.QueueRole)
	if err != nil {
		s.t.Fatal(err)
	}
	return who
}
