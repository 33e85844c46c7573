package runner

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"dma/agent"
	"dma/forward"
	"dma/internal/address"
	"dma/internal/config"
	"dma/internal/passwd"
)

// The bounds of looking at local mail.
const (
	mailTime    = time.Minute
	mostSaid    = 1000 // problems
	longestSaid = 4096 // octets
)

// mailCheck looks for what makes mail for this host wait, or come back: in the
// aliases as the queue reads them, and in the .forward files as it has them read.
type mailCheck struct {
	*verifier
	anyone      agent.Agent // reads the .forward of users below MINUID too; nil: these are not looked at
	rootForward string      // the .forward of root, if there is one

	problem func(text string)
	note    func(text string)

	most int // .forward files that are read; mostReads if 0
	said map[string]bool
}

func (k *mailCheck) run() {
	ctx, cancel := context.WithTimeout(k.ctx, mailTime)
	defer cancel()
	k.ctx, k.said = ctx, make(map[string]bool)
	note := k.note
	k.note = func(text string) { note(shown(text)) }
	problems, err := k.load()
	for _, p := range problems {
		if p.Warning {
			k.note(p.Error())
			continue
		}
		k.say(p.Error(), p.Error())
	}
	if err != nil {
		k.sayf("%v; mail for this host waits", err)
	}
	if k.config.NullClient {
		return // no mail is local
	}
	k.included()
	k.expansions()
	if k.ctx.Err() == nil {
		k.forwards()
	}
	if k.ctx.Err() != nil {
		k.note(fmt.Sprintf("local mail: not all was looked at within %v", mailTime))
	}
}

// say tells a problem, unless one with the same key has been told.
func (k *mailCheck) say(key, text string) {
	if k.said[key] || len(k.said) > mostSaid {
		return
	}
	if k.said[key] = true; len(k.said) > mostSaid {
		text = fmt.Sprintf("more than %d problems with local mail; mend these first", mostSaid)
	}
	k.problem(shown(text))
}

// shown is text as it can be told in one line, whoever wrote what it quotes.
func shown(text string) string { return printable(text[:min(len(text), longestSaid)]) }

func (k *mailCheck) sayf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	k.say(text, text)
}

// sayAt tells a problem with a target, once, however many aliases lead to it.
func (k *mailCheck) sayAt(t forward.Target, format string, args ...any) {
	k.say(where(t), config.Problem{File: t.File, Line: t.Line, Text: fmt.Sprintf(format, args...)}.String())
}

// included tells of files that may look different to the queue.
func (k *mailCheck) included() {
	if k.ids == nil || k.all {
		return
	}
	for _, path := range k.config.Aliases {
		if err := k.doubt(path, nil); err != nil {
			k.sayf("%s: %v", path, err)
		}
	}
	for _, path := range k.aliases.Included(k.ctx) {
		targets, _ := readList(path) // what is wrong with it comes with the aliases
		if err := k.doubt(path, targets); err != nil {
			k.sayf("%s: %v", path, err)
		}
	}
}

// expand follows a name by the aliases as they are, though they may have been written
// a moment ago, when the queue waits with what it does not find in them.
func (k *mailCheck) expand(name string) (forward.Expansion, error) {
	later := func() time.Time { return time.Now().Add(time.Hour) }
	return k.aliases.Expand(k.ctx, name, forward.Host{IsUser: k.isUser, IsLocal: k.isLocal, Now: later})
}

// expansions looks at each alias.
func (k *mailCheck) expansions() {
	for _, name := range k.aliases.Names() {
		if k.ctx.Err() != nil {
			return
		}
		x, err := k.expand(name)
		var p forward.Problem
		switch {
		case k.ctx.Err() != nil:
		case k.ids != nil && !k.all && errors.Is(err, fs.ErrPermission):
			k.sayf("what becomes of mail for %s cannot be told: %v", name, err)
		case errors.As(err, &p):
			k.say(p.Error(), fmt.Sprintf("%v; mail for %s waits", p, name))
		case err != nil:
			k.say(err.Error(), fmt.Sprintf("mail for %s waits: %v", name, err))
		default:
			k.targets(name, x.Targets)
		}
	}
}

