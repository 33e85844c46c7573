package forward

import (
	"fmt"
	"strings"
)

// Kind says what a target is.
type Kind int

const (
	// Address is a mail address. Without a domain it is a name of this
	// machine, for which aliases have still to be asked.
	Address Kind = iota
	// User is an account of this machine. Aliases are done with; its .forward
	// is not. Only Expand makes it.
	User
	// Mailbox is the mailbox of a user, without aliases and .forward.
	Mailbox
	// File is a file in mbox format.
	File
	// Maildir is a directory in Maildir format.
	Maildir
	// Command is a command line that gets the message on standard input.
	Command
	// Include is a file with further targets. No result of Expand or Read
	// has one.
	Include
	// Discard is /dev/null: the message is delivered to nowhere.
	Discard
)

// String returns the name of the kind in lower case.
func (k Kind) String() string {
	switch k {
	case Address:
		return "address"
	case User:
		return "user"
	case Mailbox:
		return "mailbox"
	case File:
		return "file"
	case Maildir:
		return "maildir"
	case Command:
		return "command"
	case Include:
		return "include"
	case Discard:
		return "discard"
	}
	return fmt.Sprintf("Kind(%d)", int(k))
}

// Target is one place where mail goes.
type Target struct {
	Kind Kind

	// Value is, by kind: the address as address.Address writes it; the name of
	// the user; the absolute path (that of a Maildir ends with a slash; one
	// that ParseForward returns may begin with ~/); the command line without
	// the bar; empty for Discard. It has no control character but tab.
	Value string

	// Detail is what follows the + of user+detail. Only User and Mailbox have it.
	Detail string

	// File and Line tell where the target is written. Line counts from 1.
	File string
	Line int
}

// String returns t in the syntax of a .forward. ParseForward reads it back as
// the same kind and value, with two exceptions: a detail becomes part of the
// value, and a User, which has no syntax of its own, becomes an Address.
func (t Target) String() string {
	value := t.Value
	if t.Detail != "" {
		value += "+" + t.Detail
	}
	switch t.Kind {
	case Address:
		// What begins like another kind keeps its meaning in angle brackets.
		if strings.IndexByte(`/~|:\#&"`, first(value)) >= 0 || strings.HasPrefix(value, byteOrderMark) {
			return "<" + value + ">"
		}
		return value
	case User:
		return value
	case Mailbox:
		return `\` + quoteLocal(value)
	case Command:
		return quote("|" + value)
	case Include:
		return quotePath(":include:" + value)
	case Discard:
		return devNull
	}
	return quotePath(value)
}

// same is what makes two targets the same place.
type same struct {
	kind          Kind
	value, detail string
}

func (t Target) same() same { return same{t.Kind, t.Value, t.Detail} }

// Problem is a mistake in a file, with what to do about it. It is an error.
type Problem struct {
	File string
	Line int // 0: the file as a whole
	Text string

	// Warning says that no mail waits for it: what the file says is clear.
	Warning bool
}

// Error returns one printable line, "file:line: text" or "file:line: warning:
// text".
func (p Problem) Error() string {
	text := p.Text
	if p.Warning {
		text = "warning: " + text
	}
	if p.Line == 0 {
		return printable(p.File + ": " + text)
	}
	return printable(fmt.Sprintf("%s:%d: %s", p.File, p.Line, text))
}

// problem returns a mistake in the entry t.
func (t Target) problem(format string, args ...any) Problem {
	return Problem{File: t.File, Line: t.Line, Text: fmt.Sprintf(format, args...)}
}

const devNull = "/dev/null"

func first(s string) byte {
	if s == "" {
		return ' '
	}
	return s[0]
}

func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// quotePath quotes s if it could be read in another way without.
func quotePath(s string) string {
	if strings.ContainsAny(s, " \t,\"\\()<>#") {
		return quote(s)
	}
	return s
}

// printable returns s with "?" for every byte that a terminal or a log must
// not get: control characters, and what is no valid UTF-8.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 || r == '\uFFFD' || r == '\u2028' || r == '\u2029' {
			return '?'
		}
		return r
	}, s)
}

// show returns a short form of s for an error text.
func show(s string) string {
	const most = 60
	if len(s) > most {
		s = s[:most] + "..."
	}
	return "`" + printable(s) + "`"
}
