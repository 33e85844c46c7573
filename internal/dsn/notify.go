package dsn

import (
	"fmt"
	"strings"
)

// Kind says what a report reports. All recipients of one report share it. The
// zero Kind means that there is nothing to report.
type Kind uint8

// The kinds, which are the action values of RFC 3464 section 2.3.3.
const (
	Failed    Kind = iota + 1 // given up
	Delayed                   // not delivered so far, still trying
	Delivered                 // in the mailbox, or handed to a mailing list
	Relayed                   // passed to a host that sends no reports
	Expanded                  // passed on to several addresses
)

// String returns the action value of RFC 3464, or "" for an unknown kind.
func (k Kind) String() string {
	switch k {
	case Failed:
		return "failed"
	case Delayed:
		return "delayed"
	case Delivered:
		return "delivered"
	case Relayed:
		return "relayed"
	case Expanded:
		return "expanded"
	}
	return ""
}

// Notify is the NOTIFY parameter of one recipient (RFC 3461 section 4.1): when
// its sender wants to hear of it. The zero value means that the parameter was
// not given.
type Notify uint8

// The keywords of NOTIFY. Never stands alone.
const (
	Never Notify = 1 << iota
	Success
	Failure
	Delay
)

var notifyWords = [...]struct {
	word string
	bit  Notify
}{{"NEVER", Never}, {"SUCCESS", Success}, {"FAILURE", Failure}, {"DELAY", Delay}}

// ParseNotify reads the value of NOTIFY, as it stands in SMTP or after
// sendmail's -N: NEVER, or a list of SUCCESS, FAILURE and DELAY separated by
// commas. Case does not matter and a repeated keyword does no harm.
func ParseNotify(s string) (Notify, error) {
	if len(s) > 100 {
		return 0, fmt.Errorf("NOTIFY: value of %d bytes is too long", len(s))
	}
	var n Notify
next:
	for _, word := range strings.Split(s, ",") {
		for _, w := range notifyWords {
			if strings.EqualFold(word, w.word) {
				n |= w.bit
				continue next
			}
		}
		return 0, fmt.Errorf("NOTIFY: %q is not one of NEVER, SUCCESS, FAILURE, DELAY", word)
	}
	if n&Never != 0 && n != Never {
		return 0, fmt.Errorf("NOTIFY: NEVER excludes the other keywords in %q", s)
	}
	return n, nil
}

// String returns the value in the form that ParseNotify reads, and "" when the
// parameter was not given.
func (n Notify) String() string {
	var words []string
	for _, w := range notifyWords {
		if n&w.bit != 0 {
			words = append(words, w.word)
		}
	}
	return strings.Join(words, ",")
}

// Wants reports whether a report of kind k may go to the sender. Without the
// parameter failures and delays may be reported, successes not (RFC 3461
// section 4.1). A caller that sends delay notices only to those who asked for
// them tests the Delay bit instead.
func (n Notify) Wants(k Kind) bool {
	if n == 0 {
		return k == Failed || k == Delayed
	}
	if n&Never != 0 {
		return false
	}
	switch k {
	case Failed:
		return n&Failure != 0
	case Delayed:
		return n&Delay != 0
	case Delivered, Relayed, Expanded:
		return n&Success != 0
	}
	return false
}

// Expansion tells how a recipient became others.
type Expansion uint8

// The cases of RFC 3461 section 5.2.7.
const (
	// Forward: one target, same sender (5.2.7.2). All parameters go along as
	// they are; whoever delivers reports.
	Forward Expansion = iota
	// Alias: several targets, same sender (5.2.7.3); a kept copy counts as a
	// target. The sender hears "expanded" once instead of one success from each
	// target, so the targets get NOTIFY without SUCCESS. Failures and delays of
	// the targets still go to the sender.
	Alias
	// List: the envelope sender becomes the list's owner (5.2.7.1). For the
	// sender the message is delivered. What the sender asked for does not go
	// along, since reports on the members are the owner's business.
	List
)

// Expand applies RFC 3461 section 5.2.7 to a recipient that was expanded. child
// is the NOTIFY of the new recipients; keep tells whether ENVID, RET and ORCPT go
// along to them; report is the kind of success report due to the sender now, or
// 0 for none.
func (n Notify) Expand(how Expansion) (child Notify, keep bool, report Kind) {
	switch how {
	case Alias:
		child = n
		if n.Wants(Expanded) {
			report = Expanded
			if child &^= Success; child == 0 {
				// Dropping the last keyword must not turn into "not given",
				// which would ask for failures.
				child = Never
			}
		}
		return child, true, report
	case List:
		if n.Wants(Delivered) {
			report = Delivered
		}
		return 0, false, report
	}
	return n, true, 0
}
