package agent

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"

	"dma/forward"
	"dma/localwriter"
	"dma/spooldir"
)

// Answers go from an agent to the queue process. The user whom the agent serves
// can make it say anything, so that what it says is believed of that user's
// mail alone, and only where it has the form that it should have.
const (
	pongAnswer    = 'p'
	readAnswer    = 'r' // content is wanted
	outcomeAnswer = 'o' // what came of the next job
	forwardAnswer = 'f' // a part of what the .forward says
	wordAnswer    = 'x' // why the agent ends; its last word
)

// Bounds of answers, in octets.
const (
	maxAnswer = 64 << 10 // a frame
	partSize  = 32 << 10 // where a part of a .forward ends
	maxError  = 1 << 10  // an error, a path
	maxPlace  = forward.MaxTarget + 1
)

// An answer is one that came in.
type answer struct {
	kind    byte
	read    span
	outcome outcome
	part    part
	word    string
}

// A span is a part of the content of a job.
type span struct {
	job uint64 // counted from the first one of the connection
	off int64
	n   int
}

// An outcome is what came of a job.
type outcome struct {
	already bool
	place   string
	err     error
}

// A part is one of the parts of what a .forward says.
type part struct {
	more    bool // another part follows
	err     error
	path    string
	targets []forward.Target
}

// The classes of errors.
const (
	noError       = iota
	plainError    // trouble of any kind
	unlistedError // ErrUnlisted
	deliveryError // a *localwriter.Error
	numErrors
)

func encodeRead(s span) []byte {
	e := encoder{b: []byte{readAnswer}}
	e.uint(s.job)
	e.uint(uint64(s.off))
	e.uint(uint64(s.n))
	return e.b
}

func encodeOutcome(o outcome) []byte {
	e := encoder{b: []byte{outcomeAnswer}}
	e.bool(o.already)
	e.string(oneLine(o.place, maxPlace))
	e.error(o.err)
	return e.b
}

func encodeWord(err error) []byte {
	e := encoder{b: []byte{wordAnswer}}
	e.string(oneLine(err.Error(), maxError))
	return e.b
}

func (e *encoder) error(err error) {
	var trouble *localwriter.Error
	switch {
	case err == nil:
		e.uint(noError)
	case errors.Is(err, ErrUnlisted):
		e.uint(unlistedError)
	case errors.As(err, &trouble) && isStatus(trouble.Status, trouble.Permanent):
		e.uint(deliveryError)
		e.bool(trouble.Permanent)
		for _, s := range []string{trouble.Status, trouble.Op, trouble.Path, trouble.Output, trouble.Err.Error()} {
			e.string(oneLine(s, maxError))
		}
	default:
		e.uint(plainError)
		e.string(oneLine(err.Error(), maxError))
	}
}

// error reads an error.
func (d *decoder) error() error {
	switch d.uint(numErrors - 1) {
	case unlistedError:
		return ErrUnlisted
	case deliveryError:
		t := &localwriter.Error{Permanent: d.bool(), Status: d.line(maxError), Op: d.line(maxError), Path: d.line(maxError), Output: d.line(maxError)}
		t.Err = errors.New(d.line(maxError))
		if !isStatus(t.Status, t.Permanent) {
			d.bad = true
		}
		return t
	case plainError:
		return errors.New(d.line(maxError))
	}
	return nil
}

// line reads a string and makes a printable line of it.
func (d *decoder) line(most int) string { return oneLine(d.string(most), most) }

// isStatus reports whether s is an enhanced status code (RFC 3463 section 2) of
// an error, of the class that permanent says.
func isStatus(s string, permanent bool) bool {
	class := byte('4')
	if permanent {
		class = '5'
	}
	if len(s) < 5 || s[0] != class || s[1] != '.' {
		return false
	}
	dots, digits := 0, 0
	for _, c := range []byte(s[2:]) {
		switch {
		case c == '.' && digits > 0:
			dots, digits = dots+1, 0
		case '0' <= c && c <= '9' && digits < 3:
			digits++
		default:
			return false
		}
	}
	return dots == 1 && digits > 0
}

