package localwriter

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// marked reports whether the message at off is m, complete, with a header that
// a mail reader changed: lines may be inserted everywhere behind the one with
// the id, and fields that readers keep for themselves may be gone. The body has
// to be the same, but for the empty line that ends it.
func (s *mboxSession) marked(m Message, off int64) (bool, error) {
	s.read = true
	want := bufio.NewReaderSize(m.render(), 32<<10)
	have := bufio.NewReaderSize(io.NewSectionReader(s.f, off, s.size-off), 32<<10)
	head := []byte(m.head())
	b := make([]byte, len(head))
	if _, err := want.Discard(len(head)); err != nil {
		return false, fmt.Errorf("reading the message: %w", err)
	}
	if _, err := io.ReadFull(have, b); err != nil || !bytes.Equal(b, head) {
		return false, unlessEOF(err)
	}
	if same, err := sameHeader(want, have); err != nil || !same {
		return false, err
	}
	return sameBody(want, have)
}

// sameHeader compares up to the empty line that ends a header.
func sameHeader(want, have *bufio.Reader) (bool, error) {
	h, err := line(have)
	if err != nil {
		return false, unlessEOF(err)
	}
	for {
		w, err := line(want)
		if err != nil && err != io.EOF {
			return false, fmt.Errorf("reading the message: %w", err)
		}
		empty := len(w) <= 1 // the rendering ends with an empty line, so there is one
		for !bytes.Equal(w, h) {
			if len(h) <= 1 {
				if empty || !readersOwn(w) {
					return false, nil
				}
				break // the reader has removed w
			}
			if !empty && readersOwn(w) && !readersOwn(h) {
				break
			}
			if h, err = line(have); err != nil {
				return false, unlessEOF(err)
			}
		}
		if empty {
			return true, nil
		}
		if bytes.Equal(w, h) {
			if h, err = line(have); err != nil {
				return false, unlessEOF(err)
			}
		}
	}
}

// line returns the next line, or a part of one that is longer than the buffer.
// Both sides are read from the beginning of a line on, so the parts of equal
// lines are equal. The result is good until the next call for r.
func line(r *bufio.Reader) ([]byte, error) {
	b, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) || err == io.EOF && len(b) > 0 {
		err = nil
	}
	return b, err
}

// readersOwn reports whether a header line belongs to mail readers, which
// insert it, change it, and take away the one that a message came with.
func readersOwn(line []byte) bool {
	name, _, ok := bytes.Cut(line, []byte(":"))
	if !ok || len(name) > 40 {
		return false
	}
	switch n := strings.ToLower(string(name)); n {
	case "status", "x-status", "x-keywords", "x-uid", "x-imap", "x-imapbase", "x-label", "content-length", "lines":
		return true
	default:
		return strings.HasPrefix(n, "x-mozilla-") || strings.HasPrefix(n, "x-evolution")
	}
}

// sameBody reports whether have begins with all of want, except its last byte,
// the empty line between messages.
func sameBody(want, have *bufio.Reader) (bool, error) {
	w, h := make([]byte, 32<<10), make([]byte, 32<<10)
	for {
		n, err := io.ReadFull(want, w)
		if n == 0 && err == io.EOF {
			return true, nil
		}
		if err != nil && err != io.ErrUnexpectedEOF {
			return false, fmt.Errorf("reading the message: %w", err)
		}
		if _, err := want.Peek(1); err == io.EOF {
			n--
		}
		if _, err := io.ReadFull(have, h[:n]); err != nil {
			return false, unlessEOF(err)
		}
		if !bytes.Equal(w[:n], h[:n]) {
			return false, nil
		}
	}
}

// unlessEOF drops the errors that only tell that the file ends.
func unlessEOF(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil
	}
	return err
}
