package smarthost

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Bounds of the structure of a message that is converted.
const (
	maxNesting     = 50
	maxEdits       = 20000
	maxBoundary    = 250
	maxMIMEField   = 16 * 1024 // octets of a field that is looked at
	sevenBitReader = 32 * 1024
)

// errConversion is the class of errors of messages that cannot be sent to a peer
// without 8BITMIME.
var errConversion = errors.New("the relay does not offer 8BITMIME, and the message cannot be converted")

func unconvertible(why string) error { return fmt.Errorf("%w: %s", errConversion, why) }

// sevenBit returns the edits that make the bodies of a message 7-bit, for a peer
// that does not offer 8BITMIME (RFC 6152 section 3). Each part with octets above
// 0x7f is encoded by itself: text as quoted-printable, all else as base64. What it
// cannot encode without harm, as what is signed, is an error of class
// errConversion; other errors are those of reading.
func sevenBit(m *Message) ([]edit, error) {
	s := &mimeScan{end: m.Size, current: &entity{message: true}}
	br := bufio.NewReaderSize(io.NewSectionReader(m.Content, 0, m.Size), sevenBitReader)
	var err error
	for fresh := true; err == nil; {
		var part []byte
		part, err = br.ReadSlice('\n')
		switch {
		case err == nil, errors.Is(err, bufio.ErrBufferFull), errors.Is(err, io.EOF) && len(part) > 0:
			full := err == nil
			if errors.Is(err, bufio.ErrBufferFull) {
				err = nil
			}
			if why := s.line(part, fresh); why != nil {
				return nil, why
			}
			s.pos += int64(len(part))
			fresh = full
		}
	}
	if !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: %w", errContent, err)
	}
	if s.pos != m.Size {
		return nil, fmt.Errorf("%w: %d octets of %d", errContent, s.pos, m.Size)
	}
	s.lineEnd = 0
	if s.inHeader {
		s.headerEnd()
	}
	return s.edits, s.leaf(s.pos)
}

// mimeScan reads a message line by line and notes the edits.
type mimeScan struct {
	pos     int64 // of the line
	end     int64
	lineEnd int64 // the length of the line end before pos
	edits   []edit

	stack    []container
	current  *entity // the part or message that is being read; nil between parts
	inHeader bool
	started  bool
}

// container is a multipart, or a message inside a message, that the scan is in.
type container struct {
	boundary string // "--" and the boundary; empty for a message
	digest   bool
	signed   bool // it or one around it
}

// entity is a header and what belongs to it.
type entity struct {
	message bool // its header is that of a message, not of a part
	digest  bool // a part of a multipart/digest

	fieldFrom   int64  // of the field that is being read
	name        string // of that field, if it matters, in lower case
	value       []byte
	contentType string // the first Content-Type
	hasType     bool
	transfer    string // the first Content-Transfer-Encoding, in lower case
	transferAt  []edit // the places of all of them
	hasVersion  bool
	headerAt    int64 // where its header ends

	bodyAt int64
	high   bool // there are octets above 0x7f in its body
	kind   partKind
}

// partKind says what can be done with a body.
type partKind uint8

const (
	encodable partKind = iota
	signedPart
	encodedAlready
	structured // has parts of its own, which cannot be told apart
)

// line takes a line, or a further piece of a long one.
func (s *mimeScan) line(b []byte, fresh bool) error {
	if !s.started {
		s.started, s.inHeader = true, true
	}
	defer func() { s.lineEnd = endLength(b, s.lineEnd) }()
	if fresh && len(s.stack) > 0 && bytes.HasPrefix(b, []byte("--")) {
		if k, last := s.boundary(b); k >= 0 {
			return s.delimiter(k, last)
		}
	}
	switch {
	case s.inHeader && fresh && len(bytes.TrimRight(b, "\r\n")) == 0:
		s.headerEnd()
		return s.bodyBegins(s.pos + int64(len(b)))
	case s.inHeader:
		s.current.headerLine(b, s.pos, fresh)
	case s.current != nil && !s.current.high:
		s.current.high = hasHigh(b)
	}
	return nil
}

func hasHigh(b []byte) bool {
	return bytes.ContainsFunc(b, func(r rune) bool { return r >= 0x80 }) // RuneError too
}

