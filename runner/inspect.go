package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"dma/agent"
	"dma/internal/config"
	"dma/internal/maillog"
	"dma/parent"
	"dma/spooldir"
)

// What a process of root's looks for at the place of the queue process.
const (
	verifyCommand = "verify"
	checkCommand  = "check"
)

// inspectGrace is how long such a process, and its agents, may take to end when
// they are asked to.
const inspectGrace = 2 * time.Second

// inspection is what such a process is told.
type inspection struct {
	Command     string
	Args        []string // verify: the addresses
	RootForward string   // check: the .forward of root, if there is one

	// Filled in by inspect.
	Config *config.Config
	IDs    *spooldir.Identities
}

// inspect has a process look, for root, at what the queue process of a spool that all
// users share would do: with its uid, and with agents that read each .forward under
// the uid of its user, as for mail. This process reads neither. Take is given what
// the process prints.
func (c *call) inspect(ctx context.Context, ids *spooldir.Identities, what inspection, take func(io.Reader)) error {
	what.Config, what.IDs = c.config, ids
	options, err := c.parentOptions(workerSetup{Config: c.config}, ids, maillog.New(slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	if options.QueueSetup, err = json.Marshal(what); err != nil {
		return err
	}
	options.NetSetup, options.Grace = nil, inspectGrace
	if what.Command == checkCommand {
		options.Agent.MinUID = 0 // it asks what there is that does not count
	}
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	taken := make(chan struct{})
	go func() {
		defer close(taken)
		defer out.Close() // what is not wanted any more is not printed
		take(out)
	}()
	code, err := parent.Inspect(ctx, what.Command, options, in)
	in.Close()
	select {
	case <-taken:
	case <-ctx.Done(): // who reads it may be waiting for us to end
	}
	switch {
	case ctx.Err() != nil:
		return exitf(exitTempfail, "stopped before the end")
	case err != nil:
		return fmt.Errorf("%s as user %s: %w", what.Command, spooldir.QueueUser, err)
	case code != exitOK:
		return &exitError{code: code}
	}
	return nil
}

// runInspectRole is the whole of such a process. It returns the exit code.
func runInspectRole() int {
	stdio := Stdio{Out: os.Stdout, Err: os.Stderr}
	return exitCode(inspectRole(stdio), stdio)
}

func inspectRole(stdio Stdio) error {
	text, err := parent.ReadSetup()
	if err != nil {
		return err
	}
	var what inspection
	if err := json.Unmarshal(text, &what); err != nil {
		return fmt.Errorf("what the parent says: %w", err)
	}
	if what.Config == nil || what.IDs == nil || os.Geteuid() != what.IDs.QueueUID {
		return errors.New("what the parent says is not what this process is")
	}
	client, err := parent.Connect()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	life := parent.Life()
	go func() {
		defer cancel()
		select {
		case <-client.Done():
		case <-life:
		case <-ctx.Done():
		}
	}()
	options := remoteOptions(what.Config)
	options.Starter = client
	v := newVerifier(ctx, what.Config, stdio)
	v.ask(client)
	v.owner, v.known, v.ids, v.all = what.IDs.QueueUID, true, what.IDs, true
	switch what.Command {
	case verifyCommand:
		agents := agent.NewRemote(options)
		defer agents.Close()
		v.agent = agents
		err = v.trees(what.Args)
	case checkCommand:
		err = inspectMail(v, options, what.RootForward)
	default:
		err = fmt.Errorf("there is no command %q to inspect", what.Command)
	}
	if ctx.Err() != nil { // who has asked for the end says so
		err = &exitError{code: exitTempfail}
	}
	return err
}
