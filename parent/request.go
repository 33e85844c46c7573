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
func (s *session) send(m message) {
	s.conn.SetWriteDeadline(time.Now().Add(s.timing.send))
	if err := s.conn.Send(m.encode()); err != nil && !errors.Is(err, os.ErrClosed) {
		s.fail(err)
	}
}

// serve reads what the worker sends until the connection ends.
func (s *session) serve(ctx context.Context) {
	files := 0
	if s.worker == s.queue {
		files = 1
	}
	// Twice as many as a Client asks at a time: it asks again as soon as it has
	// an answer, which may be before the slot of that is free.
	slots := map[byte]chan struct{}{
		kindLookup:   make(chan struct{}, 2*maxLookups),
		kindStart:    make(chan struct{}, 2*maxStarts),
		kindPassword: make(chan struct{}, 2*maxPasswords),
	}
	slots[kindLookupID], slots[kindStop] = slots[kindLookup], slots[kindStart]
	for {
		frame, received, err := s.conn.Receive(maxRequest, files)
		if err != nil {
			s.fail(err)
			return
		}
		var file *os.File
		if len(received) > 0 {
			file = received[0]
		}
		if !s.take(ctx, frame, file, slots) {
			if file != nil {
				file.Close()
			}
			s.fail(errGarbage)
			return
		}
	}
}

// take takes up one frame, and the file if it returns true. It never waits.
func (s *session) take(ctx context.Context, frame []byte, file *os.File, slots map[byte]chan struct{}) bool {
	m, err := decode(frame)
	if err != nil || (file != nil) != (m.kind == kindStart) {
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
	do := s.request(m, file)
	if do == nil {
		return false
	}
	select {
	case slots[m.kind] <- struct{}{}:
	default:
		if file != nil {
			file.Close()
		}
		// Sent from here, so that a flood waits for its own answers.
		s.answer(m, nil, errors.New("too many requests at a time"))
		return true
	}
	go func() {
		defer func() { <-slots[m.kind] }()
		if file != nil {
			defer file.Close()
		}
		fields, err := do(ctx)
		s.answer(m, fields, err)
	}()
	return true
}

// request returns what carries out a request, or nil if it is none that the
// worker may make.
func (s *session) request(m message, file *os.File) func(context.Context) ([]string, error) {
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
		return func(ctx context.Context) ([]string, error) {
			ctx, cancel := context.WithTimeout(ctx, s.lookup)
			defer cancel()
			return found(s.options().Users.Lookup(ctx, f[0]))
		}
	case kindLookupID:
		uid, ok := parseID(f[0])
		if !ok || strconv.Itoa(uid) != f[0] {
			return nil
		}
		return func(ctx context.Context) ([]string, error) {
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
			return func(ctx context.Context) ([]string, error) {
				ctx, cancel := context.WithTimeout(ctx, s.lookup)
				defer cancel()
				return nil, s.startAgent(ctx, f[0], role, file)
			}
		}
		return func(ctx context.Context) ([]string, error) {
			ctx, cancel := context.WithTimeout(ctx, s.stop)
			defer cancel()
			return nil, s.agents.stop(ctx, f[0], role)
		}
	}
	if !validLogin(f[0]) || !validHost(f[1]) {
		return nil
	}
	return func(ctx context.Context) ([]string, error) {
		secret, err := s.password(ctx, f[0], f[1])
		return []string{statusOK, secret}, err
	}
}

func found(u passwd.User, err error) ([]string, error) { return userFields(u), err }

// answer answers a request.
func (s *session) answer(m message, fields []string, err error) {
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
	s.send(message{number: m.number, kind: kindAnswer, fields: fields})
}
