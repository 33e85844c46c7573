package parent

import (
	"context"
	"errors"
	"os"
)

// Inspect starts one process, called title, with the account of the queue process.
// It finds out what that would do and changes nothing: it may ask what the queue
// process may ask, and gets agents that read the .forward of their user and deliver
// nothing. These hold no lock, and neither wait for the agents of a service nor are
// in their way.
//
// What the process reads from descriptor 4 is o.QueueSetup; its standard output is
// out, its standard error ours, and its first argument RoleInspect. Inspect returns
// its exit code when it and the agents have ended. When ctx ends they are asked to
// end, and killed if they have not within o.Grace.
//
// It has to be called as root, once in a process, and takes from it what Run takes.
func Inspect(ctx context.Context, title string, o Options, out *os.File) (code int, err error) {
	o.Agent.ReadOnly = true
	if o, err = prepare(o); err != nil {
		return 0, err
	}
	log := workersLog()
	if err := restrict(false); err != nil {
		return 0, err
	}
	p := newParent(o)
	p.thread = newThread()
	p.starter = &system{p.thread, log}
	p.queue, p.out = newWorker(title, RoleInspect), out
	return p.inspect(ctx)
}

// inspect is Inspect after everything was given up.
func (p *parent) inspect(ctx context.Context) (code int, err error) {
	err = p.work(ctx, p.queue)
	o := p.options()
	p.agents.end(o.Clock, o.Grace, p.agents.living(true))
	var how exited
	switch {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case errors.As(err, &how) && how.Exited():
		return how.ExitCode(), nil
	}
	return 0, err
}
