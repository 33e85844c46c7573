package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"dma/agent"
	"dma/forward"
	"dma/internal/config"
	"dma/internal/passwd"
)

// The bounds of looking at .forward files.
const (
	readTime    = 20 * time.Second // for one
	readsAtOnce = 8
	mostReads   = 1000
)

// passwdFile is where the users are found whose .forward is looked at: other sources
// cannot be asked for all of them.
const passwdFile = "/etc/passwd"

// forwards looks at the .forward files that the caller may see, of users whose mail
// comes to them.
func (k *mailCheck) forwards() {
	if !k.all {
		return
	}
	all, where, err := k.everybody()
	if err != nil {
		k.sayf("the .forward files of the users cannot be looked at: %v", err)
		return
	}
	var list []*reading
	for _, u := range all {
		r := &reading{user: u, agent: k.agent, counts: k.ids == nil || mayForward(k.config, u)}
		switch {
		case k.ctx.Err() != nil:
			return
		case !k.reaches(u):
		case u.UID == 0 && k.ids != nil:
			if why := k.unserved(u); why != "" {
				k.sayf("%s", why)
			} else if u.Name == "root" && k.rootForward != "" {
				k.sayf("%s does not count, since nothing is done as root; name a person for root in the aliases", k.rootForward)
			}
		case !r.counts && k.anyone == nil, k.barred(u, false) != nil:
		default:
			if !r.counts {
				r.agent = k.anyone
			}
			list = append(list, r)
		}
	}
	k.read(list)
	left := 0
	for _, r := range list {
		if r.skipped {
			left++
		} else {
			k.judge(r)
		}
	}
	if left > 0 {
		k.note(fmt.Sprintf("local mail: the .forward files of %s of %s were not looked at; ask for them with \"dma-runner verify\"", count(left, "more user"), where))
	}
}

// reading is a .forward that is read.
type reading struct {
	user   passwd.User
	agent  agent.Agent
	counts bool // for mail
	found
}

// found is what became of reading it.
type found struct {
	there   bool // it is seen without reading it
	skipped bool // too many were read
	result  forward.Result
	err     error
}

// read reads several at a time. One that hangs holds up no other for long.
func (k *mailCheck) read(list []*reading) {
	next := make(chan *reading)
	var group sync.WaitGroup
	var reads atomic.Int64
	for range readsAtOnce {
		group.Go(func() {
			for r := range next {
				ctx, cancel := context.WithTimeout(k.ctx, readTime)
				answer := make(chan found, 1)
				user, from := r.user, r.agent
				go func() { answer <- k.look(ctx, user, from, &reads) }()
				select {
				case r.found = <-answer:
				case <-ctx.Done():
					r.err = ctx.Err()
				}
				cancel()
			}
		})
	}
	for _, r := range list {
		next <- r
	}
	close(next)
	group.Wait()
}

// look reads the .forward of u, unless it surely is not there: then no process has to.
func (k *mailCheck) look(ctx context.Context, u passwd.User, from agent.Agent, reads *atomic.Int64) (f found) {
	if f.err = ctx.Err(); f.err != nil {
		return f
	}
	there, missing := k.glance(u)
	switch {
	case missing:
		return f
	case int(reads.Add(1)) > cmp.Or(k.most, mostReads):
		f.skipped = true
		return f
	}
	f.there = there
	f.result, f.err = from.Forward(ctx, u, "")
	return f
}

// judge tells what is wrong with a .forward.
func (k *mailCheck) judge(r *reading) {
	switch {
	case k.ctx.Err() != nil && r.err != nil:
		// Perhaps for this alone.
	case !r.counts && (r.result.Path != "" || r.there):
		k.sayf("%s does not count, since %s (uid %d) is below MINUID %d; name %[2]s in FORWARDUSERS if it has to", k.path(r.user), r.user.Name, r.user.UID, k.config.MinUID)
	case !r.counts:
	case errors.Is(r.err, context.DeadlineExceeded):
		k.sayf("mail for %s waits: %s could not be read within %v; see whether its file system answers", r.user.Name, k.path(r.user), readTime)
	case r.err != nil:
		k.sayf("mail for %s waits: %v", r.user.Name, r.err)
	default:
		for _, t := range forward.KeepOwn(r.result.Targets, r.user.Name, k.isLocal) {
			if t.Kind == forward.Address {
				k.nobodys(r.user.Name, t)
			}
		}
	}
}

// everybody returns the users who are served, and where they are listed.
func (k *mailCheck) everybody() (users []passwd.User, where string, err error) {
	switch {
	case k.ids != nil:
		where = passwdFile
	case k.config.Users != "":
		where = k.config.Users
	default:
		u, err := k.users.LookupID(k.ctx, k.owner)
		if errors.Is(err, passwd.ErrUnknown) {
			return nil, passwdFile, nil // as in a container; it relays
		}
		return []passwd.User{u}, passwdFile, err
	}
	users, err = passwd.File(where).Users(k.ctx)
	return users, where, err
}

// reaches reports whether mail for the name of u comes to u, and not elsewhere by an
// alias.
func (k *mailCheck) reaches(u passwd.User) bool {
	x, err := k.expand(u.Name)
	if err != nil {
		return false
	}
	for _, t := range x.Targets {
		if t.Kind == forward.User && t.Value == u.Name {
			return true
		}
	}
	return false
}

// path is where the .forward of u has to be.
func (k *mailCheck) path(u passwd.User) string {
	return forward.ExpandPath(k.config.Forward, u.Name, u.Home)
}

// glance tells whether a .forward of u is there, or surely missing, as far as this
// process can see.
func (k *mailCheck) glance(u passwd.User) (there, missing bool) {
	path := k.path(u)
	if path == "" {
		return false, true
	}
	if _, err := os.Lstat(path); err == nil {
		return true, false
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, false
	}
	// Without a home, or while it is being edited, the mail waits.
	info, err := os.Stat(u.Home)
	return false, err == nil && info.IsDir() && info.Mode()&fs.ModeSticky == 0
}

// rootForward returns the path of the .forward of root, if there is one. Nothing of
// it is read.
func rootForward(c *config.Config) string {
	u, err := passwd.System().Lookup(context.Background(), "root")
	if err != nil {
		return ""
	}
	path := forward.ExpandPath(c.Forward, u.Name, u.Home)
	if _, err := os.Lstat(path); err != nil {
		return ""
	}
	return path
}
