package smarthost

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/emersion/go-smtp"
)

// Bounds of a reply. RFC 5321 section 4.5.3.1.5 asks for lines of 512 octets.
const (
	maxReplyLine  = 4096      // octets of a line with its end
	maxReplyLines = 256       // lines of a reply
	maxReply      = 64 * 1024 // octets of a reply
	maxText       = 1000      // octets of text that are kept
)

// errReply is the class of all errors about replies that cannot be read. After
// one of them, nobody knows which reply belongs to which command.
var errReply = errors.New("the reply makes no sense")

func badReply(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errReply, fmt.Sprintf(format, args...))
}

// reply is one reply, of one or more lines. Its Message is one printable line.
type reply struct {
	smtp.SMTPError
	lines []string // the texts as they came, without codes; not printable
}

// readReply reads one reply (RFC 5321 section 4.2). The buffer of br is the bound
// of a line. Lines that end with LF alone are taken.
func readReply(br *bufio.Reader) (reply, error) {
	var r reply
	total := 0
	for {
		line, err := br.ReadSlice('\n')
		if err != nil {
			if errors.Is(err, bufio.ErrBufferFull) {
				return r, badReply("a line is longer than %d octets", br.Size())
			}
			if errors.Is(err, io.EOF) && (len(line) > 0 || len(r.lines) > 0) {
				err = io.ErrUnexpectedEOF
			}
			return r, err
		}
		total += len(line)
		if total > maxReply || len(r.lines) == maxReplyLines {
			return r, badReply("it is longer than %d lines or %d octets", maxReplyLines, maxReply)
		}
		line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		code, text, more, ok := splitReplyLine(line)
		if !ok {
			return r, badReply("%q is not the line of a reply", oneLine(string(line[:min(len(line), 80)])))
		}
		if r.Code != 0 && code != r.Code {
			return r, badReply("its lines begin with %d and %d", r.Code, code)
		}
		r.Code = code
		r.lines = append(r.lines, string(text))
		if !more {
			break
		}
	}
	r.compose()
	return r, nil
}

// splitReplyLine takes a line apart: code, "-" or " " or nothing, text.
func splitReplyLine(line []byte) (code int, text []byte, more, ok bool) {
	if len(line) < 3 || line[0] < '2' || line[0] > '5' || !digit(line[1]) || !digit(line[2]) {
		return 0, nil, false, false
	}
	code = int(line[0]-'0')*100 + int(line[1]-'0')*10 + int(line[2]-'0')
	if len(line) == 3 {
		return code, nil, false, true
	}
	if line[3] != ' ' && line[3] != '-' {
		return 0, nil, false, false
	}
	return code, line[4:], line[3] == '-', true
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

// compose fills in the enhanced status and the text. The status is the first
// that a line begins with and that has the class of the code (RFC 2034 section 4);
// it is taken out of every line.
func (r *reply) compose() {
	var texts []string
	for _, line := range r.lines {
		if e, rest, ok := cutEnhanced(line); ok && e[0] == r.Code/100 {
			if r.EnhancedCode == smtp.EnhancedCodeNotSet {
				r.EnhancedCode = e
			}
			if e == r.EnhancedCode {
				line = rest
			}
		}
		texts = append(texts, line)
	}
	r.Message = oneLine(strings.Join(texts, " "))
}

// cutEnhanced takes an enhanced status (RFC 3463 section 2) off the front of s.
func cutEnhanced(s string) (e smtp.EnhancedCode, rest string, ok bool) {
	word, rest, _ := strings.Cut(s, " ")
	parts := strings.Split(word, ".")
	if len(word) > 9 || len(parts) != 3 {
		return e, s, false
	}
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n > 999 || len(p) > 1 && p[0] == '0' {
			return e, s, false
		}
		e[i] = int(n)
	}
	if e[0] != 2 && e[0] != 4 && e[0] != 5 {
		return smtp.EnhancedCode{}, s, false
	}
	return e, rest, true
}

// oneLine makes any text one printable line of bounded length: control
// characters and runs of blanks become one space, other characters that cannot
// be printed, and octets that are not UTF-8, become '?'.
func oneLine(s string) string {
	const mark = "..."
	if len(s) > 4*maxText {
		s = s[:4*maxText]
	}
	s = strings.Map(func(r rune) rune {
		switch {
		case r < ' ' || r == 0x7f:
			return ' '
		case r == utf8.RuneError || !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if len(s) <= maxText {
		return s
	}
	n := maxText - len(mark)
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + mark
}
