package smtptest

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/emersion/go-smtp"
)

// SinkOptions say how a Sink answers. The zero value accepts everything.
type SinkOptions struct {
	Rules         []Rule // the first that matches counts
	MaxRecipients int    // of a transaction: further ones get 452; 0: any
	MaxBytes      int64  // of a message, offered as SIZE; 0: any
	DSN, UTF8     bool   // offered

	// Dir, if not empty, is where every accepted message becomes a file, with
	// its envelope in front; its content is not kept in memory then.
	Dir string

	// Data, if not nil, decides about a message; nil accepts it.
	Data func(*Transaction) error

	// LMTP makes it a server for LMTP (RFC 2033). Then Data decides for all
	// recipients and Each, if not nil, for each of those that are left, in order;
	// whom it refuses is among Transaction.Refused.
	LMTP bool
	Each func(t *Transaction, to string) error

	// Log, if not nil, gets the dialogs of all connections, mixed.
	Log io.Writer
}

// Transaction is one message that a Sink has taken, or refused after its content.
type Transaction struct {
	Connection int // counted from 1
	From       string
	Mail       smtp.MailOptions
	To         []string // accepted recipients
	Rcpt       []smtp.RcptOptions
	Refused    []string // recipients that were deferred or refused
	Content    []byte   // as it came, with CRLF
	Accepted   bool     // the content got 250
}

// Counts are what a Sink has seen.
type Counts struct {
	Connections, MaxOpen     int
	Hellos, Mails, Rcpts     int
	Transactions, Recipients int // with content that was accepted
}

// Sink is an SMTP or LMTP server that takes mail and answers by address.
type Sink struct {
	o      SinkOptions
	server *smtp.Server

	mu    sync.Mutex
	list  []Transaction
	count Counts
	open  int
}

// NewSink makes a Sink. Listen or Serve start it, Close ends it.
func NewSink(o SinkOptions) *Sink {
	s := &Sink{o: o}
	s.o.Rules = append([]Rule(nil), o.Rules...)
	s.server = smtp.NewServer(smtp.BackendFunc(s.session))
	s.server.Domain = "sink.example"
	s.server.MaxRecipients = o.MaxRecipients
	s.server.MaxMessageBytes = o.MaxBytes
	s.server.LMTP = o.LMTP
	s.server.EnableDSN = o.DSN
	s.server.EnableSMTPUTF8 = o.UTF8
	s.server.ErrorLog = log.New(io.Discard, "", 0)
	if o.Log != nil {
		s.server.Debug = o.Log
	}
	return s
}

// Listen serves connections to addr, as 127.0.0.1:0, and returns the address.
func (s *Sink) Listen(addr string) (*net.TCPAddr, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	go func() { _ = s.Serve(l) }()
	return l.Addr().(*net.TCPAddr), nil
}

// ListenUnix serves connections to a unix socket that it makes at path.
func (s *Sink) ListenUnix(path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	go func() { _ = s.Serve(l) }()
	return nil
}

// Serve serves the connections of l until Close.
func (s *Sink) Serve(l net.Listener) error {
	return s.server.Serve(&sinkListener{l, s})
}

// Close ends the Sink and its connections.
func (s *Sink) Close() error { return s.server.Close() }

// Transactions returns what was taken so far.
func (s *Sink) Transactions() []Transaction {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Transaction(nil), s.list...)
}

// Counts returns what was seen so far.
func (s *Sink) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// sinkListener counts connections.
type sinkListener struct {
	net.Listener
	s *Sink
}

func (l *sinkListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count.Connections++
	s.open++
	s.count.MaxOpen = max(s.count.MaxOpen, s.open)
	return &sinkConn{Conn: c, s: s, number: s.count.Connections}, nil
}

type sinkConn struct {
	net.Conn
	s      *Sink
	number int
	once   sync.Once
}

