package parent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"
)

// The bounds of a password command.
const (
	passwordTime = 30 * time.Second
	passwordSize = 64 << 10 // octets of output; tokens are long
)

// Question is one run of a password command.
type Question struct {
	Command     string // for /bin/sh -c
	Login, Host string // LOGIN and HOST in its environment
	Home        string // HOME, if it is not empty

	// Credential is who runs it; nil is who we are.
	Credential *syscall.Credential

	start func(func() error) error // calls its argument; nil: here
}

// Ask runs a password command for 30 s at most and returns the first line that
// it prints, of at most 64 KiB. No error holds anything of its output, which
// may be part of a secret.
func Ask(ctx context.Context, q Question) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, passwordTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", q.Command)
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LOGIN=" + q.Login, "HOST=" + q.Host}
	if q.Home != "" {
		cmd.Env = append(cmd.Env, "HOME="+q.Home)
	}
	cmd.Dir = "/"
	// A session of its own: it has not our terminal, into which it could type.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: q.Credential}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	out := &limited{room: passwordSize}
	cmd.Stdout = out
	start := cmd.Start
	if q.start != nil {
		followThread(cmd.SysProcAttr, syscall.SIGKILL)
		start = func() error { return q.start(cmd.Start) }
	}
	err := start()
	if err == nil {
		err = cmd.Wait()
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	// A command that has left a process behind, as one that starts an agent, which
	// holds its output open, has said what it had to say.
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return "", err
	}
	line, _, _ := strings.Cut(out.String(), "\n")
	line = strings.TrimSuffix(line, "\r")
	switch {
	case line == "":
		return "", errors.New("it printed nothing")
	case strings.Contains(line, "\x00"):
		return "", errors.New("it printed a NUL")
	}
	return line, nil
}

// limited keeps the first octets that are written to it.
type limited struct {
	bytes.Buffer
	room int
}

func (l *limited) Write(p []byte) (int, error) {
	keep := min(len(p), l.room)
	l.room -= keep
	l.Buffer.Write(p[:keep])
	return len(p), nil
}

// password runs PASSWORDCMD as TOKENUSER.
func (p *parent) password(ctx context.Context, login, host string) (string, error) {
	o := p.options()
	switch {
	case o.PasswordCmd == "":
		return "", errors.New("there is no PASSWORDCMD")
	case o.TokenUser == "":
		return "", errors.New("PASSWORDCMD needs a TOKENUSER to run as")
	}
	lookup, cancel := context.WithTimeout(ctx, p.lookup)
	defer cancel()
	u, err := o.Users.Lookup(lookup, o.TokenUser)
	if err != nil {
		return "", fmt.Errorf("TOKENUSER: %w", temporary(err))
	}
	if u.UID <= 0 || u.UID == o.Queue.UID || u.UID == o.Net.UID {
		return "", fmt.Errorf("TOKENUSER %s may be neither root nor a user of the mail system", u.Name)
	}
	groups, err := o.Users.Groups(lookup, u)
	if err != nil {
		return "", fmt.Errorf("TOKENUSER: %w", err)
	}
	secret, err := Ask(ctx, Question{
		Command: o.PasswordCmd, Login: login, Host: host, Home: u.Home,
		Credential: credential(Account{UID: u.UID, GID: u.GID, Groups: groups}),
		start:      p.thread.do,
	})
	if err != nil {
		return "", fmt.Errorf("PASSWORDCMD: %w", err)
	}
	return secret, nil
}

// temporary keeps the text of an error and nothing else.
func temporary(err error) error { return errors.New(err.Error()) }

// validLogin and validHost say what may stand in the environment of the command:
// nothing that leads it to another secret than one of that name, even where it puts
// the name into a path, or does without quotes.
func validLogin(s string) bool {
	good := func(r rune) bool {
		return r < utf8.RuneSelf && strings.ContainsRune("@._+-=%:\\", r) || unicode.IsLetter(r) || unicode.IsMark(r) || unicode.IsDigit(r)
	}
	bad := func(r rune) bool { return !good(r) }
	return s != "" && len(s) <= 512 && s[0] != '-' && s[0] != '.' && utf8.ValidString(s) && !strings.ContainsFunc(s, bad)
}

func validHost(s string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:[]%"
	return s != "" && len(s) <= 255 && s[0] != '-' && s[0] != '.' && strings.Trim(s, letters) == ""
}
