package rewrite

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"dma/internal/address"
	"dma/internal/config"
)

// Bounds of a map.
const (
	maxMap      = 4 << 20
	maxProblems = 100
)

// entry is a line of a map.
type entry struct {
	key  string // a user name or an address, as address.Address writes it
	to   address.Address
	line int
}

// parseMap reads a map. It returns the entries that it could read, and a problem
// for each line that it could not, up to a bound.
func parseMap(file, text string) (entries []entry, problems []config.Problem) {
	n := 0
	for line := range strings.Lines(text) {
		n++
		e, why := parseLine(line)
		switch {
		case why != "" && len(problems) < maxProblems:
			problems = append(problems, config.Problem{File: file, Line: n, Text: why + "; the line is ignored"})
		case why == "" && e.key != "":
			e.line = n
			entries = append(entries, e)
		}
	}
	return entries, problems
}

// parseLine reads a line; an entry without key is none.
func parseLine(line string) (e entry, why string) {
	for i := 0; i < len(line); i++ {
		if line[i] == '#' && (i == 0 || line[i-1] == ' ' || line[i-1] == '\t') {
			line = line[:i]
			break
		}
	}
	line = strings.Trim(line, " \t\r\n")
	if line == "" {
		return entry{}, ""
	}
	n := keyLength(line)
	from, err := address.Parse(line[:n])
	if err != nil {
		return entry{}, err.Error()
	}
	value := strings.TrimLeft(line[n:], " \t")
	value = strings.TrimLeft(strings.TrimPrefix(value, ":"), " \t")
	if value == "" {
		return entry{}, "an address is missing after " + address.Encode(line[:n])
	}
	if e.to, err = address.Parse(value); err != nil {
		return entry{}, err.Error()
	}
	e.key = from.String()
	return e, ""
}

// keyLength returns the length of the name that a line begins with: up to white
// space or a colon outside quotes and brackets.
func keyLength(line string) int {
	quoted, literal := false, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '[':
			literal = true
		case c == ']':
			literal = false
		case !literal && (c == ' ' || c == '\t' || c == ':'):
			return i
		}
	}
	return len(line)
}

// mapFile is a file that is read again when it has changed.
type mapFile struct {
	path string
	now  func() time.Time

	info    fs.FileInfo // nil: not read
	settled bool
}

// settle is how old the last change of a file must be before its time is enough to
// tell that it has not changed again.
const settle = 2 * time.Second

// read returns the text if it may have changed since the last call.
func (f *mapFile) read() (text string, changed bool, err error) {
	// O_NONBLOCK: a FIFO is refused below, not waited for.
	file, err := os.OpenFile(f.path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		f.info = nil
		return "", false, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "read", Path: f.path, Err: errors.New("not a regular file")}
	}
	if err == nil && f.info != nil && f.settled && os.SameFile(f.info, info) &&
		f.info.Size() == info.Size() && f.info.ModTime().Equal(info.ModTime()) {
		return "", false, nil
	}
	f.info = nil
	if err != nil {
		return "", false, err
	}
	now := f.now()
	data, err := io.ReadAll(io.LimitReader(file, maxMap+1))
	if err != nil {
		return "", false, err
	}
	if len(data) > maxMap {
		return "", false, &fs.PathError{Op: "read", Path: f.path, Err: errors.New("longer than 4 MiB")}
	}
	f.info, f.settled = info, now.Sub(info.ModTime()).Abs() > settle
	return string(data), true, nil
}
