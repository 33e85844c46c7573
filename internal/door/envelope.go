package door

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"dma/internal/address"
	"dma/spooldir"
)

// The longest values of RFC 3461 4.2 and 4.4, in octets as encoded.
const (
	MaxEnvelopeID = 100
	maxORCPT      = 500
)

// Check refuses an envelope that no user may submit; both doors ask it. What is
// dma's own to write has to be empty, every address has the form that package
// address gives it, and the options of RFC 3461 have their syntax. The error is
// a *Refusal of kind BadData.
func Check(e *spooldir.Envelope) error {
	if err := check(e); err != nil {
		return refuse(BadData, "%v", err)
	}
	return nil
}

func check(e *spooldir.Envelope) error {
	if e.ID != "" || !e.Arrival.IsZero() || e.Depth != 0 || len(e.Parents) > 0 {
		return errors.New("an envelope with an id, a depth or parents, which only dma gives")
	}
	sender, err := parseSender(e.Sender)
	switch {
	case err != nil:
		return fmt.Errorf("sender: %w", err)
	case sender.String() != e.Sender:
		return fmt.Errorf("sender %q has not its plain form", clip(e.Sender))
	case !sender.ASCII() && !e.UTF8:
		return fmt.Errorf("sender %q is not ASCII, and the envelope says nothing of it", clip(e.Sender))
	case e.Return != "" && e.Return != "FULL" && e.Return != "HDRS":
		return fmt.Errorf("RET %q is neither FULL nor HDRS", clip(e.Return))
	case e.EnvelopeID != "" && (len(e.EnvelopeID) > MaxEnvelopeID || !isXtext(e.EnvelopeID)):
		return fmt.Errorf("envelope id %q is no xtext of at most %d octets", clip(e.EnvelopeID), MaxEnvelopeID)
	case len(e.Recipients) == 0:
		return errors.New("no recipients")
	case len(e.Recipients) > spooldir.MaxRecipients:
		return tooMany(len(e.Recipients))
	}
	for i := range e.Recipients {
		if err := checkRecipient(&e.Recipients[i], e.UTF8); err != nil {
			return fmt.Errorf("recipient %d: %w", i+1, err)
		}
	}
	return nil
}

// parseSender reads a sender. A bare name gets the name of this host as its
// domain before it comes here, and a host can have a name that is no domain,
// such as "host-".
func parseSender(s string) (address.Address, error) {
	a, err := address.ParsePath(s)
	if err == nil {
		return a, nil
	}
	i := strings.LastIndexByte(s, '@')
	if i < 0 || strings.Trim(s[i+1:], "abcdefghijklmnopqrstuvwxyz0123456789-._") != "" {
		return a, err
	}
	local, localErr := address.Parse(s[:i])
	if localErr != nil || local.Domain != "" || len(s) > maxSender {
		return a, err
	}
	local.Domain = s[i+1:]
	return local, nil
}

// maxSender is the longest sender, in octets: what package address takes.
const maxSender = 998

func tooMany(n int) error {
	return fmt.Errorf("%d recipients: a message can have %d; send it in parts", n, spooldir.MaxRecipients)
}

func checkRecipient(r *spooldir.Recipient, utf8 bool) error {
	plain := spooldir.Recipient{Address: r.Address, Notify: r.Notify, ORCPT: r.ORCPT}
	if *r != plain {
		return errors.New("more than an address, which only dma gives")
	}
	a, err := address.Parse(r.Address)
	switch {
	case err != nil:
		return err
	case a.String() != r.Address:
		return fmt.Errorf("%q has not its plain form", clip(r.Address))
	case !a.ASCII() && !utf8:
		return fmt.Errorf("%q is not ASCII, and the envelope says nothing of it", clip(r.Address))
	case r.Notify != "" && !isNotify(r.Notify):
		return fmt.Errorf("NOTIFY %q is neither NEVER nor a list of SUCCESS, FAILURE and DELAY", clip(r.Notify))
	case r.ORCPT != "" && !isORCPT(r.ORCPT):
		return fmt.Errorf("ORCPT %q is not type;xtext of at most %d octets", clip(r.ORCPT), maxORCPT)
	}
	return nil
}

// isNotify reports whether s is a value of NOTIFY (RFC 3461 4.1).
func isNotify(s string) bool {
	if s == "NEVER" {
		return true
	}
	seen := make(map[string]bool, 3)
	for word := range strings.SplitSeq(s, ",") {
		if word != "SUCCESS" && word != "FAILURE" && word != "DELAY" || seen[word] {
			return false
		}
		seen[word] = true
	}
	return true
}

