package door

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// The kinds of frames.
const (
	askFree       = 'f'
	askSubmit     = 'm'
	askRecipients = 'r'
	askData       = 'd'
	askCommit     = 'c'
	askList       = 'l'
	askFlush      = 'q'

	sayID      = 'i'
	sayEntry   = 'e'
	sayOK      = 'o'
	sayRefused = 'x'
)

// maxPayload is the longest payload of a frame, maxFrame the longest frame.
const (
	maxPayload = 64 << 10
	maxFrame   = 1 + maxPayload
)

// Kind says what is wrong with a request that is refused.
type Kind byte

// The kinds.
const (
	BadData  Kind = 'd' // the envelope or the content; exit status 65
	Tempfail Kind = 't' // trouble of the machine or the service; 75
	Denied   Kind = 'p' // the caller may not; 77
	Busy     Kind = 'b' // too many are here now; 75, after some patience
)

// Refusal is the answer of a server that does not do what it is asked.
type Refusal struct {
	Kind Kind
	Text string // one printable line
}

func (r *Refusal) Error() string { return r.Text }

func refuse(k Kind, format string, args ...any) *Refusal {
	return &Refusal{k, line(fmt.Sprintf(format, args...))}
}

// refusal makes a Refusal of any error: one that is none is trouble for now.
func refusal(err error) *Refusal {
	var r *Refusal
	if errors.As(err, &r) {
		return r
	}
	return refuse(Tempfail, "%v", err)
}

// maxText bounds the text of a refusal, in octets.
const maxText = 1000

// line makes one printable line of a text.
func line(text string) string {
	if len(text) > maxText {
		text = text[:maxText] + "..."
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != unicode.ReplacementChar {
			return r
		}
		return '?'
	}, text)
}

// encode is the payload of a frame that refuses.
func (r *Refusal) encode() []byte {
	return append([]byte{sayRefused, byte(r.Kind), ' '}, r.Text...)
}

// parseRefusal reads what encode makes.
func parseRefusal(payload []byte) *Refusal {
	if len(payload) < 2 || payload[1] != ' ' {
		return refuse(Tempfail, "the service gives no reason")
	}
	r := refuse(Kind(payload[0]), "%s", payload[2:])
	switch r.Kind {
	case BadData, Tempfail, Denied, Busy:
	default:
		r.Kind = Tempfail
	}
	return r
}
