package forward

import (
	"io/fs"
	"os"
	"slices"
	"sync"
	"syscall"
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

	mu       sync.Mutex
	aliases  *Aliases
	stamps   []stamp
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
// The error is temporary. What was read before is no substitute: nobody knows
// whether the file still says so.
func (f *AliasFile) Current() (*Aliases, []Problem, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.aliases != nil && f.unchanged() {
		return f.aliases, nil, nil
	}
	now := f.now()
	aliases, problems, stamps, err := loadAliases(f.paths)
	if err != nil {
		f.aliases = nil
		return nil, nil, err
	}
	f.aliases, f.stamps, f.loaded = aliases, stamps, now
	if slices.Equal(problems, f.reported) {
		return aliases, nil, nil
	}
	f.reported = problems
	return aliases, slices.Clone(problems), nil
}

// unchanged reports whether all files are as they were when they were read.
func (f *AliasFile) unchanged() bool {
	for i, path := range f.paths {
		var now stamp
		if info, err := os.Stat(path); err == nil {
			now = stampOf(info)
		} else if !os.IsNotExist(err) {
			return false
		}
		if now != f.stamps[i] {
			return false
		}
		if age := f.loaded.Sub(now.mtime); now != (stamp{}) && age.Abs() < settle {
			return false
		}
	}
	return true
}

// stamp tells one state of a file from another. The zero stamp: no file.
type stamp struct {
	dev, ino uint64
	size     int64
	mode     fs.FileMode
	mtime    time.Time
}

func stampOf(info fs.FileInfo) stamp {
	s := stamp{size: info.Size(), mode: info.Mode(), mtime: info.ModTime()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.dev, s.ino = uint64(st.Dev), uint64(st.Ino)
	}
	return s
}
