package runner

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"dma/forward"
)

const (
	// aliasesEvery is the time between two looks at what the aliases include.
	aliasesEvery = 15 * time.Second
	// foldersTime is how long such a look waits for file systems: to read what is
	// included, and then for the folders.
	foldersTime = 5 * time.Second
	// foreignAfter is how old the queue process has to be before a folder ends it
	// that somebody else may have made: all agents end with it.
	foreignAfter = 10 * time.Minute
)

// A folder is one in which aliases lie, or files that they include.
type folder struct {
	info  os.FileInfo // nil: it is missing, or does not answer
	fixed bool        // nobody but root and the queue's own user decides what stands there
	led   bool        // only a symbolic link of somebody else's leads there
}

// folders are folders by their paths.
type folders map[string]folder

// add adds what is known of a folder by one file to what is known by others.
func (f folders) add(dir string, d folder) {
	if old, ok := f[dir]; ok {
		if d.info == nil {
			d.info = old.info
		}
		d.fixed, d.led = d.fixed || old.fixed, d.led && old.led
	}
	f[dir] = d
}

// there returns the paths of those that there are: to open another one might take
// for ever.
func (f folders) there() []string {
	var paths []string
	for dir, d := range f {
		if d.info != nil {
			paths = append(paths, dir)
		}
	}
	return paths
}

// foldersOf returns the folder of a file, and the one where symbolic links lead. A
// file system that hangs makes it hang.
func foldersOf(file string) folders {
	out := make(folders)
	fixed := forward.Fixed(file)
	add := func(file string, led bool) {
		if dir := filepath.Dir(file); dir != "/" {
			info, _ := os.Stat(dir)
			out.add(dir, folder{info, fixed, led})
		}
	}
	add(file, false)
	if target, err := filepath.EvalSymlinks(file); err == nil {
		add(target, !fixed)
	}
	return out
}

// A looker looks for folders. Only one look at a file is under way at a time,
// however often it is asked for: it may never end.
type looker struct {
	within time.Duration // see foldersTime

	mu   sync.Mutex
	busy map[string]bool
}

// begin looks at a file, unless that is under way, and sends what it found.
func (l *looker) begin(file string, found chan<- folders) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.busy[file] {
		return false
	}
	if l.busy == nil {
		l.busy = make(map[string]bool)
	}
	l.busy[file] = true
	go func() {
		out := foldersOf(file)
		l.mu.Lock()
		delete(l.busy, file)
		l.mu.Unlock()
		found <- out
	}()
	return true
}

// folders returns the folders of the aliases files in paths and of the files that
// aliases include, those where symbolic links lead among them, as far as their file
// systems answer.
func (l *looker) folders(ctx context.Context, paths []string, aliases *forward.Aliases) folders {
	files := make(map[string]bool)
	for _, file := range paths {
		files[file] = true
	}
	if aliases != nil {
		reading, cancel := context.WithTimeout(ctx, l.within)
		for _, file := range aliases.Included(reading) {
			files[file] = true
		}
		cancel()
	}
	found := make(chan folders, len(files)) // nobody may wait any more
	looks := 0
	for file := range files {
		if l.begin(file, found) {
			looks++
		}
	}
	out := make(folders)
	late := time.NewTimer(l.within)
	defer late.Stop()
	for range looks {
		select {
		case f := <-found:
			for dir, d := range f {
				out.add(dir, d)
			}
		case <-late.C:
			return out
		case <-ctx.Done():
			return out
		}
	}
	return out
}

// newFolder waits until there is a folder with aliases, or with files that they
// include, that is not among the open ones, since it was made or mounted or only
// now has such a file: only a new process may open it. Somebody else, whose files
// may be included too, must not be able to have the process end again and again: a
// folder of his counts if there was none, and after a while. It reports false when
// ctx ends.
func (l *looker) newFolder(ctx context.Context, paths []string, open folders) bool {
	began := time.Now()
	tick := time.NewTicker(aliasesEvery)
	defer tick.Stop()
	aliases := forward.NewAliasFile(paths...)
	for {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
		a, _, _ := aliases.Current() // who needs them says what is wrong
		for dir, now := range l.folders(ctx, paths, a) {
			before := open[dir].info
			switch {
			case now.info == nil, before != nil && os.SameFile(before, now.info):
			case now.fixed:
				return true
			case !now.led && before == nil && time.Since(began) >= foreignAfter:
				return true
			}
		}
	}
}

// roleFolders is the process that looks for the queue process at folders; see
// lookApart. It reads what to look at, and writes what it has seen.
const roleFolders = "role-folders"

// lookRequest is what it is told.
type lookRequest struct {
	Paths  []string // of the aliases files
	Within time.Duration
}

// seen is what it tells of a folder.
type seen struct{ There, Fixed, Led bool }

// runFoldersRole is the whole of such a process. It returns the exit code.
func runFoldersRole() int {
	var what lookRequest
	err := json.NewDecoder(os.Stdin).Decode(&what)
	if err == nil {
		// What cannot be read is said when it is needed.
		aliases, _, _ := forward.LoadAliases(what.Paths...)
		found := make(map[string]seen)
		look := looker{within: what.Within}
		for dir, d := range look.folders(context.Background(), what.Paths, aliases) {
			found[dir] = seen{d.info != nil, d.fixed, d.led}
		}
		err = json.NewEncoder(os.Stdout).Encode(found)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "dma-runner: folders of aliases: %v\n", err)
		return exitTempfail
	}
	return exitOK
}
