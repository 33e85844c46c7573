package maillog

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"
)

const (
	facilityMail  = 2 << 3 // RFC 3164 section 4.1.1
	syslogStamp   = "Jan _2 15:04:05"
	shortSyslog   = 1024 // RFC 3164 section 4.1; sent where a longer line is refused
	defaultBound  = 500 * time.Millisecond
	syslogBackoff = 10 * time.Second
)

// SyslogOptions are the settings of a syslog handler; the zero value is right for
// a program.
type SyslogOptions struct {
	Level    slog.Leveler     // nil means slog.LevelInfo
	Tag      string           // "" means "dma"
	Sockets  []string         // tried in order; nil means the usual places
	Fallback io.Writer        // gets the lines while there is no syslog; nil means os.Stderr
	Bound    time.Duration    // longest wait for syslog; 0 means half a second
	Now      func() time.Time // nil means time.Now
}

// NewSyslogHandler returns a handler that writes to the machine's syslog socket,
// facility mail, in the form that local loggers read (RFC 3164 without the host
// name). Messages are "level event key=value ...".
//
// The socket is opened for the first record, and again when the logger was
// restarted. While no socket answers, lines go to the fallback in the form of
// NewHandler, and syslog is tried again after ten seconds. Handle never waits
// for syslog longer than about twice Bound.
func NewSyslogHandler(o SyslogOptions) slog.Handler {
	s := &syslogOutput{opts: o, pid: strconv.Itoa(os.Getpid()), busy: make(chan struct{}, 1)}
	if s.opts.Tag == "" {
		s.opts.Tag = "dma"
	}
	if s.opts.Sockets == nil {
		s.opts.Sockets = []string{"/dev/log", "/var/run/syslog", "/var/run/log"}
	}
	if s.opts.Bound <= 0 {
		s.opts.Bound = defaultBound
	}
	if s.opts.Now == nil {
		s.opts.Now = time.Now
	}
	w := o.Fallback
	if w == nil {
		w = os.Stderr
	}
	s.fallback = &textOutput{w: w}
	return &handler{out: s, level: o.Level}
}

type syslogOutput struct {
	opts     SyslogOptions
	pid      string
	fallback *textOutput

	busy   chan struct{} // holds one element while someone uses what follows
	conn   net.Conn      // nil when not connected
	stream bool
	retry  time.Time // no attempt before
}

func (s *syslogOutput) write(t time.Time, level slog.Level, body []byte) error {
	if s.send(t, level, body) {
		return nil
	}
	return s.fallback.write(t, level, body)
}

// send reports whether syslog took the line.
func (s *syslogOutput) send(t time.Time, level slog.Level, body []byte) bool {
	if !s.acquire() {
		return false
	}
	defer func() { <-s.busy }()
	now := s.opts.Now()
	if s.conn == nil && now.Before(s.retry) {
		return false
	}
	deadline := time.Now().Add(s.opts.Bound)

	if t.IsZero() {
		t = now
	}
	line := strconv.AppendInt([]byte{'<'}, int64(facilityMail+severity(level)), 10)
	line = append(line, '>')
	line = t.AppendFormat(line, syslogStamp)
	line = append(line, ' ')
	line = append(line, s.opts.Tag+"["+s.pid+"]: "...)
	line = append(line, body...)

	// A connection from before can be stale, so one new one is tried.
	for fresh := s.conn == nil; ; fresh = true {
		if s.conn == nil && !s.connect(deadline) {
			break
		}
		err := s.put(line, deadline)
		if err == nil {
			return true
		}
		s.conn.Close()
		s.conn = nil
		if fresh || errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
	}
	s.retry = now.Add(syslogBackoff)
	return false
}

// acquire takes busy, and gives up after Bound: a mutex would add up the waits of
// all who log through a slow syslog.
func (s *syslogOutput) acquire() bool {
	select {
	case s.busy <- struct{}{}:
		return true
	default:
	}
	timer := time.NewTimer(s.opts.Bound)
	defer timer.Stop()
	select {
	case s.busy <- struct{}{}:
		return true
	case <-timer.C:
		return false
	}
}

// connect opens the first socket that answers: datagram, else stream.
func (s *syslogOutput) connect(deadline time.Time) bool {
	d := net.Dialer{Deadline: deadline}
	for _, path := range s.opts.Sockets {
		for _, network := range []string{"unixgram", "unix"} {
			conn, err := d.Dial(network, path)
			if err == nil {
				s.conn, s.stream = conn, network == "unix"
				return true
			}
		}
	}
	return false
}

// put writes one line to the connection.
func (s *syslogOutput) put(line []byte, deadline time.Time) error {
	if err := s.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	if s.stream {
		_, err := s.conn.Write(append(line, '\n'))
		return err
	}
	_, err := s.conn.Write(line)
	if errors.Is(err, syscall.EMSGSIZE) {
		_, err = s.conn.Write(cut(line, shortSyslog))
	}
	return err
}

// severity returns the syslog severity of a level.
func severity(l slog.Level) int {
	switch {
	case l >= slog.LevelError:
		return 3
	case l >= slog.LevelWarn:
		return 4
	case l >= slog.LevelInfo:
		return 6
	}
	return 7
}
