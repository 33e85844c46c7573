package localwriter

import (
	"errors"
	"fmt"
	"syscall"
)

// An Error says why a message could not be delivered, and for how long.
type Error struct {
	// Op is what was tried: open, lock, append, commit, run and so on.
	Op string

	// Path is the mailbox, or the command line.
	Path string

	// Status is the enhanced status code (RFC 3463), of class 4 or 5.
	Status string

	// Permanent tells that another attempt is of no use.
	Permanent bool

	// Output is the first line that a command wrote, printable and cut to at
	// most 512 bytes. It is the user's text.
	Output string

	// Err is the cause.
	Err error
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s %s: %v", e.Op, printableLine(e.Path, 200), e.Err)
	if e.Output != "" {
		s += ": " + e.Output
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// What was tried, where it says that an mbox may end with a part of a message.
const (
	opOpen     = "open mbox"
	opMend     = "mend"
	opTakeBack = "take back from"
)

// Unfinished reports whether err, of a delivery to an mbox, leaves it open
// whether some of the message stands there as the last text: it could not be
// taken back or, of a Suspect message, not be looked for. That is mended by the
// next Suspect delivery, if nothing has come to stand behind it by then.
func Unfinished(err error, suspect bool) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	return e.Op == opTakeBack || suspect && (e.Op == opMend || e.Op == opOpen)
}

// Behind is the error of a message for an mbox that is not put there since an
// earlier one is unfinished.
func Behind(path string) error {
	return &Error{Op: opMend, Path: path, Status: "4.2.0", Err: errors.New("an earlier message has to be finished first")}
}

// failure wraps err as a temporary Error, unless it is an Error already.
func failure(op, path string, err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	if errors.Is(err, errTorn) {
		op = opTakeBack
	}
	return &Error{Op: op, Path: path, Status: statusOf(err), Err: err}
}

// statusOf maps an error of a mailbox to an enhanced status code. The class is
// always 4: a full disk has been emptied before.
func statusOf(err error) string {
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return "4.3.1" // mail system full
	case errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return "4.2.2" // mailbox full
	case errors.Is(err, errUnsafe), errors.Is(err, errLocked):
		return "4.2.0" // other or undefined mailbox status
	}
	return "4.3.0" // other or undefined mail system status
}

var (
	// errUnsafe is the cause for a mailbox that is not what it should be.
	errUnsafe = errors.New("unsafe mailbox")

	// errLocked is the cause when a lock is not to be had in time.
	errLocked = errors.New("mailbox is locked")

	// errTorn is the cause when what was written could not be taken back.
	errTorn = errors.New("taking back what was written")
)

// printableLine makes one line of at most max bytes of s: everything outside
// printable ASCII becomes '?'.
func printableLine(s string, max int) string {
	if len(s) > max {
		s = s[:max]
	}
	b := []byte(s)
	for i, c := range b {
		switch {
		case c == '\t':
			b[i] = ' '
		case c < ' ' || c > '~':
			b[i] = '?'
		}
	}
	return string(b)
}
