package rewrite

import (
	"bytes"
	"fmt"
	"io"

	"dma/internal/address"
)

// maxHeader is how much of a header is looked at. Fields beyond it stay as they
// are.
const maxHeader = 1 << 20

// Header returns a message with its senders rewritten, and its length. The header
// alone is kept in memory, up to 1 MiB; the rest is read from content. All octets
// but those of the addresses that change stay as they are, and lines stay lines. A
// field whose syntax is broken stays as it is. The error is one of reading.
func (r *Rewriter) Header(content io.ReaderAt, size int64) (io.ReaderAt, int64, error) {
	head, err := readHeader(content, size)
	if err != nil {
		return nil, 0, fmt.Errorf("reading the header: %w", err)
	}
	out := make([]byte, 0, len(head)+64)
	changed := false
	for rest := head; len(rest) > 0; {
		n := fieldLength(rest)
		field := rest[:n]
		rest = rest[n:]
		if colon := senderField(field); colon > 0 {
			at := r.addresses(field[colon:])
			from := 0
			for _, s := range at {
				out = append(out, field[from:colon+s.from]...)
				out = append(out, s.text...)
				from = colon + s.to
				changed = true
			}
			out = append(out, field[from:]...)
			continue
		}
		out = append(out, field...)
	}
	if !changed {
		return content, size, nil
	}
	s := &spliced{head: out, body: content, from: int64(len(head)), size: size + int64(len(out)-len(head))}
	return s, s.size, nil
}

// readHeader returns the header of a message with its final empty line, or as
// many whole fields of it as there is room for.
func readHeader(content io.ReaderAt, size int64) ([]byte, error) {
	var head []byte
	lineAt := 0 // where the last line begins
	field := 0  // where the last field begins
	for step := 4096; ; step *= 2 {
		n := int(min(int64(step), size-int64(len(head)), maxHeader-int64(len(head))))
		if n == 0 {
			if int64(len(head)) < size {
				head = head[:field] // the last field may go on
			}
			return head, nil
		}
		old := len(head)
		head = append(head, make([]byte, n)...)
		if got, err := content.ReadAt(head[old:], int64(old)); got < n {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		for {
			i := bytes.IndexByte(head[lineAt:], '\n')
			if i < 0 {
				break
			}
			line := head[lineAt : lineAt+i]
			if len(bytes.TrimSuffix(line, []byte("\r"))) == 0 {
				return head[:lineAt+i+1], nil
			}
			if line[0] != ' ' && line[0] != '\t' {
				field = lineAt
			}
			lineAt += i + 1
		}
		if lineAt < len(head) && head[lineAt] != ' ' && head[lineAt] != '\t' {
			field = lineAt
		}
	}
}

// fieldLength returns the length of the field that p begins with, with its folded
// lines.
func fieldLength(p []byte) int {
	for n := 0; ; {
		i := bytes.IndexByte(p[n:], '\n')
		if i < 0 {
			return len(p)
		}
		n += i + 1
		if n == len(p) || p[n] != ' ' && p[n] != '\t' {
			return n
		}
	}
}

// senderField returns where the body of a field begins that names a sender, 0 for
// other fields.
func senderField(field []byte) int {
	i := bytes.IndexByte(field, ':')
	if i <= 0 {
		return 0
	}
	name := bytes.ToLower(bytes.TrimRight(field[:min(i, 100)], " \t"))
	switch string(bytes.TrimPrefix(name, []byte("resent-"))) {
	case "from", "sender", "reply-to":
		return i + 1
	}
	return 0
}

// change is a piece of a field that becomes a text.
type change struct {
	from, to int
	text     string
}

// addresses returns the changes in the body of a field.
func (r *Rewriter) addresses(body []byte) []change {
	spans, ok := address.Spans(body)
	if !ok {
		return nil
	}
	var out []change
	for _, s := range spans {
		a, err := address.Parse(string(body[s.From:s.To]))
		if err != nil || a.Domain == "" && body[s.From] == '"' {
			continue // quotes alone are a name without address
		}
		if b := r.rewrite(a); b != a {
			out = append(out, change{s.From, s.To, b.String()})
		}
	}
	return out
}

// spliced is a header in memory and the rest of a message where it is.
type spliced struct {
	head []byte
	body io.ReaderAt
	from int64 // where the rest begins in body
	size int64
}

func (s *spliced) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("reading a message at %d", off)
	}
	if off >= s.size {
		return 0, io.EOF
	}
	short := int64(len(p)) > s.size-off
	if short {
		p = p[:s.size-off]
	}
	n := 0
	if off < int64(len(s.head)) {
		n = copy(p, s.head[off:])
	}
	if n < len(p) {
		k, err := s.body.ReadAt(p[n:], s.from+off+int64(n)-int64(len(s.head)))
		if n += k; n < len(p) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return n, err
		}
	}
	if short {
		return n, io.EOF
	}
	return n, nil
}
