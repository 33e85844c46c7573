package sendmail

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"dma/internal/config"
	"dma/internal/door"
	"dma/spooldir"
)

// Process is the process that runs the command: what its caller gave it.
type Process struct {
	Args   []string          // with the name first
	Env    map[string]string // EMAIL, LOGNAME, NAME and USER count
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	UID    int // the real one: who submits

	// Interrupt tells of signals that ask the process to end. Until the commit
	// begins the message is given up; from then on it is too late.
	Interrupt <-chan os.Signal

	System System
}

// Run does what the arguments ask for and returns the exit status. It prints
// at most one line about an error.
func (p *Process) Run() int {
	err := p.run()
	if err != nil {
		complain(p.Stderr, err.Error())
	}
	return status(err)
}

func (p *Process) run() error {
	if len(p.Args) == 0 {
		return usage("called without a name")
	}
	o, err := ParseOptions(p.Args[0], p.Args[1:])
	if err != nil {
		return err
	}
	if o.Help {
		_, err := io.WriteString(p.Stdout, help())
		return err
	}
	// A caller who chooses the configuration chooses the spool. What the group
	// opens is not for him there; and never for dma-runner.
	if o.Mode != Submit || o.Config != "" && p.UID != 0 {
		if err := p.System.DropGroup(); err != nil {
			return err
		}
	}
	if o.Mode != Submit {
		return p.handOver(o)
	}
	return p.submit(o)
}

// handOver lets dma-runner do what is not submission.
func (p *Process) handOver(o *Options) error {
	var args []string
	switch o.Mode {
	case List:
		args = append([]string{"mailq"}, o.Long...)
	case Flush:
		args = []string{"flush"}
	case Aliases:
		args = []string{"aliases"}
	case SMTP:
		args = []string{"smtp"}
	case Verify:
		args = []string{"verify"}
		if strings.HasPrefix(o.Operands[0], "-") {
			args = append(args, "--")
		}
		args = append(args, o.Operands...)
	}
	args, err := runnerArgs(o, args...)
	if err != nil {
		return err
	}
	return p.System.Exec(args)
}

// runnerArgs puts the configuration file before a subcommand of dma-runner, in
// a form that does not depend on the working directory.
func runnerArgs(o *Options, args ...string) ([]string, error) {
	if o.Config == "" {
		return args, nil
	}
	file, err := filepath.Abs(o.Config)
	if err != nil {
		return nil, fail(exitConfig, "-C %s: %w", quote(o.Config), err)
	}
	return append([]string{"-C", file}, args...), nil
}

// submit takes a message from the standard input into the queue.
func (p *Process) submit(o *Options) error {
	c, err := p.load(o)
	if err != nil {
		return err
	}
	mailName, err := c.HostName()
	if err != nil {
		p.warn("%v; %s stands in for it", err, mailName)
	}
	mailName = strings.ToLower(strings.TrimSuffix(mailName, "."))
	if o.HasFullName && (hasControl(o.FullName) || len(o.FullName) > maxFullName) {
		return fail(exitData, "-F %s: a full name has at most %d octets and no control characters", quote(o.FullName), maxFullName)
	}
	caller := p.System.Account(c, p.UID, p.Env["LOGNAME"], p.Env["USER"])
	from, err := findSender(o, p.Env["EMAIL"], caller, mailName)
	if err != nil {
		return err
	}
	to := &recipients{mailName: mailName}
	if err := to.addArguments(o.Operands); err != nil {
		return err
	}
	if len(to.list) == 0 && !o.ReadRecipients {
		return usage("no recipients: the arguments are empty")
	}

	// Before the message is read, so that nobody types in vain.
	way, err := await(p, func() (Door, error) { return p.System.Open(c) })
	if err != nil {
		return err
	}
	if err := way.Free(); err != nil {
		return fmt.Errorf("no mail is taken now: %w", err)
	}
	m, err := await(p, func() (*message, error) { return readMessage(p.Stdin, !o.IgnoreDots, way.Scratch) })
	if err != nil {
		return err
	}
	defer m.close()

	h, err := newHeader(m.header)
	if err != nil {
		return err
	}
	if o.ReadRecipients {
		list, err := h.recipients()
		if err != nil {
			return err
		}
		if err := to.add(list); err != nil {
			return err
		}
		if len(to.list) == 0 {
			return fail(exitNoInput, "-t: no recipients: the message names none in To, Cc or Bcc")
		}
	}
	h.strip()
	h.qualify(mailName)

	e := envelope(o, p.UID, from, to.list)
	eightBit, isUTF8 := h.eightBit()
	e.EightBit = eightBit || m.body.eightBit || !from.from.ASCII()
	e.UTF8 = e.UTF8 || isUTF8
	origin := origin{mailName: mailName, from: mailbox(p.fullName(o, from, caller), from.from.String())}
	id, err := p.queue(way, e, h, &origin, m)
	if err != nil {
		return err
	}

	// The message is safe; nothing from here on makes its submission fail.
	if o.Verbose {
		complain(p.Stderr, "queued as "+id)
	}
	if o.Delivery != QueueOnly && !c.Defer && way.NeedsDrain() {
		if err := p.drain(o); err != nil {
			p.warn("message %s is queued, but its delivery could not be started: %v", id, err)
		}
	}
	return nil
}

