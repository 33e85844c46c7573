package smarthost

import (
	"io"
	"strconv"
	"strings"

	"dma/internal/address"
)

// Message is one message for one destination.
type Message struct {
	ID         string // for errors
	Sender     string // as RFC 5321 writes it, without <>; "" is the null sender
	Recipients []Recipient

	// Rewritten says that Sender is not what was submitted, but what our own
	// configuration makes of it: where no peer can take it the mail waits.
	Rewritten bool

	// Content is the header and the body, Size octets of it; lines end with LF or
	// CRLF. It is read twice and more, by several goroutines where a Router has
	// several next hops for it.
	Content io.ReaderAt
	Size    int64

	EightBit bool // submitted as 8BITMIME; octets above 0x7f count without it too
	UTF8     bool // submitted with SMTPUTF8 (RFC 6531)

	Return     string // RET of RFC 3461: "", FULL or HDRS
	EnvelopeID string // ENVID of RFC 3461, in xtext

	edits []edit // what makes it 7-bit for this peer
}

// Recipient is one recipient of a Message.
type Recipient struct {
	Address string   // as RFC 5321 writes it, without <>
	Notify  []string // NOTIFY of RFC 3461: NEVER, or SUCCESS, FAILURE, DELAY
	ORCPT   string   // ORCPT of RFC 3461: type;xtext
	N       int      // the caller's number for it
}

// token reports whether s is fit for one word of a command: printable ASCII
// without space, not empty, of bounded length.
func token(s string) bool {
	if s == "" || len(s) > 1000 {
		return false
	}
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// path reports whether s may stand between the angle brackets of a command.
func path(s string) bool {
	a, err := address.Parse(s)
	return err == nil && !a.IsZero() && !strings.HasPrefix(s, "<") && strings.Trim(s, " \t") == s
}

func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// mailCommand returns MAIL with the parameters that the peer offers.
func mailCommand(m *Message, c *content, ext *extensions, utf8 bool) string {
	var b strings.Builder
	b.WriteString("MAIL FROM:<" + m.Sender + ">")
	if ext.size {
		b.WriteString(" SIZE=" + strconv.FormatInt(c.size, 10))
	}
	if ext.eightBit && c.eightBit {
		b.WriteString(" BODY=8BITMIME")
	}
	if ext.utf8 && utf8 {
		b.WriteString(" SMTPUTF8")
	}
	if ext.dsn {
		if token(m.Return) {
			b.WriteString(" RET=" + m.Return)
		}
		if token(m.EnvelopeID) {
			b.WriteString(" ENVID=" + m.EnvelopeID)
		}
	}
	return b.String()
}

// rcptCommand returns RCPT with the parameters that the peer offers.
func rcptCommand(r *Recipient, ext *extensions) string {
	s := "RCPT TO:<" + r.Address + ">"
	if ext.dsn {
		if v := strings.Join(r.Notify, ","); token(v) {
			s += " NOTIFY=" + v
		}
		if token(r.ORCPT) {
			s += " ORCPT=" + r.ORCPT
		}
	}
	return s
}
