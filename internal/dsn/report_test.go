package dsn

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"mime/quotedprintable"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files in testdata anew")

var (
	arrival = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	now     = time.Date(2026, 3, 4, 9, 6, 8, 0, time.FixedZone("", 3600))
	attempt = time.Date(2026, 3, 4, 8, 0, 0, 0, time.UTC)
	until   = time.Date(2026, 3, 9, 5, 6, 7, 0, time.UTC)
)

const letter = "Received: by host.example.org; Wed, 4 Mar 2026 05:06:07 +0000\n" +
	"From: Alice <alice@example.org>\nTo: bob@example.net\nSubject: lunch\n  on Friday\n\nAt noon?\n\n-- \nAlice\n"

// failed returns a report on one refused recipient.
func failed(content string) *Report {
	return &Report{
		Kind:         Failed,
		ReportingMTA: "host.example.org",
		MessageID:    "01ABCDEF.b@host.example.org",
		To:           "alice@example.org",
		Arrival:      arrival,
		Now:          now,
		Recipients: []Recipient{{
			Final:       "bob@example.net",
			Status:      "5.1.1",
			RemoteMTA:   "mx.example.net",
			Diagnostic:  "smtp; 550 5.1.1 <bob@example.net>: no such user here",
			LastAttempt: attempt,
		}},
		Original: strings.NewReader(content),
		Size:     int64(len(content)),
		Return:   ReturnFull,
	}
}

func build(t *testing.T, r *Report) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := r.WriteTo(&b)
	if err != nil {
		t.Fatal(err)
	}
	if n != int64(b.Len()) {
		t.Fatalf("WriteTo returned %d, wrote %d bytes", n, b.Len())
	}
	return b.Bytes()
}

func TestGolden(t *testing.T) {
	cases := map[string]func(*Report){
		"failed": func(r *Report) {},
		"failed-headers": func(r *Report) {
			r.Return = ReturnHeaders
			r.EnvelopeID = "QQ314159 a=b"
			r.Recipients[0].Original = "rfc822;Bob+2Blunch@example.org"
			r.Recipients = append(r.Recipients,
				Recipient{Final: "carol@example.net", Status: "4.4.1", Diagnostic: "x-unix; dial mx2.example.net: no answer for five days, and before that the host closed the connection without a greeting", LastAttempt: attempt},
				Recipient{Final: "|/usr/bin/filter -x", Status: "5.3.0", Diagnostic: "x-unix; exit status 65"})
		},
		"failed-large": func(r *Report) { r.SizeCap = 150 },
		"failed-utf8": func(r *Report) {
			const s = "From: Jürgen <jürgen@bücher.example>\nTo: 用户@例子.example\n\nGrüße\n"
			r.Original, r.Size = strings.NewReader(s), int64(len(s))
			r.To = "jürgen@bücher.example"
			r.Recipients[0].Original = `utf-8;\x{7528}\x{6237}@\x{4F8B}\x{5B50}.example`
			r.Recipients[0].Final = "用户@例子.example"
			r.Recipients[0].Diagnostic = "smtp; 550 5.1.1 没有这个用户"
		},
		"failed-postmaster": func(r *Report) { r.Postmaster, r.To = true, "postmaster" },
		"delayed": func(r *Report) {
			r.Kind = Delayed
			r.Recipients[0].Status = "4.2.2"
			r.Recipients[0].Diagnostic = "452 4.2.2 mailbox full"
			r.Recipients[0].WillRetryUntil = until
		},
		"delivered": func(r *Report) {
			r.Kind = Delivered
			r.Recipients[0] = Recipient{Original: "rfc822;bob@example.org", Final: "bob@host.example.org", Status: "2.1.5", LastAttempt: attempt}
		},
		"relayed": func(r *Report) {
			r.Kind = Relayed
			r.Recipients[0].Status, r.Recipients[0].Diagnostic = "2.1.5", "smtp; 250 2.1.5 ok"
		},
		"expanded": func(r *Report) { r.Kind, r.Recipients[0] = Expanded, Recipient{Final: "staff@host.example.org"} },
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			r := failed(letter)
			change(r)
			got := build(t, r)
			if err := checkShape(r, mustParse(t, got)); err != nil {
				t.Error(err)
			}
			file := filepath.Join("testdata", name+".eml")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("report differs from %s:\n%s", file, got)
			}
			if again := build(t, r); !bytes.Equal(got, again) {
				t.Error("built again, the report differs")
			}
		})
	}
}

