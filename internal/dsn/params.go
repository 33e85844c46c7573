package dsn

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits of RFC 3461, in bytes of the encoded value.
const (
	maxENVID = 100 // section 4.4
	maxORCPT = 500 // section 4.2
)

// Return is the RET parameter of a message (RFC 3461 section 4.3). It matters to
// failure reports only; all others hold the header.
type Return uint8

// The values of RET. ReturnDefault, the zero value, means that the parameter was
// not given; a Report takes it as ReturnHeaders.
const (
	ReturnDefault Return = iota
	ReturnHeaders
	ReturnFull
)

// ParseRet reads the value of RET or of sendmail's -R: FULL or HDRS, in any case.
func ParseRet(s string) (Return, error) {
	switch {
	case strings.EqualFold(s, "FULL"):
		return ReturnFull, nil
	case strings.EqualFold(s, "HDRS"):
		return ReturnHeaders, nil
	}
	return 0, fmt.Errorf("RET: %.40q is neither FULL nor HDRS", s)
}

// String returns FULL or HDRS, and "" when the parameter was not given.
func (r Return) String() string {
	switch r {
	case ReturnFull:
		return "FULL"
	case ReturnHeaders:
		return "HDRS"
	}
	return ""
}

const upperHex = "0123456789ABCDEF"

// EncodeXtext encodes any bytes as xtext (RFC 3461 section 4).
func EncodeXtext(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; xchar(c) {
			b.WriteByte(c)
		} else {
			b.WriteByte('+')
			b.WriteByte(upperHex[c>>4])
			b.WriteByte(upperHex[c&15])
		}
	}
	return b.String()
}

// DecodeXtext decodes xtext. It is strict: characters that must be encoded and
// anything but two upper-case hexadecimal digits after '+' are errors. The result
// can hold any byte, so it has to be checked before it is used.
func DecodeXtext(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case xchar(c):
			b.WriteByte(c)
		case c == '+' && i+2 < len(s):
			hi, lo := strings.IndexByte(upperHex, s[i+1]), strings.IndexByte(upperHex, s[i+2])
			if hi < 0 || lo < 0 {
				return "", fmt.Errorf("xtext: bad escape %q", s[i:i+3])
			}
			b.WriteByte(byte(hi<<4 | lo))
			i += 2
		case c == '+':
			return "", errors.New("xtext: escape is cut off")
		default:
			return "", fmt.Errorf("xtext: byte %#02x is not encoded", c)
		}
	}
	return b.String(), nil
}

func xchar(c byte) bool { return c > ' ' && c < 0x7f && c != '+' && c != '=' }

// ParseENVID decodes the ENVID parameter of MAIL (RFC 3461 section 4.4) and
// checks the result as CheckENVID does.
func ParseENVID(xtext string) (string, error) {
	if len(xtext) > maxENVID {
		return "", fmt.Errorf("ENVID: longer than %d characters", maxENVID)
	}
	s, err := DecodeXtext(xtext)
	if err != nil {
		return "", fmt.Errorf("ENVID: %w", err)
	}
	return s, CheckENVID(s)
}

// CheckENVID checks an envelope id in its decoded form, as sendmail's -V takes
// it: printable ASCII, not empty, and at most 100 characters once encoded, so that
// it can be passed on to any host.
func CheckENVID(s string) error {
	if s == "" {
		return errors.New("ENVID: empty")
	}
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] > '~' {
			return fmt.Errorf("ENVID: byte %#02x is not printable ASCII", s[i])
		}
	}
	if len(s) > maxENVID || len(EncodeXtext(s)) > maxENVID {
		return fmt.Errorf("ENVID: longer than %d characters", maxENVID)
	}
	return nil
}

// ORCPT is an original recipient (RFC 3461 section 4.2), decoded.
type ORCPT struct {
	Type    string // address type in lower case: "rfc822", "utf-8", or another atom
	Address string // printable; UTF-8 only with type utf-8
}

// ParseORCPT reads the value of the ORCPT parameter, an address type and an
// encoded address: "rfc822;bob+2Bx@example.org". Addresses of type utf-8 are in
// the forms of RFC 6533 section 3. An address with control characters is an error.
func ParseORCPT(s string) (ORCPT, error) {
	if len(s) > maxORCPT {
		return ORCPT{}, fmt.Errorf("ORCPT: longer than %d characters", maxORCPT)
	}
	typ, enc, ok := strings.Cut(s, ";")
	if !ok || enc == "" || !isAtom(typ) {
		return ORCPT{}, fmt.Errorf("ORCPT: %.80q is not of the form type;address", s)
	}
	o := ORCPT{Type: strings.ToLower(typ)}
	var err error
	if o.Type == "utf-8" {
		o.Address, err = decodeUTF8Address(enc)
	} else {
		o.Address, err = DecodeXtext(enc)
	}
	if err != nil {
		return ORCPT{}, fmt.Errorf("ORCPT: %w", err)
	}
	if cleanAddress(o.Address, o.Type == "utf-8") != o.Address {
		return ORCPT{}, fmt.Errorf("ORCPT: %.80q holds characters that are not printable", s)
	}
	return o, nil
}

// String returns the parameter's value in pure ASCII, which ParseORCPT reads.
func (o ORCPT) String() string {
	if o.Type == "utf-8" {
		return o.Type + ";" + encodeUTF8Address(o.Address)
	}
	return o.Type + ";" + EncodeXtext(o.Address)
}

// encodeUTF8Address writes the form utf-8-addr-xtext of RFC 6533 section 3.
func encodeUTF8Address(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r < utf8.RuneSelf && xchar(byte(r)) && r != '\\' {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, "\\x{%02X}", r)
		}
	}
	return b.String()
}

// decodeUTF8Address reads utf-8-addr-xtext and utf-8-addr-unitext.
func decodeUTF8Address(s string) (string, error) {
	if !utf8.ValidString(s) {
		return "", errors.New("address is not valid UTF-8")
	}
	var b strings.Builder
	for s != "" {
		r, size := utf8.DecodeRuneInString(s)
		if r != '\\' {
			if r < utf8.RuneSelf && !xchar(byte(r)) {
				return "", fmt.Errorf("address: character %q is not encoded", r)
			}
			b.WriteRune(r)
			s = s[size:]
			continue
		}
		hex, rest, ok := strings.Cut(s, "}")
		hex, open := strings.CutPrefix(hex, `\x{`)
		v, err := strconv.ParseUint(hex, 16, 32)
		if !ok || !open || err != nil || len(hex) < 2 || len(hex) > 6 || !utf8.ValidRune(rune(v)) {
			return "", fmt.Errorf("address: bad escape in %.40q", s)
		}
		b.WriteRune(rune(v))
		s = rest
	}
	return b.String(), nil
}

// isAtom reports whether s is an address, host or diagnostic type name.
func isAtom(s string) bool {
	if s == "" || len(s) > 40 {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}
