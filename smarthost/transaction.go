package smarthost

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// maxRecipients is how many recipients a transaction has at most, even if the
// peer names no limit. Many hosts stop at a thousand, and hang up on those who go
// on for long after.
const maxRecipients = 1000

// transaction is the sending of one message on a session.
type transaction struct {
	s       *Session
	m       *Message
	c       *content
	out     []Outcome
	try     []int    // the recipients that get a RCPT, by index
	later   []int    // those that belong into another transaction
	open    bool     // MAIL was accepted
	taken   []int    // those whose RCPT was accepted
	lost    *Outcome // why the connection is given up
	useUTF8 bool

	// early is told of outcomes that are known long before the last of them is:
	// with LMTP each recipient may take the peer its time.
	early func(indices []int, outcomes []Outcome)
}

// Send hands m over in one transaction and returns the outcome of every
// recipient, in their order. At least one of them is not Later. When ctx is done
// the connection is given up at once, except while the reply to the whole message
// is due: that is waited for, up to Timeouts.Grace.
//
// LMTP has a reply to the message for each recipient: what is said of Grace holds
// for all of them together.
func (s *Session) Send(ctx context.Context, m Message) []Outcome { return s.send(ctx, m, nil) }

// send is Send, and tells early, unless it is nil, of outcomes as LMTP decides
// them, in groups: those recipients, by index, and their outcomes. It is called by
// the same goroutine, and not for what Send decides in another way.
func (s *Session) send(ctx context.Context, m Message, early func([]int, []Outcome)) []Outcome {
	t := &transaction{s: s, m: &m, out: make([]Outcome, len(m.Recipients)), early: early}
	s.stale = false
	t.watched(ctx)
	if !s.broken && s.wire.br.Buffered() > 0 {
		// Nobody asked for this; the next reply would be taken for another.
		s.abort()
	}
	t.finish()
	return t.out
}

// watched has the dialog, which ctx can end.
func (t *transaction) watched(ctx context.Context) {
	unwatch := t.s.wire.watch(ctx)
	defer unwatch()
	if t.prepare() {
		t.run()
	}
}

// settle gives a recipient its outcome, the only one it gets.
func (t *transaction) settle(i int, o Outcome) {
	if t.out[i].Verdict != 0 {
		panic(unaccounted("message %s: recipient %d is %v and should become %v", t.m.ID, i, t.out[i].Verdict, o.Verdict))
	}
	t.out[i] = o
}

// settleRest gives an outcome to those of a list that have none.
func (t *transaction) settleRest(list []int, o Outcome) {
	for _, i := range list {
		if t.out[i].Verdict == 0 {
			t.settle(i, o)
		}
	}
}

// finish gives an outcome to those whom no reply decided, and makes sure that
// nobody is left over: a recipient without outcome would be lost.
func (t *transaction) finish() {
	if t.lost != nil {
		t.settleRest(t.try, *t.lost)
		t.settleRest(t.later, *t.lost)
	}
	decided := 0
	for _, i := range t.later {
		if t.out[i].Verdict == 0 {
			t.settle(i, Outcome{Verdict: Later, Relay: t.s.relay, Command: "RCPT", detail: "5.3"})
		}
	}
	for i := range t.out {
		if t.out[i].Verdict == 0 {
			panic(unaccounted("message %s: recipient %d of %d has no outcome", t.m.ID, i, len(t.out)))
		}
		if t.out[i].Verdict != Later {
			decided++
		}
	}
	if decided == 0 && len(t.out) > 0 {
		panic(unaccounted("message %s: a transaction decided nothing", t.m.ID))
	}
}

