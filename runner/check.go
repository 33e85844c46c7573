package runner

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"dma/internal/config"
	"dma/internal/passwd"
	"dma/smarthost"
	"dma/spooldir"
)

// runCheck says everything that is wrong with the installation, each with its
// remedy, and ends with 78 if there is anything.
func runCheck(c *call) error {
	if err := c.noArguments("check"); err != nil {
		return err
	}
	// The credentials are looked at: none may end up in a core.
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return fmt.Errorf("limit of cores: %w", err)
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
	if err := noRelay(c.config); err != nil {
		say("%v", err)
	}
	if c.config.Users != "" {
		if _, err := os.Stat(c.config.Users); err != nil {
			say("USERS: %v", err)
		}
	}
	source, any := users(c.config)
	files := &fileCheck{
		config: c.config, users: source, any: any, uid: os.Geteuid(), reader: os.Geteuid(), net: -1, now: time.Now(),
		state:   filepath.Join(c.config.SpoolDir, spooldir.LockDir, spooldir.LoginsFile),
		problem: func(p config.Problem) { say("%v", p) },
		note:    func(text string) { fmt.Fprintln(c.stdio.Out, text) },
	}
	s, err := c.look()
	if err != nil {
		say("%v", err)
	} else {
		files.uid, files.reader = s.Owner(), s.Owner()
		if s.Shared() {
			files.users, files.any = passwd.System(), false
			if u, err := passwd.System().Lookup(context.Background(), spooldir.NetUser); err == nil {
				files.reader, files.net = u.UID, u.GID
			}
		}
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
	files.run(context.Background())
	// The last, since this process may become the owner of the spool for it.
	err = c.checkMail(func(text string) { say("%s", text) }, files.note)
	if err != nil {
		say("local mail cannot be looked at: %v", err)
	}
	if problems > 0 {
		return exitf(exitConfig, "%s found", count(problems, "problem"))
	}
	fmt.Fprintln(c.stdio.Out, "nothing is wrong")
	return nil
}
