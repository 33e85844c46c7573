package door

import (
	"bytes"
	"strconv"
	"time"

	"dma/spooldir"
)

// dateLayout is date-time of RFC 5322 3.3.
const dateLayout = "Mon, 2 Jan 2006 15:04:05 -0700"

// Received returns the trace field for a message that a user of this host
// submitted (RFC 5322 3.6.7), its newline included. The form, without a "from"
// clause since no host sent it, is the one by which Postfix marks local mail, so
// that filters know what it is.
func Received(host string, uid int, id string, date time.Time) string {
	return "Received: by " + host + " (dma, from userid " + strconv.Itoa(uid) + ")\n\tid " + id + "; " + date.Format(dateLayout) + "\n"
}

// Begin makes a draft of a checked envelope and writes the Received field into
// it. Both doors begin a message with it.
func Begin(s *spooldir.Spool, e *spooldir.Envelope, host string) (*spooldir.Draft, error) {
	d, err := s.Create(e)
	if err != nil {
		return nil, err
	}
	if _, err := d.Write([]byte(Received(host, e.UID, d.ID(), d.Arrival().Local()))); err != nil {
		_ = d.Abort() // what it can't remove, the queue's cleaner does
		return nil, err
	}
	return d, nil
}

// The bounds of a header, so that nobody who reads one later is in for a
// surprise. They are above those of the program dma, which adds fields and
// completes addresses.
const (
	maxHeader    = 64 << 20 // octets
	maxFields    = 100100
	maxFieldName = 998 // octets, with blanks before the colon
)

// contentCheck looks at a content as it passes. It begins with a header, and the
// first line of that begins a field: a line that begins with a blank would become
// part of the Received field before it, in the server's name.
type contentCheck struct {
	place    place
	name     int // octets of the name so far
	size     int // octets of the header so far
	fields   int
	eightBit bool
}

// place is where in the header the next octet stands.
type place byte

const (
	atLine   place = iota // at the beginning of a line
	inName                // in the name of a field
	pastName              // in the blanks before the colon
	inField               // in the body of a field
	inBody                // after the header
)

// write looks at the next octets; the error is a *Refusal.
func (c *contentCheck) write(p []byte) error {
	if !c.eightBit {
		for _, b := range p {
			if b >= 0x80 {
				c.eightBit = true
				break
			}
		}
	}
	for len(p) > 0 && c.place != inBody {
		n := 1
		if c.place == inField {
			if n = bytes.IndexByte(p, '\n') + 1; n == 0 {
				n = len(p)
			}
			if p[n-1] == '\n' {
				c.place = atLine
			}
		} else if !c.step(p[0]) {
			return refuse(BadData, "the content does not begin with a header")
		}
		p = p[n:]
		if c.size += n; c.size > maxHeader || c.fields > maxFields {
			return refuse(BadData, "the header is longer than %d MiB, or has more than %d fields", maxHeader>>20, maxFields)
		}
	}
	return nil
}

// step takes an octet that is not in the body of a field.
func (c *contentCheck) step(b byte) bool {
	blank := b == ' ' || b == '\t'
	if c.place == atLine {
		switch {
		case b == '\n':
			c.place = inBody
			return true
		case blank:
			c.place = inField
			return c.fields > 0
		}
		c.place, c.name = inName, 0
	}
	if c.name++; c.name > maxFieldName+1 {
		return false
	}
	switch {
	case b == ':':
		c.place = inField
		c.fields++
		return c.name > 1
	case blank:
		c.place = pastName
		return true
	}
	return c.place == inName && b > ' ' && b < 0x7f
}

// end says whether the content may end here, as e has it.
func (c *contentCheck) end(e *spooldir.Envelope) error {
	switch {
	case c.place != inBody:
		return refuse(BadData, "the content ends within its header")
	case c.eightBit && !e.EightBit:
		return refuse(BadData, "the content has octets above 127, and the envelope says nothing of them")
	}
	return nil
}
