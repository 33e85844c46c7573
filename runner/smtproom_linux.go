package runner

import "syscall"

// A quarter of the limit of the stack is for the arguments and the environment of
// a program, 6 MiB of them at most (execve(2)). The limit may be raised for the
// moment of the start: 10,000 recipients of the longest addresses need more than
// the usual 8 MiB give.
const (
	mostStack = 32 << 20
	mostArgs  = 6 << 20
	leastArgs = 128 << 10
)

// argRoom is how many octets of arguments a program can be started with by
// withArgRoom.
func argRoom() int {
	room := uint64(leastArgs)
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_STACK, &l) == nil {
		room = max(room, min(max(l.Cur, min(l.Max, mostStack))/4, mostArgs))
	}
	return max(int(room)-argsTaken(), 0)
}

// withArgRoom calls f, which starts a program with arguments of size octets.
func withArgRoom(size int, f func() error) error {
	var l syscall.Rlimit
	if size > leastArgs/2 && syscall.Getrlimit(syscall.RLIMIT_STACK, &l) == nil && l.Cur < mostStack {
		raised := syscall.Rlimit{Cur: min(l.Max, mostStack), Max: l.Max}
		if syscall.Setrlimit(syscall.RLIMIT_STACK, &raised) == nil {
			defer syscall.Setrlimit(syscall.RLIMIT_STACK, &l)
		}
	}
	return f()
}
