package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"dma/forward"
	"dma/internal/address"
	"dma/internal/passwd"
	"dma/localwriter"
	"dma/spooldir"
)

// Own is the agent of a spool that one uid serves.
type Own struct {
	UID      int           // who serves
	Any      bool          // users come from a file of our own: all are served, as UID
	MinUID   int           // users below, root excepted, have no .forward,
	Listed   []string      // unless they are listed
	Mailbox  string        // MAILBOX of dma.conf
	Flock    bool          // an mbox is locked with flock(2) instead of fcntl(2)
	Forwards string        // FORWARD of dma.conf
	Limit    time.Duration // for commands
	HostName string

	Aliases   *forward.AliasFile
	AliasUser string // runs commands and writes files of the aliases

	MailFile *os.File // the mailbox, opened by somebody who may; nil: it is opened here
	ReadOnly bool     // nothing is delivered

	reader forward.Reader
	groups forward.GroupFiles
	sync   func(*os.File) error // fsync(2); nil: the system's
}

// Serves implements Agent.
func (a *Own) Serves(u passwd.User) error {
	if a.Any || u.UID == a.UID {
		return nil
	}
	return fmt.Errorf("mail for %s waits: this spool is served by uid %d alone; start dma-runner as root on a spool of user dma, or name the users in a USERS file", u.Name, a.UID)
}

// errReadOnly says that the agent was not started to deliver: it does not hold the
// lock of its user.
var errReadOnly = errors.New("this agent reads the .forward and delivers nothing")

// owner is the uid that a user's files have to have.
func (a *Own) owner(u passwd.User) int {
	if a.Any {
		return a.UID
	}
	return u.UID
}

// Forward implements Agent.
func (a *Own) Forward(ctx context.Context, u passwd.User, detail string) (forward.Result, error) {
	if err := a.Serves(u); err != nil {
		return forward.Result{}, err
	}
	if !a.Any && u.UID < a.MinUID && u.UID != 0 && !slices.Contains(a.Listed, u.Name) {
		return forward.Result{}, nil
	}
	return a.reader.Read(ctx, forward.ReadOptions{
		Paths: forward.Paths(a.Forwards, u.Name, u.Home, detail),
		Home:  u.Home, UID: a.owner(u),
		Alone: func(gid int) (bool, error) { return a.groups.Alone(a.owner(u), gid) },
	})
}

// Deliver implements Agent. Jobs for the same place that follow each other
// share a session, and so a sync.
func (a *Own) Deliver(ctx context.Context, u passwd.User, jobs []*Job, done func(*Job)) {
	err := a.Serves(u)
	if err == nil && a.ReadOnly {
		err = errReadOnly
	}
	if err != nil {
		for _, j := range jobs {
			j.Err = err
			done(j)
		}
		return
	}
	var torn []*Job // unfinished ones
	for len(jobs) > 0 {
		n := 1
		for n < len(jobs) && a.samePlace(jobs[0], jobs[n]) {
			n++
		}
		// Whatever its detail, an mbox is one file.
		first := jobs[0]
		if i := slices.IndexFunc(torn, func(j *Job) bool { return j.Kind == first.Kind && j.Target == first.Target }); i >= 0 {
			for _, j := range jobs[:n] {
				j.Place, j.Err = torn[i].Place, localwriter.Behind(torn[i].Place)
			}
		} else {
			a.batch(ctx, u, jobs[:n])
		}
		for _, j := range jobs[:n] {
			if localwriter.Unfinished(j.Err, j.Message.Suspect) {
				torn = append(torn, j)
			}
			done(j)
		}
		jobs = jobs[n:]
	}
}

// samePlace reports whether two jobs go to one file or Maildir, and for the same
// reason. A mailbox that is an mbox is one file whatever the detail: where it is
// locked, one wait is for all.
func (a *Own) samePlace(x, y *Job) bool {
	if x.Kind != y.Kind || x.Kind == spooldir.Command || x.Target != y.Target || x.Source != y.Source {
		return false
	}
	return x.Detail == y.Detail || x.Kind == spooldir.Mailbox && strings.HasPrefix(a.Mailbox, "mbox:")
}

// batch carries out jobs for one place.
func (a *Own) batch(ctx context.Context, u passwd.User, jobs []*Job) {
	fail := func(err error) {
		for _, j := range jobs {
			j.Err = err
		}
	}
	if err := ctx.Err(); err != nil {
		fail(err)
		return
	}
	first := jobs[0]
	if err := a.listed(ctx, u, first); err != nil {
		fail(err)
		return
	}
	place, err := a.place(u, first)
	if err != nil {
		fail(err)
		return
	}
	for _, j := range jobs {
		j.Place = place.name
	}
	if place.command != "" {
		for _, j := range jobs {
			j.Err = a.run(ctx, u, place.command, j)
		}
		return
	}
	session, err := place.open(ctx)
	if err != nil {
		fail(err)
		return
	}
	for _, j := range jobs {
		if j.Message.Suspect && session.Mend(ctx, j.Message) != nil {
			break // Append says why
		}
	}
	var appended []*Job
	for _, j := range jobs {
		if j.Already, j.Err = session.Append(ctx, j.Message); j.Err == nil {
			appended = append(appended, j)
		}
	}
	if err := session.Commit(); err != nil {
		for _, j := range appended {
			j.Err = err
		}
	}
	// What is committed is delivered, whatever closing says.
	session.Close()
}