// targets looks at the places where mail for name goes.
func (k *mailCheck) targets(name string, targets []forward.Target) {
	for _, t := range targets {
		switch t.Kind {
		case forward.File, forward.Maildir, forward.Command:
			if k.aliasUser == "" {
				k.sayAt(t, "%s is nobody's, and mail for %s waits; set ALIASUSER in dma.conf to the user whose the commands and files of the aliases are", t, name)
			}
		case forward.Address:
			k.nobodys(name, t)
		case forward.User, forward.Mailbox:
			u, err := k.users.Lookup(k.ctx, t.Value)
			switch {
			case k.ctx.Err() != nil:
			case errors.Is(err, passwd.ErrUnknown):
				k.sayAt(t, "there is no user %s, and mail for %s to it is returned; correct the name", t.Value, name)
			case err != nil:
				k.sayAt(t, "mail for %s waits: %v", name, err)
			default:
				if why := k.unserved(u); why != "" {
					k.say(why, config.Problem{File: t.File, Line: t.Line, Text: why}.String())
				}
			}
		}
	}
}

// unserved says why mail for a user has to wait whom a spool that all users share
// does not serve; empty if it does. That one of a single uid serves no other is no
// mistake.
func (k *mailCheck) unserved(u passwd.User) string {
	if k.ids == nil {
		return ""
	}
	if err := k.serves(u); err != nil {
		return err.Error()
	}
	if err := k.barred(u, false); err != nil && !strings.HasPrefix(k.config.Mailbox, lmtpScheme) {
		return fmt.Sprintf("mail for %s waits: %v", u.Name, err)
	}
	return ""
}

// nobodys tells of an address of this host that is nobody's.
func (k *mailCheck) nobodys(name string, t forward.Target) {
	a, err := address.Parse(t.Value)
	if err != nil {
		return
	}
	if local, here := k.isLocal(a); here {
		if _, err := k.expand(local); errors.Is(err, forward.ErrNoUser) {
			k.sayAt(t, "%s is no alias and no user, and mail for %s to it is returned; correct the name", t.Value, name)
		}
	}
}

// What begins a line in which the process that looks for root tells of a problem, or
// notes something.
const (
	problemMark = "!"
	noteMark    = " "
)

// inspectMail is the check of local mail by such a process.
func inspectMail(v *verifier, options agent.RemoteOptions, rootForward string) error {
	options.Idle = time.Millisecond // each is asked once
	agents := agent.NewRemote(options)
	defer agents.Close()
	options.MinUID = 0
	anyone := agent.NewRemote(options)
	defer anyone.Close()
	v.agent = agents
	k := &mailCheck{
		verifier: v, anyone: anyone, rootForward: rootForward,
		problem: func(text string) { fmt.Fprintln(v.out, problemMark+text) },
		note:    func(text string) { fmt.Fprintln(v.out, noteMark+text) },
	}
	k.run()
	return v.out.Flush()
}

// takeMail takes up what such a process tells. An error means that not all of it
// could be read.
func takeMail(r io.Reader, problem, note func(text string)) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), problemMark); ok {
			problem(shown(text))
		} else {
			note(shown(strings.TrimPrefix(lines.Text(), noteMark)))
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("local mail: not all that was found can be told: %w", err)
	}
	return nil
}

// checkMail looks at local mail as the one who serves it, if the caller may.
func (c *call) checkMail(problem, note func(text string)) error {
	ids, err := separated(c.config.SpoolDir)
	if err != nil {
		return err
	}
	ctx, cancel := stopped()
	defer cancel()
	if ids != nil {
		return c.inspect(ctx, ids, inspection{Command: checkCommand, RootForward: rootForward(c.config)}, func(r io.Reader) {
			if err := takeMail(r, problem, note); err != nil {
				problem(err.Error())
			}
		})
	}
	v, err := c.verifier(ctx)
	if err != nil {
		return err
	}
	(&mailCheck{verifier: v, problem: problem, note: note}).run()
	return nil
}
