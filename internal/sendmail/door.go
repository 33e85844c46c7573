package sendmail

import (
	"io"
	"time"

	"dma/internal/config"
	"dma/spooldir"
)

// Door is a way into the queue.
type Door interface {
	// Free returns nil, or why no mail is taken now.
	Free() error

	// Scratch makes a file without a name, for a long body.
	Scratch() (Scratch, error)

	// Create begins a message on the host of a name. The door writes the
	// Received field itself (door.Received), before what the draft is given.
	Create(e *spooldir.Envelope, host string) (Draft, error)

	// NeedsDrain reports whether nobody serves the queue and the caller may.
	NeedsDrain() bool
}

// Draft is a message being written into the queue, as *spooldir.Draft and
// *door.Draft are.
type Draft interface {
	io.Writer
	ID() string
	Arrival() time.Time

	// Commit ends the draft; nil says that the message is safe.
	Commit() error

	// Abort ends the draft and leaves nothing.
	Abort() error
}

// System is what the program needs of the machine around it.
type System interface {
	// Load reads the configuration, as config.Load does.
	Load(path string, named bool) (*config.Config, []config.Problem, error)

	// Account finds the user with a uid. One of the names is preferred if it
	// is a name of that uid. The result always has a name.
	Account(c *config.Config, uid int, names ...string) Account

	// Open finds a door that lets the caller in. The error says why there is
	// none, and what to do.
	Open(c *config.Config) (Door, error)

	// DropGroup gives up the group that the program file has lent, for good.
	DropGroup() error

	// Exec becomes dma-runner with these arguments and returns only if it
	// can't.
	Exec(args []string) error

	// Start starts dma-runner with these arguments, in a session of its own
	// and without the caller's descriptors, and where wait says so waits until
	// it ends or stop is closed.
	Start(args []string, wait bool, stop <-chan struct{}) error
}
