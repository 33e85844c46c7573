// Package agent is the boundary to what runs as a user: it reads that user's
// .forward and writes that user's mailbox and files and runs that user's
// commands. The queue process names a user and hands over a message; what may
// be done for that user the agent finds out by itself, with that user's eyes.
//
// Own is the agent of a spool that one uid serves: it works in the process
// that calls it.
package agent

import (
	"context"
	"errors"

	"dma/forward"
	"dma/internal/passwd"
	"dma/localwriter"
	"dma/spooldir"
)

// ErrUnlisted says that the owner of a file or command does not list it any
// more: it was not touched, and what the owner lists now has to be asked for.
var ErrUnlisted = errors.New("no longer listed")

// Agent does things as a user.
type Agent interface {
	// Serves returns nil if the agent can work for a user, else why it
	// cannot now. Mail for the user then waits.
	Serves(u passwd.User) error

	// Forward reads the .forward of a user for mail to user+detail. Every
	// error is temporary, one printable line that says what to do.
	Forward(ctx context.Context, u passwd.User, detail string) (forward.Result, error)

	// Deliver carries out jobs of one user and calls done for each, in
	// order, as soon as it is decided and, if it went well, durable. It
	// calls done for all of them before it returns, and from no other
	// goroutine.
	Deliver(ctx context.Context, u passwd.User, jobs []*Job, done func(*Job))
}

// Job is one message for one place of a user.
type Job struct {
	Kind   spooldir.RecipientKind // Mailbox, File or Command
	Target string                 // File: path, with a final slash a Maildir; Command: the line
	Source string                 // File, Command: "forward" or "aliases": who has to list Target now

	Recipient string // the address that is delivered to
	Original  string // the address as submitted
	Detail    string // of user+detail
	Domain    string // of Recipient

	Message localwriter.Message

	// What came of it.
	Already bool   // the message was there: an earlier delivery was not recorded
	Place   string // where it went, for the log
	Err     error  // nil, ErrUnlisted, a *localwriter.Error, or trouble of the machine
}
