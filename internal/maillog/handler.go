package maillog

import (
	"context"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"
)

// Limits that keep a line readable and below what loggers take, in bytes.
const (
	maxValue = 1024 // of one value, before quoting
	maxBody  = 8000 // of the level, event and pairs of a line; what exceeds it is left out
)

const timeFormat = "2006-01-02T15:04:05.000Z07:00"

// NewHandler returns a handler that writes each record as one line to w, in one
// call of Write:
//
//	time level event key=value ...
//
// Records below level are dropped; a nil level means slog.LevelInfo. Groups are
// written as prefixes of keys, joined with a dot.
func NewHandler(w io.Writer, level slog.Leveler) slog.Handler {
	return &handler{out: &textOutput{w: w}, level: level}
}

// output takes a finished line. level and t are those of the record; body has
// neither time nor newline.
type output interface {
	write(t time.Time, level slog.Level, body []byte) error
}

type textOutput struct {
	mu sync.Mutex
	w  io.Writer
}

func (o *textOutput) write(t time.Time, _ slog.Level, body []byte) error {
	line := make([]byte, 0, len(timeFormat)+len(body)+2)
	if !t.IsZero() {
		line = append(t.AppendFormat(line, timeFormat), ' ')
	}
	line = append(append(line, body...), '\n')
	o.mu.Lock()
	defer o.mu.Unlock()
	_, err := o.w.Write(line)
	return err
}

// handler turns records into lines and hands them to an output.
type handler struct {
	out    output
	level  slog.Leveler
	prefix string // of keys: the open groups, each followed by a dot
	attrs  []byte // what WithAttrs added, formatted
}

// Enabled implements slog.Handler.
func (h *handler) Enabled(_ context.Context, level slog.Level) bool {
	if h.level == nil {
		return level >= slog.LevelInfo
	}
	return level >= h.level.Level()
}

// Handle implements slog.Handler.
func (h *handler) Handle(_ context.Context, r slog.Record) error {
	b := make([]byte, 0, 512)
	b = append(b, levelName(r.Level)...)
	b = append(b, ' ')
	b = appendValue(b, r.Message)
	b = append(b, h.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		n := len(b)
		if b = appendAttr(b, h.prefix, a); len(b) > maxBody {
			// A pair is written whole or not at all, so that a line can be parsed.
			b = append(b[:n], " cut=true"...)
			return false
		}
		return true
	})
	return h.out.write(r.Time, r.Level, b)
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.attrs = append([]byte(nil), h.attrs...)
	for _, a := range attrs {
		n := len(c.attrs)
		if c.attrs = appendAttr(c.attrs, h.prefix, a); len(c.attrs) > maxBody/2 {
			c.attrs = c.attrs[:n]
		}
	}
	return &c
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.prefix += name + "."
	return &c
}

func levelName(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "error"
	case l >= slog.LevelWarn:
		return "warn"
	case l >= slog.LevelInfo:
		return "info"
	}
	return "debug"
}

// appendAttr appends " key=value", and a group's members one by one.
func appendAttr(b []byte, prefix string, a slog.Attr) []byte {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, member := range v.Group() {
			b = appendAttr(b, prefix, member)
		}
		return b
	}
	if a.Key == "" && v.Equal(slog.Value{}) {
		return b
	}
	b = append(b, ' ')
	b = appendKey(b, prefix)
	b = appendKey(b, a.Key)
	b = append(b, '=')
	switch v.Kind() {
	case slog.KindInt64:
		return strconv.AppendInt(b, v.Int64(), 10)
	case slog.KindTime:
		return v.Time().AppendFormat(b, timeFormat)
	}
	return appendValue(b, v.String())
}

// appendKey appends key with everything but letters, digits and "_.-" replaced.
func appendKey(b []byte, key string) []byte {
	for _, r := range cut(key, maxValue) {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '.' || r == '-' {
			b = append(b, byte(r))
		} else {
			b = append(b, '_')
		}
	}
	return b
}

// appendValue appends s as it is if it is a plain word, else quoted. The cut of a
// long value shows as "...".
func appendValue(b []byte, s string) []byte {
	const mark = "..."
	if len(s) > maxValue {
		s = cut(s, maxValue-len(mark)) + mark
	}
	if plain(s) {
		return append(b, s...)
	}
	return strconv.AppendQuote(b, s)
}

// plain reports whether s needs no quotes: it is not empty, and has no blank, no
// quote, no backslash and nothing that is not printable.
func plain(s string) bool {
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		if r <= ' ' || r == '"' || r == '\\' || r == utf8.RuneError || !strconv.IsPrint(r) {
			return false
		}
		i += size
	}
	return s != ""
}

// cut returns the first max bytes of s, or a few less so as not to cut a character.
func cut[T string | []byte](s T, max int) T {
	if len(s) <= max {
		return s
	}
	n := max
	for n > max-utf8.UTFMax && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
