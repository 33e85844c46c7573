package dsn

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits for values in a report, in bytes. They keep every line below the 998
// octets of RFC 5322 section 2.1.1, with the field name in front.
const (
	maxAddress = 900
	maxHost    = 255
	maxText    = 2000 // folded
	maxWord    = 900  // a longer word is broken
	wrapAt     = 76
)

// cleanAddress makes s one printable token of at most maxAddress bytes. Bytes
// that are not allowed become '?', so that one can see that something was there.
// Non-ASCII characters stay if utf8ok.
func cleanAddress(s string, utf8ok bool) string {
	if len(s) > 4*maxAddress {
		s = s[:4*maxAddress]
	}
	return cut(strings.Map(func(r rune) rune { return printable(r, utf8ok) }, s), maxAddress)
}

// cleanText makes s one line of printable text of at most max bytes: control
// characters and runs of blanks become one blank.
func cleanText(s string, max int, utf8ok bool) string {
	// Only so much is looked at as can be shown.
	if len(s) > 4*max {
		s = s[:4*max]
	}
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return printable(r, utf8ok)
	}, s)
	return cut(strings.Join(strings.Fields(s), " "), max)
}

// printable returns r, or '?' for what must not stand in a line. Invalid UTF-8
// arrives here as U+FFFD.
func printable(r rune, utf8ok bool) rune {
	if r >= ' ' && r <= '~' || utf8ok && r >= utf8.RuneSelf && r != utf8.RuneError && unicode.IsPrint(r) {
		return r
	}
	return '?'
}

// cut shortens s to max bytes, at a character, and marks the place.
func cut(s string, max int) string {
	const mark = "..."
	if len(s) <= max {
		return s
	}
	n := max - len(mark)
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + mark
}

// wrap writes text in lines of about wrapAt bytes. The first line continues one
// that already has used bytes, the following ones begin with indent. Text is one
// line as cleanText returns it. Neither an empty nor a blank line results.
func wrap(b *bytes.Buffer, used int, indent, text string) {
	empty := true // nothing of text stands on this line yet
	for word := range strings.FieldsSeq(text) {
		for word != "" {
			piece := word
			if len(piece) > maxWord {
				n := maxWord
				for !utf8.RuneStart(piece[n]) {
					n--
				}
				piece = piece[:n]
			}
			word = word[len(piece):]
			if !empty && used+1+len(piece) > wrapAt {
				b.WriteByte('\n')
				b.WriteString(indent)
				used, empty = len(indent), true
			}
			if !empty {
				b.WriteByte(' ')
				used++
			}
			b.WriteString(piece)
			used += len(piece)
			empty = false
		}
	}
	b.WriteByte('\n')
}

// isASCII reports whether s has no 8-bit byte.
func isASCII[T string | []byte](s T) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