// TestFields compares field by field what an independent parser finds.
func TestFields(t *testing.T) {
	r := failed(letter)
	r.EnvelopeID = "QQ314159 a=b"
	r.Recipients[0].Original = "rfc822;Bob+2Blunch@example.org"
	r.Recipients = append(r.Recipients, Recipient{Final: "carol@example.net", Status: "4.4.1", Diagnostic: "no answer (time-out)"})
	p := mustParse(t, build(t, r))
	if err := checkShape(r, p); err != nil {
		t.Fatal(err)
	}

	from, err := mail.ParseAddress(p.header.Get("From"))
	if err != nil || from.Address != "MAILER-DAEMON@host.example.org" || from.Name != "Mail Delivery System" {
		t.Errorf("From is %v, %v", from, err)
	}
	if d, err := p.header.Date(); err != nil || !d.Equal(now) {
		t.Errorf("Date is %v, %v", d, err)
	}
	for name, want := range map[string]string{
		"To":             "<alice@example.org>",
		"Message-Id":     "<01ABCDEF.b@host.example.org>",
		"Auto-Submitted": "auto-replied",
		"Mime-Version":   "1.0",
	} {
		if got := p.header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}

	want := []map[string]string{
		{
			"Original-Envelope-Id": "QQ314159 a=b",
			"Reporting-Mta":        "dns; host.example.org",
			"Arrival-Date":         "Wed, 04 Mar 2026 05:06:07 +0000",
		}, {
			"Original-Recipient": "rfc822; Bob+lunch@example.org",
			"Final-Recipient":    "rfc822; bob@example.net",
			"Action":             "failed",
			"Status":             "5.1.1",
			"Remote-Mta":         "dns; mx.example.net",
			"Diagnostic-Code":    "smtp; 550 5.1.1 <bob@example.net>: no such user here",
			"Last-Attempt-Date":  "Wed, 04 Mar 2026 08:00:00 +0000",
		}, {
			"Final-Recipient": "rfc822; carol@example.net",
			"Action":          "failed",
			"Status":          "4.4.1",
			"Diagnostic-Code": "x-unix; no answer (time-out)",
		},
	}
	for i, group := range want {
		if len(p.fields[i]) != len(group) {
			t.Errorf("group %d has fields %v", i, p.fields[i])
		}
		for name, value := range group {
			if got := p.fields[i].Get(name); got != value {
				t.Errorf("group %d: %s is %q, want %q", i, name, got, value)
			}
		}
	}
	if p.parts[2].mediaType != "message/rfc822" || string(p.parts[2].body) != letter {
		t.Errorf("third part is %s\n%s", p.parts[2].mediaType, p.parts[2].body)
	}
}

