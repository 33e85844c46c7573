package address

import (
	"errors"
	"strings"
)

const hexDigits = "0123456789ABCDEF"

// SpoolName returns s as it stands in the name of a spool file, for people and
// ls: letters, digits and @._+=- stand, every other octet is %XX with
// upper-case digits. The result can be three times as long as s; the caller
// cuts it.
func SpoolName(s string) string {
	return escape(s, func(c byte) bool {
		return isAlnum(c) || strings.IndexByte("@._+=-", c) >= 0
	})
}

// Encode returns s as a field of a record in an envelope or a journal:
// printable ASCII without blanks. The octets 0x21 to 0x7e except % stand, every
// other octet is %XX with upper-case digits. Encode("") is "".
func Encode(s string) string { return escape(s, isPlain) }

func isPlain(c byte) bool { return 0x21 <= c && c <= 0x7e && c != '%' }

// Decode undoes Encode. It takes only what Encode can have written, so that a
// value has exactly one form on disk.
func Decode(s string) (string, error) {
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if isPlain(c) {
			b.WriteByte(c)
			continue
		}
		if c != '%' {
			return "", errors.New("field " + show(s) + ": an octet that should be written as %XX")
		}
		if i+2 >= len(s) {
			return "", errors.New("field " + show(s) + ": a % without two digits")
		}
		hi, lo := strings.IndexByte(hexDigits, s[i+1]), strings.IndexByte(hexDigits, s[i+2])
		if hi < 0 || lo < 0 {
			return "", errors.New("field " + show(s) + ": a % without two upper-case hex digits")
		}
		d := byte(hi<<4 | lo)
		if isPlain(d) {
			return "", errors.New("field " + show(s) + ": %XX for an octet that stands for itself")
		}
		b.WriteByte(d)
		i += 2
	}
	return b.String(), nil
}

func escape(s string, plain func(byte) bool) string {
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); i++ {
		if c := s[i]; plain(c) {
			b.WriteByte(c)
		} else {
			b.WriteByte('%')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		}
	}
	return b.String()
}
