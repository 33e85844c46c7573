package sendmail

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"dma/internal/door"
)

// Name stands before every line that the program prints about itself.
const Name = "dma"

// The exit statuses that dma uses, from sysexits(3).
const (
	exitOK       = 0
	exitUsage    = 64
	exitData     = 65
	exitNoInput  = 66
	exitTempFail = 75
	exitNoPerm   = 77
	exitConfig   = 78
)

// failure is an error with its exit status. An error without one is trouble of
// the machine, which is temporary.
type failure struct {
	status int
	err    error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func fail(status int, format string, args ...any) error {
	return &failure{status, fmt.Errorf(format, args...)}
}

func usage(format string, args ...any) error { return fail(exitUsage, format, args...) }

// status is the exit status for err.
func status(err error) int {
	var f *failure
	var r *door.Refusal
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &f):
		return f.status
	case errors.As(err, &r) && r.Kind == door.BadData:
		return exitData
	case errors.As(err, &r) && r.Kind == door.Denied:
		return exitNoPerm
	}
	return exitTempFail
}

// maxShown bounds a caller's text in a message, in octets.
const maxShown = 120

// quote shows a caller's text: in quotes, printable ASCII, not too long.
func quote(s string) string {
	if len(s) > maxShown {
		return strconv.QuoteToASCII(strings.ToValidUTF8(s[:maxShown], "")) + "..."
	}
	return strconv.QuoteToASCII(s)
}

// maxComplaint bounds a line on the standard error, in octets.
const maxComplaint = 2000

// complain writes one line. Whatever text holds, it stays one printable line.
func complain(w io.Writer, text string) {
	if len(text) > maxComplaint {
		text = text[:maxComplaint] + "..."
	}
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError {
			return '?'
		}
		return r
	}, text)
	// Nobody is left to hear that this cannot be written.
	_, _ = io.WriteString(w, Name+": "+text+"\n")
}
