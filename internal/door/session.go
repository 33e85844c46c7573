package door

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
	"unsafe"

	"dma/internal/wire"
	"dma/spooldir"
)

// session is one connection: one request of one user.
type session struct {
	server *Server
	uid    int
	conn   *wire.Conn
	begun  time.Time
	end    time.Time // of the client's time
	held   int       // octets of the envelope, as limits count them
	gives  time.Time // since when it is to give its place to others; under server.mu
}

// errGone says that the client has closed the connection or broken the
// protocol: there is nobody to answer.
var errGone = errors.New("the client has gone")

// run serves the request. What was refused is said, if there is anybody left.
func (c *session) run() {
	err := c.request()
	if err == nil || errors.Is(err, errGone) {
		return
	}
	_ = c.say(refusal(err).encode())
}

// next returns the kind and the payload of the next frame.
func (c *session) next() (byte, []byte, error) {
	if err := c.patience(); err != nil {
		return 0, nil, err
	}
	frame, _, err := c.conn.Receive(maxFrame, 0)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		if why := c.hurried(); why != "" {
			return 0, nil, refuse(Busy, "%s", why)
		}
		return 0, nil, refuse(Tempfail, "you were silent for too long")
	case errors.Is(err, wire.ErrTooLong), errors.Is(err, wire.ErrFiles), err == nil && len(frame) == 0:
		return 0, nil, refuse(BadData, "a frame that is empty, too long, or has files")
	case err != nil:
		return 0, nil, errGone
	}
	return frame[0], frame[1:], nil
}

// patience sets the time of the next frame. A server that stops has none: stop
// looks for open sessions under the same lock.
func (c *session) patience() error {
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	until := time.Now().Add(s.idle)
	if c.end.Before(until) {
		until = c.end
	}
	if s.stopped || !c.gives.IsZero() {
		until = time.Unix(1, 0)
	}
	return c.conn.SetReadDeadline(until)
}

// hurried returns why the client has no more time, "" if it used it up.
func (c *session) hurried() string {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	switch {
	case c.server.stopped:
		return "the service is stopping"
	case !c.gives.IsZero():
		return "others wait for the place"
	}
	return ""
}

// answerTime sets the time for taking an answer, as patience does that of a frame.
func (c *session) answerTime() error {
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	within := s.idle
	if s.stopped || !c.gives.IsZero() {
		within = s.hurry
	}
	return c.conn.SetWriteDeadline(time.Now().Add(within))
}

// say sends an answer.
func (c *session) say(frame []byte) error {
	if err := c.answerTime(); err != nil {
		return errGone
	}
	if err := c.conn.Send(frame); err != nil {
		return errGone
	}
	return nil
}

func (c *session) request() error {
	kind, payload, err := c.next()
	if err != nil {
		return err
	}
	if kind != askSubmit && len(payload) > 0 {
		return refuse(BadData, "a request that is longer than it should be")
	}
	s := c.server
	switch kind {
	case askFree:
		err = s.free()
	case askSubmit:
		err = c.submit(payload)
	case askList:
		err = c.list()
	case askFlush:
		run := s.flusher.soon
		if s.mayAll(c.uid) {
			run = s.flusher.now
		}
		err = run()
	default:
		return refuse(BadData, "request %q is not known here: are dma and dma-runner of the same version?", kind)
	}
	if err != nil {
		return err
	}
	return c.say([]byte{sayOK})
}

// submit takes a message.
func (c *session) submit(payload []byte) error {
	s := c.server
	if err := s.free(); err != nil {
		return err
	}
	e, err := c.envelope(payload)
	if err != nil {
		return err
	}
	d, err := Begin(s.o.Spool, e, s.o.HostName)
	if err != nil {
		s.trouble(err)
		return err
	}
	size, err := c.content(d, e)
	if err != nil {
		_ = d.Abort() // what it can't remove, the queue's cleaner does
		return err
	}
	if err := d.Commit(); err != nil {
		s.trouble(err)
		return err
	}
	if s.o.Log != nil {
		s.o.Log.Submitted(d.ID(), e.Sender, c.uid, size, len(e.Recipients))
	}
	return nil
}

// envelope reads the rest of an envelope. Nothing in it says who submits.
func (c *session) envelope(payload []byte) (*spooldir.Envelope, error) {
	e, n, err := parseEnvelope(payload)
	if err != nil {
		return nil, err
	}
	e.UID = c.uid
	if err := c.hold(n * int(unsafe.Sizeof(spooldir.Recipient{}))); err != nil {
		return nil, err
	}
	e.Recipients = make([]spooldir.Recipient, 0, n)
	for len(e.Recipients) < n {
		kind, payload, err := c.next()
		if err != nil {
			return nil, err
		}
		if kind != askRecipients || len(payload) == 0 {
			return nil, refuse(BadData, "recipients are missing")
		}
		if err := c.hold(len(payload)); err != nil {
			return nil, err
		}
		if err := parseRecipients(payload, e, n); err != nil {
			return nil, err
		}
	}
	return e, Check(e)
}

func (c *session) hold(octets int) error {
	if r := c.server.limits.hold(c.uid, octets); r != nil {
		return r
	}
	c.held += octets
	return nil
}

// content tells the client its id and takes the content, up to the commit.
func (c *session) content(d *spooldir.Draft, e *spooldir.Envelope) (size int64, err error) {
	s := c.server
	answer := append([]byte{sayID}, d.ID()+" "+strconv.FormatInt(d.Arrival().UnixMicro(), 10)...)
	if err := c.say(answer); err != nil {
		return 0, err
	}
	var check contentCheck
	for {
		kind, payload, err := c.next()
		switch {
		case err != nil:
			return 0, err
		case kind == askCommit && len(payload) == 0:
			return size, check.end(e)
		case kind != askData || len(payload) == 0:
			return 0, refuse(BadData, "content or a commit is missing")
		}
		if err := check.write(payload); err != nil {
			return 0, err
		}
		if err := s.free(); err != nil {
			return 0, err
		}
		if _, err := d.Write(payload); err != nil {
			s.trouble(err)
			return 0, err
		}
		size += int64(len(payload))
	}
}

// list sends the entries of the queue. Reading the queue is nobody's to hold up:
// it is done before the first entry goes to the client.
func (c *session) list() error {
	s := c.server
	if s.o.List == nil {
		return refuse(Denied, "the queue is not listed here")
	}
	if r := s.limits.list(c.uid, time.Now()); r != nil {
		return r
	}
	var took time.Duration
	defer func() { s.limits.unlist(c.uid, time.Now(), took) }()
	s.listing <- struct{}{}
	begun := time.Now()
	entries, err := s.o.List(c.uid, s.mayAll(c.uid))
	if !s.mayAll(c.uid) {
		took = time.Since(begun)
	}
	<-s.listing
	if err != nil {
		err = fmt.Errorf("list: %w", err)
		s.trouble(err)
		return err
	}
	end := time.Now().Add(2 * s.idle) // as long as somebody takes it, it is held in memory
	for entry := range entries {
		if len(entry) > maxPayload {
			continue
		}
		if time.Now().After(end) {
			return errGone
		}
		if why := c.hurried(); why != "" {
			return refuse(Busy, "%s", why)
		}
		if err := c.say(append([]byte{sayEntry}, entry...)); err != nil {
			return err
		}
	}
	return nil
}
