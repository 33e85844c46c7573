package notify

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The first descriptor that a manager passes, and the most that are taken.
const (
	firstSocket = 3
	maxSockets  = 64
)

// Socket is a listening socket that the manager has opened.
type Socket struct {
	Name string // FileDescriptorName= of its unit; "unknown" if there is none
	File *os.File
}

// Sockets returns the sockets that the manager has passed to the process with a
// pid, in their order; none is no error. They are closed in programs that the
// process starts. It may be called once, before anything else opens a file; the
// caller keeps the variables LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES from the
// programs that it starts.
func Sockets(getenv func(string) string, pid int) ([]Socket, error) {
	text := getenv("LISTEN_FDS")
	if text == "" || getenv("LISTEN_PID") != strconv.Itoa(pid) {
		return nil, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > maxSockets {
		return nil, fmt.Errorf("LISTEN_FDS %q: not a number up to %d", text, maxSockets)
	}
	var names []string
	if list := getenv("LISTEN_FDNAMES"); list != "" {
		if names = strings.Split(list, ":"); len(names) != n {
			return nil, fmt.Errorf("LISTEN_FDNAMES %q: not %d names", list, n)
		}
	}
	for fd := firstSocket; fd < firstSocket+n; fd++ {
		// All of them are closed for others before one can fail.
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return nil, fmt.Errorf("LISTEN_FDS %q: descriptor %d: %w", text, fd, err)
		}
	}
	var sockets []Socket
	for i := range n {
		fd := firstSocket + i
		listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		if err != nil {
			return nil, fmt.Errorf("LISTEN_FDS %q: descriptor %d: %w", text, fd, err)
		}
		if listens == 0 {
			return nil, fmt.Errorf("LISTEN_FDS %q: descriptor %d is no listening socket", text, fd)
		}
		name := "unknown"
		if names != nil {
			name = names[i]
		}
		sockets = append(sockets, Socket{name, os.NewFile(uintptr(fd), "socket "+name)})
	}
	return sockets, nil
}
