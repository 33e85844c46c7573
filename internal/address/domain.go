package address

import "strings"

// parseDomain checks a domain or an address literal and returns it as
// Address.Domain holds it.
func parseDomain(s string) (domain, why string) {
	if strings.HasPrefix(s, "[") {
		return parseLiteral(s)
	}
	s = strings.TrimSuffix(s, ".")
	if s == "" {
		return "", "no domain after the @"
	}
	if len(s) > 255 {
		return "", "the domain is longer than 255 octets"
	}
	for label := range strings.SplitSeq(s, ".") {
		if why := checkLabel(label); why != "" {
			return "", why
		}
	}
	return lower(s), ""
}

// checkLabel takes letters, digits, hyphens inside, and the underscores that
// host names of private networks have; octets above 0x7f belong to U-labels.
func checkLabel(s string) (why string) {
	switch {
	case s == "":
		return "the domain has an empty label"
	case len(s) > 63 && isASCII(s):
		return "a label of the domain is longer than 63 octets"
	case s[0] == '-' || s[len(s)-1] == '-':
		return "a label of the domain begins or ends with a hyphen"
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '@':
			return "more than one @"
		case c == ' ':
			return "the domain has a blank"
		case c < 0x80 && !isAlnum(c) && c != '-' && c != '_':
			return "the domain has a " + string(rune(c))
		}
	}
	return ""
}

// lower maps A to Z; what lies outside ASCII is left to the IDNA conversion.
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// parseLiteral checks "[1.2.3.4]" and "[IPv6:2001:db8::1]" (RFC 5321 4.1.3).
func parseLiteral(s string) (domain, why string) {
	const tag = "ipv6:"
	if s[len(s)-1] != ']' {
		return "", "the closing ] is missing"
	}
	s = lower(s[1 : len(s)-1])
	if v6, ok := strings.CutPrefix(s, tag); ok {
		if !isIPv6(v6) {
			return "", "not an IPv6 address in the brackets"
		}
		return "[IPv6:" + v6 + "]", ""
	}
	if !isIPv4(s) {
		return "", "not an address in the brackets: [1.2.3.4] or [IPv6:2001:db8::1]"
	}
	return "[" + s + "]", ""
}

// isIPv4 reports whether s is four numbers up to 255, without leading zeros,
// which some programs read as octal.
func isIPv4(s string) bool {
	n := 0
	for part := range strings.SplitSeq(s, ".") {
		n++
		if n > 4 || part == "" || len(part) > 3 || len(part) > 1 && part[0] == '0' {
			return false
		}
		v := 0
		for i := 0; i < len(part); i++ {
			if part[i] < '0' || part[i] > '9' {
				return false
			}
			v = 10*v + int(part[i]-'0')
		}
		if v > 255 {
			return false
		}
	}
	return n == 4
}

// isIPv6 reports whether s, in lower case, is an IPv6 address without a zone
// (RFC 4291 2.2).
func isIPv6(s string) bool {
	if len(s) > 45 {
		return false
	}
	left, right, gap := strings.Cut(s, "::")
	n, ok := groups(left, !gap)
	if !ok {
		return false
	}
	if !gap {
		return n == 8
	}
	m, ok := groups(right, true)
	return ok && n+m < 8
}

// groups counts the 16-bit groups of s; an IPv4 address at the end, where tail
// allows it, counts two.
func groups(s string, tail bool) (n int, ok bool) {
	if s == "" {
		return 0, true
	}
	for s != "" {
		part, rest, more := strings.Cut(s, ":")
		switch {
		case more && rest == "":
			return 0, false
		case !more && tail && isIPv4(part):
			return n + 2, true
		case part == "" || len(part) > 4 || strings.Trim(part, "0123456789abcdef") != "":
			return 0, false
		}
		n++
		s = rest
	}
	return n, true
}
