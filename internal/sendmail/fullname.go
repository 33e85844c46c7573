package sendmail

import (
	"encoding/base64"
	"strings"
	"unicode/utf8"
)

// maxFullName bounds a full name, in octets.
const maxFullName = 256

// mailbox returns the body of a From field: an address with a full name, which
// is quoted or encoded as it needs (RFC 5322 3.4, RFC 2047). Without a name
// the address stands alone. addr is in the form of RFC 5321.
func mailbox(name, addr string) string {
	name = cleanName(name)
	switch {
	case name == "":
		return addr
	case !isASCII([]byte(name)):
		name = encodeWords(name)
	case !isPhrase(name):
		name = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(name) + `"`
	}
	if len(name)+len(addr) > 60 {
		return name + "\n <" + addr + ">"
	}
	return name + " <" + addr + ">"
}

// cleanName drops from a full name what cannot stand in a header: octets that
// are no UTF-8, control characters, white space but single blanks.
func cleanName(name string) string {
	if len(name) > maxFullName {
		name = name[:maxFullName]
	}
	name = strings.ToValidUTF8(name, "")
	name = strings.Map(func(r rune) rune {
		if isControl(r) {
			return ' '
		}
		return r
	}, name)
	return strings.Join(strings.Fields(name), " ")
}

// isControl reports whether r is a control character or ends a line for some
// reader.
func isControl(r rune) bool {
	return r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029
}

// isPhrase reports whether a name is a row of atoms (RFC 5322 3.2.3).
func isPhrase(name string) bool {
	for i := 0; i < len(name); i++ {
		if name[i] != ' ' && !isAtomByte(name[i]) {
			return false
		}
	}
	return true
}

// isAtomByte reports whether c is atext of RFC 5322 3.2.3.
func isAtomByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c != 0 && strings.IndexByte("!#$%&'*+-/=?^_`{|}~", c) >= 0
}

// encodeWords writes a name as encoded words of RFC 2047, one a line.
func encodeWords(name string) string {
	// With its delimiters a word has at most 75 octets: 45 octets of text are
	// 60 of base64.
	const most = 45
	var words []string
	for name != "" {
		n := min(most, len(name))
		for n < len(name) && !utf8.RuneStart(name[n]) {
			n--
		}
		words = append(words, "=?UTF-8?B?"+base64.StdEncoding.EncodeToString([]byte(name[:n]))+"?=")
		name = name[n:]
	}
	return strings.Join(words, "\n ")
}
