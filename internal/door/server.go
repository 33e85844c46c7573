package door

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"dma/internal/wire"
	"dma/spooldir"
)

// Options say what a Server works with.
type Options struct {
	// Spool takes the messages. The process owns it.
	Spool *spooldir.Spool

	// HostName is the name of this host in the Received field, in any case and
	// with or without a final dot.
	HostName string

	// MinFree is the free space in octets below which no mail is taken; nil:
	// none.
	MinFree func() int64

	// List returns the entries of the queue that uid submitted, or all of them,
	// each at most 64 KiB long; nil: nobody can list.
	List func(uid int, all bool) (iter.Seq[[]byte], error)

	// Flush begins an attempt at everything that waits; nil: RequestFlush of the
	// spool.
	Flush func() error

	// Kept counts the sockets that clients have sent files to; nil: nobody does.
	Kept *wire.Kept

	// Log hears of what was submitted, and of trouble; nil: nobody does.
	Log Log
}

// Log is what a Server says, as *maillog.Log takes it.
type Log interface {
	Submitted(id, from string, uid int, size int64, recipients int)
	WorkerTrouble(role string, err error)
}

// Role is the name of the server in the log.
const Role = "door"

// The times that a server gives a client.
const (
	clientIdle = 30 * time.Second // for the next frame, or for taking one
	clientTime = 10 * time.Minute // for everything up to the commit
	sureTime   = 2 * time.Second  // that nobody takes away who waits for a place
	hurryTime  = time.Second      // for taking an answer, where the place is to be given back
)

// Server serves the door.
type Server struct {
	o          Options
	idle, time time.Duration
	sure       time.Duration
	hurry      time.Duration
	peer       func(fd int) (int, error)

	limits  limits
	flusher flusher
	listing chan struct{} // one reads the queue at a time

	mu      sync.Mutex
	stopped bool
	open    map[*session]bool
	group   sync.WaitGroup
}

// New returns a Server.
func New(o Options) *Server {
	o.HostName = strings.ToLower(strings.TrimSuffix(o.HostName, "."))
	if o.Flush == nil {
		o.Flush = o.Spool.RequestFlush
	}
	if o.MinFree == nil {
		o.MinFree = func() int64 { return 0 }
	}
	s := &Server{o: o, idle: clientIdle, time: clientTime, sure: sureTime, hurry: hurryTime, peer: peer, listing: make(chan struct{}, 1), open: make(map[*session]bool)}
	s.flusher.do = func() error {
		err := o.Flush()
		if err != nil {
			err = fmt.Errorf("flush: %w", err)
			s.trouble(err)
		}
		return err
	}
	return s
}

// Idle reports whether no client is connected.
func (s *Server) Idle() bool { return s.limits.idle() }

// acceptPause is the wait after trouble with accepting, such as too few
// descriptors.
const acceptPause = 100 * time.Millisecond

// Serve takes connections from a listening socket until ctx ends, and returns
// when the last client has gone: what is being committed then is finished, and
// everything before that is given up. A socket that fails for good is an error.
// The socket, which Listen or Inherited returned, stays open.
func (s *Server) Serve(ctx context.Context, listener *os.File) error {
	raw, err := listener.SyscallConn()
	if err != nil {
		return fmt.Errorf("%s: %w", Role, err)
	}
	if err := listener.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("%s: %w", Role, err)
	}
	defer context.AfterFunc(ctx, func() { _ = listener.SetReadDeadline(time.Unix(1, 0)) })()
	err = s.serve(ctx, func() (int, error) {
		fd, acceptErr := -1, error(nil)
		err := raw.Read(func(listening uintptr) bool {
			fd, acceptErr = accept(int(listening))
			return !errors.Is(acceptErr, unix.EAGAIN)
		})
		return fd, errors.Join(err, acceptErr)
	})
	s.stop()
	_ = s.flusher.promised() // trouble is said already
	return err
}

