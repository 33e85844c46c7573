package runner

import (
	"errors"
	"fmt"

	"dma/spooldir"
	"dma/states"
)

// runHold parks recipients.
func runHold(c *call) error { return c.park("hold") }

// runRelease gives parked recipients back to new, where routing begins again.
func runRelease(c *call) error { return c.park("release") }

func (c *call) park(what string) error {
	if len(c.args) == 0 {
		return exitf(exitUsage, "%s needs names of recipients or ids of messages, as mailq shows them", what)
	}
	s, err := c.open()
	if err != nil {
		return err
	}
	mover := states.NewMover(s, states.Administrator, nil, func(name spooldir.Name, from, to spooldir.State, _ string) {
		fmt.Fprintf(c.stdio.Out, "%s: %s -> %s\n", printable(name.String()), from, to)
	})
	failed := false
	for _, arg := range c.args {
		moved, err := parkOne(s, mover, what, arg)
		if err != nil {
			return err
		}
		if moved == 0 {
			fmt.Fprintf(c.stdio.Err, "dma-runner: %s %q: no such recipient there\n", what, arg)
			failed = true
		}
	}
	if failed {
		return &exitError{code: exitUnavailable}
	}
	return nil
}

// parkOne moves all recipients that arg names and returns how many there were.
func parkOne(s *spooldir.Spool, mover *states.Mover, what, arg string) (int, error) {
	from := []spooldir.State{spooldir.New, spooldir.Forwarding, spooldir.Local, spooldir.Remote, spooldir.Tempfail}
	to := spooldir.Hold
	if what == "release" {
		from, to = []spooldir.State{spooldir.Hold}, spooldir.New
	}
	moved := 0
	for _, state := range from {
		var names []spooldir.Name
		err := s.Scan(state, func(n spooldir.Name) bool {
			if n.ID == arg || n.Ref() == arg || n.String() == arg {
				names = append(names, n)
			}
			return true
		}, nil)
		if err != nil {
			return moved, err
		}
		for _, n := range names {
			err := mover.Move(n, state, to, "")
			if err == nil {
				moved++
			} else if !errors.Is(err, spooldir.ErrGone) {
				return moved, err
			}
		}
	}
	return moved, nil
}
