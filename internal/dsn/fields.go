package dsn

import (
	"bytes"
	"strings"
)

// deliveryStatus makes the second part: the fields of RFC 3464 section 2, or of
// RFC 6533 section 4 if an address is UTF-8.
func (r *Report) deliveryStatus() part {
	global := false
	for i := range r.Recipients {
		rcpt := &r.Recipients[i]
		orig, err := ParseORCPT(rcpt.Original)
		if hasUTF8(rcpt.Final) || err == nil && !isASCII(orig.Address) {
			global = true
			break
		}
	}

	var b bytes.Buffer
	if r.EnvelopeID != "" {
		field(&b, "Original-Envelope-Id: "+cleanAddress(r.EnvelopeID, false))
	}
	field(&b, "Reporting-MTA: dns; "+r.ReportingMTA)
	if !r.Arrival.IsZero() {
		field(&b, "Arrival-Date: "+date(r.Arrival))
	}
	for i := range r.Recipients {
		b.WriteByte('\n')
		r.recipientFields(&b, &r.Recipients[i], global)
	}

	p := part{
		description: "Delivery report",
		mediaType:   "message/delivery-status",
		encoding:    encodingName(!isASCII(b.Bytes())),
		content:     b.Bytes(),
	}
	if global {
		p.mediaType = "message/global-delivery-status"
	}
	return p
}

// recipientFields writes the group of one recipient (RFC 3464 section 2.3).
func (r *Report) recipientFields(b *bytes.Buffer, rcpt *Recipient, global bool) {
	// An ORCPT that does not parse is left out: half an address is none.
	if orig, err := ParseORCPT(rcpt.Original); err == nil {
		field(b, "Original-Recipient: "+orig.Type+"; "+cleanAddress(orig.Address, global))
	}
	final := cleanAddress(rcpt.Final, global)
	if isASCII(final) {
		field(b, "Final-Recipient: rfc822; "+final)
	} else {
		field(b, "Final-Recipient: utf-8; "+final)
	}
	field(b, "Action: "+r.Kind.String())
	field(b, "Status: "+statusFor(r.Kind, rcpt.Status))
	if host := cut(cleanAddress(rcpt.RemoteMTA, false), maxHost); host != "" {
		field(b, "Remote-MTA: dns; "+host)
	}
	if typ, text := diagnostic(rcpt.Diagnostic, global); text != "" {
		name := "Diagnostic-Code: " + typ + ";"
		b.WriteString(name + " ")
		wrap(b, len(name)+1, " ", text)
	}
	if !rcpt.LastAttempt.IsZero() {
		field(b, "Last-Attempt-Date: "+date(rcpt.LastAttempt))
	}
	if r.Kind == Delayed && !rcpt.WillRetryUntil.IsZero() {
		field(b, "Will-Retry-Until: "+date(rcpt.WillRetryUntil))
	}
}

// field writes one field on one line. Its value comes from cleanAddress, so it has
// no line break and is short enough; an address is never folded, as blanks in it
// count.
func field(b *bytes.Buffer, line string) {
	b.WriteString(strings.TrimRight(line, " "))
	b.WriteByte('\n')
}

// diagnostic splits a diagnostic code into its type and one line of text. Types
// are smtp and private ones; without a type, text that begins with a reply code
// is taken as smtp and other text as x-unix.
func diagnostic(s string, utf8ok bool) (typ, text string) {
	s = cleanText(s, maxText, utf8ok)
	if t, rest, ok := strings.Cut(s, ";"); ok && isAtom(t) {
		t = strings.ToLower(t)
		if t == "smtp" || strings.HasPrefix(t, "x-") {
			return t, strings.TrimSpace(rest)
		}
	}
	if len(s) >= 3 && statusNumber(s[:3]) {
		return "smtp", s
	}
	return "x-unix", s
}
