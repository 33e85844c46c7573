package forward

import (
	"errors"
	"fmt"
	"strings"

	"dma/internal/address"
)

const includeMark = ":include:"

// classify makes a target of the parts of an entry, which is written as all.
func (s *scanner) classify(tokens []token, all string) (Target, error) {
	if len(tokens) == 0 {
		return Target{}, fmt.Errorf("%s is a comment only; write the address outside the parentheses", s.show(all))
	}
	for i, t := range tokens {
		if t.kind == '<' {
			if i != len(tokens)-1 {
				return Target{}, fmt.Errorf("%s: something follows the >; put a comma between addresses", s.show(all))
			}
			return s.address(t.raw)
		}
	}
	if len(tokens) == 1 && tokens[0].kind == '"' {
		return s.wholeQuoted(tokens[0])
	}
	var rawText, plainText strings.Builder
	for i, t := range tokens {
		if t.apart && i > 0 && (i > 1 || !strings.EqualFold(tokens[0].plain, includeMark)) {
			return Target{}, fmt.Errorf("%s has a blank in it; put a comma between addresses, or the entry in double quotes", s.show(all))
		}
		rawText.WriteString(t.raw)
		plainText.WriteString(t.plain)
	}
	raw, plain := rawText.String(), plainText.String()
	switch {
	case raw[0] == '/', strings.HasPrefix(raw, "~/"), raw[0] == ':':
		return s.path(plain)
	case raw[0] == '\\':
		return s.mailbox(raw[1:])
	case strings.HasPrefix(raw, "./"), strings.HasPrefix(raw, "../"):
		return Target{}, fmt.Errorf("%s: write a path from / on", s.show(plain))
	case raw[0] == '&':
		return Target{}, fmt.Errorf("%s: write the address without the &", s.show(plain))
	}
	return s.address(raw)
}

// wholeQuoted makes a target of an entry that stands in quotes as a whole.
func (s *scanner) wholeQuoted(t token) (Target, error) {
	plain := strings.Trim(t.plain, " \t")
	switch c := first(plain); {
	case c == '|':
		return makeCommand(plain[1:])
	case c == '/', c == ':', strings.HasPrefix(plain, "~/"):
		return s.path(plain)
	case c == '\\':
		return s.mailbox(plain[1:])
	case strings.HasPrefix(t.raw, `"\`):
		// "\jim" is jim by the rule of quotes; who writes it means \jim.
		return s.mailbox(plain)
	}
	// As with sendmail and Postfix "jim@example.org" is that address, and no
	// local part with an @ in it.
	if a, err := s.address(t.plain); err == nil {
		return a, nil
	}
	return s.address(t.raw)
}

// makeCommand makes a target of what stands behind a bar.
func makeCommand(line string) (Target, error) {
	line = strings.Trim(line, " \t")
	if line == "" {
		return Target{}, errors.New("no command after the |; name one with its full path")
	}
	return Target{Kind: Command, Value: line}, nil
}

// path makes a target of an entry that begins with / or ~/ or a colon.
func (s *scanner) path(p string) (Target, error) {
	kind := File
	p = strings.Trim(p, " \t")
	if strings.HasPrefix(p, ":") {
		if len(p) < len(includeMark) || !strings.EqualFold(p[:len(includeMark)], includeMark) {
			return Target{}, fmt.Errorf("%s: there is :include:/path and nothing else that begins with a colon", s.show(p))
		}
		p = strings.TrimLeft(p[len(includeMark):], " \t")
		kind = Include
	}
	switch {
	case strings.HasPrefix(p, "~/") && !s.home:
		return Target{}, fmt.Errorf("%s: there is no home directory here; write the path from / on", s.show(p))
	case !strings.HasPrefix(p, "/") && !strings.HasPrefix(p, "~/"):
		return Target{}, fmt.Errorf("%s: write the path of the file to include from / on", s.show(p))
	}
	switch {
	case kind == Include:
		if strings.HasSuffix(p, "/") {
			return Target{}, fmt.Errorf("%s is a directory; name a file to include", s.show(p))
		}
	case p == devNull:
		return Target{Kind: Discard}, nil
	case strings.HasSuffix(p, "/"):
		kind = Maildir
	}
	return Target{Kind: kind, Value: p}, nil
}

// mailbox makes a target of what stands behind a backslash.
func (s *scanner) mailbox(name string) (Target, error) {
	t, err := s.address(name)
	if err != nil {
		return t, err
	}
	a, err := address.Parse(t.Value)
	if err != nil {
		return t, err
	}
	if a.Domain != "" {
		// The backslash has no meaning for an address elsewhere.
		return t, nil
	}
	return Target{Kind: Mailbox, Value: a.Local}, nil
}

func (s *scanner) address(raw string) (Target, error) {
	a, err := address.Parse(raw)
	if err != nil {
		if s.quiet {
			return Target{}, errors.New("not an address; correct it")
		}
		return Target{}, fmt.Errorf("%w; correct it, or put it in double quotes", err)
	}
	return Target{Kind: Address, Value: a.String()}, nil
}

// quoteLocal returns name as it stands in an address.
func quoteLocal(name string) string { return address.Address{Local: name}.String() }
