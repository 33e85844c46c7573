package localwriter

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
)

// exitStatuses are what sysexits.h and the shell define, as enhanced status
// codes. Peers disagree about 73, 126 and 127; they are retried until the mail
// is too old.
var exitStatuses = map[int]struct{ status, meaning string }{
	64:  {"5.5.4", "usage"},
	65:  {"5.6.0", "data error"},
	66:  {"5.3.0", "no input"},
	67:  {"5.1.1", "no such user"},
	68:  {"5.1.2", "no such host"},
	69:  {"5.3.0", "service unavailable"},
	70:  {"5.3.0", "software error"},
	71:  {"4.3.0", "system error"},
	72:  {"5.3.0", "system file missing"},
	73:  {"4.2.0", "cannot create"},
	74:  {"5.3.0", "input or output error"},
	75:  {"4.3.0", "temporary failure"},
	76:  {"5.5.0", "protocol error"},
	77:  {"5.7.0", "permission denied"},
	78:  {"5.3.5", "configuration error"},
	126: {"4.3.0", "not executable"},
	127: {"4.3.0", "command not found"},
}

// result makes of what Wait returned what Run returns. Output is the first line
// that the command wrote.
func (c Command) result(err error, output string) error {
	var exit *exec.ExitError
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return nil // in the latter case the status is 0, but the output is still open
	}
	e := &Error{Op: "run", Path: c.Line, Status: "4.3.0", Output: output, Err: err}
	if !errors.As(err, &exit) {
		return e
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); !ok || !ws.Exited() {
		return e // it died from a signal
	}
	code := exit.ExitCode()
	if known, ok := exitStatuses[code]; ok {
		e.Status = known.status
		e.Err = fmt.Errorf("exit status %d (%s)", code, known.meaning)
	}
	if status, text, ok := cutStatus(output); ok {
		e.Status, e.Output = status, text
	}
	e.Permanent = e.Status[0] == '5'
	return e
}

// cutStatus splits "D.S.N text" (RFC 3463 section 2), of class 4 or 5.
func cutStatus(line string) (status, text string, ok bool) {
	status, text, _ = strings.Cut(line, " ")
	parts := strings.Split(status, ".")
	if len(parts) != 3 || parts[0] != "4" && parts[0] != "5" {
		return "", "", false
	}
	for _, p := range parts[1:] {
		if p == "" || len(p) > 3 || strings.Trim(p, "0123456789") != "" {
			return "", "", false
		}
	}
	return status, strings.TrimSpace(text), true
}

// line returns the first line that is not blank, printable.
func (f *firstOutput) line() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	for l := range bytes.Lines(f.b) {
		if l = bytes.TrimSpace(l); len(l) > 0 {
			return printableLine(string(l), 512)
		}
	}
	return ""
}
