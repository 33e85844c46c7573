package parent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"dma/agent"
	"dma/internal/maillog"
	"dma/internal/passwd"
)

// Account is what a process runs as.
type Account struct {
	UID, GID int
	Groups   []int // exactly; nil is none
}

// Clock is where the parent takes the time of its pauses from.
type Clock interface {
	Now() time.Time
	// After returns a channel that receives once d has passed, and a
	// function that gives the timer up.
	After(d time.Duration) (<-chan time.Time, func())
}

// systemClock is the Clock of the machine.
type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

func (systemClock) After(d time.Duration) (<-chan time.Time, func()) {
	t := time.NewTimer(d)
	return t.C, func() { t.Stop() }
}

// Options says what to start, and for whom. What is not marked may be changed by
// Reload.
type Options struct {
	Queue, Net           Account  // neither is root, and they are two users
	QueueSetup, NetSetup []byte   // what the workers read from descriptor 4
	Env                  []string // what the workers have in their environment besides
	Door                 *os.File // the listening socket of the queue process, or nil; fixed

	// RunDir is made where it is missing and belongs to root. The locks of the
	// users lie in its folder agents. Fixed.
	RunDir string

	// Users are those whom agents may be started for.
	Users passwd.Grouper

	// Agent is what every agent is told. Parent fills in User, UID, GID,
	// Groups, Role and MailFile.
	Agent agent.Setup

	// PasswordCmd prints secrets, as TokenUser, who is neither root nor the
	// user of a worker.
	PasswordCmd, TokenUser string

	Log   *maillog.Log  // fixed
	Clock Clock         // nil: the machine's; fixed
	Grace time.Duration // from being asked to end to being killed; 0: 10 s; fixed

	// UntilIdle makes Run return when both workers have had nothing to do for
	// IdleFor, and have found nothing when they looked at everything once more.
	// Fixed.
	UntilIdle bool
	IdleFor   time.Duration

	// Stay is asked before Run returns for UntilIdle, if not nil: where it says
	// so, Run goes on, and asks again when the workers have been idle for
	// IdleFor once more. It may not wait. Fixed.
	Stay func() bool

	// Reload is called for each value of Hangup. The workers are restarted with
	// what it returns; an error is logged and changes nothing. Fixed.
	Hangup <-chan os.Signal
	Reload func() (Options, error)

	// Ready is called when both workers have said that they are at work: at the
	// start and again after each restart. Alive is called each time that both
	// have answered a ping, about every 10 s. They may not wait. Fixed.
	Ready, Alive func()
}

// defaults fills in what is left out.
func (o Options) defaults() Options {
	if o.Clock == nil {
		o.Clock = systemClock{}
	}
	if o.Grace <= 0 {
		o.Grace = 10 * time.Second
	}
	if o.Log == nil {
		o.Log = maillog.New(nil)
	}
	return o
}

// changed returns o with what Reload has returned.
func (o Options) changed(by Options) Options {
	by.Door, by.RunDir, by.Log, by.Clock, by.Grace = o.Door, o.RunDir, o.Log, o.Clock, o.Grace
	by.UntilIdle, by.IdleFor, by.Stay = o.UntilIdle, o.IdleFor, o.Stay
	by.Hangup, by.Reload, by.Ready, by.Alive = o.Hangup, o.Reload, o.Ready, o.Alive
	return by
}

// check refuses options with which nothing may be started.
func (o Options) check() error {
	for _, a := range []Account{o.Queue, o.Net} {
		if a.UID <= 0 || a.GID <= 0 || slices.Contains(a.Groups, 0) {
			return fmt.Errorf("a worker may not have uid %d, gid %d and groups %v", a.UID, a.GID, a.Groups)
		}
	}
	switch {
	case o.Queue.UID == o.Net.UID:
		return fmt.Errorf("both workers have uid %d; make a user for each", o.Queue.UID)
	case o.Users == nil:
		return errors.New("no users")
	case !filepath.IsAbs(o.RunDir):
		return fmt.Errorf("the folder for locks %q is not a path from /", o.RunDir)
	}
	return nil
}

// creates reports whether mailboxes may have to be made for users.
func (o Options) creates() bool {
	_, ok := mboxPattern(o.Agent.Mailbox)
	return ok
}

// mboxPattern returns the pattern of mailboxes outside homes.
func mboxPattern(mailbox string) (pattern string, ok bool) {
	pattern, ok = strings.CutPrefix(mailbox, "mbox:")
	return pattern, ok && strings.HasPrefix(pattern, "/")
}
