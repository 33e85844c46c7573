package forward

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// Bounds of what is read. More is an error that says so.
const (
	MaxForward = 64 << 10 // octets of a .forward
	MaxTargets = 1000     // targets of a .forward with its includes
	MaxTarget  = 4096     // octets of one target
	MaxInclude = 1 << 20  // octets of a file named by :include:
	MaxAliases = 16 << 20 // octets of an aliases file
)

// ParseForward reads data, the content of the .forward named file. It returns
// all its targets or, at the first mistake, none of them and a Problem. Data
// without any target gives none, and no error: there is no forwarding.
func ParseForward(file string, data []byte) ([]Target, error) {
	if len(data) > MaxForward {
		return nil, Problem{File: file, Text: tooLarge(MaxForward)}
	}
	s := scanner{file: file, data: text(data), line: 1, max: MaxTargets, home: true}
	return s.targets()
}

func tooLarge(most int) string {
	return fmt.Sprintf("larger than %d KiB; make it smaller, or put the addresses in a mailing list", most>>10)
}

const byteOrderMark = "\ufeff"

// text drops a byte order mark and the CR of CRLF line ends.
func text(data []byte) string {
	data = bytes.TrimPrefix(data, []byte(byteOrderMark))
	data = bytes.TrimSuffix(data, []byte("\r"))
	return string(bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n")))
}

// scanner reads targets from the text of a file.
type scanner struct {
	file   string
	data   string
	pos    int
	line   int  // of pos
	joined bool // lines that begin with a blank continue the one before: aliases
	max    int  // most targets
	home   bool // ~/ is allowed
	quiet  bool // an error shows nothing of the content
}

// token is a part of an entry: a word, a quoted string or an address in angle
// brackets.
type token struct {
	kind  byte // 'w', '"' or '<'
	raw   string
	plain string // without quotes and their backslashes
	apart bool   // a blank stands before it
}

func (s *scanner) problem(line int, format string, args ...any) Problem {
	return Problem{File: s.file, Line: line, Text: fmt.Sprintf(format, args...)}
}

// show returns text for an error, or a neutral word where the content of the
// file is not for whoever reads the error.
func (s *scanner) show(text string) string {
	if s.quiet {
		return "this entry"
	}
	return show(text)
}

// targets reads to the end.
func (s *scanner) targets() ([]Target, error) {
	var list []Target
	for {
		s.separators()
		if s.pos == len(s.data) {
			return list, nil
		}
		t, err := s.target()
		if err != nil {
			return nil, err
		}
		if len(list) == s.max {
			return nil, s.problem(t.Line, "more than %d targets; use a mailing list program, or several files", s.max)
		}
		list = append(list, t)
	}
}

// separators skips blanks, commas, line ends and comments.
func (s *scanner) separators() {
	for s.pos < len(s.data) {
		switch s.data[s.pos] {
		case '\n':
			s.line++
			fallthrough
		case ' ', '\t', ',':
			s.pos++
		case '#':
			s.comment()
		default:
			return
		}
	}
}

// comment skips to the end of the line.
func (s *scanner) comment() {
	if n := strings.IndexByte(s.data[s.pos:], '\n'); n >= 0 {
		s.pos += n
	} else {
		s.pos = len(s.data)
	}
}

// target reads one entry. It stands at its first character.
func (s *scanner) target() (Target, error) {
	line, start := s.line, s.pos
	var t Target
	var err error
	if s.data[s.pos] == '|' {
		t, err = s.command()
	} else {
		var tokens []token
		if tokens, err = s.tokens(); err == nil {
			t, err = s.classify(tokens, strings.TrimSpace(s.data[start:s.pos]))
		}
	}
	if err == nil {
		err = check(t)
	}
	if err != nil {
		var p Problem
		if errors.As(err, &p) {
			return Target{}, p
		}
		return Target{}, s.problem(line, "%v", err)
	}
	t.File, t.Line = s.file, line
	return t, nil
}

// check refuses what no kind may hold.
func check(t Target) error {
	if len(t.Value) > MaxTarget {
		return fmt.Errorf("an entry of more than %d octets; for a long command write a script and name that", MaxTarget)
	}
	for i := 0; i < len(t.Value); i++ {
		if c := t.Value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return fmt.Errorf("the control character %#02x is not allowed; remove it", c)
		}
	}
	return nil
}

