package runner

import (
	"fmt"
	"os"
	"strings"

	"dma/forward"
	"dma/internal/config"
	"dma/smarthost"
	"dma/spooldir"
)

// runCheck says everything that is wrong with the installation, each with its
// remedy, and ends with 78 if there is anything.
func runCheck(c *call) error {
	if err := c.noArguments("check"); err != nil {
		return err
	}
	problems := 0
	say := func(format string, args ...any) {
		problems++
		fmt.Fprintf(c.stdio.Out, format+"\n", args...)
	}
	// Loading said the problems of the file already; they count.
	file := c.file
	if file == "" {
		file = config.DefaultFile
	}
	if _, p, err := config.Load(file, c.file != ""); err == nil {
		problems += len(p)
	}
	if _, err := c.config.HostName(); err != nil {
		say("%v", err)
	}
	if _, err := smarthost.ParseHosts(c.config.Smarthost, c.config.Port); err != nil {
		say("SMARTHOST: %v", err)
	}
	if strings.HasPrefix(c.config.Mailbox, "lmtp:") {
		say("MAILBOX %s: LMTP is not supported yet, and local mail waits; use mbox:, maildir: or pipe:", c.config.Mailbox)
	}
	if err := noRelay(c.config); err != nil {
		say("%v", err)
	}
	_, p, err := forward.LoadAliases(c.config.Aliases...)
	for i := range p {
		say("%s", p[i].Error())
	}
	if err != nil {
		say("%v", err)
	}
	if c.config.Users != "" {
		if _, err := os.Stat(c.config.Users); err != nil {
			say("USERS: %v", err)
		}
	}
	s, err := spooldir.Open(c.config.SpoolDir)
	if err != nil {
		say("%v", err)
	} else {
		if s.Owner() != os.Geteuid() && os.Geteuid() != 0 {
			say("spool %s belongs to uid %d, and this is uid %d", s.Path(), s.Owner(), os.Geteuid())
		}
		for _, w := range s.FileSystem().Warnings {
			say("%s", w)
		}
		if err := s.Free(floor(c.config, s)); err != nil {
			say("%v", err)
		}
	}
	if problems > 0 {
		return exitf(exitConfig, "%s found", count(problems, "problem"))
	}
	fmt.Fprintln(c.stdio.Out, "nothing is wrong")
	return nil
}
