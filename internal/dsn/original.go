package dsn

import (
	"bytes"
	"fmt"
	"io"
)

// maxLine is the longest line that mail may have, without its line end (RFC 5322
// section 2.1.1).
const maxLine = 998

// enclosure makes the third part. why says in a sentence why the part is only the
// header although the whole message was asked for. The part is nil if there is no
// original.
func (r *Report) enclosure() (p *part, why string, err error) {
	if r.Original == nil {
		return nil, "", nil
	}
	limit := r.SizeCap
	if limit <= 0 {
		limit = DefaultSizeCap
	}
	// What was read to the end of the message is known to be whole.
	data := make([]byte, min(r.Size, limit))
	if _, err := io.ReadFull(io.NewSectionReader(r.Original, 0, r.Size), data); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, "", err
	}
	whole := int64(len(data)) == r.Size
	header := headerOf(data, whole)

	if r.Return == ReturnFull && r.Kind == Failed {
		switch {
		case !whole:
			why = fmt.Sprintf("The rest is not enclosed, since the message is larger than %d bytes.", limit)
		case !plain(data):
			why = "The rest is not enclosed, since it has very long lines or binary data."
		default:
			p := &part{
				description: "Undelivered message",
				mediaType:   "message/rfc822",
				encoding:    encodingName(!isASCII(data)),
				content:     data,
			}
			if hasUTF8(header) {
				p.mediaType = "message/global"
			}
			return p, "", nil
		}
	}

	p = &part{description: "Header of the message", mediaType: "text/rfc822-headers", encoding: "7bit", content: header}
	switch {
	case isASCII(header) && plain(header):
	case hasUTF8(header) && plain(header):
		p.mediaType, p.encoding = "message/global-headers", "8bit"
	default:
		// RFC 6522 section 4 allows this encoding for a header that needs it.
		p.encoding = "quoted-printable"
		p.content = quotedPrintable(header)
	}
	return p, why, nil
}

// headerOf returns the header of the message that begins with data, without the
// empty line. If data is not the whole message and ends within the header, the
// result ends after the last whole field.
func headerOf(data []byte, whole bool) []byte {
	pos, field := 0, 0 // the current line, and the field that it belongs to
	for pos < len(data) {
		n := bytes.IndexByte(data[pos:], '\n')
		if n < 0 {
			if whole {
				return data
			}
			return data[:field]
		}
		line := data[pos : pos+n]
		if len(line) == 0 || string(line) == "\r" {
			return data[:pos]
		}
		if line[0] != ' ' && line[0] != '\t' {
			field = pos
		}
		pos += n + 1
	}
	if whole {
		return data
	}
	return data[:field]
}

// plain reports whether data can travel as it is: no NUL, no CR, no line over
// maxLine.
func plain(data []byte) bool {
	if bytes.IndexByte(data, 0) >= 0 || bytes.IndexByte(data, '\r') >= 0 {
		return false
	}
	for line := range bytes.Lines(data) {
		if len(bytes.TrimSuffix(line, []byte("\n"))) > maxLine {
			return false
		}
	}
	return true
}

// quotedPrintable encodes text with LF line ends (RFC 2045 section 6.7). The
// standard library's writer would end lines with CR LF and take a lone CR as a
// line end.
func quotedPrintable(data []byte) []byte {
	var b bytes.Buffer
	for line := range bytes.Lines(data) {
		text := bytes.TrimSuffix(line, []byte("\n"))
		used := 0
		for i, c := range text {
			token := string(c)
			blank := c == ' ' || c == '\t'
			if blank && i == len(text)-1 || !blank && (c < '!' || c > '~' || c == '=') {
				token = fmt.Sprintf("=%02X", c)
			}
			if used+len(token) > 75 {
				b.WriteString("=\n")
				used = 0
			}
			b.WriteString(token)
			used += len(token)
		}
		if len(text) < len(line) {
			b.WriteByte('\n')
		}
	}
	return b.Bytes()
}
