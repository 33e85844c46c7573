package door

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dma/internal/wire"
	"dma/spooldir"
)

// The patience of a client.
const (
	answerTime = time.Minute      // for an answer; a service may have to be started first
	frameTime  = time.Minute      // for a frame to be taken
	commitTime = 10 * time.Minute // for the answer to a commit, which must not be missed
	busyTime   = 30 * time.Second // for a place, where too many are there
	busyPause  = 100 * time.Millisecond
)

// ErrUnknown says that the connection broke after the commit had been sent: the
// message may be in the queue or not.
var ErrUnknown = errors.New("the service has ended before it answered; the message may be queued all the same")

// Client asks the server at a socket. An error that is no *Refusal says that the
// door is shut: there is no socket, or nobody answers at it.
type Client struct {
	Path string // of the socket
}

// Free asks whether mail is taken now; a *Refusal says why it is not.
func (c Client) Free() error {
	conn, err := c.ask([]byte{askFree}, sayOK, nil)
	if err != nil {
		return err
	}
	return conn.Close()
}

// Flush asks for an attempt at everything that waits.
func (c Client) Flush() error {
	conn, err := c.ask([]byte{askFlush}, sayOK, nil)
	if err != nil {
		return err
	}
	return conn.Close()
}

// List calls each with every entry of the queue that the caller may see.
func (c Client) List(each func(entry []byte) error) error {
	conn, err := c.ask([]byte{askList}, sayOK, each)
	if err != nil {
		return err
	}
	return conn.Close()
}

// errHungUp is the cause where the server has said nothing before the connection
// ended: a service took it, or left it at its socket, while it ended itself.
var errHungUp = errors.New("the service has ended")

// comeAgain reports whether a later attempt may end otherwise: the server has no
// place now, or has ended and may be started again.
func comeAgain(err error) bool {
	var r *Refusal
	return errors.As(err, &r) && r.Kind == Busy || errors.Is(err, errHungUp)
}

// hungUp makes errHungUp of the errors of a connection that the other end has
// closed.
func hungUp(err error) error {
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, unix.EPIPE, unix.ECONNRESET} {
		if errors.Is(err, end) {
			return fmt.Errorf("%w: %w", errHungUp, err)
		}
	}
	return err
}

// ask connects, sends one frame and waits for the answer. Entries before it go
// to each. It comes again while the server is busy, and where it has ended before
// it said anything. The connection is the caller's to close.
func (c Client) ask(request []byte, want byte, each func([]byte) error) (*wire.Conn, error) {
	until := time.Now().Add(busyTime)
	for {
		conn, err := c.askOnce(until, request, want, each)
		if !comeAgain(err) || time.Now().After(until) {
			return conn, err
		}
		time.Sleep(busyPause/2 + rand.N(busyPause))
	}
}

func (c Client) askOnce(until time.Time, request []byte, want byte, each func([]byte) error) (*wire.Conn, error) {
	conn, err := connect(c.Path, until)
	if err != nil {
		return nil, err
	}
	sent := send(conn, request)
	heard := false
	for {
		payload, more, err := receive(conn, answerTime, want, each != nil)
		heard = heard || err == nil
		if err == nil && more {
			if err = each(payload); err == nil {
				continue
			}
		}
		if err == nil {
			return conn, nil
		}
		conn.Close()
		var r *Refusal
		if sent != nil && !errors.As(err, &r) {
			err = sent
		}
		if !heard {
			err = hungUp(err)
		}
		return nil, c.named(err)
	}
}

// named gives an error the path of the socket, unless the server speaks itself.
func (c Client) named(err error) error {
	var r *Refusal
	if errors.As(err, &r) {
		return err
	}
	return fmt.Errorf("socket %s: %w", c.Path, err)
}

func send(conn *wire.Conn, frame []byte) error {
	if err := conn.SetWriteDeadline(time.Now().Add(frameTime)); err != nil {
		return err
	}
	return conn.Send(frame)
}