// load reads the configuration and reports what is wrong in it.
func (p *Process) load(o *Options) (*config.Config, error) {
	path, named := config.DefaultFile, false
	if o.Config != "" {
		path, named = o.Config, true
	}
	c, problems, err := p.System.Load(path, named)
	if err != nil && named {
		return nil, fail(exitConfig, "-C: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	for _, problem := range problems {
		p.warn("%s", problem)
	}
	return c, nil
}

func (p *Process) warn(format string, args ...any) {
	complain(p.Stderr, "warning: "+fmt.Sprintf(format, args...))
}

// fullName is the name for a From field. A sender given with -f need not be
// the caller; then only -F has a name for it.
func (p *Process) fullName(o *Options, from sender, caller Account) string {
	switch {
	case o.HasFullName:
		return o.FullName
	case !from.own:
		return ""
	case p.Env["NAME"] != "":
		return p.Env["NAME"]
	}
	return caller.FullName
}

// await waits for what f returns, and gives up when a signal says so. F leaves
// nothing behind when the process ends in the middle of it.
func await[T any](p *Process, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := f()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case s := <-p.Interrupt:
		var none T
		return none, interrupted(s)
	}
}

func interrupted(s os.Signal) error {
	return fail(exitTempFail, "%v: nothing was queued", s)
}

// queue writes the message into the queue and returns its id.
func (p *Process) queue(way Door, e *spooldir.Envelope, h *header, o *origin, m *message) (string, error) {
	d, err := way.Create(e, o.mailName)
	if err != nil {
		return "", fmt.Errorf("nothing was queued: %w", err)
	}
	o.id, o.date = d.ID(), d.Arrival().Local()
	if err := writeContent(d, h, o, m); err != nil {
		abort(d)
		return "", fmt.Errorf("nothing was queued: %w", err)
	}
	select {
	case s := <-p.Interrupt:
		abort(d)
		return "", interrupted(s)
	default:
	}
	if err := d.Commit(); errors.Is(err, door.ErrUnknown) {
		return "", err
	} else if err != nil {
		return "", fmt.Errorf("nothing was queued: %w", err)
	}
	return o.id, nil
}

// abort gives a draft up. What it can't remove, the queue's cleaner does.
func abort(d Draft) { _ = d.Abort() }

func writeContent(d Draft, h *header, o *origin, m *message) error {
	w := bufio.NewWriterSize(d, 64<<10)
	if err := h.render(w, o); err != nil {
		return err
	}
	if err := w.WriteByte('\n'); err != nil {
		return err
	}
	if err := m.writeBody(w); err != nil {
		return err
	}
	return w.Flush()
}

// drain starts dma-runner to deliver what is queued.
func (p *Process) drain(o *Options) error {
	args, err := runnerArgs(o, "drain")
	if err != nil {
		return err
	}
	if err := p.System.DropGroup(); err != nil {
		return err
	}
	stop := make(chan struct{})
	if o.Delivery == Foreground {
		go func() {
			if _, ok := <-p.Interrupt; ok {
				close(stop)
			}
		}()
	}
	return p.System.Start(args, o.Delivery == Foreground, stop)
}
