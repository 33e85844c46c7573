package dsn

import (
	"bytes"
	"fmt"
	"strings"
)

// maxListed bounds the recipients in the text for people; all of them are in the
// second part.
const maxListed = 100

// notification makes the first part, for people. original and why are the results
// of enclosure.
func (r *Report) notification(original *part, why string) part {
	var b bytes.Buffer
	para := func(format string, args ...any) { wrap(&b, 0, "", fmt.Sprintf(format, args...)) }
	gap := func() { b.WriteByte('\n') }

	para("This is the mail system at host %s.", r.ReportingMTA)
	gap()
	para("%s", r.introduction())
	for i := range r.Recipients {
		gap()
		if i == maxListed {
			para("and %d more; the second part of this report lists them all.", len(r.Recipients)-i)
			break
		}
		r.recipientText(&b, &r.Recipients[i])
	}
	gap()
	switch {
	case original == nil:
		para("The part below has the details for mail programs.")
	case strings.HasSuffix(original.mediaType, "headers"):
		para("The parts below are the details for mail programs and the header of the message. %s", why)
	default:
		para("The parts below are the details for mail programs and the message.")
	}
	if r.Kind == Failed || r.Kind == Delayed {
		para("For help, show this whole report to your postmaster.")
	}

	p := part{description: "Notification", mediaType: "text/plain; charset=us-ascii", encoding: "7bit", content: b.Bytes()}
	if !isASCII(p.content) {
		p.mediaType, p.encoding = "text/plain; charset=utf-8", "8bit"
	}
	return p
}

func (r *Report) introduction() string {
	what := "Your message"
	if r.Postmaster {
		what = "A delivery report"
	}
	if !r.Arrival.IsZero() {
		what += " of " + date(r.Arrival)
	}
	switch r.Kind {
	case Failed:
		s := what + " could not be delivered as listed here, and will not be tried again."
		if r.Postmaster {
			s += " It was itself a report to the sender of a message, who will not hear of it now. Please see whether something has to be done."
		}
		return s
	case Delayed:
		return what + " has not been delivered so far as listed here. The mail system goes on trying; there is no need to send it again."
	case Relayed:
		return what + " was passed to a mail system that sends no reports on success. You may not hear of it again."
	case Expanded:
		return what + " was accepted and passed on to several addresses. You will hear of a failure, but not of success."
	}
	return what + " was delivered as you asked to be told."
}

// recipientText describes one recipient: what happened, who said so, what to do.
func (r *Report) recipientText(b *bytes.Buffer, rcpt *Recipient) {
	const indent = "    "
	line := func(text string) {
		b.WriteString(indent)
		wrap(b, len(indent), indent, text)
	}
	fmt.Fprintf(b, "  <%s>\n", cleanAddress(rcpt.Final, true))
	if orig, err := ParseORCPT(rcpt.Original); err == nil && orig.Address != rcpt.Final {
		fmt.Fprintf(b, "%s(sent to <%s>)\n", indent, cleanAddress(orig.Address, true))
	}

	status := statusFor(r.Kind, rcpt.Status)
	failure := r.Kind == Failed || r.Kind == Delayed
	if failure {
		line("Reason: " + StatusText(status) + " (" + status + ").")
	}
	if typ, text := diagnostic(rcpt.Diagnostic, true); text != "" {
		who := "This host"
		if typ == "smtp" {
			who = "The remote host"
		}
		if host := cut(cleanAddress(rcpt.RemoteMTA, false), maxHost); host != "" {
			who = "Host " + host
		}
		line(who + " said: " + text)
	}
	switch r.Kind {
	case Delayed:
		if !rcpt.WillRetryUntil.IsZero() {
			line("It will be tried until " + date(rcpt.WillRetryUntil) + ".")
		}
	case Failed:
		if s := advice(status); s != "" && !r.Postmaster {
			line("What you can do: " + s)
		}
	}
}
