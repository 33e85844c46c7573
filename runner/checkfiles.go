package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"dma/internal/config"
	"dma/internal/mapfile"
	"dma/internal/passwd"
	"dma/internal/rewrite"
	"dma/smarthost"
)

// fileCheck looks at the files that the configuration names for mail to other
// hosts, and at keys that need each other.
type fileCheck struct {
	config *config.Config
	users  passwd.Source
	any    bool // users are those of USERS, whom the spool's owner serves as itself
	uid    int  // of the spool's owner
	reader int  // uid that needs the credentials
	net    int  // gid that may read them besides their owner, -1 if none may
	state  string
	now    time.Time

	problem func(config.Problem)
	note    func(text string)
}

func (k *fileCheck) run(ctx context.Context) {
	c := k.config
	if c.Insecure {
		k.key("INSECURE", "it has no effect: passwords and tokens never cross a connection that is not encrypted; remove it")
	}
	if c.AuthPath != "" {
		k.all(smarthost.CheckCredentials(c.AuthPath, c.PasswordCmd != "", k.net))
		k.readable(c.AuthPath)
	}
	k.password(ctx)
	k.aliasUser(ctx)
	if c.TLSPolicy != "" {
		k.all(smarthost.CheckTLSPolicy(c.TLSPolicy))
	}
	if c.Rewrite != "" {
		r := rewrite.New(rewrite.Config{HostName: "localhost", Local: c.LocalDomains, Map: c.Rewrite, Problem: k.problem})
		if err := r.Reload(); err != nil {
			k.key("REWRITE", "%v; mail for other hosts waits until it can be read", err)
		}
	}
	if c.SenderRelay != "" {
		if _, err := smarthost.NewSenderRelays(c.SenderRelay, c.Port, k.problem).For("nobody@example.invalid"); err != nil {
			k.key("SENDERRELAY", "%v; mail for other hosts waits until it can be read", errors.Unwrap(err))
		}
	}
	if c.CertFile != "" {
		until, problems := smarthost.CheckCertificate(c.CertFile, k.net, k.now)
		k.all(problems)
		if !until.IsZero() {
			k.readable(c.CertFile)
			k.note(fmt.Sprintf("%s: our own certificate is valid until %s", c.CertFile, until.Format("2006-01-02 15:04 MST")))
		}
	}
	k.socket()
	k.refusals()
}

