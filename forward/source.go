package forward

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// optional is the one aliases file that may be missing without a word: the
// default of ALIASES, which a machine without aliases does not have.
const optional = "/etc/aliases"

// moment is for how long after a change of an aliases file nobody says that a
// name is in none. Who writes a file in place makes it empty first.
const moment = 30 * time.Second

// source is one aliases file as it was read.
type source struct {
	path  string
	stamp stamp // the zero stamp: there was no file

	// What this process knows of it from before.
	changed bool // it was another one
	filled  bool // it has, or had, content

	// gone says why it cannot be what it is to be, although it could be read.
	gone string

	// last is the name with which the file ends in the middle of an entry, or
	// seems to.
	last string
}

// newSource returns what is known of the file path, which was read with this
// stamp now, and before as it stands in before.
func newSource(path string, now stamp, before []source) source {
	s := source{path: path, stamp: now, filled: now.size > 0}
	for _, b := range before {
		if b.path == path {
			s.changed = b.changed || b.stamp != now
			s.filled = s.filled || b.filled
		}
	}
	const back = "; put it back, or reload the service if that is meant"
	switch {
	case now != stamp{} && now.size == 0 && s.filled:
		s.gone = "is empty, and was not before" + back
	case now != stamp{}:
	case path != optional:
		s.gone = "does not exist; create it, or take it out of ALIASES"
	case s.filled:
		s.gone = "does not exist, and did before" + back
	default:
		if _, err := os.Stat(filepath.Dir(path)); errors.Is(err, fs.ErrNotExist) {
			s.gone = "does not exist, nor does its folder; mount its file system, or create the folder"
		}
	}
	return s
}

// recent returns when the file, or that there is none, changed, if that was a
// moment ago. A time that lies further ahead than a moment tells nothing: the
// clock was wrong.
func (s source) recent(now time.Time) (at time.Time, ok bool) {
	times := []time.Time{s.stamp.mtime}
	if s.stamp == (stamp{}) {
		times = nil
		if info, err := os.Stat(filepath.Dir(s.path)); err == nil {
			times = append(times, info.ModTime()) // a name went from there
		}
	} else if s.changed {
		// A file that takes the place of another may be of any age.
		times = append(times, s.stamp.ctime)
	}
	for _, t := range times {
		if now.Sub(t).Abs() < moment && (!ok || t.After(at)) {
			at, ok = t, true
		}
	}
	return at, ok
}

// Unsettled is a temporary error of Expand: the aliases files do not say where
// the mail goes, and may do so in a moment.
type Unsettled struct {
	Text  string
	Until time.Time // when to ask again; zero: nobody knows
}

func (e *Unsettled) Error() string { return e.Text }

// unsettled returns why a name that was not found may be an alias all the same,
// nil if there is no reason to think so.
func (a *Aliases) unsettled(name string, now time.Time) error {
	because := func(s source, until time.Time, format string, args ...any) error {
		text := fmt.Sprintf("no such user: %s, but %s %s", name, s.path, fmt.Sprintf(format, args...))
		return &Unsettled{printable(text), until}
	}
	for _, s := range a.sources {
		if s.gone != "" {
			return because(s, time.Time{}, "%s", s.gone)
		}
	}
	for _, s := range a.sources {
		if stamp, err := lookAt(s.path); err != nil || stamp != s.stamp {
			return because(s, now.Add(moment), "is being changed; it is looked up again")
		}
		if at, ok := s.recent(now); ok {
			return because(s, at.Add(moment), "changed %v ago; it is looked up again", ago(now, at))
		}
	}
	return nil
}

// cut returns an error if the alias key is one with which a file ends that was
// changed a moment ago, and its entry may go on.
func (a *Aliases) cut(key string, now time.Time) error {
	for _, s := range a.sources {
		if s.last != key {
			continue
		}
		if at, ok := s.recent(now); ok {
			return &Unsettled{printable(fmt.Sprintf("%s changed %v ago and ends within the line of %s; it is looked up again; end the line with a newline", s.path, ago(now, at), show(key))), at.Add(moment)}
		}
	}
	return nil
}

func ago(now, at time.Time) time.Duration { return max(now.Sub(at), 0).Round(time.Second) }

// stamp tells one state of a file from another. The zero stamp: no file.
type stamp struct {
	dev, ino     uint64
	size         int64
	mode         fs.FileMode
	mtime, ctime time.Time
}

func stampOf(info fs.FileInfo) stamp {
	s := stamp{size: info.Size(), mode: info.Mode(), mtime: info.ModTime(), ctime: changeTime(info)}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.dev, s.ino = uint64(st.Dev), uint64(st.Ino)
	}
	return s
}

// lookAt returns the stamp of the file path.
func lookAt(path string) (stamp, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return stamp{}, nil
	case err != nil:
		return stamp{}, err
	}
	return stampOf(info), nil
}
