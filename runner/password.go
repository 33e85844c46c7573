package runner

import (
	"context"
	"errors"
	"fmt"
	"os"

	"dma/internal/config"
	"dma/internal/passwd"
	"dma/parent"
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
		return parent.Ask(ctx, parent.Question{Command: c.PasswordCmd, Login: user, Host: host, Home: owner.Home})
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
