package smarthost

import (
	"encoding/base64"
	"io"
	"strings"
)

// edit replaces the octets of a message from one offset up to another, by a text
// or by what they are in another encoding.
type edit struct {
	from, to int64
	text     string
	encoding encoding
}

// encoding is a Content-Transfer-Encoding that edits make.
type encoding uint8

const (
	noEncoding      encoding = iota
	quotedPrintable          // of text: line ends stay line ends
	base64Text               // line ends become CRLF (RFC 2045 section 6.8)
	base64Binary             // every octet as it is
)

func (e encoding) String() string {
	switch e {
	case quotedPrintable:
		return "quoted-printable"
	case base64Text, base64Binary:
		return "base64"
	}
	return "7bit"
}

// editReader reads a message with edits, which are in order and do not overlap.
type editReader struct {
	src   io.ReaderAt
	size  int64
	edits []edit
	pos   int64
	cur   io.Reader // what comes next; nil if that is to be found out
}

func (r *editReader) Read(p []byte) (int, error) {
	for {
		if r.cur == nil && !r.next() {
			return 0, io.EOF
		}
		n, err := r.cur.Read(p)
		if err == io.EOF {
			r.cur, err = nil, nil
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
}

// next opens the next piece and reports whether there is one.
func (r *editReader) next() bool {
	from := r.pos
	switch {
	case len(r.edits) == 0:
		r.pos = r.size
		r.cur = section(r.src, from, r.size)
		return from < r.size
	case from < r.edits[0].from:
		r.pos = r.edits[0].from
		r.cur = section(r.src, from, r.pos)
		return true
	}
	e := &r.edits[0]
	r.edits = r.edits[1:]
	r.pos = e.to
	switch e.encoding {
	case noEncoding:
		r.cur = strings.NewReader(e.text)
	case quotedPrintable:
		r.cur = &encodeReader{src: section(r.src, e.from, e.to), enc: new(qpEncoder)}
	default:
		r.cur = &encodeReader{src: section(r.src, e.from, e.to), enc: &base64Encoder{crlf: e.encoding == base64Text}}
	}
	return true
}

// section reads a part of a message, and takes an early end for an error.
func section(src io.ReaderAt, from, to int64) io.Reader {
	return &exactReader{io.NewSectionReader(src, from, to-from), to - from}
}

type exactReader struct {
	r    io.Reader
	left int64
}

func (e *exactReader) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	e.left -= int64(n)
	if err == io.EOF && e.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// encodeReader reads src in another encoding, a block at a time.
type encodeReader struct {
	src io.Reader
	enc interface {
		add(out, in []byte) []byte // appends what in gives to out
		end(out []byte) []byte     // appends what is left
	}
	in   [4096]byte
	out  []byte // encoded
	off  int    // read from out
	done bool
}

func (r *encodeReader) Read(p []byte) (int, error) {
	for r.off == len(r.out) {
		if r.done {
			return 0, io.EOF
		}
		n, err := r.src.Read(r.in[:])
		r.out, r.off = r.enc.add(r.out[:0], r.in[:n]), 0
		if err == io.EOF {
			r.out, r.done = r.enc.end(r.out), true
		} else if err != nil {
			return 0, err
		}
	}
	n := copy(p, r.out[r.off:])
	r.off += n
	return n, nil
}

// qpEncoder writes quoted-printable (RFC 2045 section 6.7). Line ends, LF or CRLF,
// become LF; a CR without LF is an octet like others. No line begins with a hyphen,
// so that none can be a delimiter of a multipart.
type qpEncoder struct {
	col  int  // in the line that is being written
	held byte // a blank or a CR, of which the next octet decides
}

func (q *qpEncoder) add(out, in []byte) []byte {
	for _, c := range in {
		if h := q.held; h != 0 {
			q.held = 0
			switch {
			case h == '\r' && c == '\n':
				// The CR is half of the line end.
			case h == '\r' || c == '\n' || c == '\r':
				// A blank before CR may stand before a line end.
				out = q.escape(out, h)
			default:
				out = q.plain(out, h)
			}
		}
		switch {
		case c == '\n':
			out = append(out, '\n')
			q.col = 0
		case c == ' ' || c == '\t' || c == '\r':
			q.held = c
		case '!' <= c && c <= '~' && c != '=':
			out = q.plain(out, c)
		default:
			out = q.escape(out, c)
		}
	}
	return out
}

func (q *qpEncoder) end(out []byte) []byte {
	if q.held != 0 {
		out = q.escape(out, q.held)
		q.held = 0
	}
	return out
}

func (q *qpEncoder) plain(out []byte, c byte) []byte {
	if c == '-' && (q.col == 0 || q.col == maxEncoded) {
		return q.escape(out, c)
	}
	out = q.room(out, 1)
	return append(out, c)
}

func (q *qpEncoder) escape(out []byte, c byte) []byte {
	const digits = "0123456789ABCDEF"
	out = q.room(out, 3)
	return append(out, '=', digits[c>>4], digits[c&15])
}

// maxEncoded is how long a line is at most without the mark of its break.
const maxEncoded = 75

// room breaks the line where n more octets would make it too long.
func (q *qpEncoder) room(out []byte, n int) []byte {
	if q.col+n > maxEncoded {
		out = append(out, "=\n"...)
		q.col = 0
	}
	q.col += n
	return out
}

// base64Encoder writes base64 in lines of 76 octets, with no line end after the
// last.
type base64Encoder struct {
	crlf  bool // LF alone becomes CRLF
	cr    bool // the last octet was CR
	lines bool // a line was written
	line  []byte
}

func (b *base64Encoder) add(out, in []byte) []byte {
	for _, c := range in {
		if c == '\n' && b.crlf && !b.cr {
			out = b.octet(out, '\r')
		}
		b.cr = c == '\r'
		out = b.octet(out, c)
	}
	return out
}

func (b *base64Encoder) octet(out []byte, c byte) []byte {
	const perLine = 57
	if b.line = append(b.line, c); len(b.line) == perLine {
		out = b.end(out)
	}
	return out
}

func (b *base64Encoder) end(out []byte) []byte {
	if len(b.line) == 0 {
		return out
	}
	if b.lines {
		out = append(out, '\n')
	}
	b.lines = true
	out = base64.StdEncoding.AppendEncode(out, b.line)
	b.line = b.line[:0]
	return out
}