// prepare decides what needs no peer, and reports whether anything is left to do.
func (t *transaction) prepare() bool {
	s, m := t.s, t.m
	all := make([]int, len(m.Recipients))
	for i := range all {
		all[i] = i
	}
	if s.broken || s.wire.isStopped() {
		o := s.local(Tempfail, "MAIL", "4.2", "the session is closed")
		o.Refused = true
		t.settleRest(all, o)
		return false
	}
	switch err := t.measure(); {
	case errors.Is(err, errConversion):
		t.settleRest(all, s.local(Permfail, "MAIL", "6.3", err.Error()))
		return false
	case err != nil:
		t.settleRest(all, s.local(Tempfail, "MAIL", "3.0", err.Error()))
		return false
	}
	if why := t.unfit(); why.Verdict != 0 {
		t.settleRest(all, why)
		return false
	}
	limit := maxRecipients
	if s.ext.rcptMax > 0 {
		limit = min(limit, s.ext.rcptMax)
	}
	t.useUTF8 = m.UTF8 || !isASCII(m.Sender)
	for i := range m.Recipients {
		addr := m.Recipients[i].Address
		switch {
		case !path(addr):
			t.settle(i, s.local(Permfail, "RCPT", "1.3", "the address is not fit for SMTP"))
		case !isASCII(addr) && !s.ext.utf8:
			t.settle(i, s.local(Permfail, "RCPT", "6.7", "the relay does not offer SMTPUTF8, which the address needs"))
		case len(t.try) == limit:
			t.later = append(t.later, i)
		default:
			t.useUTF8 = t.useUTF8 || !isASCII(addr)
			t.try = append(t.try, i)
		}
	}
	return len(t.try) > 0
}

// measure finds out what the message is on the wire, and makes it 7-bit if the peer
// takes nothing else. SMTPUTF8 is only offered with 8BITMIME (RFC 6531 section
// 3.1), so either will do.
func (t *transaction) measure() (err error) {
	if t.c, err = measure(t.m); err != nil || !t.c.body8Bit || t.s.ext.eightBit || t.s.ext.utf8 {
		return err
	}
	if t.m.edits, err = sevenBit(t.m); err != nil {
		return err
	}
	t.c, err = measure(t.m)
	return err
}

// unfit returns the outcome for all recipients if the peer is known not to take
// this message, else the zero Outcome.
func (t *transaction) unfit() (o Outcome) {
	s, m := t.s, t.m
	switch {
	case m.Sender != "" && !path(m.Sender):
		return s.local(Permfail, "MAIL", "1.7", "the sender's address is not fit for SMTP")
	case s.ext.maxSize > 0 && t.c.size > s.ext.maxSize:
		return s.local(Permfail, "MAIL", "3.4", fmt.Sprintf("the message has %d octets, the relay takes %d", t.c.size, s.ext.maxSize))
	case !s.ext.utf8 && !isASCII(m.Sender) && m.Rewritten:
		return s.local(Tempfail, "MAIL", "6.7", "the relay does not offer SMTPUTF8, which the sender's address needs that our own REWRITE or MASQUERADE gives")
	case !s.ext.utf8 && !isASCII(m.Sender):
		return s.local(Permfail, "MAIL", "6.7", "the relay does not offer SMTPUTF8, which the sender's address needs")
	case !s.ext.utf8 && m.UTF8 && t.c.header8Bit:
		return s.local(Permfail, "MAIL", "6.7", "the relay does not offer SMTPUTF8, which the header needs")
	}
	return o
}

// run has the dialog up to the reply to DATA. With PIPELINING all commands go out
// first, written by a goroutine of its own: a peer may stop reading until its
// replies are read. Then the same steps only read.
func (t *transaction) run() {
	s, limit := t.s, t.s.wire.t
	mail := mailCommand(t.m, t.c, &s.ext, t.useUTF8)
	if s.ext.pipelining {
		wait := t.flight(mail)
		defer wait()
	}
	if s.dirty {
		r, ok := t.step("RSET", "RSET", limit.Hello)
		if !ok {
			return
		}
		if r.Code/100 != 2 {
			t.giveUp(s.byReply("RSET", r))
			return
		}
		s.dirty = false
	}
	r, ok := t.step("MAIL", mail, limit.Mail)
	if !ok {
		return
	}
	s.sent++
	if t.open = r.Code/100 == 2; !t.open {
		t.settleRest(t.try, s.byReply("MAIL", r))
		t.settleRest(t.later, s.byReply("MAIL", r))
		if !s.ext.pipelining {
			return
		}
	}
	s.dirty = t.open
	if t.recipients() {
		t.data()
	}
}

