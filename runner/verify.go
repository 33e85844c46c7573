package runner

import (
	"context"
	"errors"
	"fmt"
	"strings"

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

// runVerify shows where mail for addresses would go by the aliases; the
// .forward files are not read.
func runVerify(c *call) error {
	if len(c.args) == 0 {
		return exitf(exitUsage, "verify needs addresses")
	}
	host, _ := c.config.HostName()
	source, _ := users(c.config)
	aliases, _, err := forward.LoadAliases(c.config.Aliases...)
	if err != nil {
		return err
	}
	local := func(a address.Address) (string, bool) {
		domains := append([]string{"", "localhost", host}, c.config.LocalDomains...)
		for _, d := range domains {
			if strings.EqualFold(a.Domain, d) {
				return a.Local, !c.config.NullClient
			}
		}
		return "", false
	}
	failed := false
	for _, arg := range c.args {
		a, err := address.Parse(arg)
		if err != nil {
			fmt.Fprintf(c.stdio.Err, "dma-runner: %v\n", err)
			failed = true
			continue
		}
		name, here := local(a)
		if !here {
			fmt.Fprintf(c.stdio.Out, "%s: remote\n", a)
			continue
		}
		x, err := aliases.Expand(context.Background(), name, forward.Host{
			IsLocal: local,
			IsUser: func(name string) (bool, error) {
				_, err := source.Lookup(context.Background(), name)
				if errors.Is(err, passwd.ErrUnknown) {
					return false, nil
				}
				return err == nil, err
			},
		})
		if err != nil {
			fmt.Fprintf(c.stdio.Out, "%s: %v\n", a, err)
			failed = true
			continue
		}
		fmt.Fprintf(c.stdio.Out, "%s:\n", a)
		for _, t := range x.Targets {
			fmt.Fprintf(c.stdio.Out, "    %s %s\n", t.Kind, t)
		}
	}
	if failed {
		return &exitError{code: exitNoUser}
	}
	return nil
}
