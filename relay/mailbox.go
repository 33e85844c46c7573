package relay

import (
	"dma/smarthost"
	"dma/spooldir"
)

// mailbox returns the address of a recipient that Mailboxes serves.
func (r *Relay) mailbox(rcpt *spooldir.Recipient) (addr string, ok bool) {
	if r.o.Mailboxes == nil || r.o.Mailbox == nil {
		return "", false
	}
	return r.o.Mailbox(rcpt)
}

// isLocal reports whether a recipient is this machine's and not served by
// Mailboxes.
func (r *Relay) isLocal(rcpt *spooldir.Recipient) bool {
	if r.isMailbox(rcpt) {
		return false
	}
	if rcpt.Kind != spooldir.Address {
		return true
	}
	if r.o.Mailbox == nil {
		return false
	}
	_, known := r.o.Mailbox(rcpt)
	return known
}

func (r *Relay) isMailbox(rcpt *spooldir.Recipient) bool {
	_, ok := r.mailbox(rcpt)
	return ok
}

// mailboxOrder makes what the server of the mailboxes gets: one order, with senders
// as they are and no field for single recipients, since that would take a
// transaction for each. The server itself writes down whom it delivers to.
func (r *Relay) mailboxOrder(m *spooldir.Message, numbers []int) order {
	o := order{r.o.Mailboxes, asItIs(m)}
	for _, n := range numbers {
		rcpt := &m.Recipients[n-1]
		addr, _ := r.mailbox(rcpt)
		o.message.Recipients = append(o.message.Recipients, smarthost.Recipient{
			N: n, Address: addr, Notify: notify(rcpt.Notify), ORCPT: rcpt.ORCPT,
		})
	}
	return o
}
