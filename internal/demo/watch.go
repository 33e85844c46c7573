package main

import (
	"bufio"
	"io"
	"strconv"
	"strings"
	"sync"
)

// move is one step of one recipient, as the log of the runner tells it.
type move struct {
	name string // "<id>.<n>"
	who  string
	from string
	to   string
	why  string
}

// watcher reads the log of the runner.
type watcher struct {
	mu      sync.Mutex
	order   []string // names in the order of their first step
	moves   map[string][]move
	changed chan struct{} // closed at the next line
}

func newWatcher() *watcher {
	return &watcher{moves: make(map[string][]move), changed: make(chan struct{})}
}

// read reads the log until it ends and copies it to w.
func (w *watcher) read(r io.Reader, copyTo io.Writer) {
	sc := bufio.NewScanner(io.TeeReader(r, copyTo))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		w.line(sc.Text())
	}
}

func (w *watcher) line(text string) {
	fields := split(text)
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(fields) > 3 && fields[2] == "moved" {
		values := make(map[string]string)
		for _, f := range fields[3:] {
			key, value, _ := strings.Cut(f, "=")
			values[key] = unquote(value)
		}
		m := move{
			name: values["id"] + "." + values["n"], who: strings.Trim(values["recipient"], "<>"),
			from: values["from"], to: values["to"], why: values["reason"],
		}
		if w.moves[m.name] == nil {
			w.order = append(w.order, m.name)
		}
		w.moves[m.name] = inOrder(append(w.moves[m.name], m))
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

// inOrder sorts steps so that each begins where the one before it ends. Two
// workers log a step each after they have made it, so that lines may cross.
func inOrder(steps []move) []move {
	for i := len(steps) - 1; i > 0 && steps[i-1].from == steps[i].to; i-- {
		steps[i-1], steps[i] = steps[i], steps[i-1]
	}
	return steps
}

// atRest reports whether at least n recipients have been seen and all of them
// have come to an end, or wait.
func (w *watcher) atRest(n int) (bool, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	rest := len(w.order) >= n
	for _, steps := range w.moves {
		switch steps[len(steps)-1].to {
		case "gone", "tempfail":
		default:
			rest = false
		}
	}
	return rest, w.changed
}

// split cuts a log line at blanks outside of quotes.
func split(line string) []string {
	var fields []string
	var b strings.Builder
	quoted := false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\\' && quoted && i+1 < len(line):
			b.WriteByte(c)
			i++
			b.WriteByte(line[i])
		case c == '"':
			quoted = !quoted
			b.WriteByte(c)
		case c == ' ' && !quoted:
			fields = append(fields, b.String())
			b.Reset()
		default:
			b.WriteByte(c)
		}
	}
	return append(fields, b.String())
}

func unquote(s string) string {
	if u, err := strconv.Unquote(s); err == nil {
		return u
	}
	return s
}
