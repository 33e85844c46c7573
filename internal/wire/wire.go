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
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
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
	f *os.File

	sending, receiving sync.Mutex
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
func New(f *os.File) *Conn { return &Conn{f: f} }

// Close closes the connection. Calls in progress end with an error.
func (c *Conn) Close() error { return c.f.Close() }

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
// which there are at most maxFiles; they are the caller's to close. It returns
// io.EOF where the peer has closed the connection between two messages. After any
// error the connection is of no further use.
func (c *Conn) Receive(limit, maxFiles int) ([]byte, []*os.File, error) {
	c.receiving.Lock()
	defer c.receiving.Unlock()
	var header [headerSize]byte
	files, err := c.receiveHeader(header[:])
	fail := func(err error) ([]byte, []*os.File, error) {
		for _, f := range files {
			f.Close()
		}
		return nil, nil, err
	}
	if err != nil {
		return fail(err)
	}
	size := binary.BigEndian.Uint32(header[:])
	switch {
	case uint64(size) > uint64(limit):
		return fail(fmt.Errorf("receive: %w: %d octets", ErrTooLong, size))
	case len(files) > maxFiles || len(files) != int(header[4]):
		return fail(fmt.Errorf("receive: %w: %d", ErrFiles, len(files)))
	}
	message := make([]byte, size)
	if _, err := io.ReadFull(c.f, message); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fail(fmt.Errorf("receive: %w", err))
	}
	return message, files, nil
}

// receiveHeader fills header, and returns the files that came with it.
func (c *Conn) receiveHeader(header []byte) ([]*os.File, error) {
	conn, err := c.f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var files []*os.File
	// Room for more than is allowed, so that the kernel cuts nothing off and
	// every file that came is known, and closed.
	rights := make([]byte, unix.CmsgSpace(4*(MaxFiles+1)))
	for have := 0; have < len(header); {
		var n, rightsLen, flags int
		var got error
		err := conn.Read(func(fd uintptr) bool {
			for {
				var more []*os.File
				n, rightsLen, flags, more, got = receive(int(fd), header[have:], rights)
				files = append(files, more...)
				if !errors.Is(got, unix.EINTR) {
					return !errors.Is(got, unix.EAGAIN)
				}
			}
		})
		switch {
		case err != nil:
			return files, fmt.Errorf("receive: %w", err)
		case got != nil:
			return files, fmt.Errorf("receive: %w", got)
		case flags&unix.MSG_CTRUNC != 0 || len(files) > MaxFiles:
			return files, fmt.Errorf("receive: %w", ErrFiles)
		case n == 0 && rightsLen == 0 && have == 0:
			return files, io.EOF
		case n == 0:
			return files, fmt.Errorf("receive: %w", io.ErrUnexpectedEOF)
		}
		have += n
	}
	return files, nil
}

// receive reads once. Files are closed on exec from the beginning.
func receive(fd int, p, rights []byte) (n, rightsLen, flags int, files []*os.File, err error) {
	unlock := forkLock()
	defer unlock()
	n, rightsLen, flags, _, err = unix.Recvmsg(fd, p, rights, receiveFlags)
	if err != nil || rightsLen == 0 {
		return n, rightsLen, flags, nil, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:rightsLen])
	if err != nil {
		return n, rightsLen, flags, nil, err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue // no files: credentials or the like
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return n, rightsLen, flags, files, nil
}