// command reads an entry that begins with a bar: up to a comma, a comment or
// the end of the line, outside quotes. Quotes vanish.
func (s *scanner) command() (Target, error) {
	var b strings.Builder
	s.pos++
	for !s.ends(s.data[s.pos-1]) {
		switch c := s.data[s.pos]; c {
		case '"':
			_, plain, err := s.quoted()
			if err != nil {
				return Target{}, err
			}
			b.WriteString(plain)
		case '\n':
			s.line++ // a continuation line: its blanks follow
			s.pos++
		default:
			b.WriteByte(c)
			s.pos++
		}
	}
	return makeCommand(b.String())
}

// ends reports whether the entry ends at pos; before is the character before.
func (s *scanner) ends(before byte) bool {
	if s.pos == len(s.data) {
		return true
	}
	switch s.data[s.pos] {
	case ',':
		return true
	case '\n':
		return !s.joined
	case '#':
		return before == ' ' || before == '\t' || before == '\n'
	}
	return false
}

// tokens reads an entry that is no bare command.
func (s *scanner) tokens() ([]token, error) {
	var list []token
	apart := false
	for start := s.pos; s.pos == start || !s.ends(s.data[s.pos-1]); {
		begin := s.pos
		t := token{apart: apart}
		switch s.data[s.pos] {
		case '\n':
			s.line++
			fallthrough
		case ' ', '\t':
			s.pos++
			apart = true
			continue
		case '(':
			if err := s.parentheses(); err != nil {
				return nil, err
			}
			apart = true
			continue
		case '"':
			raw, plain, err := s.quoted()
			if err != nil {
				return nil, err
			}
			t.kind, t.raw, t.plain = '"', raw, plain
		case '<':
			if err := s.angle(); err != nil {
				return nil, err
			}
			t.kind, t.raw = '<', s.data[begin:s.pos]
		default:
			if begin == start && s.data[begin] == '\\' {
				s.pos++ // the mark of \user, whatever follows
			} else {
				s.word()
			}
			t.kind, t.raw = 'w', s.data[begin:s.pos]
			t.plain = unescape(t.raw)
		}
		list = append(list, t)
		apart = false
	}
	return list, nil
}

// word skips to the next character that has a meaning. A backslash takes the
// character after it along.
func (s *scanner) word() {
	for s.pos < len(s.data) && strings.IndexByte(" \t\n,\"(<", s.data[s.pos]) < 0 {
		if s.data[s.pos] == '\\' && s.pos+1 < len(s.data) && s.data[s.pos+1] != '\n' {
			s.pos++
		}
		s.pos++
	}
}

// unescape drops the backslashes that take the next character as it is.
func unescape(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// quoted reads a string in double quotes: as written, and what it means.
func (s *scanner) quoted() (raw, plain string, err error) {
	begin, line := s.pos, s.line
	var b strings.Builder
	for s.pos++; s.pos < len(s.data); s.pos++ {
		switch c := s.data[s.pos]; c {
		case '"':
			s.pos++
			return s.data[begin:s.pos], b.String(), nil
		case '\n':
			if !s.continues() {
				return "", "", s.problem(line, "a quote is never closed; put a \" at the end of the entry")
			}
			s.line++
		case '\\':
			if s.pos+1 < len(s.data) && s.data[s.pos+1] != '\n' {
				s.pos++
				b.WriteByte(s.data[s.pos])
			}
		default:
			b.WriteByte(c)
		}
	}
	return "", "", s.problem(line, "a quote is never closed; put a \" at the end of the entry")
}

// continues reports whether the line end at pos is followed by a continuation
// line.
func (s *scanner) continues() bool {
	return s.joined && s.pos+1 < len(s.data) && (s.data[s.pos+1] == ' ' || s.data[s.pos+1] == '\t')
}

// parentheses skips an RFC 5322 comment.
func (s *scanner) parentheses() error {
	depth := 0
	for ; s.pos < len(s.data) && s.data[s.pos] != '\n'; s.pos++ {
		switch s.data[s.pos] {
		case '\\':
			if s.pos+1 < len(s.data) && s.data[s.pos+1] != '\n' {
				s.pos++
			}
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				s.pos++
				return nil
			}
		}
	}
	return s.problem(s.line, "a ( is never closed; add the ), or put the entry in quotes")
}

// angle skips an address in angle brackets.
func (s *scanner) angle() error {
	for s.pos < len(s.data) && s.data[s.pos] != '\n' {
		switch s.data[s.pos] {
		case '"':
			if _, _, err := s.quoted(); err != nil {
				return err
			}
			continue
		case '\\':
			if s.pos+1 < len(s.data) && s.data[s.pos+1] != '\n' {
				s.pos++
			}
		case '>':
			s.pos++
			return nil
		}
		s.pos++
	}
	return s.problem(s.line, "a < is never closed; add the >")
}
