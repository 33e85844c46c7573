package sendmail

import (
	"strings"

	"dma/internal/door"
)

// The values of -N, -R and -V are checked here and not by package dsn, which
// needs a parser for whole messages and with it the network packages.

// setNotify reads -N: never, or a list of success, failure and delay (RFC 3461
// section 4.1).
func setNotify(o *Options, arg string) error {
	seen := make(map[string]bool)
	for _, word := range strings.Split(strings.ToUpper(arg), ",") {
		seen[strings.TrimSpace(word)] = true
	}
	if len(seen) == 1 && seen["NEVER"] {
		o.Notify = "NEVER"
		return nil
	}
	var words []string
	for _, word := range [...]string{"SUCCESS", "FAILURE", "DELAY"} {
		if seen[word] {
			words = append(words, word)
		}
	}
	if len(words) != len(seen) {
		return usage("-N %s: it is never, or a list of success, failure and delay", quote(arg))
	}
	o.Notify = strings.Join(words, ",")
	return nil
}

// setReturn reads -R (RFC 3461 section 4.3).
func setReturn(o *Options, arg string) error {
	switch strings.ToUpper(arg) {
	case "FULL", "HDRS":
		o.Return = strings.ToUpper(arg)
		return nil
	}
	return usage("-R %s: it is full or hdrs", quote(arg))
}

// setEnvelopeID reads -V, which is not encoded on the command line.
func setEnvelopeID(o *Options, arg string) error {
	const upperHex = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(arg); i++ {
		switch c := arg[i]; {
		case c < ' ' || c > '~':
			return usage("-V %s: an envelope id has printable ASCII only", quote(arg))
		case c == ' ' || c == '+' || c == '=':
			b.Write([]byte{'+', upperHex[c>>4], upperHex[c&15]})
		default:
			b.WriteByte(c)
		}
	}
	if b.Len() == 0 || b.Len() > door.MaxEnvelopeID {
		return usage("-V %s: an envelope id has 1 to %d characters, blanks and + and = count as three", quote(arg), door.MaxEnvelopeID)
	}
	o.EnvelopeID = b.String()
	return nil
}
