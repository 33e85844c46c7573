//go:build !freebsd && !dragonfly

package sandbox

import "syscall"

func setLimit(l *syscall.Rlimit, max uint64) {
	l.Cur, l.Max = min(l.Cur, max), min(l.Max, max)
}
