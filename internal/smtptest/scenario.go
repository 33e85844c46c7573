package smtptest

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Scenario is a dialog with a server, and what is to come of it. A file holds
// several, each a heading and lines; empty lines and lines with # do not count:
//
//	== the second recipient is refused
//	to a@example.org b@example.org
//	hello PIPELINING
//	C: MAIL RCPT RCPT DATA
//	S: 250 ok | 250 ok | 550 5.1.1 no | 354 go
//	data
//	S: 250 2.0.0 taken
//	expect a@example.org sent 2.0.0 end-of-data 250
//	expect b@example.org permfail 5.1.1 RCPT 550
//	session open
//
// What the client does:
//
//	to ADDRESS...    sends a message to these; more of it use the same session
//	content N        the messages have N octets instead of a few
//	lmtp             speaks LMTP
//
// What the server does:
//
//	S: LINE | LINE   says these lines
//	C: WORD WORD     reads as many lines, which begin with these words
//	L: TEXT          reads one line, which begins with this
//	tls NAME         begins TLS with what Script.TLS has under this name; ends if it fails
//	hello EXT,EXT    greeting and EHLO, offering these extensions
//	lhlo EXT,EXT     the same with LHLO
//	data             reads content to its final dot
//	read N           reads N octets
//	send N "TEXT"    says N times TEXT, in which Go's escapes count; the client may hang up
//	silence          reads, and says nothing more
//	stall            neither reads nor says anything more
//	close, reset     ends the connection
//
// At its end the server waits for QUIT or for the end of the connection; any
// other command is an error.
//
// What is to come of it:
//
//	expect ADDRESS VERDICT STATUS COMMAND CODE [FLAG...]
//	session open|closed
//
// with one expect for each recipient of each message, in order.
type Scenario struct {
	Name    string
	To      [][]string // the recipients of each message
	Content int        // octets of each message; 0: a few
	LMTP    bool
	Expect  []string // without the word expect
	Session string   // open, closed, or empty if it does not matter
	Script  Script
}

// ParseScenarios reads a file of scenarios.
func ParseScenarios(r io.Reader) ([]*Scenario, error) {
	var list []*Scenario
	var s *Scenario
	in := bufio.NewScanner(r)
	for n := 1; in.Scan(); n++ {
		line := strings.TrimSpace(in.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if name, ok := strings.CutPrefix(line, "== "); ok {
			s = &Scenario{Name: name}
			list = append(list, s)
			continue
		}
		if s == nil {
			return nil, fmt.Errorf("line %d: no heading yet", n)
		}
		if err := s.line(line); err != nil {
			return nil, fmt.Errorf("line %d: %q: %w", n, line, err)
		}
	}
	return list, in.Err()
}

func (s *Scenario) line(line string) (err error) {
	word, rest, _ := strings.Cut(line, " ")
	rest = strings.TrimSpace(rest)
	switch word {
	case "to":
		s.To = append(s.To, strings.Fields(rest))
	case "content":
		s.Content, err = strconv.Atoi(rest)
	case "lmtp":
		s.LMTP = true
	case "expect":
		s.Expect = append(s.Expect, strings.Join(strings.Fields(rest), " "))
	case "session":
		s.Session = rest
	default:
		var more []step
		more, err = parseStep(word, rest)
		s.Script.steps = append(s.Script.steps, more...)
	}
	return err
}
