package parent

import (
	"context"
	"errors"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"dma/agent"
	"dma/internal/passwd"
	"dma/internal/wire"
)

// How many requests of a worker are in progress at a time. A Client keeps to
// them; to one that does not, more are answered as trouble.
const (
	maxLookups   = 16
	maxStarts    = 2 * MaxAgents
	maxPasswords = 4
)

// session is one life of a worker, seen through its control socket.
type session struct {
	*parent
	worker *worker
	conn   *wire.Conn
	bad    chan error // why the worker is of no further use
	pongs  atomic.Uint32
}

// fail says that the worker is of no further use.
func (s *session) fail(err error) {
	select {
	case s.bad <- err:
	default:
	}
}

// ping asks the worker for a sign of life until ctx ends.
func (s *session) ping(ctx context.Context) {
	clock := s.options().Clock
	pongs, silent := uint32(0), 0
	for number := uint32(1); ; number++ {
		s.send(message{number: number, kind: kindPing})
		over, stop := clock.After(s.timing.ping)
		select {
		case <-ctx.Done():
			stop()
			return
		case <-over:
		}
		if n := s.pongs.Load(); n != pongs {
			pongs, silent = n, 0
		} else if silent++; silent >= maxSilent {
			s.fail(errSilent)
			return
		}
	}
}

// send sends a message, which a worker that lives takes within a moment.
func (s *session) send(m message, files ...*os.File) error {
	s.conn.SetWriteDeadline(time.Now().Add(s.timing.send))
	err := s.conn.Send(m.encode(), files...)
	if err != nil && !errors.Is(err, os.ErrClosed) {
		s.fail(err)
	}
	return err
}

// serve reads what the worker sends until the connection ends.
func (s *session) serve(ctx context.Context) {
	// Twice as many as a Client asks at a time: it asks again as soon as it has
	// an answer, which may be before the slot of that is free.
	slots := map[byte]chan struct{}{
		kindLookup:   make(chan struct{}, 2*maxLookups),
		kindStart:    make(chan struct{}, 2*maxStarts),
		kindPassword: make(chan struct{}, 2*maxPasswords),
	}
	slots[kindLookupID], slots[kindStop] = slots[kindLookup], slots[kindStart]
	for {
		frame, _, err := s.conn.Receive(maxRequest, 0)
		if err != nil {
			s.fail(err)
			return
		}
		if !s.take(ctx, frame, slots) {
			s.fail(errGarbage)
			return
		}
	}
}

// take takes up one frame. It never waits.
func (s *session) take(ctx context.Context, frame []byte, slots map[byte]chan struct{}) bool {
	m, err := decode(frame)
	if err != nil {
		return false
	}
	switch m.kind {
	case kindReady:
		if len(m.fields) > 0 {
			return false
		}
		s.note(s.worker, true, false)
		return true
	case kindPong:
		if len(m.fields) != 3 {
			return false
		}
		s.pongs.Add(1)
		s.note(s.worker, false, true)
		s.idle.report(s, m.fields[0] == stateIdle, m.fields[1], m.fields[2])
		return true
	}
	do := s.request(m)
	if do == nil {
		return false
	}
	select {
	case slots[m.kind] <- struct{}{}:
	default:
		// Sent from here, so that a flood waits for its own answers.
		s.answer(m, reply{}, errors.New("too many requests at a time"))
		return true
	}
	go func() {
		defer func() { <-slots[m.kind] }()
		r, err := do(ctx)
		s.answer(m, r, err)
	}()
	return true
}

// reply is what goes with the answer to a request that was carried out.
type reply struct {
	fields []string // with the status; nil: just that it is done
	conn   *os.File // closed when it was sent
}

// request returns what carries out a request, or nil if it is none that the
// worker may make.
func (s *session) request(m message) func(context.Context) (reply, error) {
	want := map[byte]int{kindLookup: 1, kindLookupID: 1, kindStart: 2, kindStop: 2}
	if s.worker == s.net {
		want = map[byte]int{kindPassword: 2}
	}
	if n, ok := want[m.kind]; !ok || n != len(m.fields) {
		return nil
	}
	f := m.fields
	switch m.kind {
	case kindLookup:
		if !passwd.ValidName(f[0]) {
			return nil
		}
		return func(ctx context.Context) (reply, error) {
			ctx, cancel := context.WithTimeout(ctx, s.lookup)
			defer cancel()
			return found(s.options().Users.Lookup(ctx, f[0]))
		}
	case kindLookupID:
		uid, ok := parseID(f[0])
		if !ok || strconv.Itoa(uid) != f[0] {
			return nil
		}
		return func(ctx context.Context) (reply, error) {
			ctx, cancel := context.WithTimeout(ctx, s.lookup)
			defer cancel()
			return found(s.options().Users.LookupID(ctx, uid))
		}
	case kindStart, kindStop:
		role := agent.Role(f[1])
		if !passwd.ValidName(f[0]) || !role.Valid() {
			return nil
		}
		if m.kind == kindStart {
			return func(ctx context.Context) (reply, error) {
				ctx, cancel := context.WithTimeout(ctx, s.lookup)
				defer cancel()
				conn, err := s.startAgent(ctx, f[0], role)
				return reply{conn: conn}, err
			}
		}
		return func(ctx context.Context) (reply, error) {
			ctx, cancel := context.WithTimeout(ctx, s.stop)
			defer cancel()
			return reply{}, s.agents.stop(ctx, f[0], role)
		}
	}
	if !validLogin(f[0]) || !validHost(f[1]) {
		return nil
	}
	return func(ctx context.Context) (reply, error) {
		secret, err := s.password(ctx, f[0], f[1])
		return reply{fields: []string{statusOK, secret}}, err
	}
}

func found(u passwd.User, err error) (reply, error) { return reply{fields: userFields(u)}, err }

// answer answers a request.
func (s *session) answer(m message, r reply, err error) {
	fields := r.fields
	switch {
	case err == nil && fields == nil:
		fields = []string{statusOK}
	case err == nil:
	case errors.Is(err, passwd.ErrUnknown):
		fields = []string{statusUnknown}
	case errors.Is(err, agent.ErrBusy):
		fields = []string{statusBusy}
	case errors.Is(err, agent.ErrNotServed):
		fields = []string{statusRefused, oneLine(err.Error())}
	default:
		fields = []string{statusTrouble, oneLine(err.Error())}
	}
	answer := message{number: m.number, kind: kindAnswer, fields: fields}
	if r.conn == nil {
		s.send(answer)
	} else if s.send(answer, r.conn) == nil {
		// The worker has it too, or will when it reads, and a way to close it that
		// looks for files would shut it down for both. Who closes last may meet the
		// files of an agent: this process only if the worker dies between these two
		// calls, which no agent can have it do, and an agent is as quick. Then it is
		// this goroutine that hangs, with a slot of a session that has ended.
		r.conn.Close()
	} else {
		wire.New(r.conn).Close() // nobody else has it: what its agent has sent may lie in it
	}
}
