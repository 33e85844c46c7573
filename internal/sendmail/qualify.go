package sendmail

import "bytes"

// qualify completes the bare names in the body of an address field:
// "root (Cron Daemon)" becomes "root@mail.example (Cron Daemon)". It only ever
// inserts "@" and the mail name after a word that is an address by itself or
// the only thing between angle brackets. All other octets stay as they are,
// with their comments and folding; so do quoted local parts, group names, the
// empty brackets, and the whole body if its syntax is broken.
func qualify(body []byte, mailName string) []byte {
	q := qualifier{in: body}
	if mailName == "" || !q.scan() || len(q.at) == 0 {
		return body
	}
	out := make([]byte, 0, len(body)+len(q.at)*(len(mailName)+1))
	last := 0
	for _, at := range q.at {
		out = append(out, body[last:at]...)
		out = append(out, '@')
		out = append(out, mailName...)
		last = at
	}
	return append(out, body[last:]...)
}

// qualifier finds the places where a domain is missing.
type qualifier struct {
	in []byte
	at []int // the places, ascending

	// Of the item that is being read, or of what stands between its brackets:
	words int  // how many words there are
	end   int  // where the last one ends
	other bool // something that is no plain word
	angle bool // inside brackets
	done  bool // the brackets of the item are closed
	group bool // between the colon and the semicolon of a group
}

// scan reads the body; it returns false if its syntax is broken.
func (q *qualifier) scan() bool {
	for i := 0; i < len(q.in); {
		c := q.in[i]
		switch {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			i++
			continue
		case c == '(':
			n := comment(q.in[i:])
			if n == 0 {
				return false
			}
			i += n
			continue
		case q.done && c != ',' && c != ';':
			return false
		case c == '"':
			n := quoted(q.in[i:])
			if n == 0 {
				return false
			}
			i += n
			q.other = true
			continue
		case c == '[':
			n := bytes.IndexByte(q.in[i:], ']') + 1
			if n == 0 {
				return false
			}
			i += n
			q.other = true
			continue
		case isAtomByte(c) || c >= 0x80 || c == '.':
			i = q.word(i)
			continue
		}
		i++
		if !q.special(c) {
			return false
		}
	}
	if q.angle {
		return false
	}
	q.finish()
	return true
}

// word passes over a word, a dot-atom.
func (q *qualifier) word(i int) int {
	q.other = q.other || q.in[i] == '.'
	for i < len(q.in) && (isAtomByte(q.in[i]) || q.in[i] >= 0x80 || q.in[i] == '.') {
		i++
	}
	q.words++
	q.end = i
	return i
}

// special handles the octets that give the body its structure.
func (q *qualifier) special(c byte) bool {
	switch c {
	case '<':
		if q.angle {
			return false
		}
		q.angle = true
		q.words, q.other = 0, false // what came before was a name
	case '>':
		if !q.angle {
			return false
		}
		q.finish()
		q.angle, q.done = false, true
	case ',':
		if q.angle { // a source route
			q.other = true
			return true
		}
		q.finish()
		q.done = false
	case ':':
		if q.angle {
			q.other = true
			return true
		}
		if q.group || q.words == 0 && !q.other {
			return false
		}
		q.group = true
		q.words, q.other = 0, false
	case ';':
		if q.angle || !q.group {
			return false
		}
		q.finish()
		q.group, q.done = false, true
	case '@', ']', '\\':
		q.other = true
	default: // a control character
		return false
	}
	return true
}

// finish ends an item.
func (q *qualifier) finish() {
	if q.words == 1 && !q.other {
		q.at = append(q.at, q.end)
	}
	q.words, q.other = 0, false
}

// comment returns the length of the comment that p begins with, 0 if it has no
// end.
func comment(p []byte) int {
	depth := 0
	for i := 0; i < len(p); i++ {
		switch p[i] {
		case '\\':
			i++
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return 0
}

// quoted returns the length of the quoted string that p begins with, 0 if it
// has no end.
func quoted(p []byte) int {
	for i := 1; i < len(p); i++ {
		switch p[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return 0
}
