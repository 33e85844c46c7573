package spooldir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// scanBatch is how many names are read from a directory at a time.
const scanBatch = 4096

// Scan calls each with every recipient's name in a state, in no order, and
// foreign with every file name there that is none. Names beginning with a dot
// are left out. It reads names only and opens no file, so that 100,000 of them
// cost a few dozen system calls. It stops early when each returns false.
func (s *Spool) Scan(state State, each func(Name) bool, foreign func(file string)) error {
	return s.readDir(string(state), func(file string) bool {
		if name, err := ParseName(file); err == nil {
			return each(name)
		}
		if foreign != nil {
			foreign(file)
		}
		return true
	})
}

// readDir calls each with the names in a directory of the spool.
func (s *Spool) readDir(dir string, each func(file string) bool) error {
	d, err := os.Open(s.file(State(dir), ""))
	if err != nil {
		return fmt.Errorf("scan: %w", err)
	}
	defer d.Close()
	for {
		files, err := d.Readdirnames(scanBatch)
		for _, file := range files {
			if strings.HasPrefix(file, ".") {
				continue
			}
			if !each(file) {
				return nil
			}
		}
		if errors.Is(err, io.EOF) || err == nil && len(files) == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("scan: %w", err)
		}
	}
}

// Place is a recipient and the state in which it was last seen.
type Place struct {
	Name  Name
	State State
}

// List returns every recipient once, although names move while it reads: it
// reads the directories twice, in the order in which names pass through them,
// and looks for what only the first reading saw. A name that moves back (a
// retry) between the two readings of its goal is seen by the second.
func (s *Spool) List() ([]Place, error) {
	seen := make(map[string]int)
	var list []Place
	for pass := range 2 {
		second := make(map[string]bool)
		for _, state := range States() {
			err := s.Scan(state, func(n Name) bool {
				if i, ok := seen[n.file]; ok {
					list[i].State = state
				} else {
					seen[n.file] = len(list)
					list = append(list, Place{n, state})
				}
				if pass == 1 {
					second[n.file] = true
				}
				return true
			}, nil)
			if err != nil {
				return nil, err
			}
		}
		if pass == 0 {
			continue
		}
		kept := list[:0]
		for _, e := range list {
			if !second[e.Name.file] {
				at, err := s.Find(e.Name)
				if err != nil {
					return nil, err
				}
				if len(at) == 0 {
					continue // done meanwhile
				}
				e.State = at[len(at)-1]
			}
			kept = append(kept, e)
		}
		list = kept
	}
	return list, nil
}

// Journals calls each with the id of every journal.
func (s *Spool) Journals(each func(id string) bool) error {
	return s.readDir(LogDir, func(file string) bool {
		if _, ok := IDKind(file); !ok {
			return true
		}
		return each(file)
	})
}

// FlushFile is the name in tempfail by which anybody who may write there asks
// for an attempt at everything that waits, now. The queue process removes it.
const FlushFile = ".flush"

// RequestFlush asks the queue process, running now or later, to try everything
// that waits.
func (s *Spool) RequestFlush() error {
	// Never an existing one: it asks for the same, and may be another user's.
	f, err := os.OpenFile(s.file(Tempfail, FlushFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// TakeFlush reports whether a flush was requested, and ends the request.
func (s *Spool) TakeFlush() bool {
	return os.Remove(s.file(Tempfail, FlushFile)) == nil
}

// CommittedIn returns the ids of the committed messages in an open directory new
// of a spool. It needs no more than the open directory and the right to look at
// what is in it, which a parent keeps that has given up the others.
func CommittedIn(dir *os.File) (map[string]bool, error) {
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	found := make(map[string]bool)
	for {
		names, err := dir.Readdirnames(scanBatch)
		if errors.Is(err, io.EOF) || err == nil && len(names) == 0 {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		for _, file := range names {
			n, err := ParseName(file)
			if err != nil || found[n.ID] {
				continue
			}
			var st unix.Stat_t
			err = ignoringEINTR(func() error { return unix.Fstatat(int(dir.Fd()), file, &st, unix.AT_SYMLINK_NOFOLLOW) })
			switch {
			case errors.Is(err, fs.ErrNotExist):
			case err != nil:
				return nil, err
			case st.Mode&unix.S_IFMT == unix.S_IFREG && !uncommitted(uint32(st.Mode)):
				found[n.ID] = true
			}
		}
	}
}
