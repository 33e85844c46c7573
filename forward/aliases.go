package forward

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// maxName is the greatest length of an alias name in octets.
const maxName = 256

// maxProblems is how many problems of one file are reported one by one.
const maxProblems = 100

// catchAll is the alias for every name that is neither an alias nor a user.
const catchAll = "*"

// Aliases is what the aliases files hold. It does not change; one value serves
// many goroutines. The zero Aliases is empty.
type Aliases struct {
	entries map[string][]Target // by name in lower case
	broken  map[string]Problem  // names whose line has a mistake
	// doubtful are the first words of lines without a colon. It may be a name,
	// or the rest of the line before.
	doubtful map[string]Problem
	sources  []source
	mistakes *mistakes // of included files, if somebody is told
	gate     gate      // of included files
}

// LoadAliases reads the aliases files in paths. A name in several files has
// the meaning that the first of them gives it. A file that does not exist has
// no names and is, but for /etc/aliases, a problem: as long as it is missing
// [Aliases.Expand] does not say that there is no such user. A file that cannot be
// read is an error, since nobody knows what it would have said.
//
// The format is that of sendmail and Postfix: "name: target, target", the name
// with or without double quotes and in any case. A line that begins with a
// blank continues the one before, across comments and empty lines. The name *
// stands for every name that is no alias and no user.
//
// A line with a mistake costs that line: it is among the problems, and mail
// for its name waits (see [Aliases.Lookup]). The second of two lines for one
// name in one file has no effect, which is a warning. Problems are in the order
// of the files and lines; of one file there are 101 at most.
func LoadAliases(paths ...string) (*Aliases, []Problem, error) {
	return loadAliases(paths, nil)
}

// loadAliases reads the aliases files in paths, which were read before as it
// stands in before.
func loadAliases(paths []string, before []source) (*Aliases, []Problem, error) {
	a := &Aliases{
		entries:  make(map[string][]Target),
		broken:   make(map[string]Problem),
		doubtful: make(map[string]Problem),
	}
	var problems []Problem
	for _, path := range paths {
		data, info, err := readRegular(path, MaxAliases)
		var read stamp
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			if errors.Is(err, fs.ErrPermission) {
				err = fmt.Errorf("%w; let %s read it", err, self())
			}
			return nil, nil, fmt.Errorf("aliases: %w", err)
		default:
			read = stampOf(info)
		}
		src := newSource(path, read, before)
		if src.gone != "" {
			problems = append(problems, Problem{File: path, Text: "it " + src.gone + "; until then mail for unknown names waits"})
		}
		if info != nil {
			var more []Problem
			more, src.last = a.add(path, data, info.Mode().Perm()&0o002 != 0)
			problems = append(problems, more...)
		}
		a.sources = append(a.sources, src)
	}
	return a, problems, nil
}

// add takes the lines of one file into a. Open means that anybody may write to
// the file: then it cannot say what is run and which file is written to. Last
// is the name of the last entry if that looks as if it had been cut off.
func (a *Aliases) add(path string, data []byte, open bool) (problems []Problem, last string) {
	if open {
		problems = append(problems, Problem{File: path,
			Text: "anybody may write to this file, so its commands and files are not used; chmod o-w " + path})
	}
	good, broken := make(map[string]entry), make(map[string]Problem)
	whole := text(data)
	for rest, line := whole, 1; rest != ""; {
		cut, lines := cutEntry(rest)
		s := scanner{file: path, data: cut, line: line, joined: true, max: maxRecipients}
		rest, line = rest[len(cut):], line+lines
		e, err := s.entry()
		if err == nil && open && slices.ContainsFunc(e.targets, writes) {
			err = s.problem(e.line, "%s names a command or a file, and anybody may write to %s; chmod o-w it", show(e.name), path)
		}
		if before, ok := good[e.name]; ok && err == nil {
			p := s.problem(e.line, "%s is an alias already in line %d, which stands; remove one of them", show(e.name), before.line)
			p.Warning = true
			err = p
		}
		if e.named {
			last = e.name
		}
		var p Problem
		switch {
		case errors.As(err, &p):
			if len(problems) < maxProblems {
				problems = append(problems, p)
			} else if len(problems) == maxProblems {
				problems = append(problems, s.problem(e.line, "more mistakes from here on; correct the first %d", maxProblems))
			}
			if e.named {
				broken[e.name] = p
			} else if e.name != "" {
				a.doubtful[e.name] = p
			}
		case e.named:
			good[e.name] = e
		}
	}
	for name, p := range broken {
		if _, ok := good[name]; !ok && !a.has(name) {
			a.broken[name] = p
		}
	}
	for name, e := range good {
		if !a.has(name) {
			a.entries[name] = e.targets
		}
	}
	if end := strings.TrimRight(whole, " \t"); strings.HasSuffix(end, "\n") && !strings.HasSuffix(strings.TrimSpace(end), ",") {
		last = ""
	}
	return problems, last
}

// has reports whether there is a line for name, with or without mistakes.
func (a *Aliases) has(name string) bool {
	_, good := a.entries[name]
	_, broken := a.broken[name]
	return good || broken
}

// writes reports whether delivery to t runs or writes something under
// somebody's rights.
func writes(t Target) bool { return t.Kind == Command || t.Kind == File || t.Kind == Maildir }

// cutEntry returns the first entry of s with its continuation lines, and how
// many lines that is.
func cutEntry(s string) (entry string, lines int) {
	end, started := 0, false
	for end < len(s) {
		next := strings.IndexByte(s[end:], '\n') + 1
		if next == 0 {
			next = len(s) - end
		}
		if c := s[end]; started && strings.IndexByte(" \t\n#", c) < 0 {
			break
		} else if strings.IndexByte("\n#", c) < 0 {
			started = true
		}
		end += next
		lines++
	}
	return s[:end], lines
}

