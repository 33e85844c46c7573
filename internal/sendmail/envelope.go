package sendmail

import (
	"strings"

	"dma/internal/address"
	"dma/spooldir"
)

const maxRecipients = spooldir.MaxRecipients

func tooMany(n int) error {
	return fail(exitData, "%d recipients: a message can have %d; send it in parts", n, maxRecipients)
}

// Account is the user who called the program.
type Account struct {
	Name     string
	FullName string
}

// sender is who sends a message.
type sender struct {
	envelope address.Address // zero for the null sender
	from     address.Address // for a From field
	own      bool            // from is the caller, not somebody named with -f
}

// findSender takes the sender from the options, from $EMAIL, or from the
// account. A null sender is nobody whom a From field could name: there the
// caller stands.
func findSender(o *Options, email string, caller Account, mailName string) (sender, error) {
	login := address.Address{Local: caller.Name, Domain: mailName}
	if !o.HasSender {
		// Shells set EMAIL for other programs too, in whatever form.
		if a, err := parseOne(email); err == nil && !a.IsZero() {
			login = complete(a, mailName)
		}
		return sender{login, login, true}, nil
	}
	a, err := parseOne(o.Sender)
	if err != nil {
		return sender{}, fail(exitData, "sender %s: %w", quote(o.Sender), err)
	}
	if a.IsZero() {
		return sender{from: login, own: true}, nil
	}
	a = complete(a, mailName)
	return sender{a, a, a == login}, nil
}

// parseOne reads a sender: a reverse-path, or an address with a display name.
func parseOne(s string) (address.Address, error) {
	if hasControl(s) {
		return address.Address{}, errControl
	}
	a, err := address.ParsePath(s)
	if err == nil {
		return a, nil
	}
	if list, listErr := address.ParseList(s); listErr == nil && len(list) == 1 {
		return list[0], nil
	}
	return address.Address{}, err
}

// complete gives an address without a domain the host's.
func complete(a address.Address, mailName string) address.Address {
	if a.Domain == "" {
		a.Domain = mailName
	}
	return a
}

var errControl = fail(exitData, "it has a control character")

// hasControl reports whether an argument has a control character. A tab is
// one; a line break would end up in a protocol of lines.
func hasControl(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) >= 0
}

// recipients is a set of addresses in the order in which they were added.
type recipients struct {
	mailName string
	list     []address.Address
	seen     map[address.Address]bool
}

// add adds what is not there yet. A bare name and the same name at the host's
// mail name are one recipient.
func (r *recipients) add(list []address.Address) error {
	if r.seen == nil {
		r.seen = make(map[address.Address]bool)
	}
	for _, a := range list {
		key := complete(a, r.mailName)
		if r.seen[key] {
			continue
		}
		r.seen[key] = true
		r.list = append(r.list, a)
	}
	if len(r.list) > maxRecipients {
		return tooMany(len(r.list))
	}
	return nil
}

// addArguments adds the recipients of a command line.
func (r *recipients) addArguments(args []string) error {
	for _, arg := range args {
		if hasControl(arg) {
			return fail(exitData, "recipient %s: %w", quote(arg), errControl)
		}
		list, err := address.ParseList(arg)
		if err != nil {
			return fail(exitData, "recipient: %w", err)
		}
		if err := r.add(list); err != nil {
			return err
		}
	}
	return nil
}

// envelope puts together what the spool keeps about the message; the id and
// the time of arrival are the spool's own.
func envelope(o *Options, uid int, from sender, to []address.Address) *spooldir.Envelope {
	e := &spooldir.Envelope{
		Sender:     from.envelope.String(),
		UID:        uid,
		UTF8:       !from.envelope.ASCII() || !from.from.ASCII(),
		Return:     o.Return,
		EnvelopeID: o.EnvelopeID,
		Recipients: make([]spooldir.Recipient, len(to)),
	}
	for i, a := range to {
		e.Recipients[i] = spooldir.Recipient{Address: a.String(), Notify: o.Notify}
		e.UTF8 = e.UTF8 || !a.ASCII()
	}
	return e
}
