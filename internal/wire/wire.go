// Package wire carries framed messages, and open files with them, between the
// processes of dma over unix sockets.
//
// A frame is its length in four octets, the most significant first, one octet
// with the number of files, and the message. The files travel as ancillary data
// with the first octet of the frame.
//
// Nothing that arrives is believed: a frame longer than the receiver wants, and
// files that it did not ask for, end the connection. The package needs no net,
// since the small program that every submission starts links it.
//
// A file can do harm by being received: to close one, or to ask whether it can be
// read, is a request to its file system, which any user may serve (FUSE), and
// which need not answer; the process then hangs in the kernel, and cannot even be
// killed. So files are taken from a peer that is trusted alone (AcceptFiles). For
// all others the kernel is told to refuse them, which Linux does from 6.16 on. An
// older one is asked before every reading what comes: files stay in the socket,
// and the socket stays open until the process ends. Then they go last, when
// everything else that the process had is free already.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// MaxFiles is how many files a frame can carry.
const MaxFiles = 4

const headerSize = 5

// Errors of a peer that does not keep to the protocol. The connection is of no
// further use.
var (
	ErrTooLong = errors.New("frame longer than allowed")
	ErrFiles   = errors.New("frame with other files than allowed")
)

// Conn is one end of a stream socket. One goroutine may send while another one
// receives.
type Conn struct {
	f          *os.File
	takesFiles bool

	sending, receiving sync.Mutex
	closing            atomic.Bool
	strange            bool // files lie in the socket that are not to be taken; under receiving
}

// Pair returns the two ends of a new connection, both closed on exec: one for
// New, one to give to another process.
func Pair() (ours, theirs *os.File, err error) {
	fds, err := pair()
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	for _, fd := range fds {
		// Before os.NewFile, which asks the poller to watch only what never blocks.
		if err := unix.SetNonblock(fd, true); err != nil {
			unix.Close(fds[0])
			unix.Close(fds[1])
			return nil, nil, fmt.Errorf("socket pair: %w", err)
		}
		RefuseFiles(fd)
	}
	return os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket"), nil
}

// Inherited returns the connection that the process was started with as
// descriptor fd.
func Inherited(fd int) (*Conn, error) {
	unix.CloseOnExec(fd)
	if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	} else if kind != unix.SOCK_STREAM {
		return nil, fmt.Errorf("descriptor %d is no stream socket", fd)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	return New(os.NewFile(uintptr(fd), "socket")), nil
}

// New returns a Conn on a connected unix stream socket that does not block. It
// owns the file from then on.
func New(f *os.File) *Conn {
	c := &Conn{f: f}
	_ = c.Raw(RefuseFiles) // a file that is closed says so to every call
	return c
}

// AcceptFiles lets frames carry files to this end, whose peer is trusted. It is
// called before Receive.
func (c *Conn) AcceptFiles() {
	c.takesFiles = true
	_ = c.Raw(acceptFiles)
}

// Close closes the connection. Calls in progress end with an error. An error that
// wraps ErrFiles says that the peer has sent files, and that the socket is kept by
// the process for that.
func (c *Conn) Close() error {
	if c.takesFiles {
		return c.f.Close()
	}
	c.closing.Store(true)
	// Nothing more arrives, and a Receive in progress ends.
	if err := c.Raw(func(fd int) { _ = unix.Shutdown(fd, unix.SHUT_RD) }); err != nil {
		return c.f.Close() // which says that it is closed already
	}
	c.receiving.Lock()
	defer c.receiving.Unlock()
	var kept error
	if err := c.Raw(func(fd int) {
		if c.strange || filesIn(fd) {
			kept = keep(fd)
		}
	}); err != nil {
		return c.f.Close()
	}
	return errors.Join(kept, c.f.Close())
}

// SetDeadline ends calls in progress and later ones at t with an error for which
// errors.Is(err, os.ErrDeadlineExceeded) holds; the zero time: never.
func (c *Conn) SetDeadline(t time.Time) error { return c.f.SetDeadline(t) }

// SetReadDeadline is SetDeadline for Receive alone.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.f.SetReadDeadline(t) }

// SetWriteDeadline is SetDeadline for Send alone.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.f.SetWriteDeadline(t) }

// Raw calls f with the descriptor, which stays open meanwhile.
func (c *Conn) Raw(f func(fd int)) error {
	raw, err := c.f.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) { f(int(fd)) })
}

