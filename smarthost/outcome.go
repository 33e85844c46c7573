package smarthost

import (
	"fmt"

	"github.com/emersion/go-smtp"
)

// Verdict is what is to become of a recipient.
type Verdict uint8

// The verdicts. The zero Verdict is none.
const (
	Sent     Verdict = iota + 1 // the peer is responsible for the message now
	Tempfail                    // try again
	Permfail                    // give up
	Later                       // not decided: belongs into another transaction; Deliver returns none
)

// String returns the verdict in lower case.
func (v Verdict) String() string {
	switch v {
	case Sent:
		return "sent"
	case Tempfail:
		return "tempfail"
	case Permfail:
		return "permfail"
	case Later:
		return "later"
	}
	return fmt.Sprintf("verdict(%d)", uint8(v))
}

// Outcome is what became of one recipient of a transaction.
type Outcome struct {
	Verdict Verdict

	// Reply is the reply that decided: its code, its enhanced status if it has
	// one, and its text in one printable line. Where none decided, Code is 0 and
	// Message says what happened instead.
	Reply smtp.SMTPError

	Relay   string // host[ip]:port, empty if no address was tried
	Command string // what Reply answers: connect, EHLO, MAIL, RCPT, DATA, "end of data", ...

	// TLS is the version and what is known of the peer, as "TLS1.3 verified": its
	// certificate was verified, or had the fingerprint, or was not looked at
	// ("unverified"). Empty without TLS.
	TLS string

	// Uncertain says that the peer had the whole message and did not answer: it
	// may have it, and the next attempt may send it twice.
	Uncertain bool

	// Refused says that nothing was tried: the destination is being left alone,
	// or the program is to stop.
	Refused bool

	// Trouble is a fault of this program that kept the message here, for its log.
	// Uncertain says then whether the peer may have the message nevertheless.
	Trouble error

	// DSN says that the peer offers DSN (RFC 3461) and took NOTIFY with the
	// recipient: reports are its duty now.
	DSN bool

	detail string // subject and detail of the status where Reply has none
}

// Unaccounted is what a delivery panics with where a recipient would get two
// outcomes, or none: nothing may go on that loses count of who has got what.
type Unaccounted string

func unaccounted(format string, args ...any) Unaccounted {
	return Unaccounted("smarthost: " + fmt.Sprintf(format, args...))
}

// faulty is the outcome of what a panic cut off.
func faulty(v any) Outcome {
	err := fmt.Errorf("panic in a delivery: %v", v)
	return Outcome{
		Verdict: Tempfail, Command: "delivery", detail: "3.0", Trouble: err,
		Reply: smtp.SMTPError{Message: oneLine("a fault of this program: " + err.Error())},
	}
}

// Status returns the enhanced status (RFC 3463). Its class is that of the
// Verdict, whatever the reply said; it is never empty.
func (o *Outcome) Status() string {
	class := byte('4')
	switch o.Verdict {
	case Sent:
		class = '2'
	case Permfail:
		class = '5'
	}
	if e := o.Reply.EnhancedCode; e[0] > 0 {
		return fmt.Sprintf("%c.%d.%d", class, e[1], e[2])
	}
	if o.detail != "" {
		return fmt.Sprintf("%c.%s", class, o.detail)
	}
	return string(class) + ".0.0"
}

// Text returns one printable line: the reply as it was, or what happened instead.
func (o *Outcome) Text() string {
	r := &o.Reply
	if r.Code == 0 {
		return r.Message
	}
	s := fmt.Sprintf("%03d", r.Code)
	if e := r.EnhancedCode; e[0] > 0 {
		s += fmt.Sprintf(" %d.%d.%d", e[0], e[1], e[2])
	}
	if r.Message != "" {
		s += " " + r.Message
	}
	return s
}

// byReply is the outcome that a reply of class 2, 4 or 5 stands for.
func (s *Session) byReply(command string, r reply) Outcome {
	o := Outcome{Verdict: Tempfail, Reply: r.SMTPError, Relay: s.relay, Command: command, TLS: s.tls}
	switch r.Code / 100 {
	case 2:
		o.Verdict = Sent
	case 5:
		o.Verdict = Permfail
	}
	switch {
	case r.Code == 530, r.Code == 534, r.Code == 535, r.Code == 538:
		// A login or TLS is wanted (RFC 4954 section 6): that can be mended here.
		o.Verdict, o.detail = Tempfail, "7.0"
	case r.Code == 421:
		o.detail = "3.2"
	case command == "RCPT" && o.Verdict != Sent:
		o.detail = "1.0"
	}
	return o
}

// local is an outcome that we decide ourselves.
func (s *Session) local(v Verdict, command, detail, text string) Outcome {
	return Outcome{
		Verdict: v, Relay: s.relay, Command: command, TLS: s.tls, detail: detail,
		Reply: smtp.SMTPError{Message: oneLine(text)},
	}
}
