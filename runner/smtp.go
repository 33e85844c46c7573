package runner

import (
	"bytes"
	"cmp"
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
	"syscall"
	"time"

	"dma/internal/address"

	"github.com/emersion/go-smtp"
)

// The bounds of an SMTP dialog on standard input.
const (
	smtpIdle    = 5 * time.Minute  // waiting for a command, or for more of a message (RFC 5321 4.5.3.2.7)
	smtpMessage = time.Hour        // a whole message
	smtpHand    = 10 * time.Minute // what dma may take for a message
	smtpRcpts   = 10000
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
	return serveSMTP(c, filepath.Join(filepath.Dir(self), "dma"))
}

// serveSMTP is runSMTP with the path of dma.
func serveSMTP(c *call, dma string) error {
	host, _ := c.config.HostName()
	conn := newStdioConn(c.stdio.In, c.stdio.Out)
	server := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) {
		return &submission{dma: dma, file: c.file, conn: conn}, nil
	}))
	server.Domain = host
	server.MaxRecipients = smtpRcpts
	server.MaxLineLength = 0 // long lines are mail; the memory is the caller's own
	server.EnableSMTPUTF8 = true
	server.ReadTimeout, server.WriteTimeout = smtpIdle, smtpIdle
	server.ErrorLog = log.New(c.stdio.Err, "dma-runner: smtp: ", 0)
	err := server.Serve(&oneConn{conn: conn})
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
	size   int // octets of to as arguments
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
	// A program can be started with so many arguments and no more; the client
	// sends the rest in another transaction (RFC 5321 4.5.3.1.10).
	name := a.String()
	if s.size+argSize(name) > argRoom() {
		return &smtp.SMTPError{Code: 452, EnhancedCode: smtp.EnhancedCode{4, 5, 3}, Message: "Too many recipients for one message"}
	}
	s.size += argSize(name)
	s.to = append(s.to, name)
	return nil
}

// argSize is what an argument costs: its octets, their end, and a pointer.
func argSize(arg string) int { return len(arg) + 9 }

// argsTaken is what the environment and the other arguments cost.
func argsTaken() int {
	n := 16 << 10
	for _, v := range os.Environ() {
		n += argSize(v)
	}
	return n
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
	s.conn.within(smtpMessage)
	_, err = io.Copy(body, r)
	s.conn.without()
	if err != nil {
		return temporary(err)
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
	return reply(withArgRoom(s.size, cmd.Run), said.String())
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
	case errors.As(err, &exit) && exit.ExitCode() == exitNoPerm:
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 7, 1}, Message: printable(cmp.Or(line, "not allowed"))}
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
func (s *submission) Reset() { s.sender, s.to, s.size = "", nil, 0 }

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
