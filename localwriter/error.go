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

// failure wraps err as a temporary Error, unless it is an Error already.
func failure(op, path string, err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return err
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
