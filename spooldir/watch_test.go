package spooldir

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
)

// take waits for a bell to ring until got is satisfied.
func take(t *testing.T, b *Bell, got func(names []Name, flush, rescan bool) bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case <-b.C:
			if got(b.Take()) {
				return
			}
		case <-deadline:
			t.Fatal("the bell did not ring as expected")
		}
	}
}

func watch(t *testing.T, s *Spool, states ...State) *Watcher {
	t.Helper()
	w, err := s.Watch(states...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func TestWatchCommitAndMove(t *testing.T) {
	s := newSpool(t)
	w := watch(t, s, New, Tempfail)
	name := submit(t, s, Envelope{Recipients: recipients("a@b", "c@d")}, "x\n")[0]
	take(t, w.Bell(New), func(names []Name, _, _ bool) bool {
		// The event of the commit, after which the message can be opened.
		for _, n := range names {
			if m, err := s.Open(New, n); err == nil {
				m.Close()
				return n.ID == name.ID
			}
		}
		return false
	})
	if err := s.Move(name, New, Tempfail); err != nil {
		t.Fatal(err)
	}
	take(t, w.Bell(Tempfail), func(names []Name, _, _ bool) bool { return len(names) == 1 && names[0] == name })
	if err := s.RequestFlush(); err != nil {
		t.Fatal(err)
	}
	take(t, w.Bell(Tempfail), func(_ []Name, flush, _ bool) bool { return flush })
}

// TestExpect: a step of our own is rung for once, by who makes it; what somebody
// else moves, before it or after, rings by its event.
func TestExpect(t *testing.T) {
	s := newSpool(t)
	w := watch(t, s, Local, Tempfail)
	local, other := w.Bell(Local), w.Bell(Tempfail)
	ours := submit(t, s, Envelope{Recipients: recipients("a@b")}, "x\n")[0]
	theirs := submit(t, s, Envelope{Recipients: recipients("a@b")}, "x\n")[0]
	failed := submit(t, s, Envelope{Recipients: recipients("a@b")}, "x\n")[0]
	move := func(name Name, from, to State) {
		t.Helper()
		if err := s.Move(name, from, to); err != nil {
			t.Fatal(err)
		}
	}
	local.Expect(ours)
	move(ours, New, Local)
	move(theirs, New, Local)
	local.Expect(failed)
	local.Unexpect(failed)
	move(failed, New, Local)
	var rung []Name
	take(t, local, func(names []Name, _, _ bool) bool {
		rung = append(rung, names...)
		return slices.Contains(rung, failed)
	})
	if !slices.Contains(rung, theirs) || slices.Contains(rung, ours) {
		t.Errorf("rung for %v, want %v and %v", rung, theirs, failed)
	}
	move(ours, Local, Tempfail)
	move(ours, Tempfail, Local)
	take(t, local, func(names []Name, _, _ bool) bool { return slices.Contains(names, ours) })
	take(t, other, func(names []Name, _, _ bool) bool { return slices.Contains(names, ours) })
}

// TestOverflow leaves 20,000 renames unread: the watch must end in a scan, not
// in names that nobody looks at.
func TestOverflow(t *testing.T) {
	s := newSpool(t)
	w := watch(t, s, Remote)
	id := NewID(time.Now())
	for i := range 2 * bellNames {
		n := NewName(fmt.Sprintf("%s%016x", id[:16], i), 1, "x")
		if err := os.WriteFile(s.file(Remote, n.String()), nil, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	take(t, w.Bell(Remote), func(_ []Name, _, rescan bool) bool { return rescan })
	seen := 0
	if err := s.Scan(Remote, func(Name) bool { seen++; return true }, nil); err != nil || seen != 2*bellNames {
		t.Errorf("the scan saw %d names, %v", seen, err)
	}
}

func TestForeignFileRings(t *testing.T) {
	s := newSpool(t)
	w := watch(t, s, New)
	if err := os.WriteFile(s.file(New, "foreign"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	take(t, w.Bell(New), func(_ []Name, _, rescan bool) bool { return rescan })
}

func TestUnwatched(t *testing.T) {
	s := newSpool(t)
	w := s.Unwatched(New)
	if w.Watching() {
		t.Error("it says that it watches")
	}
	if err := w.Arm(); err != nil {
		t.Error(err)
	}
	w.Bell(New).Ring(NewName(NewID(time.Now()), 1, "x"))
	if names, _, _ := w.Bell(New).Take(); len(names) != 1 {
		t.Errorf("%v, want the one rung for", names)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

func BenchmarkScan(b *testing.B) {
	s := newSpool(b)
	id := NewID(time.Now())
	for i := range 100000 {
		n := NewName(fmt.Sprintf("%s%016x", id[:16], i), 1, "user@example.org")
		f, err := os.OpenFile(s.file(Tempfail, n.String()), os.O_CREATE|os.O_WRONLY, 0o640)
		if err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		if err := s.Scan(Tempfail, func(Name) bool { n++; return true }, nil); err != nil || n != 100000 {
			b.Fatal(n, err)
		}
	}
}
