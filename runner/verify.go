package runner

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"dma/agent"
	"dma/forward"
	"dma/internal/address"
	"dma/internal/config"
	"dma/internal/passwd"
)

// runVerify prints the tree of where mail for addresses would go. It sends
// nothing, and needs the spool only for its owner's uid.
func runVerify(c *call) error {
	switch {
	case len(c.args) > 0 && c.args[0] == "--":
		c.args = c.args[1:]
	case len(c.args) > 0 && strings.HasPrefix(c.args[0], "-"):
		return exitf(exitUsage, "verify has no option %q; write -- before an address that begins with a hyphen", c.args[0])
	}
	if len(c.args) == 0 {
		return exitf(exitUsage, "verify needs addresses")
	}
	ids, err := separated(c.config.SpoolDir)
	if err != nil {
		return err
	}
	ctx, cancel := stopped()
	defer cancel()
	if ids != nil {
		return c.inspect(ctx, ids, inspection{Command: verifyCommand, Args: c.args}, func(r io.Reader) { io.Copy(c.stdio.Out, r) })
	}
	v, err := c.verifier(ctx)
	if err != nil {
		return err
	}
	return v.trees(c.args)
}

// trees prints the trees of addresses.
func (v *verifier) trees(args []string) error {
	// Problems of other names are no matter of these addresses; a mistake in
	// the line of one that is asked for comes with its expansion.
	if _, err := v.load(); err != nil && v.all {
		return exitf(exitTempfail, "mail for this host waits: %w", err)
	} else if err != nil {
		return err
	}
	for _, path := range v.config.Aliases {
		if err := v.doubt(path, nil); err != nil {
			v.untold = true
			fmt.Fprintf(v.stderr, "dma-runner: %s cannot be told for certain: %v\n", path, err)
		}
	}
	for _, arg := range args {
		list, err := address.ParseList(arg)
		if err == nil && len(list) == 0 {
			err = errors.New("an argument without an address")
		}
		if err != nil {
			fmt.Fprintf(v.stderr, "dma-runner: %s\n", printable(err.Error()))
			v.returned = true
		}
		for _, a := range list {
			if v.over() {
				break
			}
			v.address(way{}, a.String(), a)
		}
		if err := v.out.Flush(); err != nil {
			return err
		}
	}
	switch {
	case v.ctx.Err() != nil:
		return exitf(exitTempfail, "stopped before the end")
	case v.lines > maxLines:
		return exitf(exitTempfail, "the tree has more than %d lines, and the rest was not looked at", maxLines)
	case v.returned:
		return &exitError{code: exitNoUser}
	case v.waits:
		return &exitError{code: exitTempfail}
	case v.untold:
		return &exitError{code: exitNoPerm}
	}
	return nil
}

// newVerifier makes a verifier that does not know yet who is served how.
func newVerifier(ctx context.Context, conf *config.Config, stdio Stdio) *verifier {
	v := &verifier{ctx: ctx, config: conf, out: bufio.NewWriter(stdio.Out), stderr: stdio.Err, read: make(map[string]answer), aliasUser: conf.AliasUser}
	var err error
	if v.host, err = conf.HostName(); err != nil {
		fmt.Fprintf(stdio.Err, "dma-runner: %v; %s stands in for it\n", err, v.host)
	}
	return v
}

// ask makes source the one that is asked for users.
func (v *verifier) ask(source passwd.Source) {
	v.users = remembered{source, make(map[string]lookup)}
}

// load reads the aliases.
func (v *verifier) load() ([]forward.Problem, error) {
	v.aliases = &forward.Aliases{}
	aliases, problems, err := forward.LoadAliases(v.config.Aliases...)
	if err == nil {
		v.aliases = aliases
	}
	return problems, err
}

// verifier makes one for the caller. Who may run the queue that one uid serves sees
// what the queue sees: root becomes the owner of the spool, as for every command that
// works on it. Everybody else reads with rights of their own. For root there is
// another one where all users share the spool; see inspect.
func (c *call) verifier(ctx context.Context) (*verifier, error) {
	v := newVerifier(ctx, c.config, c.stdio)
	v.caller = os.Getuid()
	info, err := os.Lstat(c.config.SpoolDir)
	if err == nil {
		st, ok := info.Sys().(*syscall.Stat_t)
		v.known = ok
		if ok {
			v.owner = int(st.Uid)
		}
	} else {
		fmt.Fprintf(c.stdio.Err, "dma-runner: who serves the spool cannot be told: %v\n", err)
	}
	if v.ids, err = sharedBy(ctx, c.config.SpoolDir); err != nil {
		return nil, err
	}
	v.all = v.known && v.ids == nil && (v.caller == 0 || v.caller == v.owner)
	if v.known && os.Geteuid() == 0 && v.owner != 0 {
		if _, err := c.open(); err != nil {
			return nil, err
		}
	}
	own := &agent.Own{UID: v.owner, MinUID: c.config.MinUID, Listed: listed(c.config), Forwards: c.config.Forward}
	if v.ids != nil {
		own.UID = v.caller
		v.ask(passwd.System())
		v.agent = onlooker{agent.NewRemote(remoteOptions(c.config)), own}
		return v, nil
	}
	source, any := users(c.config)
	v.ask(source)
	if own.Any = any; !v.known {
		own.UID = v.caller
	}
	v.agent = own
	if v.aliasUser == "" && v.known {
		if u, err := source.LookupID(ctx, v.owner); err == nil {
			v.aliasUser = u.Name
		}
	}
	return v, nil
}

