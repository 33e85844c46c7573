package localwriter

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
)

// A Message is what goes into one mailbox, for one recipient.
type Message struct {
	// ID is the id of the message in the queue: letters, digits, '-' and '_',
	// at most 128 bytes. It never repeats.
	ID string

	// Recipient is the number of the recipient in the envelope, from 1.
	Recipient int

	// Sender is the envelope sender; empty is the null sender.
	Sender string

	// Arrival is when the message was submitted.
	Arrival time.Time

	// Header holds the trace fields to stand before the content, such as
	// Return-Path and Delivered-To: complete lines that end with LF, none of
	// them empty.
	Header []byte

	// Content is the message itself, Size bytes of it. A shorter one is an
	// error, and is not delivered.
	Content io.ReaderAt
	Size    int64

	// Suspect tells that an earlier delivery of this message to this recipient
	// may have been cut off, or its outcome is not known. It is looked for
	// before it is written.
	Suspect bool
}

// idField is the field that marks what this package wrote. It is the first of
// the header, right after the From_ line where there is one.
const idField = "X-Dma-Delivery: "

const (
	maxID     = 128
	maxSender = 512 // of a From_ line

	// maxHead bounds the From_ line and the line with the id together.
	maxHead = maxSender + maxID + 128
)

// check returns an error for a message that must not be written.
func (m Message) check() error {
	switch {
	case m.ID == "" || len(m.ID) > maxID:
		return errors.New("message id is empty or too long")
	case m.Recipient < 1:
		return fmt.Errorf("recipient number %d", m.Recipient)
	case m.Content == nil && m.Size != 0 || m.Size < 0:
		return errors.New("message without content")
	}
	for _, c := range []byte(m.ID) {
		if !isAlnum(c) && c != '-' && c != '_' {
			return fmt.Errorf("message id with %q", c)
		}
	}
	if h := m.Header; len(h) > 0 {
		if h[len(h)-1] != '\n' || h[0] == '\n' || bytes.Contains(h, []byte("\n\n")) {
			return errors.New("trace header has an empty line or no final newline")
		}
	}
	return nil
}

// key is the value of the X-Dma-Delivery field.
func (m Message) key() string { return m.ID + "." + strconv.Itoa(m.Recipient) }

// idLine is the X-Dma-Delivery field.
func (m Message) idLine() string { return idField + m.key() + "\n" }

// fromLine is the line that begins a message in an mbox: the envelope sender
// and the time of arrival in UTC, as asctime(3) writes it (RFC 4155).
func (m Message) fromLine() string {
	return "From " + fromSender(m.Sender) + " " + m.Arrival.UTC().Format(time.ANSIC) + "\n"
}

// fromSender makes one word of an envelope sender.
func fromSender(s string) string {
	if s == "" {
		return "MAILER-DAEMON"
	}
	if len(s) > maxSender {
		s = s[:maxSender]
	}
	b := []byte(s)
	for i, c := range b {
		if c <= ' ' || c == 0x7f {
			b[i] = '_'
		}
	}
	return string(b)
}

// Reader returns the trace fields and the content, as a command gets them:
// nothing is quoted or added, except a From_ line before everything if fromLine
// is set. It reports io.ErrUnexpectedEOF if Content is shorter than Size.
func (m Message) Reader(fromLine bool) io.Reader {
	first := ""
	if fromLine {
		first = m.fromLine()
	}
	return io.MultiReader(bytes.NewReader([]byte(first)), m.text())
}

// file returns what stands in a Maildir file.
func (m Message) file() io.Reader {
	return io.MultiReader(bytes.NewReader([]byte(m.idLine())), m.text())
}

// fileSize is the length of file.
func (m Message) fileSize() int64 {
	return int64(len(m.idLine())) + int64(len(m.Header)) + m.Size
}

// text returns the trace fields and the content.
func (m Message) text() io.Reader {
	return io.MultiReader(bytes.NewReader(m.Header), &exactReader{m.Content, 0, m.Size})
}

// exactReader reads bytes off to end of r, and fails if there are fewer: half a
// message must not pass for a whole one.
type exactReader struct {
	r        io.ReaderAt
	off, end int64
}

func (e *exactReader) Read(p []byte) (int, error) {
	if e.off >= e.end {
		return 0, io.EOF
	}
	if int64(len(p)) > e.end-e.off {
		p = p[:e.end-e.off]
	}
	n, err := e.r.ReadAt(p, e.off)
	e.off += int64(n)
	switch {
	case n > 0 && (err == nil || errors.Is(err, io.EOF)):
		return n, nil
	case errors.Is(err, io.EOF):
		return n, fmt.Errorf("content ends early: %w", io.ErrUnexpectedEOF)
	}
	// Wrapped, so that it is never taken for the io.ErrUnexpectedEOF with which
	// io.ReadFull tells that all has been read.
	return n, wrap("content", err)
}

func isAlnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}
