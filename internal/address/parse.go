package address

import (
	"errors"
	"strings"
	"unicode/utf8"
)

// Parse reads one mailbox: "a", "a@b", "\"a b\"@c", each with or without angle
// brackets. A source route (RFC 5321 C) is checked and dropped. There is no
// display name and no comment; ParseList reads those.
//
// Local parts that real systems use are taken although RFC 5321 would have
// them quoted: dots at the ends or side by side. A backslash outside quotes
// makes the next character ordinary, as in RFC 822.
//
// An address that is empty, has a control character, is not UTF-8, has a broken
// domain or is longer than 998 octets is refused, and the error says why in one
// printable line.
func Parse(s string) (Address, error) {
	t := strings.Trim(s, " \t")
	if strings.HasPrefix(t, "<") {
		if len(t) < 2 || t[len(t)-1] != '>' {
			return Address{}, refuse(s, "the closing > is missing")
		}
		t = strings.Trim(t[1:len(t)-1], " \t")
	}
	a, why := parse(t)
	if why != "" {
		return Address{}, refuse(s, why)
	}
	return a, nil
}

// ParsePath reads a reverse-path: "" and "<>" are the null sender and give the
// zero Address, everything else goes to Parse.
func ParsePath(s string) (Address, error) {
	if t := strings.Trim(s, " \t"); t == "" || t == "<>" {
		return Address{}, nil
	}
	return Parse(s)
}

// refuse makes the error for the address s.
func refuse(s, why string) error {
	return errors.New("address " + show(s) + ": " + why)
}

// show returns s in quotes for an error text: cut, and without anything that is
// not printable ASCII.
func show(s string) string {
	const most = 80
	end := ""
	if len(s) > most {
		s, end = s[:most], "..."
	}
	b := []byte(s)
	for i, c := range b {
		if c < 0x20 || c >= 0x7f {
			b[i] = '?'
		}
	}
	return `"` + string(b) + end + `"`
}

// parse reads a mailbox without brackets and outer blanks. The second result
// says what is wrong, or is empty.
func parse(s string) (a Address, why string) {
	if len(s) > maxLen {
		return Address{}, "longer than 998 octets"
	}
	if why := checkText(s); why != "" {
		return Address{}, why
	}
	if s, why = dropRoute(s); why != "" {
		return Address{}, why
	}
	if s == "" {
		return Address{}, "empty"
	}
	local, rest, why := parseLocal(s)
	if why != "" {
		return Address{}, why
	}
	if local == "" {
		return Address{}, "nothing before the @"
	}
	a.Local = local
	if rest != "" {
		if a.Domain, why = parseDomain(rest[1:]); why != "" {
			return Address{}, why
		}
	}
	if len(a.String()) > maxLen {
		return Address{}, "longer than 998 octets"
	}
	return a, ""
}

// checkText refuses control characters, those above ASCII (U+0080 to U+009F)
// too, and what is not UTF-8.
func checkText(s string) (why string) {
	for i := 0; i < len(s); {
		if c := s[i]; c < 0x80 {
			switch {
			case c == '\n' || c == '\r':
				return "a line break is not allowed"
			case c < 0x20 || c == 0x7f:
				return "a control character is not allowed"
			}
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			return "not valid UTF-8"
		}
		if r < 0xa0 {
			return "a control character is not allowed"
		}
		i += n
	}
	return ""
}

// dropRoute takes "@a,@b:" off the front of s.
func dropRoute(s string) (rest, why string) {
	if !strings.HasPrefix(s, "@") {
		return s, ""
	}
	rest = s
	for {
		// The colons and dots of an address literal are its own.
		end, literal := -1, false
		for i := 1; i < len(rest) && end < 0; i++ {
			switch c := rest[i]; {
			case c == '[':
				literal = true
			case c == ']':
				literal = false
			case !literal && (c == ',' || c == ':'):
				end = i
			}
		}
		if end < 0 {
			return "", "nothing before the @"
		}
		if _, why := parseDomain(rest[1:end]); why != "" {
			return "", "source route: " + why
		}
		if rest[end] == ':' {
			return rest[end+1:], ""
		}
		rest = rest[end+1:]
		if !strings.HasPrefix(rest, "@") {
			return "", "source route: a host must begin with @"
		}
	}
}

// parseLocal reads the local part, up to the end or to the @ that rest then
// begins with.
func parseLocal(s string) (local, rest, why string) {
	var b strings.Builder
	quoted := false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '"':
			quoted = !quoted
		case c == '\\':
			if i++; i == len(s) {
				return "", "", "a backslash at the end"
			}
			b.WriteByte(s[i])
		case quoted:
			b.WriteByte(c)
		case c == '@':
			return b.String(), s[i:], ""
		case c == ' ':
			return "", "", "a blank must be in quotes"
		case strings.IndexByte("()<>,;:[]", c) >= 0:
			return "", "", "a " + string(rune(c)) + " must be in quotes"
		default:
			b.WriteByte(c)
		}
	}
	if quoted {
		return "", "", "the closing quote is missing"
	}
	if b.Len() == 0 {
		return "", "", "empty"
	}
	return b.String(), "", ""
}