// Send sends one message with files, which stay the caller's. After an error the
// connection is of no further use.
func (c *Conn) Send(message []byte, files ...*os.File) error {
	if len(files) > MaxFiles {
		return ErrFiles
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	frame := make([]byte, headerSize, headerSize+len(message))
	binary.BigEndian.PutUint32(frame, uint32(len(message)))
	frame[4] = byte(len(files))
	frame = append(frame, message...)
	if len(files) > 0 {
		n, err := c.sendFiles(frame, files)
		if err != nil {
			return fmt.Errorf("send: %w", err)
		}
		if frame = frame[n:]; len(frame) == 0 {
			return nil // writing nothing would ask whether the peer is there
		}
	}
	if _, err := c.f.Write(frame); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

// sendFiles sends as much of a frame as there is room for, with files.
func (c *Conn) sendFiles(frame []byte, files []*os.File) (int, error) {
	fds := make([]int, len(files))
	raws := make([]func(func(uintptr)) error, len(files))
	for i, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return 0, err
		}
		raws[i] = raw.Control
	}
	conn, err := c.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	var sent error
	send := func() {
		rights := unix.UnixRights(fds...)
		err := conn.Write(func(fd uintptr) bool {
			for {
				n, sent = unix.SendmsgN(int(fd), frame, rights, nil, 0)
				if !errors.Is(sent, unix.EINTR) {
					return !errors.Is(sent, unix.EAGAIN)
				}
			}
		})
		if err != nil {
			sent = err
		}
	}
	// Each file is held open while its descriptor is in use.
	hold := send
	for i := range files {
		next := hold
		hold = func() {
			if err := raws[i](func(fd uintptr) { fds[i] = int(fd); next() }); err != nil {
				sent = err
			}
		}
	}
	hold()
	return n, sent
}

// Receive returns the next message, of at most limit octets, and its files, of
// which there are at most maxFiles, and none without AcceptFiles; they are the
// caller's to close. It returns io.EOF where the peer has closed the connection
// between two messages. After any error the connection is of no further use.
func (c *Conn) Receive(limit, maxFiles int) ([]byte, []*os.File, error) {
	c.receiving.Lock()
	defer c.receiving.Unlock()
	var files []*os.File
	message, err := c.receive(limit, maxFiles, &files)
	if err == nil {
		return message, files, nil
	}
	for _, f := range files {
		f.Close()
	}
	switch {
	case c.closing.Load():
		err = os.ErrClosed
	case err == io.EOF:
		return nil, nil, err
	}
	return nil, nil, fmt.Errorf("receive: %w", err)
}

func (c *Conn) receive(limit, maxFiles int, files *[]*os.File) ([]byte, error) {
	conn, err := c.f.SyscallConn()
	if err != nil {
		return nil, err
	}
	// fill fills p, and reports whether any of it came.
	fill := func(p []byte) (some bool, err error) {
		for have := 0; have < len(p); {
			var n int
			var got error
			err := conn.Read(func(fd uintptr) bool {
				for {
					if c.takesFiles {
						n, got = readFiles(int(fd), p[have:], files)
					} else {
						n, got = readPlain(int(fd), p[have:])
					}
					if !errors.Is(got, unix.EINTR) {
						return !errors.Is(got, unix.EAGAIN)
					}
				}
			})
			switch {
			case err != nil:
				return some, err
			case got != nil:
				c.strange = c.strange || errors.Is(got, ErrFiles)
				return some, got
			case n == 0:
				return some, io.ErrUnexpectedEOF
			}
			have += n
			some = true
		}
		return some, nil
	}
	var header [headerSize]byte
	if some, err := fill(header[:]); err != nil {
		if !some && err == io.ErrUnexpectedEOF && len(*files) == 0 {
			err = io.EOF
		}
		return nil, err
	}
	size := binary.BigEndian.Uint32(header[:])
	switch {
	case uint64(size) > uint64(limit):
		return nil, fmt.Errorf("%w: %d octets", ErrTooLong, size)
	case len(*files) > maxFiles || len(*files) != int(header[4]):
		return nil, fmt.Errorf("%w: %d", ErrFiles, len(*files))
	}
	message := make([]byte, size)
	if _, err := fill(message); err != nil {
		return nil, err
	}
	if len(*files) != int(header[4]) {
		return nil, fmt.Errorf("%w: %d", ErrFiles, len(*files))
	}
	return message, nil
}

// readFiles reads once, and adds the files that came. They are closed on exec from
// the beginning.
func readFiles(fd int, p []byte, files *[]*os.File) (int, error) {
	// Room for more than is allowed, so that the kernel cuts nothing off and
	// every file that came is known, and closed.
	rights := make([]byte, unix.CmsgSpace(4*(MaxFiles+1)))
	unlock := forkLock()
	defer unlock()
	n, length, flags, _, err := unix.Recvmsg(fd, p, rights, receiveFlags)
	if err != nil {
		return n, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:length])
	if err != nil {
		return n, err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue // no files: credentials or the like
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			*files = append(*files, os.NewFile(uintptr(fd), "received"))
		}
	}
	if flags&unix.MSG_CTRUNC != 0 || len(*files) > MaxFiles {
		return n, ErrFiles
	}
	return n, nil
}