// isLocal is the decision of the queue whether mail for a belongs here.
func (v *verifier) isLocal(a address.Address) (string, bool) {
	c := localMail(v.config, v.host)
	return c.IsLocal(a)
}

// qualify returns a with the host name where it has no domain, in the form in
// which two addresses are compared.
func (v *verifier) qualify(a address.Address) string {
	if a.Domain == "" {
		a.Domain = v.host
	}
	return strings.ToLower(a.String())
}

func (v *verifier) isUser(name string) (bool, error) {
	_, err := v.users.Lookup(v.ctx, name)
	if errors.Is(err, passwd.ErrUnknown) {
		return false, nil
	}
	return err == nil, err
}

// serves says why mail for u has to wait. Whether it has to cannot be told if
// nobody knows who serves the spool.
func (v *verifier) serves(u passwd.User) error {
	if !v.known {
		return nil
	}
	return v.agent.Serves(u)
}

// barred says why mail for u has to wait that needs a process with the rights of u,
// which runs or writes what u wants if command is true, and else writes the mailbox.
func (v *verifier) barred(u passwd.User, command bool) error {
	switch {
	case v.ids == nil:
		return nil
	case u.UID == v.ids.QueueUID || u.UID == v.ids.NetUID:
		return fmt.Errorf("user %s is the mail system; name a person in the aliases", u.Name)
	case command && u.UID == 0:
		return errors.New("nothing is executed or written as root; give it to another user, with ALIASUSER")
	}
	return nil
}

// errNotShown says that a .forward is not for the caller.
var errNotShown = errors.New("not shown")

// forward reads the .forward of u for mail to u+detail, if the caller may see
// it: then this process has no rights beyond those of the caller.
func (v *verifier) forward(u passwd.User, detail string) (forward.Result, error) {
	switch {
	case v.ids != nil && !mayForward(v.config, u):
		return forward.Result{}, nil
	case !v.all && u.UID != v.caller:
		return forward.Result{}, errNotShown
	}
	key := u.Name + "+" + detail
	a, ok := v.read[key]
	if !ok {
		a.result, a.err = v.agent.Forward(v.ctx, u, detail)
		v.read[key] = a
	}
	return a.result, a.err
}

// noAliasUser says why nobody can run the commands and write the files among the
// targets of an alias, nil if somebody can or there are none.
func (v *verifier) noAliasUser(targets []forward.Target) error {
	switch {
	case !slices.ContainsFunc(targets, writes), v.aliasUser == "" && !v.known:
		return nil
	case v.aliasUser == "":
		return errors.New("it names a file or a command, and there is no user for that; set ALIASUSER in dma.conf")
	}
	if _, err := v.users.Lookup(v.ctx, v.aliasUser); err != nil {
		return fmt.Errorf("it names a file or a command, and ALIASUSER cannot be looked up: %w", err)
	}
	return nil
}

// writes reports whether delivery to t needs a user who writes or runs it.
func writes(t forward.Target) bool {
	return t.Kind == forward.File || t.Kind == forward.Maildir || t.Kind == forward.Command
}

// trouble returns what is said of an error for which mail would wait, and notes
// it for the exit code. What only the caller cannot read is no trouble of the
// queue.
func (v *verifier) trouble(err error) string {
	if !v.all && errors.Is(err, fs.ErrPermission) {
		v.untold = true
		return "cannot be told: " + err.Error()
	}
	v.waits = true
	return "waits: " + err.Error()
}

// remembered asks a source for each name once.
type remembered struct {
	passwd.Source
	known map[string]lookup
}

type lookup struct {
	user passwd.User
	err  error
}

func (r remembered) Lookup(ctx context.Context, name string) (passwd.User, error) {
	l, ok := r.known[name]
	if !ok {
		l.user, l.err = r.Source.Lookup(ctx, name)
		r.known[name] = l
	}
	return l.user, l.err
}
