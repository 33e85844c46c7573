package sendmail

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

const (
	// maxHeader is the longest header that is taken, in octets; it is kept in
	// memory.
	maxHeader = 16 << 20

	// maxMemory is the longest body that is kept in memory, in octets.
	maxMemory = 1 << 20

	// maxFieldName bounds the name of a header field, in octets: a line longer
	// than this without a colon is no field (RFC 5322 2.1.1).
	maxFieldName = 998
)

// Scratch is a file for a body that is too long for memory. It has no name,
// so that nothing is left of it when the process dies.
type Scratch interface {
	io.ReadWriteSeeker
	io.Closer
}

// message is a message as it came in.
type message struct {
	// header has the lines of the header, each with an LF at its end, without
	// the empty line that ends it.
	header []byte

	body  body
	lines lineEnds
}

// readMessage reads a message from in. dot says that a line with a lone dot
// ends it. The caller closes the message.
func readMessage(in io.Reader, dot bool, scratch func() (Scratch, error)) (*message, error) {
	r := &reader{
		in:  bufio.NewReaderSize(in, 64<<10),
		dot: dot,
		m:   &message{body: body{create: scratch}},
	}
	more, err := r.readHeader()
	if err == nil && more {
		err = r.readBody()
	}
	if err != nil {
		r.m.close()
		return nil, err
	}
	return r.m, nil
}

func (m *message) close() { m.body.close() }

// writeBody writes the body, with LF where the whole input had CRLF.
func (m *message) writeBody(w io.Writer) error {
	if !m.lines.allCRLF() {
		return m.body.writeTo(w)
	}
	c := &crlfWriter{w: w}
	if err := m.body.writeTo(c); err != nil {
		return err
	}
	return c.flush()
}

// reader reads a message line by line. A line that is longer than its buffer
// comes in pieces.
type reader struct {
	in    *bufio.Reader
	dot   bool
	m     *message
	begun bool // the next piece goes on with a line
}

// piece reads the next piece of a line. first says that it begins the line,
// whole that it ends with a line feed. At the end of the input, or at the dot
// that ends it, the error is io.EOF.
func (r *reader) piece() (p []byte, first, whole bool, err error) {
	p, err = r.in.ReadSlice('\n')
	first, whole = !r.begun, err == nil
	r.begun = !whole
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		err = nil
	case errors.Is(err, io.EOF) && len(p) > 0:
		err = nil // the next call tells again
	case err != nil && !errors.Is(err, io.EOF):
		err = fail(exitTempFail, "reading the message: %w", err)
	}
	if first && whole && r.dot && (string(p) == ".\n" || string(p) == ".\r\n") {
		err = io.EOF
	}
	return p, first, whole, err
}

// readHeader reads up to the body; more is false if there is none. What it
// meets that belongs to the body is in the body already.
func (r *reader) readHeader() (more bool, err error) {
	m := r.m
	var from []byte // lines at the beginning that may be separators of an mbox
	for {
		p, first, whole, err := r.piece()
		if err == io.EOF {
			if len(from) > 0 {
				err = r.toBody(from)
			} else {
				m.endHeaderLine()
				err = nil
			}
			return false, err
		}
		if err != nil {
			return false, err
		}
		switch {
		case !first:
		case whole && isEmpty(p):
			if len(from) > 0 { // text that begins like a separator
				return true, r.toBody(from, p)
			}
			m.lines.count(p)
			return true, nil
		case isField(p), len(m.header) > 0 && (p[0] == ' ' || p[0] == '\t'):
			from = nil
		case len(m.header) == 0 && whole && isSeparator(p):
			if !isDated(p) || len(from) > 0 {
				from = append(from, p...)
			}
			if len(from) > maxFieldName {
				return true, r.toBody(from)
			}
			continue
		default:
			return true, r.toBody(from, p)
		}
		m.header = append(m.header, p...)
		if len(m.header) > maxHeader {
			return false, fail(exitData, "the header is longer than %d MiB", maxHeader>>20)
		}
		if whole {
			m.endHeaderLine()
		}
	}
}

// endHeaderLine gives the last line of the header an LF as its end.
func (m *message) endHeaderLine() {
	h := m.header
	n := len(h)
	switch {
	case n == 0:
	case h[n-1] != '\n':
		// The end of the input, or the call for a line that is complete.
		m.header = append(h, '\n')
	case n > 1 && h[n-2] == '\r':
		m.lines.count(h[n-2:])
		h[n-2] = '\n'
		m.header = h[:n-1]
	default:
		m.lines.count(h[n-1:])
	}
}

func (r *reader) toBody(parts ...[]byte) error {
	for _, p := range parts {
		r.m.lines.count(p)
		if err := r.m.body.write(p); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) readBody() error {
	for {
		p, _, _, err := r.piece()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = r.toBody(p)
		}
		if err != nil {
			return err
		}
	}
}

// lineEnds counts the line ends of an input.
type lineEnds struct {
	lf, crlf bool // there is at least one of the kind
	cr       bool // the last octet was a CR
}

// count takes the next octets.
func (l *lineEnds) count(p []byte) {
	for len(p) > 0 {
		n := bytes.IndexByte(p, '\n')
		if n < 0 {
			l.cr = p[len(p)-1] == '\r'
			return
		}
		if n > 0 && p[n-1] == '\r' || n == 0 && l.cr {
			l.crlf = true
		} else {
			l.lf = true
		}
		l.cr = false
		p = p[n+1:]
	}
}

func (l *lineEnds) allCRLF() bool { return l.crlf && !l.lf }

func isEmpty(line []byte) bool { return string(line) == "\n" || string(line) == "\r\n" }

// isField reports whether a line begins with the name of a header field and a
// colon. White space before the colon is taken (RFC 5322 4.5).
func isField(line []byte) bool {
	_, ok := fieldName(line)
	return ok
}

// fieldName returns the length of the name that a header field begins with.
func fieldName(line []byte) (n int, ok bool) {
	for n < len(line) && n <= maxFieldName && line[n] > ' ' && line[n] < 0x7f && line[n] != ':' {
		n++
	}
	colon := n
	for colon < len(line) && colon <= maxFieldName && (line[colon] == ' ' || line[colon] == '\t') {
		colon++
	}
	return n, n > 0 && colon < len(line) && line[colon] == ':'
}
