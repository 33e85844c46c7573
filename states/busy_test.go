package states

import (
	"context"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dma/spooldir"
)

// TestLoopBusy: messages that others keep locked take no place from the rest, are
// work for a moment only, are said once, and go on when the lock has gone.
func TestLoopBusy(t *testing.T) {
	s := newSpool(t)
	var locked []spooldir.Name
	for range 20 {
		locked = append(locked, submit(t, s, "locked@b")[0])
	}
	free := submit(t, s, "free@b")[0]
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		tries := make(map[string]int)
		said := make(map[string][]string)
		held := true
		bell := s.Unwatched(spooldir.New).Bell(spooldir.New)
		l := &Loop{
			Spool: s, State: spooldir.New, Bell: bell, Parallel: 2, Rescan: 24 * time.Hour,
			Handle: func(ctx context.Context, n spooldir.Name) (time.Time, error) {
				mu.Lock()
				defer mu.Unlock()
				tries[n.ID]++
				if n.ID == free.ID || !held {
					return time.Time{}, nil
				}
				return time.Time{}, fmt.Errorf("take: %w", &fs.PathError{Op: "flock", Path: "/spool/new/" + n.String(), Err: spooldir.ErrBusy})
			},
			Trouble: func(_ spooldir.State, n spooldir.Name, err error) {
				mu.Lock()
				defer mu.Unlock()
				said[n.ID] = append(said[n.ID], err.Error())
			},
		}
		check := func(what string, idle bool, atLeast, atMost, lines int) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if got := l.Idle(); got != idle {
				t.Errorf("%s: idle %v", what, got)
			}
			for _, n := range locked {
				if got := tries[n.ID]; got < atLeast || got > atMost {
					t.Errorf("%s: %d tries, want %d to %d", what, got, atLeast, atMost)
				}
				if got := said[n.ID]; len(got) != lines {
					t.Errorf("%s: said %q", what, got)
				}
				tries[n.ID] = 0
			}
			if len(said[free.ID]) != 0 {
				t.Errorf("%s: said %q of another", what, said[free.ID])
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { l.Run(ctx); close(ended) }()
		check("at first", false, 1, 1, 0)
		mu.Lock()
		if tries[free.ID] != 1 {
			t.Errorf("the other was handled %d times", tries[free.ID])
		}
		mu.Unlock()
		time.Sleep(busyBriefly - time.Millisecond)
		check("for a moment", false, 3, 20, 0)
		time.Sleep(2 * time.Millisecond)
		check("longer", true, 0, 1, 0)
		for _, n := range locked {
			bell.Ring(n)
		}
		check("news", true, 1, 1, 0)
		bell.RingAll()
		check("a look at everything", true, 1, 1, 0)
		time.Sleep(busyLong + troublePause)
		check("for long", true, 3, 10, 1)
		if text := said[locked[0].ID]; len(text) == 1 && (!strings.Contains(text[0], "another process holds the lock") || !strings.Contains(text[0], `"fuser /spool/new/`+locked[0].String()+`"`)) {
			t.Errorf("said %q", text)
		}
		time.Sleep(time.Hour)
		check("for an hour", true, 100, 130, 1)
		mu.Lock()
		held = false
		mu.Unlock()
		time.Sleep(troublePause)
		check("let go", true, 1, 1, 1)
		bell.Ring(locked[0]) // and it is a message like others
		check("done", true, 0, 1, 1)
		mu.Lock()
		held, said = true, make(map[string][]string)
		mu.Unlock()
		bell.RingAll()
		check("again", false, 1, 1, 0)
		time.Sleep(2 * busyBriefly)
		check("again, longer", true, 3, 20, 0)
		cancel()
		<-ended
		for _, n := range locked {
			if len(said[n.ID]) != 1 {
				t.Errorf("at the end: said %q", said[n.ID])
			}
		}
	})
}

// TestLanesAgainByID: an item that is known need not be told again to be handed
// out again.
func TestLanesAgainByID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &Lanes[int]{PerKey: 1, Total: 1, Batch: 1, Most: 10}
		var got []int
		l.Run = func(ctx context.Context, key string, items []int) {
			got = append(got, items...)
			time.Sleep(time.Second)
		}
		l.Start(t.Context())
		if l.Again("x") {
			t.Error("an item that nobody has added")
		}
		l.Add("k", "x", 1)
		l.Add("k", "y", 2)
		for _, id := range []string{"x", "x", "y"} {
			if !l.Again(id) {
				t.Errorf("%s is not known", id)
			}
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if fmt.Sprint(got) != "[1 2 1]" {
			t.Errorf("handed out: %v", got)
		}
		if l.Again("x") {
			t.Error("an item that is done")
		}
	})
}
