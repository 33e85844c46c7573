package queue

import (
	"bytes"
	"fmt"
	"strings"

	"dma/internal/dsn"
	"dma/spooldir"
)

// postmaster is who hears of reports that cannot be delivered.
const postmaster = "postmaster"

// commitReport commits a report about recipients of a message and returns its
// draft, which holds its lock until the caller has finished the recipients'
// steps. What the journal says about them goes into the report.
func (q *Queue) commitReport(m *spooldir.Message, numbers []int, kind spooldir.Kind, what dsn.Kind) (*spooldir.Draft, error) {
	env := &spooldir.Envelope{
		ID:      spooldir.DeriveID(m.ID, numbers[0], kind),
		Arrival: q.clock.Now(), UID: q.spool.Owner(),
	}
	for _, n := range numbers {
		env.Parents = append(env.Parents, spooldir.Parent{Name: m.Name(n)})
	}
	to := m.Sender
	if to == "" {
		to = postmaster
	}
	env.Recipients = []spooldir.Recipient{{Kind: spooldir.Address, Address: to}}
	report, err := q.report(m, numbers, env.ID, to, what)
	if err != nil {
		return nil, err
	}
	msg, err := report.Build()
	if err != nil {
		return nil, fmt.Errorf("report %s: %w", env.ID, err)
	}
	env.EightBit, env.UTF8 = msg.EightBit, msg.UTF8
	var body bytes.Buffer
	if _, err := msg.WriteTo(&body); err != nil {
		return nil, err
	}
	draft, err := q.write(env, "", &body)
	if err != nil {
		return nil, err
	}
	if m.Sender == "" {
		q.log.DoubleBounce(m.ID, env.ID, to)
	} else {
		q.log.Bounced(m.ID, env.ID, to, len(numbers))
	}
	q.bell(spooldir.New).Ring(env.Name(1))
	return draft, nil
}

// report makes the report itself.
func (q *Queue) report(m *spooldir.Message, numbers []int, id, to string, what dsn.Kind) (*dsn.Report, error) {
	r := &dsn.Report{
		Kind: what, ReportingMTA: q.config.HostName, MessageID: id + "@" + q.config.HostName,
		To: q.qualify(to), Postmaster: m.Sender == "",
		Arrival: m.Arrival, Now: q.clock.Now(),
		Original: m, Size: m.ContentLength,
	}
	r.EnvelopeID, _ = dsn.DecodeXtext(m.EnvelopeID)
	r.Return, _ = dsn.ParseRet(m.Return)
	if m.Return == "" && q.config.FullBounce {
		r.Return = dsn.ReturnFull
	}
	journal, err := q.history(m)
	if err != nil {
		return nil, err
	}
	for _, n := range numbers {
		rcpt := &m.Recipients[n-1]
		d := dsn.Recipient{Original: rcpt.ORCPT, Final: q.qualify(rcpt.Address)}
		if d.Original == "" && rcpt.Original != "" {
			d.Original = dsn.ORCPT{Type: "rfc822", Address: q.qualify(rcpt.Original)}.String()
		}
		last := journal.Last(n)
		if what != dsn.Failed && what != dsn.Delayed {
			last = journal.Outcome(n)
		}
		if last != nil {
			d.Status, d.LastAttempt = last.Status, last.Time
			switch last.Relay {
			case "", "none", "local", "forward", "list":
				// Where mail went, and whose .forward says so, is the matter of who
				// gets it.
				if what == dsn.Failed || what == dsn.Delayed {
					d.Diagnostic = "x-unix; " + last.Reply
				}
			default:
				d.Diagnostic = "smtp; " + last.Reply
				if byLMTP(last) {
					break // it is no host that the sender could know
				}
				d.RemoteMTA = mtaName(last.Relay)
			}
		}
		if what == dsn.Delayed {
			d.WillRetryUntil = since(m, journal).Add(q.config.Retry.Expire)
		}
		r.Recipients = append(r.Recipients, d)
	}
	return r, nil
}

// mtaName is the name of a relay that is logged as name[ip]:port, for the type
// dns of RFC 3464 section 2.1.2: a host has no port there, and its address stands
// for it only where it has no name.
func mtaName(relay string) string {
	name, rest, ok := strings.Cut(relay, "[")
	if !ok || name != "" {
		return name
	}
	ip, _, _ := strings.Cut(rest, "]")
	if strings.Contains(ip, ":") {
		ip = "IPv6:" + ip
	}
	return "[" + ip + "]"
}

// noticeDelay tells the sender that recipients are late. Nobody waits for a
// delay notice, and a kill at the wrong moment sends it twice, unless it is still
// under way.
func (q *Queue) noticeDelay(m *spooldir.Message, late []int) error {
	underWay, err := q.spool.Find(spooldir.NewName(spooldir.DeriveID(m.ID, late[0], spooldir.Delay), 1, m.Sender))
	if err != nil {
		return err
	}
	if len(underWay) == 0 {
		draft, err := q.commitReport(m, late, spooldir.Delay, dsn.Delayed)
		if err != nil {
			return err
		}
		defer draft.Close()
	}
	return q.spool.AppendJournal(m.ID, false, spooldir.Entry{Time: q.clock.Now(), Event: spooldir.Noticed, Recipients: late})
}
