package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// What Load reads at most.
const (
	maxFile     = 1 << 20
	maxLine     = 4096
	maxProblems = 100
)

// Problem is something wrong in a configuration file that does not stop the
// mail. Text is one printable line which says what is wrong, how it should be,
// and what holds meanwhile.
type Problem struct {
	File string
	Line int // from 1; 0 for the file as a whole
	Text string
}

// String returns "file:line: text".
func (p Problem) String() string {
	if p.Line == 0 {
		return p.File + ": " + p.Text
	}
	return p.File + ":" + strconv.Itoa(p.Line) + ": " + p.Text
}

// Load reads the file at path. named says that somebody asked for this file;
// one that nobody named may be missing, which gives the defaults.
//
// The error is a file that is missing although named, or that is there and
// can't be read or is no regular file (/dev/null is taken as an empty one). The
// Config is never nil; with an error it has the defaults, so that a caller with
// a file that nobody named may go on with them.
func Load(path string, named bool) (*Config, []Problem, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return Default(), nil, fmt.Errorf("configuration: %w", err)
	}
	data, err := read(abs)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return Default(), nil, nil
	}
	if err != nil {
		return Default(), nil, fmt.Errorf("configuration: %w", err)
	}
	c, problems := parse(abs, data)
	return c, problems, nil
}

// read returns the file at path, and no more than an octet beyond maxFile of it.
func read(path string) ([]byte, error) {
	// O_NONBLOCK: a FIFO is refused below, not waited for.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if path == os.DevNull {
		return nil, nil
	}
	if !st.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	}
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}

// parser carries the state of one parse.
type parser struct {
	file     string
	line     int
	problems []Problem
	bad      map[string]bool // keys whose last value can't be read
}

func (p *parser) problem(line int, text string) {
	switch n := len(p.problems); {
	case n < maxProblems:
		p.problems = append(p.problems, Problem{p.file, line, text})
	case n == maxProblems:
		p.problems = append(p.problems, Problem{p.file, 0, "more problems than are shown here"})
	}
}

// parse reads data as the content of the file with the absolute path file.
func parse(file string, data []byte) (*Config, []Problem) {
	c := Default()
	c.File = file
	p := &parser{file: file, bad: make(map[string]bool)}
	if len(data) > maxFile {
		data = data[:maxFile]
		p.problem(0, "longer than 1 MiB; what comes after that is not read")
	}
	text := strings.TrimPrefix(string(data), "\ufeff")
	all := keys(c, filepath.Dir(file))
	seen := make(map[string]int)
	for line := range strings.SplitSeq(text, "\n") {
		p.line++
		if len(line) > maxLine {
			p.problem(p.line, "longer than 4096 octets; the line is ignored")
			continue
		}
		name, value := split(line)
		if name == "" {
			continue
		}
		k := find(all, name)
		if k == nil {
			p.problem(p.line, unknown(all, name))
			continue
		}
		if first := seen[name]; first > 0 {
			p.problem(p.line, name+" is set on line "+strconv.Itoa(first)+" already; the last line counts, remove the other")
		}
		seen[name] = p.line
		why := k.assign(value)
		p.bad[name] = why != ""
		if why != "" {
			p.problem(p.line, why)
		}
	}
	p.whole(c, seen)
	return c, p.problems
}

// whole checks what no line says by itself.
func (p *parser) whole(c *Config, seen map[string]int) {
	if c.RetryMax < c.RetryMin {
		c.RetryMax = c.RetryMin
		p.problem(max(seen["RETRY_MAX"], seen["RETRY_MIN"]), "RETRY_MAX is shorter than RETRY_MIN; "+FormatDuration(c.RetryMin)+" is used for both")
	}
	c.SmarthostBad = len(c.Smarthost) == 0 && p.bad["SMARTHOST"]
	if c.SmarthostBad {
		p.problem(seen["SMARTHOST"], "no relay of SMARTHOST can be read; mail that is not local waits in the queue until one can")
	}
	if c.NullClient && len(c.Smarthost) == 0 && !c.SmarthostBad {
		p.problem(seen["NULLCLIENT"], "NULLCLIENT needs a SMARTHOST; mail waits in the queue until one is set")
	}
	if seen["FINGERPRINT"] > 0 && c.Fingerprint == "" {
		c.VerifyCert = Yes
	}
}

// split takes a line apart into its key and its value, without the comment.
func split(line string) (name, value string) {
	for i := 0; i < len(line); i++ {
		if line[i] == '#' && (i == 0 || isBlank(line[i-1])) {
			line = line[:i]
			break
		}
	}
	line = strings.Trim(line, blanks)
	i := strings.IndexAny(line, blanks)
	if i < 0 {
		return line, ""
	}
	return line[:i], strings.Trim(line[i:], blanks)
}

// blanks are the white space of a line; the return is that of a file with CRLF.
const blanks = " \t\r"

func isBlank(c byte) bool { return c == ' ' || c == '\t' || c == '\r' }

func find(all []key, name string) *key {
	for i := range all {
		if all[i].name == name {
			return &all[i]
		}
	}
	return nil
}

// unknown is the problem of a key that does not exist.
func unknown(all []key, name string) string {
	text := "unknown key " + show(name) + "; the line is ignored"
	bare, _, equals := strings.Cut(name, "=")
	for i := range all {
		if !strings.EqualFold(all[i].name, bare) {
			continue
		}
		if equals {
			return text + ": write a blank, not =, after " + all[i].name
		}
		return text + ": write " + all[i].name
	}
	return text + ": see dma.conf(5) for the keys"
}

// show returns s in quotes for a problem: cut, and without anything that is not
// printable ASCII.
func show(s string) string {
	const most = 60
	end := ""
	if len(s) > most {
		s, end = s[:most], "..."
	}
	b := []byte(s)
	for i, c := range b {
		if c < 0x20 || c >= 0x7f {
			b[i] = '?'
		}
	}
	return `"` + string(b) + end + `"`
}
