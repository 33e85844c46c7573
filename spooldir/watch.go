package spooldir

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

// bellNames bounds how many messages a Bell remembers by name; beyond that it
// asks for a scan of the whole directory.
const bellNames = 4096

// Bell rings when something happened in one directory. It is a hint and no
// more: events get lost, and what is true is what a scan finds.
type Bell struct {
	C chan struct{} // receives one value when there is something to take

	mu       sync.Mutex
	names    map[string]Name // one name a message
	flush    bool
	rescan   bool
	rings    int
	expected map[Name]time.Time // names that this process moves here, and since when
}

// expectFor is how long the event of a step of our own may take. What comes later
// under the same name is news.
const expectFor = 10 * time.Second

func newBell() *Bell {
	return &Bell{C: make(chan struct{}, 1), names: make(map[string]Name), expected: make(map[Name]time.Time)}
}

// Expect says that this process is about to move a name here, and rings itself
// when it has: the event that the system has for it is no news. Where no event
// comes, one that somebody else causes within seconds by the same name may be
// taken for it, and is found by the next scan.
func (b *Bell) Expect(name Name) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.expected) >= bellNames {
		clear(b.expected)
	}
	b.expected[name] = time.Now()
}

// Unexpect takes Expect back: the name was not moved.
func (b *Bell) Unexpect(name Name) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.expected, name)
}

// expects reports whether an event is that of a step of our own, once for each.
func (b *Bell) expects(name Name) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	since, ok := b.expected[name]
	delete(b.expected, name)
	return ok && time.Since(since) < expectFor
}

// Ring makes the owner look at one message.
func (b *Bell) Ring(name Name) {
	b.mu.Lock()
	b.rings++
	if _, ok := b.names[name.ID]; !ok && len(b.names) >= bellNames {
		b.rescan = true
	} else if !b.rescan {
		b.names[name.ID] = name
	}
	b.mu.Unlock()
	b.wake()
}

// RingAll makes the owner look at the whole directory.
func (b *Bell) RingAll() {
	b.mu.Lock()
	b.rings++
	b.rescan = true
	b.mu.Unlock()
	b.wake()
}

func (b *Bell) wake() {
	select {
	case b.C <- struct{}{}:
	default:
	}
}

// Take returns what has happened since the last call: one name of every
// message concerned, whether a flush was asked for, and whether the whole
// directory has to be looked at instead.
func (b *Bell) Take() (names []Name, flush, rescan bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	flush, rescan = b.flush, b.rescan
	if !rescan {
		names = make([]Name, 0, len(b.names))
		for _, n := range b.names {
			names = append(names, n)
		}
	}
	clear(b.names)
	b.flush, b.rescan = false, false
	return names, flush, rescan
}

// Watcher watches directories of a spool. One Watcher serves all the
// directories of a process, since a user may have only 128 of them.
type Watcher struct {
	spool *Spool
	fs    *fsnotify.Watcher
	bells map[string]*Bell // by directory
	done  chan struct{}
}

// Watch starts to watch states. Where the system has no watch left the
// Watcher works all the same, but no bell ever rings by itself: the error says
// why, once, and the caller has to scan on a timer.
func (s *Spool) Watch(states ...State) (*Watcher, error) {
	w := &Watcher{spool: s, bells: make(map[string]*Bell), done: make(chan struct{})}
	for _, state := range states {
		w.bells[s.dir(state)] = newBell()
	}
	fw, err := fsnotify.NewWatcher()
	if err != nil {
		close(w.done)
		return w, fmt.Errorf("watch %s: %w", s.path, err)
	}
	w.fs = fw
	if err := w.Arm(); err != nil {
		fw.Close()
		w.fs = nil
		close(w.done)
		return w, err
	}
	go w.run()
	return w, nil
}

// Unwatched makes a Watcher that watches nothing, for a spool on a file system
// that reports no events, and for tests of the timer.
func (s *Spool) Unwatched(states ...State) *Watcher {
	w := &Watcher{spool: s, bells: make(map[string]*Bell), done: make(chan struct{})}
	for _, state := range states {
		w.bells[s.dir(state)] = newBell()
	}
	close(w.done)
	return w
}

// Watching reports whether events arrive.
func (w *Watcher) Watching() bool { return w.fs != nil }

// Arm adds the watches again that the system has dropped, because a directory
// was removed and made again. The caller scans afterwards.
func (w *Watcher) Arm() error {
	if w.fs == nil {
		return nil
	}
	var errs []error
	for dir := range w.bells {
		if err := w.fs.Add(dir); err != nil {
			errs = append(errs, fmt.Errorf("watch %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

// Bell returns the bell of a state that was given to Watch.
func (w *Watcher) Bell(state State) *Bell { return w.bells[w.spool.dir(state)] }

// Close stops watching.
func (w *Watcher) Close() error {
	if w.fs == nil {
		return nil
	}
	err := w.fs.Close()
	<-w.done
	return err
}

func (w *Watcher) run() {
	defer close(w.done)
	for {
		select {
		case ev, ok := <-w.fs.Events:
			if !ok {
				return
			}
			w.event(ev)
		case _, ok := <-w.fs.Errors:
			if !ok {
				return
			}
			// Overflow, or anything else that may have cost events.
			for _, b := range w.bells {
				b.RingAll()
			}
		}
	}
}

func (w *Watcher) event(ev fsnotify.Event) {
	// What arrives or is committed is news; what leaves or is read is not.
	if !ev.Has(fsnotify.Create) && !ev.Has(fsnotify.Chmod) {
		return
	}
	dir, file := filepath.Split(ev.Name)
	bell := w.bells[filepath.Clean(dir)]
	if bell == nil {
		return
	}
	if name, err := ParseName(file); err == nil {
		if !ev.Has(fsnotify.Create) || !bell.expects(name) {
			bell.Ring(name)
		}
		return
	}
	if file == FlushFile {
		bell.mu.Lock()
		bell.rings++
		bell.flush = true
		bell.mu.Unlock()
		bell.wake()
		return
	}
	if len(file) > 0 && file[0] != '.' {
		bell.RingAll() // a foreign file: the scan says what to do with it
	}
}

// Silent reports whether there is nothing to take.
func (b *Bell) Silent() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.names) == 0 && !b.flush && !b.rescan
}

// Rings returns how often any bell has rung. If it has not changed while
// somebody looked at all workers and found each idle, they all were.
func (w *Watcher) Rings() int {
	n := 0
	for _, b := range w.bells {
		b.mu.Lock()
		n += b.rings
		b.mu.Unlock()
	}
	return n
}