// socket tells of a server of mailboxes that the service cannot talk to.
func (k *fileCheck) socket() {
	path, ok := strings.CutPrefix(k.config.Mailbox, lmtpScheme)
	if !ok || !strings.HasPrefix(path, "/") {
		return
	}
	info, err := os.Stat(path)
	if err != nil {
		k.key("MAILBOX", "%v; mail for users waits until the server is there", err)
		return
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	perm := info.Mode().Perm()
	switch {
	case info.Mode()&fs.ModeSocket == 0:
		k.key("MAILBOX", "%s is no socket, and mail for users waits; name that of the server", path)
	case !ok, k.reader == 0, perm&0o002 != 0:
	case int(st.Uid) == k.reader && perm&0o200 != 0:
	case perm&0o020 != 0 && (k.net < 0 || int(st.Gid) == k.net):
	default:
		k.key("MAILBOX", "uid %d, which delivers, cannot write to %s, and mail for users waits; give it the socket where the server is configured (in Dovecot user and mode of the unix_listener)", k.reader, path)
	}
}

// readable tells of a file with a secret that the service cannot read, though who
// asks can.
func (k *fileCheck) readable(path string) {
	info, err := os.Stat(path)
	if err != nil {
		return // said already
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	perm := info.Mode().Perm()
	switch {
	case !ok, k.reader == 0, perm&0o004 != 0:
	case int(st.Uid) == k.reader && perm&0o400 != 0:
	case int(st.Gid) == k.net && perm&0o040 != 0:
	case k.net >= 0:
		k.problem(config.Problem{File: path, Text: fmt.Sprintf("the net process cannot read it, and mail waits; chgrp %d and chmod 0640 %s", k.net, path)})
	default:
		k.problem(config.Problem{File: path, Text: fmt.Sprintf("the user of the spool (uid %d) cannot read it, and mail waits; chown %d and chmod 0600 %s", k.reader, k.reader, path)})
	}
}

// password looks at PASSWORDCMD and TOKENUSER.
func (k *fileCheck) password(ctx context.Context) {
	c := k.config
	switch {
	case c.PasswordCmd == "" && c.TokenUser != "":
		k.key("TOKENUSER", "it has no effect without PASSWORDCMD; set that or remove this")
	case c.PasswordCmd != "" && c.AuthPath == "":
		k.key("PASSWORDCMD", "it is never asked: AUTHPATH names no file with the logins; set that or remove this")
	case c.PasswordCmd == "":
	case c.TokenUser == "" && k.net >= 0:
		k.key("PASSWORDCMD", "nobody runs it: set TOKENUSER to the user whose it is")
	case c.TokenUser != "":
		u, err := k.users.Lookup(ctx, c.TokenUser)
		switch {
		case errors.Is(err, passwd.ErrUnknown):
			k.key("TOKENUSER", "there is no user %s; name one who exists", c.TokenUser)
		case err != nil:
			k.key("TOKENUSER", "%v; try again", err)
		case k.net < 0 && u.UID != k.uid:
			k.key("TOKENUSER", "%s is not the user of the spool (uid %d), who alone can run PASSWORDCMD, and mail waits; name that user or none", c.TokenUser, k.uid)
		case k.net >= 0 && k.ofService(u):
			k.key("TOKENUSER", "%s may not run PASSWORDCMD; name a user who is neither root nor one of the service", c.TokenUser)
		}
	}
}

// ofService reports whether u may run nothing for a spool that all users share.
func (k *fileCheck) ofService(u passwd.User) bool {
	return u.UID == 0 || u.UID == k.uid || u.UID == k.reader
}

// aliasUser looks at ALIASUSER.
func (k *fileCheck) aliasUser(ctx context.Context) {
	if k.config.AliasUser == "" {
		return // it matters where the aliases name a command or a file
	}
	u, err := k.users.Lookup(ctx, k.config.AliasUser)
	switch {
	case errors.Is(err, passwd.ErrUnknown):
		k.key("ALIASUSER", "there is no user %s, and mail for the commands and files of the aliases waits; name one who exists", k.config.AliasUser)
	case err != nil:
		k.key("ALIASUSER", "%v; try again", err)
	case k.net < 0 && !k.any && u.UID != k.uid:
		k.key("ALIASUSER", "%s is not the user of the spool (uid %d), whose the commands and files of the aliases are, and mail for them waits; name that user or none", u.Name, k.uid)
	case k.net >= 0 && k.ofService(u):
		k.key("ALIASUSER", "the commands and files of the aliases cannot be those of %s, and mail for them waits; name a user who is neither root nor one of the service", u.Name)
	}
}

// refusals tells which logins are not tried now.
func (k *fileCheck) refusals() {
	list, err := smarthost.ReadRefusals(k.state)
	if err != nil {
		return // of another user; what else is wrong with the spool is said elsewhere
	}
	for _, r := range list {
		if k.now.Before(r.Until) {
			k.problem(config.Problem{File: k.config.AuthPath, Text: printable(fmt.Sprintf(
				"%s has refused the login of %s %d times, last at %s: %s; mend it here, or there and run \"dma-runner flush\"",
				r.Relay, r.Login, r.Times, r.At.Format(time.RFC3339), r.Reason))})
		}
	}
}

func (k *fileCheck) all(problems []config.Problem) {
	for _, p := range problems {
		k.problem(p)
	}
}

// key tells what is wrong with a key, and on which line it is.
func (k *fileCheck) key(name, format string, args ...any) {
	p := config.Problem{File: k.config.File, Text: name + ": " + fmt.Sprintf(format, args...)}
	f := mapfile.File{Path: k.config.File}
	if text, _, err := f.Read(); err == nil {
		for n, line := range mapfile.Lines(text) {
			if word, _, _ := strings.Cut(strings.ReplaceAll(line, "\t", " "), " "); word == name {
				p.Line = n
			}
		}
	}
	k.problem(p)
}