// isORCPT reports whether s is a value of ORCPT (RFC 3461 4.2).
func isORCPT(s string) bool {
	kind, addr, ok := strings.Cut(s, ";")
	return ok && len(s) <= maxORCPT && kind != "" && addr != "" && isXtext(addr) &&
		strings.Trim(kind, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.") == ""
}

// isXtext reports whether s is xtext of RFC 3461 4.
func isXtext(s string) bool {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '+':
			if i+2 >= len(s) || !isUpperHex(s[i+1]) || !isUpperHex(s[i+2]) {
				return false
			}
			i += 2
		case c < '!' || c > '~' || c == '=':
			return false
		}
	}
	return true
}

func isUpperHex(c byte) bool { return '0' <= c && c <= '9' || 'A' <= c && c <= 'F' }

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}

// encodeEnvelope makes the frames that state an envelope.
func encodeEnvelope(e *spooldir.Envelope) [][]byte {
	head := []byte{askSubmit}
	head = append(head, "sender "+address.Encode(e.Sender)+"\n"...)
	if e.EightBit {
		head = append(head, "body 8bit\n"...)
	}
	if e.UTF8 {
		head = append(head, "smtputf8\n"...)
	}
	if e.Return != "" {
		head = append(head, "ret "+e.Return+"\n"...)
	}
	if e.EnvelopeID != "" {
		head = append(head, "envid "+address.Encode(e.EnvelopeID)+"\n"...)
	}
	head = append(head, "recipients "+strconv.Itoa(len(e.Recipients))+"\n"...)

	frames := [][]byte{head, {askRecipients}}
	for i := range e.Recipients {
		r := &e.Recipients[i]
		text := address.Encode(r.Address)
		if r.Notify != "" {
			text += " notify=" + address.Encode(r.Notify)
		}
		if r.ORCPT != "" {
			text += " orcpt=" + address.Encode(r.ORCPT)
		}
		last := &frames[len(frames)-1]
		if len(*last)+len(text)+1 > maxFrame {
			frames = append(frames, []byte{askRecipients})
			last = &frames[len(frames)-1]
		}
		*last = append(append(*last, text...), '\n')
	}
	return frames
}

// parseEnvelope reads the first frame of a submission, and how many recipients
// are to follow.
func parseEnvelope(payload []byte) (*spooldir.Envelope, int, error) {
	e, n := &spooldir.Envelope{}, 0
	seen := make(map[string]bool)
	err := eachLine(payload, func(text string) error {
		key, value, _ := strings.Cut(text, " ")
		if seen[key] {
			return errors.New("it occurs twice")
		}
		seen[key] = true
		var err error
		switch {
		case key == "sender":
			e.Sender, err = address.Decode(value)
		case text == "body 8bit":
			e.EightBit = true
		case text == "smtputf8":
			e.UTF8 = true
		case key == "ret":
			e.Return = value
		case key == "envid":
			e.EnvelopeID, err = address.Decode(value)
		case key == "recipients":
			n, err = strconv.Atoi(value)
			if err == nil && (n < 1 || strconv.Itoa(n) != value) {
				err = errors.New("no number")
			}
			if err == nil && n > spooldir.MaxRecipients {
				err = tooMany(n)
			}
		default:
			err = errors.New("unknown")
		}
		return err
	})
	if err == nil && (!seen["sender"] || !seen["recipients"]) {
		err = errors.New("sender or recipients are missing")
	}
	if err != nil {
		return nil, 0, refuse(BadData, "envelope: %v", err)
	}
	return e, n, nil
}

// parseRecipients adds the recipients of a frame to those of e, of which there
// are n in the end.
func parseRecipients(payload []byte, e *spooldir.Envelope, n int) error {
	err := eachLine(payload, func(text string) error {
		if len(e.Recipients) == n {
			return errors.New("more than the envelope says")
		}
		fields := strings.Split(text, " ")
		var r spooldir.Recipient
		var err error
		if r.Address, err = address.Decode(fields[0]); err != nil {
			return err
		}
		for _, f := range fields[1:] {
			key, value, _ := strings.Cut(f, "=")
			where := map[string]*string{"notify": &r.Notify, "orcpt": &r.ORCPT}[key]
			if where == nil || *where != "" {
				return errors.New("an option is unknown or occurs twice")
			}
			if *where, err = address.Decode(value); err != nil {
				return err
			}
		}
		if err := checkRecipient(&r, e.UTF8); err != nil {
			return err
		}
		e.Recipients = append(e.Recipients, r)
		return nil
	})
	if err != nil {
		return refuse(BadData, "recipient: %v", err)
	}
	return nil
}

// eachLine calls f with every line of a payload; the last one has to have its
// newline too.
func eachLine(payload []byte, f func(text string) error) error {
	rest := string(payload)
	for rest != "" {
		text, more, ok := strings.Cut(rest, "\n")
		if !ok {
			return errors.New("a line without an end")
		}
		if err := f(text); err != nil {
			return fmt.Errorf("line %q: %w", clip(text), err)
		}
		rest = more
	}
	return nil
}
