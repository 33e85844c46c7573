package door

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"dma/spooldir"
)

func TestCheck(t *testing.T) {
	parent, err := spooldir.ParseName("20260304T050607-0123456789abcdef.1-x")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		change func(e *spooldir.Envelope)
		want   string // in the error; empty: none
	}{
		{"as it is", func(e *spooldir.Envelope) {}, ""},
		{"null sender", func(e *spooldir.Envelope) { e.Sender = "" }, ""},
		{"a host that is no domain", func(e *spooldir.Envelope) { e.Sender = "al@host-" }, ""},
		{"all options", func(e *spooldir.Envelope) {
			e.Return, e.EnvelopeID = "FULL", "a+2Bb"
			e.Recipients[0].Notify, e.Recipients[0].ORCPT = "NEVER", "utf-8;x"
		}, ""},
		{"newline in the sender", func(e *spooldir.Envelope) { e.Sender = "a\n@b" }, "line break"},
		{"NUL in the sender", func(e *spooldir.Envelope) { e.Sender = "a\x00@b" }, "control character"},
		{"control in the odd host", func(e *spooldir.Envelope) { e.Sender = "al@host-\r" }, "line break"},
		{"control before the odd host", func(e *spooldir.Envelope) { e.Sender = "a\nl@host-" }, "line break"},
		{"sender in brackets", func(e *spooldir.Envelope) { e.Sender = "<a@b>" }, "plain form"},
		{"sender not UTF-8", func(e *spooldir.Envelope) { e.Sender = "\xff@b" }, "UTF-8"},
		{"sender of UTF-8 unsaid", func(e *spooldir.Envelope) { e.Sender = "ä@b" }, "not ASCII"},
		{"CR in a recipient", func(e *spooldir.Envelope) { e.Recipients[0].Address = "a\r@b" }, "line break"},
		{"C1 in a recipient", func(e *spooldir.Envelope) { e.Recipients[0].Address = "a\u0085@b" }, "control character"},
		{"no recipient", func(e *spooldir.Envelope) { e.Recipients = nil }, "no recipients"},
		{"empty recipient", func(e *spooldir.Envelope) { e.Recipients[0].Address = "" }, "empty"},
		{"recipient of UTF-8 unsaid", func(e *spooldir.Envelope) { e.Recipients[0].Address = "ä@b" }, "not ASCII"},
		{"recipient in upper case", func(e *spooldir.Envelope) { e.Recipients[0].Address = "a@B" }, "plain form"},
		{"RET", func(e *spooldir.Envelope) { e.Return = "FULL\n" }, "RET"},
		{"ENVID", func(e *spooldir.Envelope) { e.EnvelopeID = "a b" }, "envelope id"},
		{"long ENVID", func(e *spooldir.Envelope) { e.EnvelopeID = strings.Repeat("x", 101) }, "envelope id"},
		{"half an octet", func(e *spooldir.Envelope) { e.EnvelopeID = "+2" }, "envelope id"},
		{"NOTIFY", func(e *spooldir.Envelope) { e.Recipients[0].Notify = "SUCCESS,NEVER" }, "NOTIFY"},
		{"NOTIFY twice", func(e *spooldir.Envelope) { e.Recipients[0].Notify = "DELAY,DELAY" }, "NOTIFY"},
		{"ORCPT", func(e *spooldir.Envelope) { e.Recipients[0].ORCPT = "x" }, "ORCPT"},
		{"ORCPT with a newline", func(e *spooldir.Envelope) { e.Recipients[0].ORCPT = "rfc822;a\nb" }, "ORCPT"},
		{"a command", func(e *spooldir.Envelope) {
			e.Recipients[0] = spooldir.Recipient{Kind: spooldir.Command, Address: "a@b", User: "root", Target: "id", Source: "aliases"}
		}, "only dma gives"},
		{"a user", func(e *spooldir.Envelope) { e.Recipients[0].User = "root" }, "only dma gives"},
		{"an original", func(e *spooldir.Envelope) { e.Recipients[0].Original = "x@y" }, "only dma gives"},
		{"an id", func(e *spooldir.Envelope) { e.ID = parent.ID }, "only dma gives"},
		{"an arrival", func(e *spooldir.Envelope) { e.Arrival = time.Unix(1, 0) }, "only dma gives"},
		{"a depth", func(e *spooldir.Envelope) { e.Depth = -1 }, "only dma gives"},
		{"parents", func(e *spooldir.Envelope) { e.Parents = []spooldir.Parent{{Name: parent}} }, "only dma gives"},
	} {
		e := recipients(1)
		tc.change(e)
		switch err := Check(e); {
		case tc.want == "" && err != nil:
			t.Errorf("%s: %v", tc.name, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

// FuzzEnvelope: what the server takes is an envelope that Check takes or not,
// has nothing of dma's own in it, and comes out as it went in.
func FuzzEnvelope(f *testing.F) {
	e := recipients(2)
	e.EightBit, e.UTF8, e.Return, e.EnvelopeID = true, true, "FULL", "x"
	e.Recipients[1].Notify, e.Recipients[1].ORCPT = "NEVER", "rfc822;x"
	frames := encodeEnvelope(e)
	f.Add(string(frames[0][1:]), string(frames[1][1:]))
	f.Add("sender \nrecipients 1\n", "a\n")
	f.Add("sender \nuid 0\nrecipients 1\n", "a user=root\n")
	f.Add("sender a%0A@b\nrecipients 99999\n", "a%00\n")
	f.Fuzz(func(t *testing.T, head, list string) {
		e, n, err := parseEnvelope([]byte(head))
		if err != nil {
			return
		}
		if n < 1 || n > spooldir.MaxRecipients {
			t.Fatalf("%d recipients", n)
		}
		if parseRecipients([]byte(list), e, n) != nil {
			return
		}
		if len(e.Recipients) > n {
			t.Fatalf("%d recipients of %d", len(e.Recipients), n)
		}
		plain := &spooldir.Envelope{Sender: e.Sender, EightBit: e.EightBit, UTF8: e.UTF8, Return: e.Return, EnvelopeID: e.EnvelopeID, Recipients: e.Recipients}
		if !reflect.DeepEqual(e, plain) {
			t.Fatalf("%+v has more than a user gives", e)
		}
		if Check(e) != nil {
			return
		}
		again := encodeEnvelope(e)
		e2, n2, err := parseEnvelope(again[0][1:])
		for _, frame := range again[1:] {
			if err == nil {
				err = parseRecipients(frame[1:], e2, n2)
			}
		}
		if err != nil || !reflect.DeepEqual(e, e2) {
			t.Fatalf("%+v became %+v: %v", e, e2, err)
		}
	})
}

// FuzzRefusal: whatever a server says is one printable line.
func FuzzRefusal(f *testing.F) {
	f.Add("t text")
	f.Add("d \x1b[2J\nmore")
	f.Add("")
	f.Fuzz(func(t *testing.T, payload string) {
		r := parseRefusal([]byte(payload))
		if strings.ContainsFunc(r.Text, func(c rune) bool { return c < ' ' || c == 0x7f || c == 0xfffd }) || len(r.Text) > 4*maxText {
			t.Fatalf("text %q", r.Text)
		}
		if again := parseRefusal(r.encode()[1:]); again.Kind != r.Kind {
			t.Fatalf("%+v became %+v", r, again)
		}
	})
}
