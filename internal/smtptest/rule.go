package smtptest

import (
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/emersion/go-smtp"
)

// Rule is how a Sink answers RCPT for some addresses.
type Rule struct {
	// Pattern is what the address in lower case has to match, as in path.Match.
	Pattern string

	// Reply is the answer; a Code of 0 or 2xx accepts.
	Reply smtp.SMTPError

	// Times is how often the rule holds; 0: always.
	Times int
}

// ParseRule reads a rule: one of the words accept, defer, refuse, then a pattern,
// and then, if it is not the usual one, the reply with its codes:
//
//	refuse nobody@* 550 5.1.1 No such user
func ParseRule(s string) (Rule, error) {
	words := strings.Fields(s)
	if len(words) < 2 {
		return Rule{}, fmt.Errorf("rule %q: want accept, defer or refuse, and a pattern", s)
	}
	r := Rule{Pattern: strings.ToLower(words[1])}
	if _, err := path.Match(r.Pattern, ""); err != nil {
		return Rule{}, fmt.Errorf("rule %q: %w", s, err)
	}
	switch words[0] {
	case "accept":
	case "defer":
		r.Reply = smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 3, 0}, Message: "Try again later"}
	case "refuse":
		r.Reply = smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "No such user here"}
	default:
		return Rule{}, fmt.Errorf("rule %q: want accept, defer or refuse, not %s", s, words[0])
	}
	if words = words[2:]; len(words) == 0 {
		return r, nil
	}
	code, err := strconv.Atoi(words[0])
	if err != nil || code < 200 || code > 599 {
		return Rule{}, fmt.Errorf("rule %q: %s is no reply code", s, words[0])
	}
	r.Reply = smtp.SMTPError{Code: code}
	if words = words[1:]; len(words) > 0 {
		var e smtp.EnhancedCode
		if n, _ := fmt.Sscanf(words[0], "%d.%d.%d", &e[0], &e[1], &e[2]); n == 3 {
			r.Reply.EnhancedCode = e
			words = words[1:]
		}
	}
	r.Reply.Message = strings.Join(words, " ")
	return r, nil
}

func (r *Rule) matches(address string) bool {
	ok, err := path.Match(r.Pattern, strings.ToLower(address))
	return ok && err == nil
}
