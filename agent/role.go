package agent

import (
	"context"
	"errors"
	"strings"

	"dma/internal/wire"
	"dma/spooldir"
)

// Role is what an agent process may do.
type Role string

const (
	// MailboxRole appends to the user's mbox in the mail directory, with the
	// group of that directory, and runs no code of the user's.
	MailboxRole Role = "mailbox"
	// UserRole does everything else, with exactly the user's rights.
	UserRole Role = "user"
)

// Valid reports whether r is a role.
func (r Role) Valid() bool { return r == MailboxRole || r == UserRole }

// RoleFor returns the role that carries out jobs of a kind where mailbox is the
// value of MAILBOX. A mailbox that is not in a home needs the rights of the mail
// directory; in a home nobody but its owner is to have a hand.
func RoleFor(mailbox string, kind spooldir.RecipientKind) Role {
	path, mbox := strings.CutPrefix(mailbox, "mbox:")
	if kind == spooldir.Mailbox && mbox && !strings.HasPrefix(path, "~") {
		return MailboxRole
	}
	return UserRole
}

// Starter starts and ends agent processes: the parent, as seen by the queue
// process.
type Starter interface {
	// StartAgent has an agent started for a user, and returns the connection to
	// it. Every error is temporary; one that wraps ErrBusy says that it is worth
	// asking again in a moment.
	StartAgent(ctx context.Context, user string, role Role) (*wire.Conn, error)

	// StopAgent kills the agent of a user and role that StartAgent has started,
	// if it lives, with the command that it runs, and returns when it has gone
	// or cannot be made to go.
	StopAgent(ctx context.Context, user string, role Role) error
}

var (
	// ErrBusy says that an earlier agent of the user and role is still alive.
	ErrBusy = errors.New("an earlier agent is still alive")

	// ErrNotServed says that the user gets no agent of this role.
	ErrNotServed = errors.New("not served")
)