// listed returns nil if the owner of a file or command lists it now.
func (a *Own) listed(ctx context.Context, u passwd.User, j *Job) error {
	var kinds []forward.Kind
	switch {
	case j.Kind == spooldir.Mailbox:
		return nil
	case j.Kind == spooldir.Command:
		kinds = []forward.Kind{forward.Command}
	case strings.HasSuffix(j.Target, "/"):
		kinds = []forward.Kind{forward.Maildir}
	default:
		kinds = []forward.Kind{forward.File}
	}
	for _, kind := range kinds {
		var ok bool
		var err error
		switch j.Source {
		case "forward":
			var r forward.Result
			if r, err = a.Forward(ctx, u, j.Detail); err == nil {
				ok = r.Lists(kind, j.Target)
			}
		case "aliases":
			if u.Name != a.AliasUser {
				return ErrUnlisted
			}
			var aliases *forward.Aliases
			if aliases, _, err = a.Aliases.Current(); err == nil {
				ok, err = aliases.Lists(ctx, kind, j.Target)
			}
		default:
			err = fmt.Errorf("%q lists nothing", j.Source)
		}
		if err != nil {
			return err
		}
		if ok {
			return nil
		}
	}
	return ErrUnlisted
}

// place is where a job goes: a session to open, or a command.
type place struct {
	name    string
	command string
	open    func(ctx context.Context) (localwriter.Session, error)
}

// place finds out where a job goes.
func (a *Own) place(u passwd.User, j *Job) (place, error) {
	switch {
	case j.Kind == spooldir.Command:
		return place{name: "|" + j.Target, command: j.Target}, nil
	case j.Kind == spooldir.File && strings.HasSuffix(j.Target, "/"):
		return a.maildir(u, j.Target, ""), nil
	case j.Kind == spooldir.File:
		return a.mbox(u, j.Target), nil
	}
	scheme, rest, _ := strings.Cut(a.Mailbox, ":")
	switch scheme {
	case "mbox", "maildir":
		path := forward.ExpandPath(rest, u.Name, u.Home)
		if path == "" {
			return place{}, fmt.Errorf("user %s has no home directory, and MAILBOX %s needs one", u.Name, a.Mailbox)
		}
		if scheme == "mbox" {
			return a.inbox(u, path), nil
		}
		return a.maildir(u, path, j.Detail), nil
	case "pipe":
		return place{name: "|" + rest, command: rest}, nil
	}
	// It was put here by hand, or MAILBOX has changed.
	return place{}, fmt.Errorf("MAILBOX %s is a server, which gets the mail from elsewhere than here", a.Mailbox)
}

func (a *Own) mbox(u passwd.User, path string) place {
	return place{name: path, open: func(ctx context.Context) (localwriter.Session, error) {
		return localwriter.OpenMbox(ctx, localwriter.Mbox{Path: path, UID: a.owner(u), Flock: a.Flock, Sync: a.sync})
	}}
}

func (a *Own) maildir(u passwd.User, path, detail string) place {
	return place{name: path, open: func(ctx context.Context) (localwriter.Session, error) {
		return localwriter.OpenMaildir(ctx, localwriter.Maildir{Path: path, Folder: detail, UID: a.owner(u), Host: a.HostName, Sync: a.sync})
	}}
}

// run gives a message to a command.
func (a *Own) run(ctx context.Context, u passwd.User, line string, j *Job) error {
	if !a.Any && u.UID != os.Geteuid() {
		return errors.New("the command belongs to another user")
	}
	local, _, _ := strings.Cut(j.Recipient, "@")
	if a, err := address.Parse(j.Recipient); err == nil {
		local = a.Local
	}
	dir := u.Home
	if j.Source == "aliases" && homeless(u) {
		dir = "/" // as with sendmail: ALIASUSER may be an account like nobody
	}
	cmd := localwriter.Command{Line: line, Dir: dir, Limit: a.Limit, Env: localwriter.Environment(localwriter.Variables{
		User: u.Name, Home: u.Home, Shell: u.Shell, Sender: j.Message.Sender, Recipient: j.Recipient,
		OriginalRecipient: j.Original, Local: local, Extension: j.Detail, Domain: j.Domain,
		TZ: os.Getenv("TZ"), Lang: os.Getenv("LANG"),
	})}
	return cmd.Run(ctx, j.Message.Reader(true))
}
