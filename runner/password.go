package runner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"dma/internal/config"
	"dma/internal/passwd"
)

// The bounds of PASSWORDCMD.
const (
	passwordTime = 30 * time.Second
	passwordSize = 64 << 10 // octets of output; tokens are long
)

// passwordCommand returns what asks PASSWORDCMD for a secret, nil if there is no
// such command. In a spool that one uid serves it runs as that uid: a TOKENUSER
// who is somebody else makes the login wait.
func passwordCommand(c *config.Config, users passwd.Source) func(ctx context.Context, user, host string) (string, error) {
	if c.PasswordCmd == "" {
		return nil
	}
	return func(ctx context.Context, user, host string) (string, error) {
		owner, err := tokenUser(ctx, c, users, os.Geteuid())
		if err != nil {
			return "", err
		}
		return askPassword(ctx, c.PasswordCmd, owner.Home, user, host)
	}
}

// tokenUser returns whose PASSWORDCMD is: TOKENUSER, who has to be the user uid of
// the spool, or that user. Without an account the latter has no home.
func tokenUser(ctx context.Context, c *config.Config, users passwd.Source, uid int) (passwd.User, error) {
	if c.TokenUser != "" {
		u, err := users.Lookup(ctx, c.TokenUser)
		if err != nil {
			return u, fmt.Errorf("TOKENUSER: %w", err)
		}
		if u.UID != uid {
			return u, fmt.Errorf("TOKENUSER %s is not the user of this spool (uid %d), who alone can run PASSWORDCMD here", c.TokenUser, uid)
		}
		return u, nil
	}
	u, err := users.LookupID(ctx, uid)
	if errors.Is(err, passwd.ErrUnknown) {
		return passwd.User{UID: uid}, nil
	}
	if err != nil {
		return u, fmt.Errorf("the home of uid %d: %w", uid, err)
	}
	return u, nil
}

// askPassword runs a command and returns the first line that it prints. No
// error holds anything of its output, which may be part of a secret.
func askPassword(ctx context.Context, command, home, user, host string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, passwordTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LOGIN=" + user, "HOST=" + host}
	if home != "" {
		cmd.Env = append(cmd.Env, "HOME="+home)
	}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout = &limited{w: &out, room: passwordSize}
	// A command that has left a process behind, as one that starts an agent, which
	// holds its output open, has said what it had to say.
	if err := cmd.Run(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return "", err
	}
	line, _, _ := strings.Cut(out.String(), "\n")
	line = strings.TrimSuffix(line, "\r")
	if line == "" {
		return "", errors.New("it printed nothing")
	}
	return line, nil
}
