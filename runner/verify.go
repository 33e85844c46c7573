package runner

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"dma/agent"
	"dma/forward"
	"dma/internal/address"
	"dma/internal/passwd"
)

// runAliases checks the aliases files and says each line that does not count.
func runAliases(c *call) error {
	if err := c.noArguments("aliases"); err != nil {
		return err
	}
	aliases, problems, err := forward.LoadAliases(c.config.Aliases...)
	for _, p := range problems {
		fmt.Fprintln(c.stdio.Err, p.Error())
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(c.stdio.Out, "%s: %s, %s\n", strings.Join(c.config.Aliases, ", "), count(len(aliases.Names()), "name"), count(len(problems), "problem"))
	if len(problems) > 0 {
		return &exitError{code: exitConfig}
	}
	return nil
}

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
	ctx, cancel := stopped()
	defer cancel()
	v, err := c.verifier(ctx)
	if err != nil {
		return err
	}
	for _, arg := range c.args {
		list, err := address.ParseList(arg)
		if err == nil && len(list) == 0 {
			err = errors.New("an argument without an address")
		}
		if err != nil {
			fmt.Fprintf(c.stdio.Err, "dma-runner: %s\n", printable(err.Error()))
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
	case ctx.Err() != nil:
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

// verifier makes what runVerify needs. Who may run the queue sees what the
// queue sees: root becomes the owner of the spool, as for every command that
// works on it. Everybody else reads with rights of their own.
func (c *call) verifier(ctx context.Context) (*verifier, error) {
	v := &verifier{ctx: ctx, config: c.config, out: bufio.NewWriter(c.stdio.Out), read: make(map[string]answer), caller: os.Getuid()}
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
	v.all = v.known && (v.caller == 0 || v.caller == v.owner)
	if v.known && os.Geteuid() == 0 && v.owner != 0 {
		if _, err := c.open(); err != nil {
			return nil, err
		}
	}
	if v.host, err = c.config.HostName(); err != nil {
		fmt.Fprintf(c.stdio.Err, "dma-runner: %v; %s stands in for it\n", err, v.host)
	}
	source, any := users(c.config)
	v.users = remembered{source, make(map[string]lookup)}
	// Problems of other names are no matter of these addresses; a mistake in
	// the line of one that is asked for comes with its expansion.
	if v.aliases, _, err = forward.LoadAliases(c.config.Aliases...); err != nil {
		return nil, err
	}
	v.own = &agent.Own{UID: v.owner, Any: any, MinUID: c.config.MinUID, Listed: listed(c.config), Forwards: c.config.Forward}
	if !v.known {
		v.own.UID = v.caller
	}
	v.own.AliasUser = c.config.AliasUser
	if v.own.AliasUser == "" && v.known {
		if u, err := source.LookupID(ctx, v.owner); err == nil {
			v.own.AliasUser = u.Name
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
	return v.own.Serves(u)
}

// errNotShown says that a .forward is not for the caller.
var errNotShown = errors.New("not shown")

// forward reads the .forward of u for mail to u+detail, if the caller may see
// it: then this process has no rights beyond those of the caller.
func (v *verifier) forward(u passwd.User, detail string) (forward.Result, error) {
	if !v.all && u.UID != v.caller {
		return forward.Result{}, errNotShown
	}
	key := u.Name + "+" + detail
	a, ok := v.read[key]
	if !ok {
		a.result, a.err = v.own.Forward(v.ctx, u, detail)
		v.read[key] = a
	}
	return a.result, a.err
}

// aliasUser says why nobody can run the commands and write the files among the
// targets of an alias, nil if somebody can or there are none.
func (v *verifier) aliasUser(targets []forward.Target) error {
	switch {
	case !slices.ContainsFunc(targets, writes), v.own.AliasUser == "" && !v.known:
		return nil
	case v.own.AliasUser == "":
		return errors.New("it names a file or a command, and there is no user for that; set ALIASUSER in dma.conf")
	}
	if _, err := v.users.Lookup(v.ctx, v.own.AliasUser); err != nil {
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