// encodeForwardResult makes the parts of what a .forward says.
func encodeForwardResult(r forward.Result, err error) [][]byte {
	var parts [][]byte
	targets := r.Targets
	if err != nil {
		targets = nil
	}
	for {
		var body encoder
		n := 0
		file := ""
		for n < len(targets) && len(body.b) < partSize {
			t := targets[n]
			body.uint(uint64(t.Kind))
			body.string(t.Value)
			name := ""
			if t.File != file || n == 0 {
				name, file = t.File, t.File
			}
			body.string(oneLine(name, maxError))
			body.uint(uint64(t.Line))
			n++
		}
		targets = targets[n:]
		e := encoder{b: []byte{forwardAnswer}}
		e.bool(len(targets) > 0)
		e.error(err)
		e.string(oneLine(r.Path, maxError))
		e.uint(uint64(n))
		parts = append(parts, append(e.b, body.b...))
		if len(targets) == 0 {
			return parts
		}
	}
}

// parseAnswer reads an answer.
func parseAnswer(b []byte) (answer, error) {
	if len(b) == 0 {
		return answer{}, errProtocol
	}
	a := answer{kind: b[0]}
	d := &decoder{b: b[1:]}
	switch a.kind {
	case pongAnswer:
	case readAnswer:
		a.read = span{job: d.uint(math.MaxUint64), off: int64(d.uint(maxSize)), n: int(d.uint(maxChunk))}
	case outcomeAnswer:
		a.outcome.already = d.bool()
		a.outcome.place = d.line(maxPlace)
		a.outcome.err = d.error()
	case forwardAnswer:
		if err := d.part(&a.part); err != nil {
			return answer{}, err
		}
	case wordAnswer:
		a.word = d.line(maxError)
	default:
		return answer{}, errProtocol
	}
	return a, d.end()
}

func (d *decoder) part(p *part) error {
	p.more = d.bool()
	p.err = d.error()
	p.path = d.line(maxError)
	n := d.uint(forward.MaxTargets)
	file := ""
	for i := uint64(0); i < n && !d.bad; i++ {
		t := forward.Target{Kind: forward.Kind(d.uint(uint64(forward.Discard))), Value: d.string(forward.MaxTarget)}
		if name := d.line(maxError); name != "" {
			file = name
		}
		t.File = file
		t.Line = int(d.uint(1 << 30))
		if d.bad {
			break
		}
		if err := checkTarget(t); err != nil {
			return err
		}
		p.targets = append(p.targets, t)
	}
	if errors.Is(p.err, ErrUnlisted) || p.err != nil && (p.more || n > 0) {
		return errProtocol
	}
	return nil
}

// checkTarget refuses a target that no .forward can have: what is written as
// package forward writes it has to be read as the same.
func checkTarget(t forward.Target) error {
	wrong := fmt.Errorf("%w: target %q of kind %v", errProtocol, oneLine(t.Value, 100), t.Kind)
	switch t.Kind {
	case forward.Address, forward.Mailbox, forward.Command, forward.Discard:
	case forward.File, forward.Maildir:
		if !filepath.IsAbs(t.Value) {
			return wrong
		}
	default:
		return wrong
	}
	again, err := forward.ParseForward(t.File, []byte(t.String()))
	if err != nil || len(again) != 1 || again[0].Kind != t.Kind || again[0].Value != t.Value {
		return wrong
	}
	return nil
}

// checkOutcome refuses an outcome that a job of a kind cannot have.
func checkOutcome(o outcome, kind spooldir.RecipientKind) error {
	if kind == spooldir.Mailbox && errors.Is(o.err, ErrUnlisted) {
		return fmt.Errorf("%w: nobody lists a mailbox", errProtocol)
	}
	return nil
}