func TestEnclosure(t *testing.T) {
	long := strings.Repeat("x", 999)
	head := "From: a@example.org\nTo: b@example.org\n"
	cases := []struct {
		name, content    string
		kind             Kind
		ret              Return
		limit            int64
		mediaType, cte   string
		body             string // decoded
		eightBit, global bool
	}{
		{"full", head + "\nhi\n", Failed, ReturnFull, 0, "message/rfc822", "7bit", head + "\nhi\n", false, false},
		{"no final newline", head + "\nhi", Failed, ReturnFull, 0, "message/rfc822", "7bit", head + "\nhi", false, false},
		{"8-bit body", head + "\n\xff\n", Failed, ReturnFull, 0, "message/rfc822", "8bit", head + "\n\xff\n", true, false},
		{"headers asked", head + "\nhi\n", Failed, ReturnHeaders, 0, "text/rfc822-headers", "7bit", head, false, false},
		{"nothing asked", head + "\nhi\n", Failed, ReturnDefault, 0, "text/rfc822-headers", "7bit", head, false, false},
		{"delayed never full", head + "\nhi\n", Delayed, ReturnFull, 0, "text/rfc822-headers", "7bit", head, false, false},
		{"exactly the cap", head + "\nhi\n", Failed, ReturnFull, int64(len(head)) + 4, "message/rfc822", "7bit", head + "\nhi\n", false, false},
		{"one over the cap", head + "\nhi\n", Failed, ReturnFull, int64(len(head)) + 3, "text/rfc822-headers", "7bit", head, false, false},
		{"header over the cap", head + "X: 1\n 2\n 3\nY: 4\n\n", Failed, ReturnFull, int64(len(head)) + 10, "text/rfc822-headers", "7bit", head, false, false},
		{"cap after a field", head + "X: 1\n 2\nY: 4\n\n", Failed, ReturnFull, int64(len(head)) + 5, "text/rfc822-headers", "7bit", head, false, false},
		{"first field over the cap", "X: " + long + "\n\n", Failed, ReturnFull, 100, "text/rfc822-headers", "7bit", "", false, false},
		{"header only", head, Failed, ReturnFull, 0, "message/rfc822", "7bit", head, false, false},
		{"header only, no newline", "A: b", Failed, ReturnHeaders, 0, "text/rfc822-headers", "7bit", "A: b", false, false},
		{"empty", "", Failed, ReturnFull, 0, "message/rfc822", "7bit", "", false, false},
		{"no header", "\nhi\n", Failed, ReturnHeaders, 0, "text/rfc822-headers", "7bit", "", false, false},
		{"long line in body", head + "\n" + long + "\n", Failed, ReturnFull, 0, "text/rfc822-headers", "7bit", head, false, false},
		{"998 in body", head + "\n" + long[1:] + "\n", Failed, ReturnFull, 0, "message/rfc822", "7bit", head + "\n" + long[1:] + "\n", false, false},
		{"NUL in body", head + "\n\x00\n", Failed, ReturnFull, 0, "text/rfc822-headers", "7bit", head, false, false},
		{"CR in body", head + "\na\rb\n", Failed, ReturnFull, 0, "text/rfc822-headers", "7bit", head, false, false},
		{"long header", "X: " + long + " \n\n", Failed, ReturnFull, 0, "text/rfc822-headers", "quoted-printable", "X: " + long + " \n", false, false},
		{"Latin-1 header", "X: \xe4=\t\n\n", Failed, ReturnHeaders, 0, "text/rfc822-headers", "quoted-printable", "X: \xe4=\t\n", false, false},
		{"NUL and CR in header", "X: \x00a\rb\n\n", Failed, ReturnHeaders, 0, "text/rfc822-headers", "quoted-printable", "X: \x00a\rb\n", false, false},
		{"CRLF at the end of the header", "X: 1\n\r\nhi\n", Failed, ReturnHeaders, 0, "text/rfc822-headers", "7bit", "X: 1\n", false, false},
		{"UTF-8 header", "X: ä\n\nhi\n", Failed, ReturnHeaders, 0, "message/global-headers", "8bit", "X: ä\n", true, true},
		{"UTF-8 message", "X: ä\n\nhi\n", Failed, ReturnFull, 0, "message/global", "8bit", "X: ä\n\nhi\n", true, true},
		{"UTF-8 long header", "X: ä" + long + "\n\n", Failed, ReturnHeaders, 0, "text/rfc822-headers", "quoted-printable", "X: ä" + long + "\n", false, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := failed(c.content)
			r.Kind, r.Return, r.SizeCap = c.kind, c.ret, c.limit
			m, err := r.Build()
			if err != nil {
				t.Fatal(err)
			}
			p := mustParse(t, build(t, r))
			if err := checkShape(r, p); err != nil {
				t.Fatal(err)
			}
			last := p.parts[2]
			if last.mediaType != c.mediaType || last.encoding != c.cte {
				t.Errorf("part is %s, %s; want %s, %s", last.mediaType, last.encoding, c.mediaType, c.cte)
			}
			if got := decoded(t, last); got != c.body {
				t.Errorf("body is %.200q, want %.200q", got, c.body)
			}
			if m.EightBit != c.eightBit || m.UTF8 != c.global {
				t.Errorf("EightBit=%v UTF8=%v", m.EightBit, m.UTF8)
			}
			asked := c.kind == Failed && c.ret == ReturnFull
			said := strings.Contains(strings.Join(strings.Fields(string(p.parts[0].body)), " "), "The rest is not enclosed")
			if want := asked && c.body != c.content; said != want {
				t.Errorf("the text tells of a missing body: %v, want %v", said, want)
			}
		})
	}
}

