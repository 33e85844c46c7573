package agent

import (
	"encoding/binary"
	"errors"
	"strings"
	"unicode/utf8"
)

// errProtocol says that the other side does not keep to the protocol.
var errProtocol = errors.New("not a message of the protocol")

// An encoder puts a message together: numbers as in encoding/binary, and strings
// with their length before them, of any octets.
type encoder struct{ b []byte }

func (e *encoder) uint(n uint64) { e.b = binary.AppendUvarint(e.b, n) }

func (e *encoder) bool(v bool) {
	var n uint64
	if v {
		n = 1
	}
	e.uint(n)
}

func (e *encoder) string(s string) {
	e.uint(uint64(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) bytes(p []byte) {
	e.uint(uint64(len(p)))
	e.b = append(e.b, p...)
}

// A decoder takes a message apart. Every value has a bound; the first mistake
// counts, and everything behind it is zero.
type decoder struct {
	b   []byte
	bad bool
}

// uint returns the next number, which is at most most.
func (d *decoder) uint(most uint64) uint64 {
	n, size := binary.Uvarint(d.b)
	if d.bad || size <= 0 || n > most {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[size:]
	return n
}

func (d *decoder) bool() bool { return d.uint(1) == 1 }

// bytes returns the next octets, at most most, which stay part of the message.
func (d *decoder) bytes(most int) []byte {
	n := d.uint(uint64(most))
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return nil
	}
	p := d.b[:n:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) string(most int) string { return string(d.bytes(most)) }

// end returns an error unless the message was sound and is used up.
func (d *decoder) end() error {
	if d.bad || len(d.b) > 0 {
		return errProtocol
	}
	return nil
}

// oneLine makes a printable line of at most most octets of text that somebody
// else has written.
func oneLine(s string, most int) string {
	clean := func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError || r == '\u2028' || r == '\u2029' {
			return '?'
		}
		return r
	}
	s = strings.Map(clean, s[:min(len(s), most)])
	for len(s) > most || !utf8.ValidString(s) { // "?" for an octet may be longer than it
		s = s[:len(s)-1]
	}
	return s
}

// hasControl reports whether s has a control character.
func hasControl(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) >= 0
}