// entry is one line of an aliases file with its continuation lines.
type entry struct {
	name    string // in lower case
	named   bool   // the name has its colon
	line    int
	targets []Target
}

// entry reads "name: targets". What could be read of it is returned with an
// error, a Problem, too. The zero entry without an error: there was none.
func (s *scanner) entry() (e entry, err error) {
	s.separators()
	if s.pos == len(s.data) {
		return e, nil
	}
	e.line = s.line
	if e.name, err = s.name(); err != nil {
		return e, s.problem(e.line, "%v", err)
	}
	e.named = true
	if e.targets, err = s.targets(); err == nil && len(e.targets) == 0 {
		err = s.problem(e.line, "%s has no target; write /dev/null for mail that nobody wants", show(e.name))
	}
	return e, err
}

// name reads the name and its colon. It returns what it could read with an
// error too.
func (s *scanner) name() (string, error) {
	var name string
	if s.data[s.pos] == '"' {
		_, plain, err := s.quoted()
		if err != nil {
			return "", errors.New("the quote of the name is never closed; put a \" before the colon")
		}
		name = plain
	} else {
		n := strings.IndexAny(s.data[s.pos:], ": \t\n,")
		if n < 0 {
			n = len(s.data) - s.pos
		}
		name = s.data[s.pos : s.pos+n]
		s.pos += n
	}
	name = strings.ToLower(name)
	for s.pos < len(s.data) && (s.data[s.pos] == ' ' || s.data[s.pos] == '\t') {
		s.pos++
	}
	switch {
	case s.pos == len(s.data) || s.data[s.pos] != ':':
		return name, fmt.Errorf("no colon after %s; write name: target, target", show(name))
	case name == "":
		return "", errors.New("no name before the colon; write name: target, target")
	case len(name) > maxName:
		return "", fmt.Errorf("a name of more than %d octets; shorten it", maxName)
	case printable(name) != name:
		return "", fmt.Errorf("%s: a name has printable characters only", show(name))
	case strings.Contains(name, "@"):
		return "", fmt.Errorf("%s: an alias is the part before the @; a name at another domain cannot have one", show(name))
	}
	s.pos++
	return name, nil
}

// Lookup returns the targets written for name, whose case does not matter. The
// catch-all is not asked. The error is the Problem of the line for name, if
// that has a mistake.
func (a *Aliases) Lookup(name string) (targets []Target, ok bool, err error) {
	name = strings.ToLower(name)
	if t, ok := a.entries[name]; ok {
		return slices.Clone(t), true, nil
	}
	if p, ok := a.broken[name]; ok {
		return nil, false, p
	}
	return nil, false, nil
}

// Owner returns "owner-" with name in lower case, if that is an alias: the
// sender, at this host, of what goes to the targets of name, so that their
// bounces reach the owner of the list and not who wrote to it.
func (a *Aliases) Owner(name string) (owner string, ok bool) {
	owner = "owner-" + strings.ToLower(name)
	if !a.has(owner) {
		return "", false
	}
	return owner, true
}

// Names returns all names, sorted, those with a mistake in their line included.
func (a *Aliases) Names() []string {
	var names []string
	for n := range a.entries {
		names = append(names, n)
	}
	for n := range a.broken {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Lists reports whether an alias, or a file that an alias includes, now names
// the target of this kind and value, as Expand would return it. What is about
// to run a command or to write to a file on the word of somebody else asks
// this first. An error means that it is not found and that a file could not
// be read.
func (a *Aliases) Lists(ctx context.Context, kind Kind, value string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	want := same{kind: kind, value: value}
	var failed error
	asked := make(map[string]bool)
	var find func(targets []Target, depth int) bool
	find = func(targets []Target, depth int) bool {
		for _, t := range targets {
			if t.same() == want {
				return true
			}
			if t.Kind != Include || asked[t.Value] || depth > maxDepth {
				continue
			}
			asked[t.Value] = true
			inner, err := a.include(ctx, t)
			if err != nil {
				failed = err
			} else if find(inner, depth+1) {
				return true
			}
		}
		return false
	}
	for _, name := range a.Names() {
		if find(a.entries[name], 0) {
			return true, nil
		}
	}
	return false, failed
}

// Included returns the files that the aliases and the files themselves include,
// sorted, those that cannot be read among them.
func (a *Aliases) Included(ctx context.Context) []string {
	var files []string
	a.CheckIncluded(ctx, func(t Target, _ error) { files = append(files, t.Value) })
	slices.Sort(files)
	return files
}

// CheckIncluded calls f for each file that the aliases and the files themselves
// include, once, with an entry that names it and what is wrong with it.
func (a *Aliases) CheckIncluded(ctx context.Context, f func(t Target, err error)) {
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	found := make(map[string]bool)
	var look func(targets []Target, depth int)
	look = func(targets []Target, depth int) {
		for _, t := range targets {
			if t.Kind != Include || found[t.Value] || depth > maxDepth {
				continue
			}
			found[t.Value] = true
			inner, err := a.include(ctx, t)
			if f(t, err); err == nil {
				look(inner, depth+1)
			}
		}
	}
	for _, name := range a.Names() {
		look(a.entries[name], 0)
	}
}

// include reads the file that t names. It refuses what the file has no right
// to name.
func (a *Aliases) include(ctx context.Context, t Target) ([]Target, error) {
	f, err := within(ctx, &a.gate, t.Value, func() (included, error) {
		return readInclude(t, safety{uid: os.Geteuid()}, false)
	})
	if err == nil {
		err = f.refused()
	}
	a.mistakes.note(t.Value, err)
	return f.targets, err
}
