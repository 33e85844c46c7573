package sendmail

import (
	"bufio"
	"mime"
	"net/mail"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func render(t *testing.T, raw string) string {
	t.Helper()
	h, err := newHeader([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	h.strip()
	h.qualify("m.example")
	var b strings.Builder
	w := bufio.NewWriter(&b)
	o := &origin{id: testID, date: testTime, mailName: "m.example", from: "Al <al@m.example>"}
	if err := h.render(w, o); err != nil {
		t.Fatal(err)
	}
	w.Flush()
	return b.String()
}

func TestRender(t *testing.T) {
	const (
		date   = "Date: Wed, 4 Mar 2026 05:06:07 +0000\n"
		id     = "Message-ID: <" + testID + "@m.example>\n"
		from   = "From: Al <al@m.example>\n"
		nobody = "To: undisclosed-recipients:;\n"
	)
	for _, tt := range []struct{ name, in, want string }{
		{"nothing there", "", from + nobody + date + id},
		{"all there", "To: a@b\nfrom: c@d\nDATE: x\nMessage-Id: <y>\n", "To: a@b\nfrom: c@d\nDATE: x\nMessage-Id: <y>\n"},
		{"Cc is enough", "Cc: a@b\n", "Cc: a@b\n" + from + date + id},
		{"bare names", "From: root (Cron Daemon)\nTo: bob,\n carl\n", "From: root@m.example (Cron Daemon)\nTo: bob@m.example,\n carl@m.example\n" + date + id},
		{"other fields stay", "Subject: root\nX-To: root\nX-Return-Path: <root>\nTo: a@b\n", "Subject: root\nX-To: root\nX-Return-Path: <root>\nTo: a@b\n" + from + date + id},
		{"all address fields", "Sender: r\nReply-To: r\nCc: r\nResent-Sender: r\n",
			"Sender: r@m.example\nReply-To: r@m.example\nCc: r@m.example\n" +
				"Resent-" + from + "Resent-" + date + "Resent-" + id + "Resent-Sender: r@m.example\n" + from + date},
		{"Bcc goes", "Bcc: a,\n b,\n\tc\nTo: d@e\nBCC : f\nbcc:\nX-Bcc: g\n", "To: d@e\nX-Bcc: g\n" + from + date + id},
		{"Return-Path goes", "Return-Path: <x@y>\nReceived: by z\nRETURN-PATH :\n <>\nTo: a@b\n", "Received: by z\nTo: a@b\n" + from + date + id},
		{"only Bcc", "Bcc: a\n", from + nobody + date + id},
		{"sent again", "To: a@b\nFrom: c@d\nDate: x\nResent-To: e\nResent-Bcc: f\n",
			"To: a@b\nFrom: c@d\nDate: x\nResent-" + from + "Resent-" + date + "Resent-" + id + "Resent-To: e@m.example\n"},
		{"sent again, complete", "Resent-From: a@b\nResent-Date: x\nResent-Message-ID: <y>\nResent-To: e@f\nTo: a@b\nFrom: c@d\nDate: x\n",
			"Resent-From: a@b\nResent-Date: x\nResent-Message-ID: <y>\nResent-To: e@f\nTo: a@b\nFrom: c@d\nDate: x\n"},
		{"junk in fields", "Subject: \x00\xff\r\nTo: \"\x01\n", "Subject: \x00\xff\r\nTo: \"\x01\n" + from + date + id},
	} {
		if got := render(t, tt.in); got != tt.want {
			t.Errorf("%s:\n got %q\nwant %q", tt.name, got, tt.want)
		}
	}
}

func TestMaxFields(t *testing.T) {
	if _, err := newHeader([]byte(strings.Repeat("a:\n", maxFields))); err != nil {
		t.Error(err)
	}
	_, err := newHeader([]byte(strings.Repeat("a:\n", maxFields+1)))
	if status(err) != exitData || err.Error() != "the header has more than 100000 fields" {
		t.Error(err)
	}
}

func TestHeaderEightBit(t *testing.T) {
	for in, want := range map[string][2]bool{
		"Subject: a\n":            {false, false},
		"Subject: \xc3\xa4\n":     {true, true},
		"Subject: \xe4\n":         {true, false},
		"A: \xc3\xa4\nB: \xe4\n":  {true, false},
		"A: b\nTo: \xc3\xa4@b\n":  {true, true},
		"Bcc: \xc3\xa4@b\nA: b\n": {false, false},
	} {
		h, err := newHeader([]byte(in))
		if err != nil {
			t.Fatal(err)
		}
		h.strip()
		eight, utf8 := h.eightBit()
		equal(t, in, [2]bool{eight, utf8}, want)
	}
}

func TestMailbox(t *testing.T) {
	for _, tt := range []struct{ name, want string }{
		{"", "a@b"},
		{" \x00\n ", "a@b"},
		{"Al", "Al <a@b>"},
		{"  Al   Ert\n", "Al Ert <a@b>"},
		{"Al Q. Ert", `"Al Q. Ert" <a@b>`},
		{"Al (x), <y@z>", `"Al (x), <y@z>" <a@b>`},
		{`Al "the\" Ert`, `"Al \"the\\\" Ert" <a@b>`},
		{"Al\r\nBcc: x@y", `"Al Bcc: x@y" <a@b>`},
		{"J\xc3\xb6rg", "=?UTF-8?B?SsO2cmc=?= <a@b>"},
		{"J\xf6rg", "Jrg <a@b>"},
		{"=?UTF-8?Q?x?=", "=?UTF-8?Q?x?= <a@b>"},
		{strings.Repeat("n", 70), strings.Repeat("n", 70) + "\n <a@b>"},
	} {
		equal(t, tt.name, mailbox(tt.name, "a@b"), tt.want)
	}
}

// FuzzMailbox: whatever the name, another's parser finds the address and,
// where the name is text, the name.
func FuzzMailbox(f *testing.F) {
	for _, s := range []string{"", "Al", "Al, \"x\" (y)", "J\u00f6rg M\u00fcller \u2028\u0085", strings.Repeat("\u00e9", 200), "\xff\n", "=?a?b?c?="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		body := mailbox(name, "a@b.example")
		for _, line := range strings.Split(body, "\n") {
			if len(line) > 998 || strings.TrimSpace(line) == "" || strings.ContainsAny(line, "\r\x00") || !isASCII([]byte(line)) {
				t.Fatalf("line %q of %q", line, body)
			}
		}
		for i, line := range strings.Split(body, "\n") {
			if i > 0 && line[0] != ' ' {
				t.Fatalf("%q is not folded", body)
			}
		}
		if strings.Contains(body, "=?") && strings.Contains(name, "=?") {
			return // a name that looks encoded is decoded by readers
		}
		unfolded := strings.ReplaceAll(body, "\n", "")
		a, err := mail.ParseAddress(unfolded)
		if err != nil || a.Address != "a@b.example" {
			t.Fatalf("%q: %v", body, err)
		}
		if want := cleanName(name); a.Name != want && utf8.ValidString(want) {
			dec := new(mime.WordDecoder)
			got, _ := dec.DecodeHeader(strings.TrimSuffix(unfolded, " <a@b.example>"))
			if got != want {
				t.Fatalf("name %q of %q, want %q", a.Name, body, want)
			}
		}
	})
}

// FuzzHeader: the rendered header has every field that was there, octet by
// octet unless it is an address field, and nothing of Bcc and Return-Path.
func FuzzHeader(f *testing.F) {
	for _, s := range []string{"To: a\n", "Bcc: a,\n b\nTo: c\n", "Return-Path: <a>\nTo: c\n", "Resent-To: a\nBcc:\n", "Subject: x\n\ty\n \nFrom : z\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		header, _ := readString(t, in, false)
		out := render(t, header)
		for _, field := range scanHeader([]byte(header)) {
			switch strings.TrimPrefix(field.name, "resent-") {
			case "bcc", "return-path", "from", "sender", "reply-to", "to", "cc":
				continue
			}
			if !strings.Contains("\n"+out, "\n"+string(field.raw)) {
				t.Fatalf("%q is lost in %q", field.raw, out)
			}
		}
		for _, field := range scanHeader([]byte(out)) {
			if slices.Contains([]string{"bcc", "resent-bcc", "return-path", ""}, field.name) {
				t.Fatalf("%q in %q", field.raw, out)
			}
		}
		again, body := readString(t, out+"\n", false)
		if body != "" || again != out && !strings.Contains(out, "\r\n") {
			t.Fatalf("%q is read as %q and %q", out, again, body)
		}
	})
}
