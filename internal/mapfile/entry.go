package mapfile

import (
	"iter"
	"strings"
)

// Entry is a line of a map.
type Entry struct {
	Key   string // as it is written, with quotes and brackets
	Value string // what follows, without blanks at its ends; "" if nothing does
	Line  int    // from 1
}

// Lines yields the lines of a text that say something, without blanks at their
// ends, and their numbers, from 1. What follows # at the start of a line or after
// a blank does not count, nor does a byte order mark.
func Lines(text []byte) iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		n := 0
		for line := range strings.Lines(strings.TrimPrefix(string(text), "\ufeff")) {
			n++
			for i := 0; i < len(line); i++ {
				if line[i] == '#' && (i == 0 || line[i-1] == ' ' || line[i-1] == '\t') {
					line = line[:i]
					break
				}
			}
			if line = strings.Trim(line, " \t\r\n"); line != "" && !yield(n, line) {
				return
			}
		}
	}
}

// Entries yields the entries of a map, one a Line: a key, white space or a colon or
// both, a value. White space and colons within quotes or brackets belong to the
// key. A key may come more than once.
func Entries(text []byte) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for n, line := range Lines(text) {
			k := keyLength(line)
			value := strings.TrimLeft(line[k:], " \t")
			value = strings.TrimLeft(strings.TrimPrefix(value, ":"), " \t")
			if !yield(Entry{Key: line[:k], Value: value, Line: n}) {
				return
			}
		}
	}
}

// keyLength returns the length of the name that a line begins with: up to white
// space or a colon outside quotes and brackets.
func keyLength(line string) int {
	quoted, literal := false, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '[':
			literal = true
		case c == ']':
			literal = false
		case !literal && (c == ' ' || c == '\t' || c == ':'):
			return i
		}
	}
	return len(line)
}