// endLength returns the length of the line end of b. A CR at the end of the piece
// before may be part of it.
func endLength(b []byte, before int64) int64 {
	switch {
	case bytes.HasSuffix(b, []byte("\r\n")):
		return 2
	case len(b) == 1 && b[0] == '\n' && before < 0:
		return 2
	case bytes.HasSuffix(b, []byte("\n")):
		return 1
	case bytes.HasSuffix(b, []byte("\r")):
		return -1
	}
	return 0
}

// boundary returns the innermost container that has this line as a delimiter, and
// whether it is its last; -1 for none.
func (s *mimeScan) boundary(b []byte) (k int, last bool) {
	text := strings.TrimRight(string(b[:min(len(b), maxBoundary+80)]), " \t\r\n")
	for k := len(s.stack) - 1; k >= 0; k-- {
		limit := s.stack[k].boundary
		if limit == "" {
			continue
		}
		if text == limit {
			return k, false
		}
		if text == limit+"--" {
			return k, true
		}
	}
	return -1, false
}

// delimiter ends the part that is being read, at a delimiter of container k. The
// line end before it belongs to it (RFC 2046 section 5.1.1).
func (s *mimeScan) delimiter(k int, last bool) error {
	if s.inHeader {
		s.headerEnd()
	} else if err := s.leaf(s.pos - max(s.lineEnd, 0)); err != nil {
		return err
	}
	s.stack = s.stack[:k+1]
	s.inHeader, s.current = false, nil
	if last {
		s.stack = s.stack[:k]
		return nil
	}
	s.inHeader, s.current = true, &entity{digest: s.stack[k].digest}
	return nil
}

// headerLine takes a line of the header, or a further piece of one.
func (e *entity) headerLine(b []byte, pos int64, fresh bool) {
	if !fresh || b[0] == ' ' || b[0] == '\t' {
		if e.name != "" && len(e.value)+len(b) <= maxMIMEField {
			e.value = append(e.value, b...)
		}
		return
	}
	e.fieldEnd(pos)
	name, value, ok := bytes.Cut(b, []byte(":"))
	if !ok || len(name) > 60 {
		return
	}
	switch n := strings.ToLower(strings.TrimRight(string(name), " \t")); n {
	case "content-type", "content-transfer-encoding", "mime-version":
		e.name, e.fieldFrom = n, pos
		e.value = append(e.value[:0], value...)
	}
}

// fieldEnd notes the field that ends at pos, if it matters.
func (e *entity) fieldEnd(pos int64) {
	switch e.name {
	case "content-type":
		if !e.hasType {
			e.contentType, e.hasType = string(e.value), true
		}
	case "content-transfer-encoding":
		if len(e.transferAt) == 0 {
			e.transfer, _ = cutToken(strings.ToLower(uncomment(string(e.value))))
		}
		e.transferAt = append(e.transferAt, edit{from: e.fieldFrom, to: pos})
	case "mime-version":
		e.hasVersion = true
	}
	e.name = ""
}

func (s *mimeScan) headerEnd() {
	s.current.fieldEnd(s.pos)
	s.current.headerAt = s.pos
	s.inHeader = false
}

// bodyBegins decides what the body of the current entity is.
func (s *mimeScan) bodyBegins(at int64) error {
	e := s.current
	e.bodyAt = at
	mediaType, boundary := mediaType(e.contentType)
	if !e.hasType {
		mediaType = "text/plain"
		if e.digest {
			mediaType = "message/rfc822"
		}
	}
	top, sub, _ := strings.Cut(mediaType, "/")
	signed := len(s.stack) > 0 && s.stack[len(s.stack)-1].signed
	identity := e.transfer == "" || e.transfer == "7bit" || e.transfer == "8bit" || e.transfer == "binary"
	nested := top == "multipart" || mediaType == "message/rfc822"
	switch {
	case nested && identity && len(s.stack) < maxNesting && (top == "message" || boundary != ""):
		if e.transfer != "" && e.transfer != "7bit" && !signed {
			// What the parts become, the whole becomes.
			if err := s.label(e, noEncoding); err != nil {
				return err
			}
		}
		c := container{signed: signed || sub == "signed", digest: sub == "digest"}
		if top == "multipart" {
			c.boundary = "--" + boundary
			s.current = nil
		} else {
			s.current, s.inHeader = &entity{message: true}, true
		}
		s.stack = append(s.stack, c)
		return nil
	case signed:
		e.kind = signedPart
	case !identity:
		e.kind = encodedAlready
	case nested, mediaType == "message/partial", mediaType == "message/external-body":
		e.kind = structured // RFC 2046 section 5.2 allows them no encoding
	}
	return nil
}

