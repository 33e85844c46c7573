package localwriter

import (
	"bytes"
	"errors"
	"io"
)

// render returns the message as it stands in an mbox: From_ line, id, trace
// fields and content with mboxrd quoting, a final newline if there is none, and
// an empty line.
func (m Message) render() io.Reader {
	size := min(int64(len(m.Header))+m.Size+16, 64<<10)
	return io.MultiReader(
		bytes.NewReader([]byte(m.head())),
		&quoter{src: m.text(), buf: make([]byte, size), start: true, last: '\n'},
	)
}

// head is the part of the rendering that names the message.
func (m Message) head() string { return m.fromLine() + m.idLine() }

// A quoter puts '>' before each "From " at the beginning of a line, counting
// none or more '>' before it as nothing, and ends the text with an empty line.
// As one '>' is as good as the other, it is put right before the "From ", so
// that five bytes of look-ahead are enough however many there are.
type quoter struct {
	src    io.Reader
	buf    []byte
	r, w   int    // buf[r:w] is still to be looked at
	out    []byte // to be handed out first; a part of buf, or a constant
	start  bool   // only '>' stand between the last newline and buf[r]
	quoted bool   // the '>' for a "From " at buf[r] has been handed out
	last   byte   // the byte before buf[r]
	eof    bool
	ended  bool
}

var from = []byte("From ")

func (q *quoter) Read(p []byte) (int, error) {
	for len(q.out) == 0 {
		if err := q.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, q.out)
	q.out = q.out[n:]
	return n, nil
}

// fill puts at least one byte into out.
func (q *quoter) fill() error {
	if err := q.more(); err != nil {
		return err
	}
	window := q.buf[q.r:q.w]
	if len(window) == 0 {
		if q.ended {
			return io.EOF
		}
		q.ended = true
		q.out = []byte("\n")
		if q.last != '\n' {
			q.out = []byte("\n\n")
		}
		return nil
	}
	next := 0
	if q.start && bytes.HasPrefix(window, from) {
		if !q.quoted {
			q.quoted = true
			q.out = []byte(">")
			return nil
		}
		next = 1
	}
	for {
		i := bytes.Index(window[next:], from)
		if i < 0 {
			break
		}
		if next += i; q.startAt(window, next) {
			q.emit(next)
			return nil
		}
		next++
	}
	n := len(window)
	if !q.eof {
		n -= partial(window)
	}
	q.emit(n)
	return nil
}

// more sees to it that there are at least five bytes to look at, or all that
// are left.
func (q *quoter) more() error {
	if q.w-q.r >= len(from) || q.eof {
		return nil
	}
	q.w = copy(q.buf, q.buf[q.r:q.w])
	q.r = 0
	for empty := 0; q.w < len(from); {
		n, err := q.src.Read(q.buf[q.w:])
		q.w += n
		switch {
		case errors.Is(err, io.EOF):
			q.eof = true
			return nil
		case err != nil:
			return err
		case n == 0:
			if empty++; empty > 100 {
				return io.ErrNoProgress
			}
		}
	}
	return nil
}

// startAt reports whether only '>' stand between the beginning of a line and
// window[i].
func (q *quoter) startAt(window []byte, i int) bool {
	for i > 0 && window[i-1] == '>' {
		i--
	}
	if i == 0 {
		return q.start
	}
	return window[i-1] == '\n'
}

// emit hands out the next n bytes.
func (q *quoter) emit(n int) {
	q.out = q.buf[q.r : q.r+n]
	q.start = q.startAt(q.out, n)
	q.last = q.out[n-1]
	q.quoted = false
	q.r += n
}

// partial returns how many bytes at the end of b may be the beginning of
// "From ".
func partial(b []byte) int {
	for n := min(len(from)-1, len(b)); n > 0; n-- {
		if bytes.HasSuffix(b, from[:n]) {
			return n
		}
	}
	return 0
}
