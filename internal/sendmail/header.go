package sendmail

import (
	"bufio"
	"bytes"
	"strings"
	"time"
	"unicode/utf8"

	"dma/internal/address"
)

// field is one field of a header as it came, with its folded lines.
type field struct {
	name string // in lower case
	raw  []byte // from the name to the last LF
	body int    // where the body begins in raw, after the colon
}

// scanHeader takes a header apart. The fields together are the header, octet
// by octet: every line begins a field or goes on with one, as readMessage left
// them. Lines that do neither are kept as fields without a name. After one
// field more than maxFields it stops.
func scanHeader(header []byte) []field {
	var fields []field
	for len(header) > 0 && len(fields) <= maxFields {
		n := lineLength(header)
		for n < len(header) && (header[n] == ' ' || header[n] == '\t') {
			n += lineLength(header[n:])
		}
		f := field{raw: header[:n:n]}
		if end, ok := fieldName(f.raw); ok {
			f.name = strings.ToLower(string(f.raw[:end]))
			f.body = bytes.IndexByte(f.raw, ':') + 1
		}
		fields = append(fields, f)
		header = header[n:]
	}
	return fields
}

// lineLength is the length of the first line of p, its LF included.
func lineLength(p []byte) int {
	if n := bytes.IndexByte(p, '\n'); n >= 0 {
		return n + 1
	}
	return len(p)
}

// text is the body of the field without its last line end.
func (f *field) text() string {
	return string(bytes.TrimSuffix(f.raw[f.body:], []byte("\n")))
}

// header is the header of a message on its way into the queue.
type header struct {
	fields []field
	has    map[string]bool // the names of the fields
	resent bool            // there is a Resent- field: somebody sends the message again
}

// maxFields bounds the fields of a header: each costs memory of its own.
const maxFields = 100000

func newHeader(raw []byte) (*header, error) {
	h := &header{fields: scanHeader(raw), has: make(map[string]bool)}
	if len(h.fields) > maxFields {
		return nil, fail(exitData, "the header has more than %d fields", maxFields)
	}
	for i := range h.fields {
		name := h.fields[i].name
		h.has[name] = true
		h.resent = h.resent || strings.HasPrefix(name, "resent-")
	}
	return h, nil
}

// recipients returns the addresses of To, Cc and Bcc, or of their Resent-
// forms where the message is sent again (RFC 5322 3.6.6).
func (h *header) recipients() ([]address.Address, error) {
	prefix := ""
	if h.resent {
		prefix = "resent-"
	}
	var all []address.Address
	for i := range h.fields {
		f := &h.fields[i]
		rest, ok := strings.CutPrefix(f.name, prefix)
		if !ok || rest != "to" && rest != "cc" && rest != "bcc" {
			continue
		}
		list, err := address.ParseList(f.text())
		if err != nil {
			return nil, fail(exitData, "-t: the %s field: %w", f.raw[:len(f.name)], err)
		}
		if all = append(all, list...); len(all) > maxRecipients {
			return nil, tooMany(len(all))
		}
	}
	return all, nil
}

// strip takes the fields out that name recipients whom the others are not to
// see, and Return-Path: who delivers a message says there what its sender is
// (RFC 5321 4.4), and one that a message was delivered with before is not it.
func (h *header) strip() {
	kept := h.fields[:0]
	for _, f := range h.fields {
		switch f.name {
		case "bcc", "resent-bcc", "return-path":
		default:
			kept = append(kept, f)
		}
	}
	h.fields = kept
}

// qualify completes the bare names in address fields.
func (h *header) qualify(mailName string) {
	for i := range h.fields {
		f := &h.fields[i]
		switch strings.TrimPrefix(f.name, "resent-") {
		case "from", "sender", "reply-to", "to", "cc":
			f.raw = append(f.raw[:f.body:f.body], qualify(f.raw[f.body:], mailName)...)
		}
	}
}

// origin is what the fields that dma adds say.
type origin struct {
	id       string    // of the message
	date     time.Time // of its arrival
	mailName string    // of the host
	from     string    // the body of a From field, folded if need be
}

// dateLayout is date-time of RFC 5322 3.3.
const dateLayout = "Mon, 2 Jan 2006 15:04:05 -0700"

// render writes the header with the missing fields after it, those of a message
// that is sent again before its first Resent- field. The Received field before
// it and the empty line that ends it are not part of it.
func (h *header) render(w *bufio.Writer, o *origin) error {
	add := func(name, body string) {
		if !h.has[strings.ToLower(name)] {
			w.WriteString(name + ": " + body + "\n")
		}
	}
	date, messageID := o.date.Format(dateLayout), "<"+o.id+"@"+o.mailName+">"

	resent := h.resent
	for i := range h.fields {
		if resent && strings.HasPrefix(h.fields[i].name, "resent-") {
			resent = false
			add("Resent-From", o.from)
			add("Resent-Date", date)
			add("Resent-Message-ID", messageID)
		}
		w.Write(h.fields[i].raw)
	}
	add("From", o.from)
	// Filters take a message for junk if no field names a recipient. The
	// recipients themselves are not each other's business.
	if !h.has["cc"] {
		add("To", "undisclosed-recipients:;")
	}
	add("Date", date)
	// The id of a message that is sent again is not ours to invent.
	if !h.resent {
		add("Message-ID", messageID)
	}
	_, err := w.Write(nil) // tells of any error before
	return err
}

// eightBit reports whether a field has an octet above 127, and utf8 whether
// such fields are UTF-8, as RFC 6532 has it, and not text in an unnamed code.
func (h *header) eightBit() (eightBit, isUTF8 bool) {
	isUTF8 = true
	for i := range h.fields {
		if raw := h.fields[i].raw; !isASCII(raw) {
			eightBit = true
			isUTF8 = isUTF8 && utf8.Valid(raw)
		}
	}
	return eightBit, eightBit && isUTF8
}