func (c *sinkConn) Close() error {
	c.once.Do(func() {
		c.s.mu.Lock()
		defer c.s.mu.Unlock()
		c.s.open--
	})
	return c.Conn.Close()
}

// session begins with every EHLO.
func (s *Sink) session(c *smtp.Conn) (smtp.Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count.Hellos++
	t := &sinkSession{s: s}
	if c, ok := c.Conn().(*sinkConn); ok {
		t.number = c.number
	}
	return t, nil
}

type sinkSession struct {
	s      *Sink
	number int
	t      Transaction
}

func (t *sinkSession) Reset()        { t.t = Transaction{} }
func (t *sinkSession) Logout() error { return nil }

func (t *sinkSession) Mail(from string, o *smtp.MailOptions) error {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	t.s.count.Mails++
	t.t = Transaction{Connection: t.number, From: from, Mail: *o}
	return nil
}

func (t *sinkSession) Rcpt(to string, o *smtp.RcptOptions) error {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	t.s.count.Rcpts++
	for i := range t.s.o.Rules {
		r := &t.s.o.Rules[i]
		if !r.matches(to) || r.Times < 0 {
			continue
		}
		if r.Times--; r.Times == 0 {
			r.Times = -1 // used up
		} else if r.Times < 0 {
			r.Times = 0 // holds always
		}
		if r.Reply.Code/100 > 2 {
			t.t.Refused = append(t.t.Refused, to)
			reply := r.Reply
			return &reply
		}
		break
	}
	t.t.To = append(t.t.To, to)
	t.t.Rcpt = append(t.t.Rcpt, *o)
	return nil
}

func (t *sinkSession) Data(r io.Reader) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	done := t.t
	done.Content = data
	if t.s.o.Data != nil {
		err = t.s.o.Data(&done)
	}
	return t.take(&done, err)
}

// LMTPData is Data of LMTP.
func (t *sinkSession) LMTPData(r io.Reader, status smtp.StatusCollector) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	done := t.t
	done.Content, done.To, done.Rcpt = data, nil, nil
	if t.s.o.Data != nil {
		if err := t.s.o.Data(&done); err != nil {
			done.Refused = append(done.Refused, t.t.To...)
			return t.take(&done, err)
		}
	}
	for i, to := range t.t.To {
		var err error
		if t.s.o.Each != nil {
			err = t.s.o.Each(&done, to)
		}
		if err != nil {
			done.Refused = append(done.Refused, to)
		} else {
			done.To, done.Rcpt = append(done.To, to), append(done.Rcpt, t.t.Rcpt[i])
		}
		if i < len(t.t.To)-1 {
			status.SetStatus(to, err)
			continue
		}
		// It is noted before the client can know that it is over.
		if err := t.take(&done, nil); err != nil {
			return err
		}
		status.SetStatus(to, err)
	}
	return nil
}

// take notes a message, which err refuses, and returns the answer for it.
func (t *sinkSession) take(done *Transaction, err error) error {
	done.Accepted = err == nil && len(done.To) > 0
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	if done.Accepted {
		if err := t.s.store(done); err != nil {
			return &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 3, 0}, Message: err.Error()}
		}
		t.s.count.Transactions++
		t.s.count.Recipients += len(done.To)
	}
	t.s.list = append(t.s.list, *done)
	return err
}

// store writes a message into the folder, if there is one.
func (s *Sink) store(t *Transaction) error {
	if s.o.Dir == "" {
		return nil
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "MAIL FROM:<%s>\n", t.From)
	for _, to := range t.To {
		fmt.Fprintf(&b, "RCPT TO:<%s>\n", to)
	}
	b.WriteString("\n")
	b.Write(bytes.ReplaceAll(t.Content, []byte("\r\n"), []byte("\n")))
	t.Content = nil
	return os.WriteFile(filepath.Join(s.o.Dir, fmt.Sprintf("%06d.eml", s.count.Transactions+1)), b.Bytes(), 0o600)
}