// flight writes all commands of the transaction; the function it returns waits
// until that has ended, and is called when the replies are read or the connection
// is closed.
func (t *transaction) flight(mail string) (wait func()) {
	var b []byte
	if t.s.dirty {
		b = append(b, "RSET\r\n"...)
	}
	b = append(append(b, mail...), "\r\n"...)
	for _, i := range t.try {
		b = append(append(b, rcptCommand(&t.m.Recipients[i], &t.s.ext)...), "\r\n"...)
	}
	b = append(b, "DATA\r\n"...)
	// The reader of the replies has a bound for each and closes the connection,
	// which ends the writing. This one is the sum of those.
	limit := t.s.wire.t
	bound := limit.Hello + limit.Mail + time.Duration(len(t.try))*limit.Rcpt + limit.Data
	done := make(chan struct{})
	go func() {
		defer close(done)
		// If it fails, no replies come, and their reader says so.
		_ = t.s.wire.write(b, bound)
	}()
	return func() { <-done }
}

// step has one command: sends it, unless it is under way already, and reads the
// reply. If there is none, or the peer ends the session with it, or it is not of
// a class that this command can have, the session is over and ok is false.
func (t *transaction) step(command, line string, d time.Duration) (r reply, ok bool) {
	var err error
	if t.s.ext.pipelining {
		r, err = t.s.wire.reply(d)
	} else {
		r, err = t.s.ask(line, d)
	}
	first := t.s.sent > 0 && !t.open && (command == "RSET" || command == "MAIL")
	switch {
	case err != nil:
		// A peer that is silent is slow, not gone.
		t.s.stale = first && !errors.Is(err, errStopped) && !errors.Is(err, errReply) && !errors.Is(err, errSilent)
		t.giveUp(t.lostAt(command, err))
	case r.Code == 421:
		t.s.stale = first
		t.giveUp(t.s.byReply(command, r))
	case r.Code/100 == 3 && command != "DATA", r.Code/100 == 2 && command == "DATA":
		t.giveUp(t.s.byReply(command, r))
	default:
		return r, true
	}
	return r, false
}

// giveUp closes the session; o becomes the outcome of all that have none. It is
// temporary, whatever the reply.
func (t *transaction) giveUp(o Outcome) {
	o.Verdict = Tempfail
	if class := o.Reply.Code / 100; class == 2 || class == 3 {
		o.detail = "5.0" // good news in the wrong place
	}
	t.lost = &o
	t.s.abort()
}

// lostAt is the outcome when the reply to command did not come.
func (t *transaction) lostAt(command string, err error) Outcome {
	o := t.s.local(Tempfail, command, lostDetail(err), fmt.Sprintf("%v (waiting for the reply to %s)", err, command))
	o.Refused = errors.Is(err, errStopped)
	return o
}

// lostDetail returns the subject and detail of the status of an error of the
// connection.
func lostDetail(err error) string {
	if errors.Is(err, errReply) {
		return "5.0"
	}
	return "4.2"
}

// recipients has the RCPT commands and reports whether the session lives.
func (t *transaction) recipients() bool {
	s := t.s
	for k, i := range t.try {
		r, ok := t.step("RCPT", rcptCommand(&t.m.Recipients[i], &s.ext), s.wire.t.Rcpt)
		switch {
		case !ok:
			return false
		case !t.open:
			// MAIL decided for all.
		case r.Code/100 == 2:
			t.taken = append(t.taken, i)
		case len(t.taken) > 0 && tooMany(r):
			t.later = append(t.later, i)
			s.ext.rcptMax = len(t.taken)
			if !s.ext.pipelining {
				t.later = append(t.later, t.try[k+1:]...)
				return true
			}
		default:
			o := s.byReply("RCPT", r)
			if r.Code == 552 {
				o.Verdict = Tempfail
			}
			t.settle(i, o)
		}
	}
	return true
}

