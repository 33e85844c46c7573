package smarthost

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// maxLine is the greatest length of a line on the wire, without its CRLF
// (RFC 5322 section 2.1.1).
const maxLine = 998

// blockSize is how much of a message is written at a time.
const blockSize = 32 * 1024

// content is what a message is on the wire.
type content struct {
	size       int64 // octets with CRLF, without stuffed dots (RFC 1870 section 5)
	eightBit   bool
	header8Bit bool // an octet above 0x7f stands in the header
	body8Bit   bool // one stands in the body
}

// measure reads a message and says what it is on the wire.
func measure(m *Message) (*content, error) {
	c := &content{eightBit: m.EightBit}
	header := true
	err := eachLine(m, func(line []byte) error {
		c.size += int64(len(line)) + 2
		if header && len(line) == 0 {
			header = false
		}
		for _, b := range line {
			if b >= 0x80 {
				c.eightBit = true
				c.header8Bit = c.header8Bit || header
				c.body8Bit = c.body8Bit || !header
				break
			}
		}
		return nil
	})
	return c, err
}

// writeContent writes a message as the answer to 354: dots stuffed (RFC 5321
// section 4.5.2) and the final dot in the same write as the last line, because a
// peer that delays its acknowledgements would hold up a dot of its own. write
// gets blocks of at most blockSize octets; last is true with the final dot.
func writeContent(m *Message, write func(block []byte, last bool) error) error {
	block := make([]byte, 0, blockSize)
	err := eachLine(m, func(line []byte) error {
		// Room for the line, its stuffed dot and end, and the final dot.
		if len(block)+len(line)+6 > blockSize {
			if err := write(block, false); err != nil {
				return err
			}
			block = block[:0]
		}
		if len(line) > 0 && line[0] == '.' {
			block = append(block, '.')
		}
		block = append(block, line...)
		block = append(block, '\r', '\n')
		return nil
	})
	if err != nil {
		return err
	}
	return write(append(block, ".\r\n"...), true)
}

// errContent is the class of errors of our own side while a message is read.
var errContent = errors.New("reading the message")

// eachLine calls emit with every line of a message as it stands on the wire,
// without its end and without stuffed dots. A line is valid during the call. The
// package's documentation has the rules.
func eachLine(m *Message, emit func(line []byte) error) error {
	var src io.Reader = io.NewSectionReader(m.Content, 0, m.Size)
	if m.edits != nil {
		src = &editReader{src: m.Content, size: m.Size, edits: m.edits}
	}
	br := bufio.NewReaderSize(src, 32*1024)
	var got int64
	header := true
	var line []byte // of the current line, what was not yet emitted
	out := func(piece []byte) error {
		if bytes.IndexByte(piece, '\r') >= 0 {
			for i := range piece {
				if piece[i] == '\r' {
					piece[i] = ' '
				}
			}
		}
		return emit(piece)
	}
	// shorten emits pieces of the line until no more than keep octets are left.
	shorten := func(keep int) error {
		rest := line
		for len(rest) > keep {
			n, space := breakLine(rest, header)
			if err := out(rest[:n]); err != nil {
				return err
			}
			if space {
				n--
				rest[n] = ' '
			}
			rest = rest[n:]
		}
		line = append(line[:0], rest...)
		return nil
	}
	for {
		part, err := br.ReadSlice('\n')
		got += int64(len(part))
		line = append(line, part...)
		switch {
		case err == nil:
			line = bytes.TrimSuffix(line[:len(line)-1], []byte("\r"))
			if len(line) == 0 {
				header = false
			}
			if err := shorten(maxLine); err != nil {
				return err
			}
			if err := out(line); err != nil {
				return err
			}
			line = line[:0]
		case errors.Is(err, bufio.ErrBufferFull):
			// One octet stays, since it may be the CR of the line's end.
			if err := shorten(maxLine + 1); err != nil {
				return err
			}
		case errors.Is(err, io.EOF):
			if got != m.Size && m.edits == nil {
				return fmt.Errorf("%w: %d octets of %d", errContent, got, m.Size)
			}
			if len(line) == 0 {
				return nil
			}
			if err := shorten(maxLine); err != nil {
				return err
			}
			return out(line)
		default:
			return fmt.Errorf("%w: %w", errContent, err)
		}
	}
}

// breakLine says where to break a line that is too long: after n octets, 2 at
// least. If space is true, the rest has to begin with a space that is not there.
func breakLine(line []byte, header bool) (n int, space bool) {
	window := line[:maxLine]
	if header {
		if i := bytes.LastIndexAny(line[:maxLine+1], " \t"); i >= 2 && len(bytes.TrimLeft(line[:i], " \t\r")) > 0 {
			return i, false
		}
	} else if i := bytes.LastIndexByte(window, ' '); i >= 2 {
		return i + 1, false
	}
	n = maxLine
	for k := 0; k < utf8.UTFMax-1 && n > 2 && !utf8.RuneStart(line[n]); k++ {
		n--
	}
	if !utf8.RuneStart(line[n]) {
		n = maxLine // not UTF-8
	}
	return n, header
}
