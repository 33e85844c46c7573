package forward

import (
	"errors"
	"slices"
	"sync"
	"time"
)

// settle is how old the last change of a file must be before its times are
// enough to tell that it has not changed again. It covers a second's precision
// of a file system and the clock tick of others.
const settle = 2 * time.Second

// AliasFile is the aliases files, read again when one of them has changed. It
// may be used by several goroutines.
type AliasFile struct {
	paths []string
	now   func() time.Time

	included mistakes

	mu       sync.Mutex
	aliases  *Aliases
	sources  []source // as they were read last
	loaded   time.Time
	reported []Problem
}

// NewAliasFile returns the AliasFile of paths, which it does not read yet.
func NewAliasFile(paths ...string) *AliasFile {
	return &AliasFile{paths: slices.Clone(paths), now: time.Now}
}

// Current returns the aliases as the files have them now; see [LoadAliases].
// The problems are those that an earlier call has not returned already: each
// change of the files reports its problems once.
//
// A file that is missing or empty and was not when an earlier call read it is a
// problem too: as long as it is, Expand does not say that there is no such user.
//
// The error is temporary. What was read before is no substitute: nobody knows
// whether the file still says so.
func (f *AliasFile) Current() (*Aliases, []Problem, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.aliases != nil && f.unchanged() {
		return f.aliases, nil, nil
	}
	now := f.now()
	aliases, problems, err := loadAliases(f.paths, f.sources)
	if err != nil {
		f.aliases = nil
		return nil, nil, err
	}
	aliases.mistakes = &f.included
	f.aliases, f.sources, f.loaded = aliases, aliases.sources, now
	if slices.Equal(problems, f.reported) {
		return aliases, nil, nil
	}
	f.reported = problems
	return aliases, slices.Clone(problems), nil
}

// unchanged reports whether all files are as they were when they were read.
func (f *AliasFile) unchanged() bool {
	for _, s := range f.sources {
		now, err := lookAt(s.path)
		if err != nil || now != s.stamp {
			return false
		}
		if age := f.loaded.Sub(now.mtime); now != (stamp{}) && age.Abs() < settle {
			return false
		}
	}
	return true
}

// IncludedProblems returns the problems of included files that were met when they
// were read, and that an earlier call has not returned already: each change of a
// file reports its problem once.
func (f *AliasFile) IncludedProblems() []Problem {
	f.included.mu.Lock()
	defer f.included.mu.Unlock()
	news := f.included.news
	f.included.news = nil
	return news
}

// mistakes are the problems of included files. A nil mistakes keeps none.
type mistakes struct {
	mu    sync.Mutex
	known map[string]Problem // by included file, as it was read last
	news  []Problem
}

// note takes up what came of reading the file path.
func (m *mistakes) note(path string, err error) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var p Problem
	switch {
	case err == nil:
		delete(m.known, path)
	case !errors.As(err, &p), m.known[path] == p:
	default:
		if m.known == nil {
			m.known = make(map[string]Problem)
		}
		m.known[path] = p
		if len(m.news) < maxProblems { // there may be nobody who asks
			m.news = append(m.news, p)
		}
	}
}
