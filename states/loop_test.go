package states

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dma/spooldir"
)

// recorder counts what a Loop hands out.
type recorder struct {
	mu      sync.Mutex
	count   map[string]int
	current map[string]bool
	most    int
	clash   bool
}

func newRecorder() *recorder {
	return &recorder{count: make(map[string]int), current: make(map[string]bool)}
}

func (r *recorder) begin(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count[id]++
	r.clash = r.clash || r.current[id]
	r.current[id] = true
	r.most = max(r.most, len(r.current))
}

func (r *recorder) end(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.current, id)
}

func (r *recorder) summary() (most int, clash bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.most, r.clash
}

func (r *recorder) times(id string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count[id]
}

// TestLoopFindsEverything runs without any event: the scan alone finds mail,
// each message is handled by one at a time, and no more than Parallel at once.
func TestLoopFindsEverything(t *testing.T) {
	s := newSpool(t)
	var ids []string
	for range 30 {
		ids = append(ids, submit(t, s, "a@b", "c@d")[0].ID)
	}
	synctest.Test(t, func(t *testing.T) {
		r := newRecorder()
		w := s.Unwatched(spooldir.New)
		l := &Loop{
			Spool: s, State: spooldir.New, Bell: w.Bell(spooldir.New), Parallel: 4, Rescan: time.Minute,
			Handle: func(ctx context.Context, n spooldir.Name) (time.Time, error) {
				r.begin(n.ID)
				defer r.end(n.ID)
				time.Sleep(time.Second) // of the bubble
				return time.Time{}, nil
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { l.Run(ctx); close(done) }()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if !l.Idle() {
			t.Error("not idle after all is handled")
		}
		for _, id := range ids {
			if r.times(id) != 1 {
				t.Errorf("%s was handled %d times", id, r.times(id))
			}
		}
		if most, clash := r.summary(); most != 4 || clash {
			t.Errorf("%d at once, two on one message: %v", most, clash)
		}
		late := submit(t, s, "late@b")[0]
		time.Sleep(2 * time.Minute)
		if r.times(late.ID) == 0 {
			t.Error("the timer found no mail that no event told of")
		}
		cancel()
		<-done
	})
}

// TestLoopTimes checks that a message is handled again when it said, sooner
// when its bell rings, and after a pause when there was trouble.
func TestLoopTimes(t *testing.T) {
	s := newSpool(t)
	resting, troubled := submit(t, s, "resting@b")[0], submit(t, s, "troubled@b")[0]
	synctest.Test(t, func(t *testing.T) {
		r := newRecorder()
		w := s.Unwatched(spooldir.New)
		var said []error
		l := &Loop{
			Spool: s, State: spooldir.New, Bell: w.Bell(spooldir.New), Parallel: 2, Rescan: 24 * time.Hour,
			Handle: func(ctx context.Context, n spooldir.Name) (time.Time, error) {
				r.begin(n.ID)
				defer r.end(n.ID)
				if n == troubled {
					return time.Time{}, errors.New("trouble")
				}
				return time.Now().Add(time.Hour), nil
			},
			Trouble: func(_ spooldir.State, _ spooldir.Name, err error) {
				r.mu.Lock()
				defer r.mu.Unlock()
				said = append(said, err)
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { l.Run(ctx); close(done) }()
		synctest.Wait()
		r.mu.Lock()
		troubles := len(said)
		r.mu.Unlock()
		if r.times(resting.ID) != 1 || r.times(troubled.ID) != 1 || troubles != 1 {
			t.Errorf("at first: %d, %d, %d troubles", r.times(resting.ID), r.times(troubled.ID), troubles)
		}
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		if r.times(resting.ID) != 1 || r.times(troubled.ID) < 50 {
			t.Errorf("after half an hour: %d, %d", r.times(resting.ID), r.times(troubled.ID))
		}
		w.Bell(spooldir.New).Ring(resting)
		synctest.Wait()
		if r.times(resting.ID) != 2 {
			t.Errorf("after the bell: %d", r.times(resting.ID))
		}
		time.Sleep(time.Hour + time.Second)
		synctest.Wait()
		if r.times(resting.ID) != 3 {
			t.Errorf("after an hour: %d", r.times(resting.ID))
		}
		cancel()
		<-done
	})
}

// TestLoopRingsWhileInHand makes sure that what happens to a message while it
// is handled is looked at afterwards.
func TestLoopRingsWhileInHand(t *testing.T) {
	s := newSpool(t)
	name := submit(t, s, "a@b")[0]
	synctest.Test(t, func(t *testing.T) {
		r := newRecorder()
		w := s.Unwatched(spooldir.New)
		bell := w.Bell(spooldir.New)
		l := &Loop{
			Spool: s, State: spooldir.New, Bell: bell, Parallel: 2, Rescan: 24 * time.Hour,
			Handle: func(ctx context.Context, n spooldir.Name) (time.Time, error) {
				r.begin(n.ID)
				defer r.end(n.ID)
				if r.times(n.ID) == 1 {
					bell.Ring(n)
				}
				time.Sleep(time.Second)
				return time.Time{}, nil
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { l.Run(ctx); close(done) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		if _, clash := r.summary(); r.times(name.ID) != 2 || clash {
			t.Errorf("handled %d times, two at once: %v", r.times(name.ID), clash)
		}
		cancel()
		<-done
	})
}

// TestLoopSurvivesPanic: a message that makes its handler panic must not stop
// the others.
func TestLoopSurvivesPanic(t *testing.T) {
	s := newSpool(t)
	bad, good := submit(t, s, "bad@b")[0], submit(t, s, "good@b")[0]
	synctest.Test(t, func(t *testing.T) {
		r := newRecorder()
		w := s.Unwatched(spooldir.New)
		var said []error
		l := &Loop{
			Spool: s, State: spooldir.New, Bell: w.Bell(spooldir.New), Parallel: 1, Rescan: 24 * time.Hour,
			Handle: func(ctx context.Context, n spooldir.Name) (time.Time, error) {
				r.begin(n.ID)
				defer r.end(n.ID)
				if n == bad {
					panic("poison")
				}
				return time.Time{}, nil
			},
			Trouble: func(_ spooldir.State, _ spooldir.Name, err error) {
				r.mu.Lock()
				defer r.mu.Unlock()
				said = append(said, err)
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { l.Run(ctx); close(done) }()
		synctest.Wait()
		r.mu.Lock()
		troubles := len(said)
		r.mu.Unlock()
		if r.times(good.ID) != 1 || troubles != 1 {
			t.Errorf("good handled %d times, %d troubles", r.times(good.ID), troubles)
		}
		cancel()
		<-done
	})
}

// TestLanes checks that a lane that hangs holds up nobody else, that batches
// keep the order of a lane, and that nothing is handed out twice or lost.
func TestLanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		got := make(map[string][]int)
		running := make(map[string]int)
		l := &Lanes[int]{PerKey: 1, Total: 3, Batch: 4, Most: 1000}
		l.Run = func(ctx context.Context, key string, items []int) {
			mu.Lock()
			running[key]++
			if running[key] > 1 || len(items) > 4 {
				t.Errorf("%d batches of %s, the last of %d items", running[key], key, len(items))
			}
			got[key] = append(got[key], items...)
			mu.Unlock()
			if key == "hangs" {
				<-ctx.Done()
			}
			time.Sleep(time.Second)
			mu.Lock()
			running[key]--
			mu.Unlock()
		}
		ctx, cancel := context.WithCancel(t.Context())
		l.Start(ctx)
		for i := range 20 {
			for _, key := range []string{"hangs", "a", "b", "c"} {
				l.Add(key, fmt.Sprint(key, i), i)
				l.Add(key, fmt.Sprint(key, i), i) // again: nothing new
			}
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		for _, key := range []string{"a", "b", "c"} {
			if len(got[key]) < 20 {
				t.Errorf("%s got %v", key, got[key])
			}
			for i, v := range got[key] {
				if i < 20 && v != i {
					t.Errorf("%s got %v, out of order", key, got[key])
					break
				}
			}
		}
		if !l.Busy() {
			t.Error("not busy with a lane that hangs")
		}
		cancel()
		l.Wait()
	})
}

// TestLanesAgain: an item that is added while it is in hand is handed out
// again; one that was refused for want of room is asked for again.
func TestLanesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		count, spare := 0, 0
		l := &Lanes[int]{PerKey: 1, Total: 1, Batch: 1, Most: 2, Spare: func() { mu.Lock(); defer mu.Unlock(); spare++ }}
		l.Run = func(ctx context.Context, key string, items []int) {
			count++
			if count == 1 {
				l.Add(key, "x", 1)
			}
			time.Sleep(time.Second)
		}
		l.Start(t.Context())
		l.Add("k", "x", 1)
		for i := range 5 {
			l.Add("k", i, i)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if count != 1+1+2 {
			t.Errorf("%d batches, want x, x again, and the two that had room", count)
		}
		if spare == 0 || l.Busy() {
			t.Errorf("spare %d, busy %v", spare, l.Busy())
		}
	})
}

// TestLanesRest: what comes soon after a batch waits for more, and no longer than
// the rest; a whole batch and the first after a pause do not wait.
func TestLanesRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var mu sync.Mutex
		var got []string
		l := &Lanes[int]{PerKey: 1, Total: 2, Batch: 4, Most: 1000, Rest: 100 * time.Millisecond, Clock: SystemClock{}}
		l.Run = func(_ context.Context, key string, items []int) {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, fmt.Sprintf("%s%v at %d", key, items, time.Since(start).Milliseconds()))
		}
		l.Start(t.Context())
		add := func(key string, items ...int) {
			for _, i := range items {
				l.Add(key, fmt.Sprint(key, i), i)
			}
			synctest.Wait()
		}
		add("a", 1)
		time.Sleep(10 * time.Millisecond)
		add("a", 2, 3)
		add("b", 1)
		if !l.Busy() {
			t.Error("not busy, and two wait")
		}
		time.Sleep(90 * time.Millisecond)
		synctest.Wait()
		add("a", 4, 5, 6)
		add("a", 7)
		time.Sleep(time.Second)
		add("a", 8)
		time.Sleep(time.Second)
		synctest.Wait()
		want := []string{"a[1] at 0", "b[1] at 10", "a[2 3] at 100", "a[4 5 6 7] at 100", "a[8] at 1100"}
		if !slices.Equal(got, want) {
			t.Errorf("batches %q, want %q", got, want)
		}
		if l.Busy() || len(l.lanes) != 0 {
			t.Errorf("busy, or %d lanes are kept", len(l.lanes))
		}
	})
}

// TestLanesFull: a user whose mail fills the lanes, and whose mailbox takes none,
// keeps nobody else out; of others too more waits than has room, and is asked for
// again each time that there is some.
func TestLanesFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		got := make(map[int]bool)
		l := &Lanes[int]{PerKey: 1, Total: 2, Batch: 4, Most: 100}
		scan := func() {
			for i := range 1000 {
				l.Add("hangs", fmt.Sprint("hangs", i), i)
			}
			for i := range 30 {
				mu.Lock()
				done := got[i]
				mu.Unlock()
				if !done {
					l.Add("other", fmt.Sprint("other", i), i)
				}
			}
		}
		l.Spare = scan
		l.Run = func(ctx context.Context, key string, items []int) {
			if key == "hangs" {
				<-ctx.Done()
				return
			}
			time.Sleep(time.Second)
			mu.Lock()
			defer mu.Unlock()
			for _, i := range items {
				if got[i] {
					t.Errorf("item %d is handed out a second time", i)
				}
				got[i] = true
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		l.Start(ctx)
		scan()
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(got) != 30 {
			t.Errorf("%d of 30 items came through beside a lane that hangs", len(got))
		}
		l.mu.Lock()
		if most := l.Most + l.Batch; l.waiting > most {
			t.Errorf("%d items wait, and at most %d should", l.waiting, most)
		}
		l.mu.Unlock()
		cancel()
		l.Wait()
	})
}
