// Package retry says when a recipient that failed for now is due again.
package retry

import (
	"encoding/binary"
	"hash/fnv"
	"time"
)

// MinAttempts is how often a recipient has to have been tried before age alone
// makes it fail for good: a machine that was switched off for a week owes its
// mail some attempts.
const MinAttempts = 5

// Schedule is the plan of attempts. The wait grows with the age of the message
// from Min to Max; the first retry comes much sooner, since most trouble is
// short.
type Schedule struct {
	Min, Max time.Duration
	Expire   time.Duration // age at which a recipient fails for good
}

// Next returns when a recipient of message id is due after its attempt-th
// failure (the first is 1). The wait is the age of the message, held between
// Min and Max, Min/5 after the first failure, and between 3/4 and 5/4 of that:
// a pure function of its arguments that spreads messages which failed together
// and keeps the recipients of one message together.
func (s Schedule) Next(id string, attempt int, arrival, now time.Time) time.Time {
	wait := min(max(now.Sub(arrival), s.Min), s.Max) // an arrival in the future has no age
	if attempt <= 1 {
		wait = s.Min / 5
	}
	h := fnv.New64a()
	h.Write([]byte(id))
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(attempt))
	h.Write(b[:])
	// FNV mixes its last octets badly into the high bits: fold.
	x := h.Sum64()
	x ^= x >> 32
	x *= 0x9e3779b97f4a7c15
	jitter := time.Duration(x >> 40 % 1000)
	return now.Add(wait*3/4 + wait/2*jitter/1000)
}

// Expired reports whether a recipient has had its time: the message is older
// than Expire and the recipient was tried MinAttempts times.
func (s Schedule) Expired(arrival, now time.Time, attempts int) bool {
	return now.Sub(arrival) >= s.Expire && attempts >= MinAttempts
}