// leaf ends a body without parts.
func (s *mimeScan) leaf(end int64) error {
	e := s.current
	if e == nil || !e.high {
		return nil
	}
	switch e.kind {
	case signedPart:
		return unconvertible("a part of it is signed")
	case encodedAlready:
		return unconvertible("a part of it has octets that its Content-Transfer-Encoding does not allow")
	case structured:
		return unconvertible("its MIME structure cannot be read")
	}
	media, _ := mediaType(e.contentType)
	enc := base64Text
	switch {
	case !e.hasType || strings.HasPrefix(media, "text/") || strings.HasPrefix(media, "message/"):
		enc = quotedPrintable
	case e.transfer == "binary":
		enc = base64Binary
	}
	if err := s.label(e, enc); err != nil {
		return err
	}
	s.edits = append(s.edits, edit{from: e.bodyAt, to: max(end, e.bodyAt), encoding: enc})
	return nil
}

// label edits the header of an entity: its Content-Transfer-Encoding, and what is
// needed besides so that a reader heeds it.
func (s *mimeScan) label(e *entity, enc encoding) error {
	text := "Content-Transfer-Encoding: " + enc.String() + "\n"
	for _, at := range e.transferAt {
		at.text, text = text, ""
		s.edits = append(s.edits, at)
	}
	if !e.hasType && !e.digest {
		text = "Content-Type: text/plain; charset=unknown-8bit\n" + text // RFC 1428
	}
	if e.message && !e.hasVersion {
		text = "MIME-Version: 1.0\n" + text
	}
	if text != "" {
		s.edits = append(s.edits, edit{from: e.headerAt, to: e.headerAt, text: text})
	}
	if len(s.edits) > maxEdits {
		return unconvertible("it has too many parts")
	}
	return nil
}

// mediaType reads the value of Content-Type (RFC 2045 section 5.1), as far as the
// structure of a message needs it: type and subtype in lower case, and the
// boundary, if it has one that can be used. It takes what common programs write,
// such as a boundary without the quotes that it needs.
func mediaType(value string) (mediaType, boundary string) {
	rest := uncomment(value)
	mediaType, rest, _ = strings.Cut(rest, ";")
	mediaType = strings.ToLower(strings.Join(strings.Fields(mediaType), ""))
	for rest != "" {
		var name, val string
		name, rest, _ = strings.Cut(rest, "=")
		name = strings.ToLower(strings.Trim(name, " \t\r\n;"))
		if i := strings.LastIndexByte(name, ';'); i >= 0 {
			name = strings.Trim(name[i+1:], " \t\r\n")
		}
		rest = strings.TrimLeft(rest, " \t\r\n")
		if strings.HasPrefix(rest, `"`) {
			val, rest = cutQuoted(rest)
		} else {
			val, rest = cutToken(rest)
		}
		if name == "boundary" && val != "" && len(val) <= maxBoundary && boundary == "" && !strings.ContainsAny(val, "\r\n") {
			boundary = strings.TrimRight(val, " \t")
		}
	}
	return mediaType, boundary
}

// cutToken takes a word off the front of s, up to a semicolon or white space.
func cutToken(s string) (word, rest string) {
	s = strings.TrimLeft(s, " \t\r\n")
	n := strings.IndexAny(s, "; \t\r\n")
	if n < 0 {
		n = len(s)
	}
	return s[:n], s[n:]
}

// cutQuoted takes a quoted string off the front of s, without quotes and
// backslashes.
func cutQuoted(s string) (text, rest string) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:]
		case '\r', '\n': // folded
		case '\\':
			if i++; i < len(s) {
				b.WriteByte(s[i])
			}
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), ""
}

// uncomment returns s with a blank for each comment outside quotes.
func uncomment(s string) string {
	if !strings.Contains(s, "(") {
		return s
	}
	var b strings.Builder
	depth, quoted := 0, false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && i+1 < len(s) && (quoted || depth > 0):
			if depth == 0 {
				b.WriteString(s[i : i+2])
			}
			i++
			continue
		case c == '"' && depth == 0:
			quoted = !quoted
		case c == '(' && !quoted:
			depth++
			continue
		case c == ')' && depth > 0 && !quoted:
			if depth--; depth == 0 {
				b.WriteByte(' ')
			}
			continue
		}
		if depth == 0 {
			b.WriteByte(c)
		}
	}
	return b.String()
}
