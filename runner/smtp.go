package runner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"dma/internal/address"

	"github.com/emersion/go-smtp"
)

// The bounds of an SMTP dialog on standard input.
const (
	smtpIdle  = 5 * time.Minute  // waiting for the client (RFC 5321 4.5.3.2.7)
	smtpHand  = 10 * time.Minute // what dma may take for a message
	smtpRcpts = 10000
)

// runSMTP speaks SMTP on standard input and output (sendmail -bs). What it
// takes it hands to the dma beside this program, like any other user: so the
// header work, the limits, the doors and who the submitter is are the same.
func runSMTP(c *call) error {
	if err := c.noArguments("smtp"); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("smtp: %w", err)
	}
	host, _ := c.config.HostName()
	conn := &stdioConn{in: c.stdio.In, out: c.stdio.Out, done: make(chan struct{})}
	server := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) {
		return &submission{dma: filepath.Join(filepath.Dir(self), "dma"), file: c.file, conn: conn}, nil
	}))
	server.Domain = host
	server.MaxRecipients = smtpRcpts
	server.MaxLineLength = 0 // long lines are mail; the memory is the caller's own
	server.EnableSMTPUTF8 = true
	server.ReadTimeout, server.WriteTimeout = smtpIdle, smtpIdle
	server.ErrorLog = log.New(c.stdio.Err, "dma-runner: smtp: ", 0)
	err = server.Serve(&oneConn{conn: conn})
	if errors.Is(err, net.ErrClosed) || errors.Is(err, smtp.ErrServerClosed) {
		return nil
	}
	return err
}

// submission is the session of one client.
type submission struct {
	dma    string // path of the program
	conn   *stdioConn
	file   string // of the configuration, as given
	sender string
	to     []string
}

// Mail takes the sender. It is checked here, so that a bad one is refused when
// it is said, and again by dma.
func (s *submission) Mail(from string, _ *smtp.MailOptions) error {
	s.Reset()
	a, err := address.ParsePath(from)
	if err != nil {
		return &smtp.SMTPError{Code: 501, EnhancedCode: smtp.EnhancedCode{5, 1, 7}, Message: err.Error()}
	}
	s.sender = a.String()
	if s.sender == "" {
		s.sender = "<>"
	}
	return nil
}

// Rcpt takes a recipient.
func (s *submission) Rcpt(to string, _ *smtp.RcptOptions) error {
	a, err := address.Parse(to)
	if err != nil {
		return &smtp.SMTPError{Code: 501, EnhancedCode: smtp.EnhancedCode{5, 1, 3}, Message: err.Error()}
	}
	s.to = append(s.to, a.String())
	return nil
}

// Data hands the message to dma, once it is complete: dma takes the end of its
// input for the end of the message, so it is not started before. The message is
// accepted when dma says that it is on disk.
func (s *submission) Data(r io.Reader) error {
	body, err := os.CreateTemp("", "dma-smtp-")
	if err != nil {
		return temporary(err)
	}
	defer body.Close()
	if err := os.Remove(body.Name()); err != nil {
		return temporary(err)
	}
	if _, err := io.Copy(body, r); err != nil {
		return err
	}
	if s.conn.ended.Load() {
		return temporary(errors.New("the connection ended within the message"))
	}
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return temporary(err)
	}
	args := []string{"-i", "-f", s.sender}
	if s.file != "" {
		args = append([]string{"-C", s.file}, args...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), smtpHand)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.dma, append(append(args, "--"), s.to...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stdin = body
	var said bytes.Buffer
	cmd.Stderr = &limited{w: &said, room: 1024}
	return reply(cmd.Run(), said.String())
}

// reply turns the end of dma into a reply.
func reply(err error, said string) error {
	line, _, _ := strings.Cut(strings.TrimSpace(said), "\n")
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && (exit.ExitCode() == 65 || exit.ExitCode() == 64):
		return &smtp.SMTPError{Code: 554, EnhancedCode: smtp.EnhancedCode{5, 6, 0}, Message: printable(line)}
	}
	if line == "" {
		line = err.Error()
	}
	return &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 3, 0}, Message: printable(line)}
}

func temporary(err error) error {
	return &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 3, 0}, Message: printable(err.Error())}
}

// Reset forgets the transaction.
func (s *submission) Reset() { s.sender, s.to = "", nil }

// Logout ends the session.
func (s *submission) Logout() error { return nil }

// limited keeps the first octets and throws the rest away.
type limited struct {
	w    io.Writer
	room int
}

func (l *limited) Write(p []byte) (int, error) {
	if keep := min(len(p), l.room); keep > 0 {
		l.room -= keep
		l.w.Write(p[:keep])
	}
	return len(p), nil
}

// oneConn is a listener with a single connection; it ends when that is closed.
type oneConn struct {
	conn  *stdioConn
	given bool
}

func (l *oneConn) Accept() (net.Conn, error) {
	if !l.given {
		l.given = true
		return l.conn, nil
	}
	<-l.conn.done
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return stdioAddr{} }

// stdioConn is standard input and output as a connection.
type stdioConn struct {
	in     io.Reader
	out    io.Writer
	done   chan struct{}
	closed bool
	ended  atomic.Bool // a Read has failed: nothing more comes
}

func (c *stdioConn) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	if err != nil {
		c.ended.Store(true)
	}
	return n, err
}

func (c *stdioConn) Write(p []byte) (int, error) { return c.out.Write(p) }

func (c *stdioConn) Close() error {
	if !c.closed {
		c.closed = true
		close(c.done)
	}
	return nil
}

func (c *stdioConn) LocalAddr() net.Addr  { return stdioAddr{} }
func (c *stdioConn) RemoteAddr() net.Addr { return stdioAddr{} }

// deadline sets a deadline where the stream has any: pipes and sockets do.
func deadline(stream any, t time.Time) error {
	if d, ok := stream.(interface{ SetDeadline(time.Time) error }); ok {
		if err := d.SetDeadline(t); err != nil && !errors.Is(err, os.ErrNoDeadline) {
			return err
		}
	}
	return nil
}

func (c *stdioConn) SetDeadline(t time.Time) error {
	return errors.Join(deadline(c.in, t), deadline(c.out, t))
}
func (c *stdioConn) SetReadDeadline(t time.Time) error  { return deadline(c.in, t) }
func (c *stdioConn) SetWriteDeadline(t time.Time) error { return deadline(c.out, t) }

type stdioAddr struct{}

func (stdioAddr) Network() string { return "stdio" }
func (stdioAddr) String() string  { return "stdin" }