func (s *Server) serve(ctx context.Context, next func() (int, error)) error {
	said := false // trouble is said once, until it is over
	for ctx.Err() == nil {
		fd, err := next()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				wire.New(os.NewFile(uintptr(fd), "client")).Close()
			}
		case err == nil:
			said = false
			s.welcome(fd)
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
		case errors.Is(err, os.ErrClosed), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTSOCK), errors.Is(err, unix.EBADF), errors.Is(err, unix.EOPNOTSUPP):
			return fmt.Errorf("%s: accept: %w", Role, err)
		default:
			if !said {
				s.trouble(fmt.Errorf("accept: %w", err))
				said = true
			}
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
		}
	}
	return nil
}

// stop ends what is not being committed, and waits for the rest.
func (s *Server) stop() {
	s.mu.Lock()
	s.stopped = true
	for c := range s.open {
		s.cut(c)
	}
	s.mu.Unlock()
	s.group.Wait()
	s.mu.Lock()
	s.stopped = false
	s.mu.Unlock()
}

// welcome begins a session with a client that has connected, or sends it away.
// It never waits for the client.
func (s *Server) welcome(fd int) {
	uid, err := s.peer(fd)
	c := &session{server: s, uid: uid, conn: wire.New(os.NewFile(uintptr(fd), "client"))}
	var refused *Refusal
	if err != nil {
		refused = refuse(Denied, "nobody can say who you are: %v", err)
	} else {
		refused = s.limits.enter(uid)
	}
	if refused == errFull {
		s.makeRoom()
	}
	if refused != nil {
		// The buffer of a new connection is empty: there is room for this.
		_ = c.conn.SetWriteDeadline(time.Now().Add(time.Millisecond))
		_ = c.conn.Send(refused.encode())
		s.close(c)
		return
	}
	c.begun = time.Now()
	c.end = c.begun.Add(s.time)
	s.mu.Lock()
	s.open[c] = true
	s.mu.Unlock()
	s.group.Go(func() {
		c.run()
		s.mu.Lock()
		delete(s.open, c)
		s.mu.Unlock()
		s.close(c)
		s.limits.leave(uid, c.held)
	})
}

// makeRoom takes a place away where all are taken: one of the user who has the most of
// them, and there the oldest, unless that is fresh or its message complete. A user with
// a range of uids of his own, as for containers, else held all of them from a few. One
// that is asked for its place has a moment; then the next one is asked.
func (s *Server) makeRoom() {
	s.mu.Lock()
	defer s.mu.Unlock()
	have := make(map[int]int)
	for c := range s.open {
		if !c.gives.IsZero() && time.Since(c.gives) < s.hurry {
			return // one is on its way out
		}
		have[c.uid]++
	}
	var victim *session
	for c := range s.open {
		if c.uid == 0 || !c.gives.IsZero() || time.Since(c.begun) < s.sure {
			continue
		}
		if victim == nil || have[c.uid] > have[victim.uid] || have[c.uid] == have[victim.uid] && c.begun.Before(victim.begun) {
			victim = c
		}
	}
	if victim != nil {
		victim.gives = time.Now()
		s.cut(victim)
	}
}

// cut ends the waiting for what a client sends, and soon that for its taking an
// answer. The caller holds the lock.
func (s *Server) cut(c *session) {
	_ = c.conn.SetReadDeadline(time.Unix(1, 0))
	_ = c.conn.SetWriteDeadline(time.Now().Add(s.hurry))
}

// close ends the connection of a session.
func (s *Server) close(c *session) {
	if err := c.conn.Close(); s.o.Kept.Closed(err) {
		s.trouble(fmt.Errorf("uid %d sends files: %w", c.uid, err))
	}
}

// free says whether mail is taken.
func (s *Server) free() error {
	if err := s.o.Spool.Free(s.o.MinFree()); err != nil {
		return refuse(Tempfail, "%v", err)
	}
	return nil
}

// mayAll reports whether a user may see and do all: root, and the spool's owner.
func (s *Server) mayAll(uid int) bool { return uid == 0 || uid == s.o.Spool.Owner() }

func (s *Server) trouble(err error) {
	if s.o.Log != nil {
		s.o.Log.WorkerTrouble(Role, err)
	}
}