// decoded undoes quoted-printable with the standard library's reader, which
// accepts LF line ends.
func decoded(t *testing.T, p parsedPart) string {
	t.Helper()
	if p.encoding != "quoted-printable" {
		return string(p.body)
	}
	for line := range bytes.Lines(p.body) {
		if len(line) > 77 {
			t.Errorf("quoted-printable line of %d bytes", len(line))
		}
	}
	b, err := io.ReadAll(quotedprintable.NewReader(bytes.NewReader(p.body)))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestNoOriginal(t *testing.T) {
	r := failed("")
	r.Original, r.Size = nil, 0
	if err := checkShape(r, mustParse(t, build(t, r))); err != nil {
		t.Error(err)
	}
}

func TestManyRecipients(t *testing.T) {
	r := failed(letter)
	for i := range 500 {
		r.Recipients = append(r.Recipients, Recipient{Final: fmt.Sprintf("user%d@example.net", i), Status: "5.2.1"})
	}
	p := mustParse(t, build(t, r))
	if err := checkShape(r, p); err != nil {
		t.Fatal(err)
	}
	text := string(p.parts[0].body)
	if !strings.Contains(text, "<user98@") || strings.Contains(text, "<user99@") || !strings.Contains(text, "and 401 more") {
		t.Errorf("text lists the wrong recipients:\n%s", text)
	}
	for i := range 500 {
		if got, want := p.fields[i+2].Get("Final-Recipient"), fmt.Sprintf("rfc822; user%d@example.net", i); got != want {
			t.Fatalf("group %d is of %q, want %q", i+2, got, want)
		}
	}
}

func TestToHeader(t *testing.T) {
	for to, want := range map[string]string{
		"alice@example.org":                   "<alice@example.org>",
		"alice":                               "<alice@host.example.org>",
		`"a b"@example.org`:                   `<"a b"@example.org>`,
		"a@[192.0.2.1]":                       "<a@[192.0.2.1]>",
		"SRS0=x=y@example.org":                "<SRS0=x=y@example.org>",
		"a@b, c@d":                            "undisclosed-recipients:;",
		"a b@example.org":                     "undisclosed-recipients:;",
		"a@b> (x":                             "undisclosed-recipients:;",
		"a@b\nBcc: c@d":                       "undisclosed-recipients:;",
		strings.Repeat("a", 2000) + "@b":      "undisclosed-recipients:;",
		"\"a\nBcc: c@d\"@example.org":         "undisclosed-recipients:;",
		"\"a\\\nBcc: c@d\"@example.org":       "undisclosed-recipients:;",
		"=?utf-8?q?=0ABcc:_c@d?=@example.org": "<=?utf-8?q?=0ABcc:_c@d?=@example.org>",
	} {
		r := failed(letter)
		r.To = to
		p := mustParse(t, build(t, r))
		if err := checkShape(r, p); err != nil {
			t.Errorf("to %q: %v", to, err)
		}
		if got := p.header.Get("To"); got != want && to[0] != '=' {
			t.Errorf("to %q: header is %q, want %q", to, got, want)
		}
	}
}

func TestRefused(t *testing.T) {
	cases := map[string]func(*Report){
		"null sender":         func(r *Report) { r.To = "" },
		"null sender, quoted": func(r *Report) { r.To = "<>" },
		"kind":                func(r *Report) { r.Kind = 0 },
		"host":                func(r *Report) { r.ReportingMTA = "a\nb" },
		"no host":             func(r *Report) { r.ReportingMTA = "" },
		"message id":          func(r *Report) { r.MessageID = "a>\nX: y@b" },
		"message id, no @":    func(r *Report) { r.MessageID = "a" },
		"from":                func(r *Report) { r.From = "a@b\nX: y" },
		"date":                func(r *Report) { r.Now = time.Time{} },
		"recipients":          func(r *Report) { r.Recipients = nil },
		"size":                func(r *Report) { r.Size = -1 },
		"short original":      func(r *Report) { r.Size++ },
		"no original at all":  func(r *Report) { r.Original = strings.NewReader("") },
	}
	for name, change := range cases {
		r := failed(letter)
		change(r)
		var b bytes.Buffer
		if n, err := r.WriteTo(&b); err == nil || n != 0 || b.Len() != 0 {
			t.Errorf("%s: wrote %d bytes, error %v", name, b.Len(), err)
		} else if strings.HasPrefix(name, "null") != errors.Is(err, ErrNullSender) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestBoundaryAvoidsContent(t *testing.T) {
	parts := []part{{content: []byte("x")}}
	first := boundary("id@host", parts)
	if again := boundary("id@host", parts); again != first {
		t.Errorf("boundary changed from %q to %q", first, again)
	}
	if other := boundary("id2@host", parts); other == first {
		t.Error("another id gives the same boundary")
	}
	// Content that has the boundary which it had without it.
	parts[0].content = []byte("x\n--" + first + "--\n")
	if next := boundary("id@host", parts); next == first || occurs(next, parts) {
		t.Errorf("boundary %q occurs in the content", next)
	}
	// The whole way: a message made to close its own report.
	r := failed(letter)
	p := mustParse(t, build(t, r))
	_, used, _ := strings.Cut(p.header.Get("Content-Type"), "boundary=\"")
	used = strings.TrimSuffix(used, "\"")
	evil := letter + "--" + used + "\nContent-Type: message/rfc822\n\nX: forged\n\n--" + used + "--\n"
	r = failed(evil)
	p = mustParse(t, build(t, r))
	if err := checkShape(r, p); err != nil || string(p.parts[2].body) != evil {
		t.Errorf("the message broke out of its part: %v", err)
	}
}
