package door

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"dma/internal/wire"
)

// connectPoll is the time between two attempts at a socket whose queue of
// connections is full.
const connectPoll = 10 * time.Millisecond

// connect connects to the socket at path. It waits for a server that is behind
// with its connections until the deadline, and for nothing else.
func connect(path string, deadline time.Time) (*wire.Conn, error) {
	fail := func(err error) (*wire.Conn, error) {
		return nil, &os.PathError{Op: "connect", Path: path, Err: err}
	}
	if err := checkLength(path); err != nil {
		return fail(err)
	}
	fd, err := socket()
	if err != nil {
		return fail(err)
	}
	for {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		again := errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR)
		if !again || time.Now().After(deadline) {
			break
		}
		time.Sleep(connectPoll)
	}
	if err != nil && !errors.Is(err, unix.EISCONN) {
		unix.Close(fd)
		return fail(err)
	}
	return wire.New(os.NewFile(uintptr(fd), path)), nil
}

// maxPath is the longest path of a socket that every system takes, in octets.
const maxPath = 103

func checkLength(path string) error {
	if len(path) > maxPath {
		return fmt.Errorf("the path of a socket has at most %d octets", maxPath)
	}
	return nil
}
