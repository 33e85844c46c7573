package config

import (
	"errors"
	"strconv"
	"strings"
	"time"
)

const day = 24 * time.Hour

// maxDuration is the longest time that ParseDuration takes.
const maxDuration = 3650 * day

// ParseDuration reads a time as it stands in the file: whole numbers with the
// units d, h, m and s, each at most once, the larger first: "90s", "5d",
// "1h30m". There is no sign, no fraction and no number without a unit. The
// longest time is 3650d.
func ParseDuration(s string) (time.Duration, error) {
	bad := errors.New("not a time like 90s, 5m, 3h, 5d or 1h30m")
	var sum time.Duration
	above := maxDuration
	for rest := s; rest != "" || s == ""; {
		n := 0
		for n < len(rest) && '0' <= rest[n] && rest[n] <= '9' {
			n++
		}
		if n == 0 || n == len(rest) {
			return 0, bad
		}
		unit := unitOf(rest[n])
		if unit == 0 || unit >= above {
			return 0, bad
		}
		above = unit
		v, err := strconv.ParseInt(rest[:n], 10, 64)
		if err != nil || v > int64((maxDuration-sum)/unit) {
			return 0, errors.New("longer than 3650d")
		}
		sum += time.Duration(v) * unit
		rest = rest[n+1:]
	}
	return sum, nil
}

func unitOf(c byte) time.Duration {
	switch c {
	case 'd':
		return day
	case 'h':
		return time.Hour
	case 'm':
		return time.Minute
	case 's':
		return time.Second
	}
	return 0
}

// FormatDuration writes d, cut to whole seconds, as ParseDuration reads it.
func FormatDuration(d time.Duration) string {
	if d < time.Second {
		return "0s"
	}
	var b strings.Builder
	for _, unit := range "dhms" {
		if u := unitOf(byte(unit)); d >= u {
			b.WriteString(strconv.FormatInt(int64(d/u), 10))
			b.WriteRune(unit)
			d %= u
		}
	}
	return b.String()
}
