package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"dma/forward"
	"dma/internal/passwd"
	"dma/internal/wire"
	"dma/spooldir"
)

// Serve is the work of an agent process: it does what the queue process at the
// other end of conn asks for, with a, for the user u, within its role. It
// returns nil when the connection has ended, and an error if ctx has or the other
// end did not keep to the protocol. What was in progress then is cut off: the
// group of a running command is killed, an unfinished message taken back.
func Serve(ctx context.Context, conn *wire.Conn, a Agent, u passwd.User, role Role) error {
	if !role.Valid() {
		return fmt.Errorf("%q is no role", role)
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &server{conn: conn, agent: a, user: u, role: role, chunks: make(chan []byte, 1)}
	defer s.working.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	for {
		b, _, err := conn.Receive(maxRequest, 0)
		if err == nil {
			err = s.take(ctx, b)
		}
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, io.EOF):
			return nil
		default:
			conn.Send(encodeWord(err))
			return err
		}
	}
}

// A server is the state of Serve.
type server struct {
	conn  *wire.Conn
	agent Agent
	user  passwd.User
	role  Role

	batch   []*Job // that comes in
	jobs    uint64 // that came in
	working sync.WaitGroup

	mu         sync.Mutex
	ponging    bool
	delivering bool
	forwarding bool
	asked      bool // a chunk is on its way

	fetching sync.Mutex  // one piece of content at a time
	chunks   chan []byte // nil: it could not be read
	window   []byte      // the piece that was fetched last
	at       span        // where it is from
}

// take takes up a request. It never waits for long, so that the other end is
// never kept from writing.
func (s *server) take(ctx context.Context, b []byte) error {
	r, err := parseRequest(b)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r.kind {
	case pingRequest:
		if s.ponging {
			return fmt.Errorf("%w: a second ping at once", errProtocol)
		}
		s.ponging = true
		// Not from here: the other end may be busy writing to us.
		s.working.Go(s.pong)
	case chunkRequest:
		if !s.asked {
			return fmt.Errorf("%w: content that nobody asked for", errProtocol)
		}
		s.asked = false
		if r.failed {
			r.chunk = nil
		} else if r.chunk == nil {
			r.chunk = []byte{}
		}
		s.chunks <- r.chunk
	case forwardRequest:
		if s.forwarding {
			return fmt.Errorf("%w: a second .forward at once", errProtocol)
		}
		s.forwarding = true
		s.working.Go(func() { s.forward(ctx, r.detail) })
	case jobRequest:
		if len(s.batch) == maxBatch {
			return fmt.Errorf("%w: more than %d jobs", errProtocol, maxBatch)
		}
		if !r.inline {
			r.job.Message.Content = &content{ctx: ctx, server: s, job: s.jobs}
		}
		s.jobs++
		s.batch = append(s.batch, r.job)
	case endRequest:
		if s.delivering || len(s.batch) == 0 {
			return fmt.Errorf("%w: an empty batch, or a second one at once", errProtocol)
		}
		s.delivering = true
		jobs := s.batch
		s.batch = nil
		s.working.Go(func() { s.deliver(ctx, jobs) })
	}
	return nil
}

func (s *server) pong() {
	s.mu.Lock()
	s.ponging = false
	s.mu.Unlock()
	s.conn.Send([]byte{pongAnswer})
}

// forward answers a request for the .forward.
func (s *server) forward(ctx context.Context, detail string) {
	var r forward.Result
	err := error(errRole)
	if s.role == UserRole {
		r, err = s.agent.Forward(ctx, s.user, detail)
	}
	for _, t := range r.Targets {
		if err == nil {
			err = checkTarget(t)
		}
	}
	parts := encodeForwardResult(r, err)
	s.mu.Lock()
	s.forwarding = false
	s.mu.Unlock()
	for _, p := range parts {
		if s.conn.Send(p) != nil {
			return
		}
	}
}

// errRole says that the agent has another role.
var errRole = errors.New("this agent writes the mailbox and nothing else")

// deliver carries out a batch.
func (s *server) deliver(ctx context.Context, jobs []*Job) {
	refused := 0
	if s.role == MailboxRole {
		for _, j := range jobs {
			if j.Kind != spooldir.Mailbox {
				refused++
			}
		}
	}
	answered := 0
	done := func(j *Job) {
		answered++
		if answered == len(jobs) {
			// The next batch may come as soon as this is answered.
			s.mu.Lock()
			s.delivering = false
			s.mu.Unlock()
		}
		if ctx.Err() != nil {
			return // it is cut off, and counts as unanswered
		}
		s.conn.Send(encodeOutcome(outcome{j.Already, j.Place, j.Err}))
	}
	if refused > 0 {
		// No queue process of ours asks for that.
		for _, j := range jobs {
			j.Err = errRole
			done(j)
		}
		return
	}
	s.agent.Deliver(ctx, s.user, jobs, done)
}

// content is the content of a job that did not come with it. It is fetched in
// pieces from the other end.
type content struct {
	ctx    context.Context
	server *server
	job    uint64
}

// ReadAt implements io.ReaderAt. Where the content ends is for the reader to
// know, who has its size.
func (c *content) ReadAt(p []byte, off int64) (int, error) {
	s := c.server
	s.fetching.Lock()
	defer s.fetching.Unlock()
	n := 0
	for n < len(p) {
		piece, err := s.piece(c, off+int64(n))
		if err != nil {
			return n, err
		}
		n += copy(p[n:], piece)
	}
	return n, nil
}

// errContent says that the other end cannot hand out a content.
var errContent = errors.New("the queue process cannot read it")

// piece returns some of the content of c from off on.
func (s *server) piece(c *content, off int64) ([]byte, error) {
	if off < 0 || off > maxSize {
		return nil, io.EOF
	}
	if at := off - s.at.off; s.window != nil && s.at.job == c.job && at >= 0 && at < int64(len(s.window)) {
		return s.window[at:], nil
	}
	s.window = nil
	s.mu.Lock()
	s.asked = true
	s.mu.Unlock()
	want := span{job: c.job, off: off, n: maxChunk}
	if err := s.conn.Send(encodeRead(want)); err != nil {
		return nil, err
	}
	select {
	case b := <-s.chunks:
		switch {
		case b == nil:
			return nil, errContent
		case len(b) == 0:
			return nil, io.EOF
		}
		s.window, s.at = b, want
		return b, nil
	case <-c.ctx.Done():
		return nil, c.ctx.Err()
	}
}

// LastWord tells the queue process why there will be no Serve.
func LastWord(conn *wire.Conn, err error) {
	conn.SetWriteDeadline(time.Now().Add(time.Second))
	conn.Send(encodeWord(err))
}