// tooMany reports whether a reply to RCPT says that the transaction is full (RFC
// 5321 section 4.5.3.1.10). An enhanced status that says something else, as that
// a mailbox is full, is believed.
func tooMany(r reply) bool {
	e := r.EnhancedCode
	return (r.Code == 452 || r.Code == 552) && (e[0] == 0 || e[1] == 5 && e[2] == 3)
}

// data has DATA, the content and its reply.
func (t *transaction) data() {
	s := t.s
	if !s.ext.pipelining && len(t.taken) == 0 {
		return
	}
	r, ok := t.step("DATA", "DATA", s.wire.t.Data)
	switch {
	case !ok:
	case r.Code/100 != 3:
		t.settleRest(t.taken, s.byReply("DATA", r))
	case len(t.taken) == 0 && s.cfg.LMTP:
		// The peer wants content for nobody, and would answer for nobody.
		s.abort()
	case len(t.taken) == 0:
		// The peer wants content for nobody: an empty one ends it.
		if r, err := s.ask(".", s.wire.t.Dot); err != nil || r.Code == 421 || r.Code/100 == 3 {
			s.abort()
		}
		s.dirty = false
	case s.wire.br.Buffered() > 0:
		// An answer to nothing, whatever it says.
		t.giveUp(s.local(Tempfail, endOfData, "5.0", answeredEarly))
	case s.cfg.LMTP:
		t.contentEach()
	default:
		t.content()
	}
}

const (
	endOfData     = "end of data"
	answeredEarly = "the relay answered before it had the message"
)

// content writes the message while it waits for the reply, since a peer may
// refuse in the middle of it, and take nothing more until its reply is read.
func (t *transaction) content() {
	s := t.s
	writing := s.wire.send(t.m)
	r, err := readReply(s.wire.br)
	early := !s.wire.isCommitted()
	if early || err != nil {
		_ = s.wire.nc.Close() // ends the writing
	}
	w := <-writing
	w.check()
	s.dirty = false
	if err == nil && !early && w.err == nil && r.Code != 421 && r.Code/100 != 3 {
		o := s.byReply(endOfData, r)
		o.DSN = s.ext.dsn && o.Verdict == Sent
		t.settleRest(t.taken, o)
		s.wire.uncommit()
		// A refusal may have been on its way before the end of a long message,
		// and another one may follow, which would be taken for the reply to MAIL.
		s.last = o.Verdict != Sent && t.c.size > blockSize/2
		return
	}
	// What is left ends the session.
	if err != nil || errors.Is(w.err, errContent) {
		t.giveUp(t.unanswered(w, err))
		return
	}
	o := s.byReply(endOfData, r)
	if r.Code/100 == 5 {
		// A refusal counts, also one in the middle of the message.
		t.settleRest(t.taken, o)
	}
	o.Uncertain = w.written && r.Code != 421
	t.giveUp(o)
}

// unanswered is the outcome when the reply to the content did not come: writing
// it ended with w, waiting for the reply with err.
func (t *transaction) unanswered(w delivery, err error) Outcome {
	if errors.Is(w.err, errContent) {
		return t.s.local(Tempfail, endOfData, "3.0", w.err.Error())
	}
	err = t.s.wire.explain(err, t.s.wire.t.Dot)
	if w.err != nil && !errors.Is(err, errStopped) {
		err = w.err
	}
	o := t.lostAt(endOfData, err)
	o.Uncertain = w.written
	o.Refused = o.Refused && !w.written
	return o
}
