package maillog

import (
	"log/slog"
	"time"
)

// Status is how an attempt ended for one recipient.
type Status string

// The statuses of a delivery.
const (
	Sent     Status = "sent"     // delivered, or taken over by the next host
	Expanded Status = "expanded" // replaced by the recipients of a child message
	Deferred Status = "deferred" // failed for now; will be tried again
	Bounced  Status = "bounced"  // failed for good
	Expired  Status = "expired"  // failed for now once too often
)

// Delays are the parts of a delay: waiting in the queue, getting a connection (or
// an agent), and the transfer.
type Delays struct {
	Queue, Conn, Transfer time.Duration
}

// Delivery is the outcome of one attempt for one recipient.
type Delivery struct {
	ID     string
	N      int // the recipient's number
	From   string
	To     string
	OrigTo string        // the address before it was expanded or rewritten; logged if it differs from To
	Relay  string        // "local", "forward", "none" or "host[ip]:port"
	TLS    string        // protocol version and whether the peer was verified; "" without TLS
	Delay  time.Duration // since submission
	Delays Delays
	DSN    string // enhanced status
	Status Status
	Reply  string    // what the other side, or this one, said
	Next   time.Time // next attempt; zero if there is none

	// Duplicate says that the other side may have the message twice: it had the
	// whole of it in this attempt, or in an earlier one, and did not answer.
	Duplicate bool
}

// Delivery writes the final line of one attempt for one recipient. There is
// exactly one for each.
func (l *Log) Delivery(d Delivery) {
	if l.observe != nil {
		l.observe(d)
	}
	attrs := make([]slog.Attr, 0, 14)
	attrs = append(attrs, slog.String("id", d.ID), slog.Int("n", d.N), address("from", d.From), address("to", d.To))
	if d.OrigTo != "" && d.OrigTo != d.To {
		attrs = append(attrs, address("orig_to", d.OrigTo))
	}
	attrs = append(attrs, slog.String("relay", d.Relay))
	attrs = append(attrs, optional("tls", d.TLS)...)
	attrs = append(attrs,
		slog.String("delay", seconds(d.Delay)),
		slog.String("delays", seconds(d.Delays.Queue)+"/"+seconds(d.Delays.Conn)+"/"+seconds(d.Delays.Transfer)),
		slog.String("dsn", d.DSN),
		slog.String("status", string(d.Status)))
	if d.Duplicate {
		attrs = append(attrs, slog.String("duplicate", "possible"))
	}
	attrs = append(attrs, optional("reply", d.Reply)...)
	if !d.Next.IsZero() {
		attrs = append(attrs, slog.String("next", d.Next.Format(time.RFC3339)))
	}
	if d.Status == Bounced || d.Status == Expired {
		l.warn(EventDelivery, attrs...)
		return
	}
	l.info(EventDelivery, attrs...)
}
