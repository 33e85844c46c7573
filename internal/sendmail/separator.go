package sendmail

import (
	"bytes"
	"strings"
)

// isSeparator reports whether a line can separate messages in an mbox.
func isSeparator(line []byte) bool {
	return bytes.HasPrefix(line, []byte("From ")) || bytes.HasPrefix(line, []byte(">From "))
}

// isDated reports whether a separator has the date of ctime(3) in it, as
// "From alice Thu Jan  1 00:00:00 1970" does and a sentence that begins with
// "From" does not.
func isDated(line []byte) bool {
	words := strings.Fields(string(line))
	for i := 1; i+3 < len(words); i++ {
		if oneOf(words[i], "Sun Mon Tue Wed Thu Fri Sat") &&
			oneOf(words[i+1], "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec") &&
			isDigit(words[i+2][0]) && isDigit(words[i+3][0]) && strings.Contains(words[i+3], ":") {
			return true
		}
	}
	return false
}

// oneOf reports whether a word of three letters is in a list of such words.
func oneOf(word, list string) bool { return len(word) == 3 && strings.Contains(list, word) }

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
