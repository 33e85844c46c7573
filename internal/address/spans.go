package address

import "bytes"

// Span is a piece of the body of a field, from one offset up to another.
type Span struct{ From, To int }

// Spans finds the addresses in the body of an address field (RFC 5322 section 3.4):
// what stands between angle brackets, and items without brackets, bare names among
// them. It does not read them: Parse may refuse what it finds. An address with white
// space or a comment inside it is passed over. ok is false if the syntax is broken:
// then nobody can say what is an address.
func Spans(body []byte) (list []Span, ok bool) {
	var s scanner
	for i := 0; i < len(body); {
		c := body[i]
		n := 1
		switch {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			i++
			s.gap = true
			continue
		case c == '(':
			if n = commentLength(body[i:]); n == 0 {
				return nil, false
			}
			i += n
			s.gap = true
			continue
		case c == '"':
			n = quotedLength(body[i:])
		case c == '[':
			n = bytes.IndexByte(body[i:], ']') + 1
		case c == '\\':
			n = 2
		case c < ' ' || c == 0x7f || c == ']' || c == ')':
			n = 0
		case c == '<' || c == '>' || c == ',' || c == ':' || c == ';':
			if !s.special(c) {
				return nil, false
			}
			i++
			s.gap = false
			continue
		}
		if n == 0 || i+n > len(body) || s.done {
			return nil, false
		}
		s.word(i, i+n)
		i += n
	}
	if s.angle {
		return nil, false
	}
	s.item()
	return s.list, true
}

// scanner is the state of Spans.
type scanner struct {
	list []Span

	cur    Span // of the item, or of what is between its brackets
	filled bool // there is something in it
	split  bool // there is a gap in it
	gap    bool // white space or a comment since the last word

	angle bool // inside brackets
	done  bool // the brackets of the item are closed
	group bool // between the colon and the semicolon of a group
}

func (s *scanner) word(from, to int) {
	if !s.filled {
		s.cur.From = from
		s.filled = true
	} else if s.gap {
		s.split = true
	}
	s.cur.To = to
	s.gap = false
}

// special handles the octets that give the body its structure.
func (s *scanner) special(c byte) bool {
	if s.angle {
		switch c {
		case '>':
			s.item()
			s.angle, s.done = false, true
			return true
		case ',', ':': // a source route
			s.filled, s.split = true, true
			return true
		}
		return false
	}
	switch c {
	case '<':
		if s.done {
			return false
		}
		s.clear()
		s.angle = true
	case ',':
		s.item()
		s.done = false
	case ':':
		if s.group || s.done || !s.filled {
			return false
		}
		s.clear()
		s.group = true
	case ';':
		if !s.group {
			return false
		}
		s.item()
		s.group, s.done = false, true
	default:
		return false
	}
	return true
}

// item ends an item, or what is between its brackets.
func (s *scanner) item() {
	if s.filled && !s.split && !s.done {
		s.list = append(s.list, s.cur)
	}
	s.clear()
}

func (s *scanner) clear() { s.cur, s.filled, s.split = Span{}, false, false }

// commentLength returns the length of the comment that p begins with, 0 if it has no
// end.
func commentLength(p []byte) int {
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

// quotedLength returns the length of the quoted string that p begins with, 0 if it has
// no end.
func quotedLength(p []byte) int {
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
