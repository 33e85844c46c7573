// Package runner is dma-runner: it puts the queue process and the net process
// together on one spool, and has the commands by which a person looks at the
// spool and manages it.
package runner

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"dma/internal/config"
)

// Exit codes of sysexits(3).
const (
	exitOK          = 0
	exitUsage       = 64
	exitNoUser      = 67
	exitUnavailable = 69
	exitTempfail    = 75
	exitNoPerm      = 77
	exitConfig      = 78
)

// Stdio are the standard streams of a command.
type Stdio struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer
}

// exitError is an error with the exit code that it asks for.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil { // who ended so has said why
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func exitf(code int, format string, args ...any) error {
	return &exitError{code, fmt.Errorf(format, args...)}
}

// command is one subcommand.
type command struct {
	name string
	args string
	help string
	run  func(c *call) error
}

// call is one run of a subcommand.
type call struct {
	args   []string
	stdio  Stdio
	config *config.Config
	file   string // of the configuration, as given with -C
}

func commands() []command {
	return []command{
		{"run", "[--on-demand]", "serve the spool in the foreground (this is what no command means)", runService},
		{"drain", "", "deliver what is due, then end", runDrain},
		{"flush", "", "try everything now that waits, then end", runFlush},
		{"init", "[--one-uid]", "make or repair the spool", runInit},
		{"mailq", "[--json]", "list what waits, for whom, since when and why", runMailq},
		{"hold", "NAME ...", "park recipients, named as mailq and ls show them, or all of a message id", runHold},
		{"release", "NAME ...", "give parked recipients back", runRelease},
		{"verify", "[--] ADDRESS ...", "show where mail for addresses would go", runVerify},
		{"smtp", "", "speak SMTP on standard input and output (sendmail -bs)", runSMTP},
		{"aliases", "", "check the aliases files", runAliases},
		{"check", "", "say everything that is wrong with the installation", runCheck},
	}
}

// Main runs dma-runner with the arguments after the program's name and returns
// its exit code.
func Main(args []string, stdio Stdio) int {
	if run := role(args); run != nil {
		return run()
	}
	return exitCode(dispatch(args, stdio), stdio)
}

// exitCode says an error and returns the exit code that it means.
func exitCode(err error, stdio Stdio) int {
	var exit *exitError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &exit):
		if exit.err != nil {
			fmt.Fprintf(stdio.Err, "dma-runner: %v\n", exit.err)
		}
		return exit.code
	}
	fmt.Fprintf(stdio.Err, "dma-runner: %v\n", err)
	if errors.Is(err, fs.ErrPermission) {
		return exitNoPerm
	}
	return exitTempfail
}

func dispatch(args []string, stdio Stdio) error {
	file := ""
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		switch arg := args[0]; {
		case arg == "-C" && len(args) > 1:
			file, args = args[1], args[1:]
		case strings.HasPrefix(arg, "-C") && len(arg) > 2:
			file = arg[2:]
		case arg == "-h" || arg == "--help":
			usage(stdio.Out)
			return nil
		default:
			usage(stdio.Err)
			return exitf(exitUsage, "unknown option %s; -C FILE is the only one before a command", arg)
		}
		args = args[1:]
	}
	name := "run"
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	for _, c := range commands() {
		if c.name != name {
			continue
		}
		conf, err := load(file, stdio)
		if err != nil {
			return err
		}
		return c.run(&call{args: args, stdio: stdio, config: conf, file: file})
	}
	usage(stdio.Err)
	return exitf(exitUsage, "unknown command %q", name)
}

func usage(w io.Writer) {
	fmt.Fprintln(w, "usage: dma-runner [-C FILE] [COMMAND]")
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-22s %s\n", strings.TrimSpace(c.name+" "+c.args), c.help)
	}
}

// load reads the configuration. Problems in it are said and cost their line
// only; a file that cannot be read is an end, since nobody knows what it would
// have said.
func load(file string, stdio Stdio) (*config.Config, error) {
	named := file != ""
	if !named {
		file = config.DefaultFile
	}
	conf, problems, err := config.Load(file, named)
	for _, p := range problems {
		fmt.Fprintf(stdio.Err, "dma-runner: %v\n", p)
	}
	if err != nil {
		return nil, exitf(exitConfig, "%w", err)
	}
	return conf, nil
}

// noArguments refuses arguments of a command that takes none.
func (c *call) noArguments(name string) error {
	if len(c.args) > 0 {
		return exitf(exitUsage, "%s takes no arguments, and got %q", name, os.Args)
	}
	return nil
}
