package retry

import (
	"fmt"
	"testing"
	"time"
)

var schedule = Schedule{Min: 5 * time.Minute, Max: 3 * time.Hour, Expire: 5 * 24 * time.Hour}

func TestNext(t *testing.T) {
	arrival := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tt := range []struct {
		age     time.Duration
		attempt int
		wait    time.Duration // without jitter
	}{
		{time.Second, 1, time.Minute},
		{time.Minute, 2, 5 * time.Minute},
		{time.Hour, 3, time.Hour},
		{100 * time.Hour, 30, 3 * time.Hour},
	} {
		now := arrival.Add(tt.age)
		for n := 1; n <= 50; n++ {
			got := schedule.Next(fmt.Sprintf("20260102T030405-%016x", n), tt.attempt, arrival, now).Sub(now)
			if got < tt.wait*3/4 || got > tt.wait*5/4 {
				t.Errorf("age %v, attempt %d: wait %v, want %v within a quarter", tt.age, tt.attempt, got, tt.wait)
			}
		}
	}
}

func TestNextSpreadsAndRepeats(t *testing.T) {
	arrival := time.Unix(0, 0)
	now := arrival.Add(time.Hour)
	seen := make(map[time.Time]bool)
	for n := 1; n <= 100; n++ {
		id := fmt.Sprintf("20260102T030405-%016x", n)
		a, b := schedule.Next(id, 3, arrival, now), schedule.Next(id, 3, arrival, now)
		if a != b {
			t.Fatalf("message %d: %v, then %v", n, a, b)
		}
		seen[a] = true
	}
	if len(seen) < 80 {
		t.Errorf("100 messages are due at only %d times", len(seen))
	}
}

func TestExpired(t *testing.T) {
	arrival := time.Unix(0, 0)
	old, young := arrival.Add(6*24*time.Hour), arrival.Add(24*time.Hour)
	if schedule.Expired(arrival, young, 100) {
		t.Error("a young message expired")
	}
	if schedule.Expired(arrival, old, MinAttempts-1) {
		t.Error("a message expired that was hardly tried")
	}
	if !schedule.Expired(arrival, old, MinAttempts) {
		t.Error("an old message that was tried often did not expire")
	}
}
