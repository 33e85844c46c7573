package address

import (
	"errors"
	"strings"
)

// What ParseList takes at most: a message has no more than 10,000 recipients,
// and a longer list than this is no list of addresses.
const (
	maxList      = 10000
	maxListBytes = 16 << 20
)

// ParseList reads an address list as it stands in the body of a To, Cc or Bcc
// field and in an argument of sendmail (RFC 5322 3.4, with the obsolete forms
// of 4.4): bare local names, display names, quoted strings, comments, groups,
// which may be empty ("undisclosed-recipients:;"), source routes, folding white
// space, nothing between two commas. An empty list has no addresses.
//
// A line break is white space only where it folds, before a blank or a tab; the
// caller takes the one off that ends the field. Display names and comments are
// dropped unread, so they may hold any octets. One bad address is an error for
// the whole list, which can have 10,000 addresses. The time is linear in the
// length of s.
func ParseList(s string) ([]Address, error) {
	if len(s) > maxListBytes {
		return nil, errors.New("address list: longer than 16 MiB")
	}
	p := list{in: s}
	if err := p.run(); err != nil {
		return nil, err
	}
	return p.out, nil
}

// list is the state of ParseList. It copies each item without its comments and
// white space and leaves the copy to parse.
type list struct {
	in  string
	pos int
	out []Address

	item  []byte // the current item so far
	split bool   // two words with only blanks between them: a name, not an address
	at    bool   // the item has an @ outside quotes: not the name of a group
	angle bool   // inside <>
	done  bool   // a > or the ; of a group: only a comma can follow

	group  bool // between "name:" and ";"
	before int  // the addresses before this group
}

func (p *list) run() error {
	for gap := false; p.pos < len(p.in); {
		c := p.in[p.pos]
		switch c {
		case ' ', '\t', '\r', '\n':
			if err := p.blank(); err != nil {
				return err
			}
			gap = true
			continue
		case '(':
			if err := p.comment(); err != nil {
				return err
			}
			gap = true
			continue
		}
		special, err := p.special(c)
		if err != nil {
			return err
		}
		if special {
			p.pos++
			gap = false
			continue
		}
		if p.done {
			return refuse(p.here(), "a comma is missing before it")
		}
		if n := len(p.item); gap && n > 0 && !joins(p.item[n-1]) && !joins(c) {
			p.split = true
			if p.angle {
				return refuse(string(p.item), "a blank must be in quotes")
			}
		}
		gap = false
		if err := p.word(c); err != nil {
			return err
		}
	}
	if p.angle {
		return refuse(string(p.item), "the closing > is missing")
	}
	if err := p.end(); err != nil {
		return err
	}
	// Programs write "undisclosed-recipients:" without the semicolon; a colon
	// inside an address is not to turn its first half into the name of a group.
	if p.group && len(p.out) > p.before {
		return refuse(p.in, "the ; that closes the group is missing")
	}
	return nil
}

// joins reports whether blanks beside c are no border between two words.
func joins(c byte) bool { return c == '.' || c == '@' || c == ',' || c == ':' }

// special handles the octets that give the list its structure.
func (p *list) special(c byte) (bool, error) {
	if p.angle {
		switch c {
		case '<':
			return true, refuse(p.here(), "a < inside <>")
		case '>':
			p.angle, p.done = false, true
			return true, p.add()
		}
		return false, nil
	}
	switch c {
	case '<':
		if p.done {
			return true, refuse(p.here(), "a comma is missing before it")
		}
		p.clear()
		p.angle = true
		return true, nil
	case '>':
		return true, refuse(p.here(), "a > without <")
	case ',':
		return true, p.end()
	case ':':
		if p.done || p.group || p.at || len(p.item) == 0 {
			return true, refuse(p.here(), "a : out of place")
		}
		p.clear()
		p.group, p.before = true, len(p.out)
		return true, nil
	case ';':
		if !p.group {
			return true, refuse(p.here(), "a ; without a group; addresses are separated by commas")
		}
		err := p.end()
		p.group, p.done = false, true
		return true, err
	}
	return false, nil
}

// here is the input from the current position on, for an error text.
func (p *list) here() string { return p.in[p.pos:] }

// end finishes an item at a comma, at the end of its group or of the list.
func (p *list) end() error {
	if p.done {
		p.done = false
		return nil
	}
	if len(p.item) == 0 {
		return nil
	}
	if p.split {
		return refuse(string(p.item), "words without an address in <>; addresses are separated by commas")
	}
	return p.add()
}

// add parses the item, which is an address without brackets.
func (p *list) add() error {
	if len(p.out) == maxList {
		return errors.New("address list: more than 10000 addresses")
	}
	a, why := parse(string(p.item))
	if why != "" {
		return refuse(string(p.item), why)
	}
	p.out = append(p.out, a)
	p.clear()
	return nil
}

// clear forgets the words read so far.
func (p *list) clear() { p.item, p.split, p.at = p.item[:0], false, false }

// blank passes over white space.
func (p *list) blank() error {
	if c := p.in[p.pos]; c == '\r' || c == '\n' {
		n, ok := fold(p.in[p.pos:])
		if !ok {
			return refuse(string(p.item), "a line break is not allowed")
		}
		p.pos += n
		return nil
	}
	p.pos++
	return nil
}

// fold returns the length of the line break that s begins with; it folds if a
// blank or a tab follows.
func fold(s string) (n int, ok bool) {
	n = 1
	if strings.HasPrefix(s, "\r\n") {
		n = 2
	} else if s[0] == '\r' {
		return 0, false
	}
	return n, n < len(s) && (s[n] == ' ' || s[n] == '\t')
}

// comment passes over a comment and the comments inside it.
func (p *list) comment() error {
	depth := 0
	for i := p.pos; i < len(p.in); i++ {
		switch p.in[i] {
		case '\\':
			i++
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				p.pos = i + 1
				return nil
			}
		}
	}
	return refuse(p.here(), "the closing ) is missing")
}

// word copies one atom, quoted string, address literal or separator.
func (p *list) word(c byte) error {
	switch c {
	case '"':
		return p.quoted()
	case '[':
		n := strings.IndexByte(p.here(), ']')
		if n < 0 {
			return refuse(p.here(), "the closing ] is missing")
		}
		p.item = append(p.item, p.in[p.pos:p.pos+n+1]...)
		p.pos += n + 1
		return nil
	case '\\':
		if p.pos+1 == len(p.in) {
			return refuse(p.here(), "a backslash at the end")
		}
		p.item = append(p.item, c)
		p.pos++
		c = p.in[p.pos]
	case '@':
		p.at = true
	}
	p.item = append(p.item, c)
	p.pos++
	return nil
}

// quoted copies a quoted string with its quotes and without its line breaks.
func (p *list) quoted() error {
	start := p.here()
	p.item = append(p.item, '"')
	for i := p.pos + 1; i < len(p.in); i++ {
		switch c := p.in[i]; c {
		case '"':
			p.item = append(p.item, c)
			p.pos = i + 1
			return nil
		case '\\':
			if i+1 < len(p.in) {
				p.item = append(p.item, c, p.in[i+1])
				i++
			}
		case '\r', '\n':
			n, ok := fold(p.in[i:])
			if !ok {
				return refuse(start, "a line break is not allowed")
			}
			i += n - 1
		default:
			p.item = append(p.item, c)
		}
	}
	return refuse(start, "the closing quote is missing")
}
