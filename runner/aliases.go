package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"dma/forward"
	"dma/spooldir"
)

// runAliases checks the aliases files and what they include, and says each line
// that does not count. It ends with 78 if mail waits for one.
func runAliases(c *call) error {
	if err := c.noArguments("aliases"); err != nil {
		return err
	}
	// Root sees what the process sees that reads the files when there is mail.
	if s, err := spooldir.Open(c.config.SpoolDir); err == nil && os.Geteuid() == 0 && s.Owner() != 0 {
		if err := become(s); err != nil {
			return err
		}
	}
	aliases, problems, err := c.checkAliases()
	warnings := 0
	for _, p := range problems {
		if p.Warning {
			warnings++
		}
		fmt.Fprintln(c.stdio.Err, p.Error())
	}
	if err != nil {
		return err
	}
	summary := count(len(problems)-warnings, "problem")
	if warnings > 0 {
		summary += ", " + count(warnings, "warning")
	}
	fmt.Fprintf(c.stdio.Out, "%s: %s, %s\n", strings.Join(c.config.Aliases, ", "), count(len(aliases.Names()), "name"), summary)
	if len(problems) > warnings {
		return &exitError{code: exitConfig}
	}
	return nil
}

// checkAliases reads the aliases files and what they include. What this process may
// not read, which does not serve the spool, is a warning.
func (c *call) checkAliases() (*forward.Aliases, []forward.Problem, error) {
	aliases, problems, err := forward.LoadAliases(c.config.Aliases...)
	if err != nil {
		return nil, problems, err
	}
	me, reader := userName(os.Geteuid()), c.reader()
	aliases.CheckIncluded(context.Background(), func(t forward.Target, err error) {
		var p forward.Problem
		switch {
		case err == nil:
			return
		case errors.Is(err, fs.ErrPermission) && me != reader:
			p = forward.Problem{File: t.File, Line: t.Line, Warning: true,
				Text: fmt.Sprintf(":include: %s cannot be read by %s, who asks; %s has to be able to", t.Value, me, reader)}
		case !errors.As(err, &p):
			p = forward.Problem{File: t.File, Line: t.Line, Text: err.Error()}
		}
		problems = append(problems, p)
	})
	return aliases, problems, nil
}

// reader is who reads the aliases when there is mail.
func (c *call) reader() string {
	if info, err := os.Lstat(c.config.SpoolDir); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			return userName(int(st.Uid))
		}
	}
	return "the owner of the spool"
}

// userName is a uid in a sentence.
func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return "user " + u.Username
	}
	return fmt.Sprintf("uid %d", uid)
}