// receive waits for an answer of the kind want, or for an entry (more) where
// entries may come.
func receive(conn *wire.Conn, patience time.Duration, want byte, entries bool) (payload []byte, more bool, err error) {
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return nil, false, err
	}
	frame, _, err := conn.Receive(maxFrame, 0)
	switch {
	case err != nil:
		return nil, false, err
	case len(frame) > 0 && frame[0] == want:
		return frame[1:], false, nil
	case len(frame) > 0 && frame[0] == sayEntry && entries:
		return frame[1:], true, nil
	case len(frame) > 0 && frame[0] == sayRefused:
		return nil, false, parseRefusal(frame[1:])
	}
	return nil, false, errors.New("an answer that makes no sense: is another program there?")
}

// Draft is a message on its way to the server.
type Draft struct {
	client  Client
	conn    *wire.Conn
	id      string
	arrival time.Time
}

// Create begins a message with an envelope that Check takes; who submits it, the
// server knows. Its content comes without a Received field, which the server
// writes before it.
func (c Client) Create(e *spooldir.Envelope) (*Draft, error) {
	if err := Check(e); err != nil {
		return nil, err
	}
	frames := encodeEnvelope(e)
	until := time.Now().Add(busyTime)
	for {
		d, err := c.create(until, frames)
		if !comeAgain(err) || time.Now().After(until) {
			return d, err
		}
		time.Sleep(busyPause/2 + rand.N(busyPause))
	}
}

func (c Client) create(until time.Time, frames [][]byte) (*Draft, error) {
	conn, err := connect(c.Path, until)
	if err != nil {
		return nil, err
	}
	d := &Draft{client: c, conn: conn}
	for _, f := range frames {
		if err = d.send(f); err != nil {
			break
		}
	}
	if err == nil {
		err = d.begun()
	}
	if err != nil {
		conn.Close()
		return nil, c.named(hungUp(err)) // it has no message yet, and makes none without the commit
	}
	return d, nil
}

// begun waits for the id.
func (d *Draft) begun() error {
	answer, _, err := receive(d.conn, answerTime, sayID, false)
	if err != nil {
		return err
	}
	id, digits, _ := strings.Cut(string(answer), " ")
	micros, err := strconv.ParseInt(digits, 10, 64)
	if kind, ok := spooldir.IDKind(id); !ok || kind != spooldir.Submitted || err != nil {
		return errors.New("an answer without an id")
	}
	d.id, d.arrival = id, time.UnixMicro(micros).UTC()
	return nil
}

// send sends a frame. A server that refuses closes the connection: then what it
// has said counts, not that it can't be written to.
func (d *Draft) send(frame []byte) error {
	err := send(d.conn, frame)
	if err == nil {
		return nil
	}
	var r *Refusal
	if _, _, said := receive(d.conn, time.Second, sayOK, false); errors.As(said, &r) {
		return said
	}
	return err
}

// ID is the id of the message.
func (d *Draft) ID() string { return d.id }

// Arrival is the time of arrival that its envelope states.
func (d *Draft) Arrival() time.Time { return d.arrival }

// Write adds to the content.
func (d *Draft) Write(p []byte) (int, error) {
	written := 0
	frame := make([]byte, 0, 1+min(len(p), maxPayload))
	for len(p) > 0 {
		n := min(len(p), maxPayload)
		if err := d.send(append(append(frame[:0], askData), p[:n]...)); err != nil {
			return written, d.client.named(err)
		}
		written += n
		p = p[n:]
	}
	return written, nil
}

// Commit ends the draft; nil says that the message is on disk. After an error
// that is ErrUnknown nobody can say; after any other nothing is queued.
func (d *Draft) Commit() error {
	defer d.conn.Close()
	if err := d.send([]byte{askCommit}); err != nil {
		return d.client.named(err)
	}
	_, _, err := receive(d.conn, commitTime, sayOK, false)
	var r *Refusal
	if err != nil && !errors.As(err, &r) {
		return d.client.named(ErrUnknown)
	}
	return err
}

// Abort ends the draft; the server removes what there is of it.
func (d *Draft) Abort() error { return d.conn.Close() }
