// Package address reads and writes mail addresses: one mailbox as it stands in
// an envelope (RFC 5321 4.1.2), the address lists of header fields and command
// lines (RFC 5322 3.4), and the forms in which an address goes into a file
// name or a record of the spool.
//
// It is linked into the small program that every submission starts, so it
// needs nothing beyond strings and unicode/utf8.
package address

import "strings"

// maxLen is the greatest length of one address in octets, as given and as
// String writes it: what still fits on one line of a message.
const maxLen = 998

// Address is one mailbox. The zero Address is the null sender, "<>".
type Address struct {
	// Local is the local part without quotes or backslashes. It has no control
	// character and is valid UTF-8 (RFC 6531).
	Local string

	// Domain is the domain in lower case without a final dot, or an address
	// literal with its brackets, or empty where the address has no domain.
	// Octets outside ASCII stay as they were given; the conversion to A-labels
	// belongs to whoever asks the DNS.
	Domain string
}

// IsZero reports whether a is the zero Address, the null sender.
func (a Address) IsZero() bool { return a == Address{} }

// ASCII reports whether a has no octet above 0x7f, so that it can be sent
// without SMTPUTF8.
func (a Address) ASCII() bool {
	return isASCII(a.Local) && isASCII(a.Domain)
}

func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// String returns a in the form of RFC 5321, without angle brackets; the local
// part is quoted where it is not a Dot-string. The zero Address gives "".
// Parse reads what String writes: for every a that a function of this package
// returned, except the zero Address, Parse(a.String()) is a.
func (a Address) String() string {
	if a.IsZero() {
		return ""
	}
	local := a.Local
	if !isDotString(local) {
		local = quote(local)
	}
	if a.Domain == "" {
		return local
	}
	return local + "@" + a.Domain
}

// isDotString reports whether s can stand as a local part without quotes
// (RFC 5321 Dot-string, RFC 6531 for octets above 0x7f).
func isDotString(s string) bool {
	if s == "" || s[0] == '.' || s[len(s)-1] == '.' || strings.Contains(s, "..") {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; c != '.' && c < 0x80 && !isAlnum(c) && strings.IndexByte("!#$%&'*+-/=?^_`{|}~", c) < 0 {
			return false
		}
	}
	return true
}

func quote(s string) string {
	var b strings.Builder
	b.Grow(len(s) + 2)
	b.WriteByte('"')
	for i := 0; i < len(s); i++ {
		if s[i] == '"' || s[i] == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	b.WriteByte('"')
	return b.String()
}

func isAlnum(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}
