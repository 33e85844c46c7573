// Package states knows the steps that a recipient may make through the
// directories of a spool, makes them, and runs the workers that wait for work
// in a directory.
//
// The table of legal steps is data: Table returns it, and a Mover makes no
// step that is not in it. Everything that moves mail goes through a Mover.
package states

import (
	"fmt"

	"dma/spooldir"
)

// Gone is the end of a recipient: its name is removed.
const Gone spooldir.State = ""

// Actor is who makes a step.
type Actor string

// The actors.
const (
	Submitter     Actor = "submitter"     // whoever writes a message, dma's own messages included
	Queue         Actor = "queue"         // the queue process
	Net           Actor = "net"           // the net process
	Administrator Actor = "administrator" // a person, by hand or with dma-runner
)

// Step is one row of the table of legal steps.
type Step struct {
	From, To spooldir.State
	By       []Actor
	When     string
}

// Table returns the legal steps. The step into corrupt, which anybody makes
// who meets a file that cannot be a message, is legal from everywhere and has
// no row.
func Table() []Step {
	const (
		tmp, fresh, forwarding = spooldir.Tmp, spooldir.New, spooldir.Forwarding
		local, remote          = spooldir.Local, spooldir.Remote
		tempfail, permfail     = spooldir.Tempfail, spooldir.Permfail
		sent, hold             = spooldir.Sent, spooldir.Hold
	)
	queue, net, both := []Actor{Queue}, []Actor{Net}, []Actor{Queue, Net}
	person := []Actor{Administrator}
	t := []Step{
		{tmp, fresh, []Actor{Submitter, Queue}, "all names are linked; the change of mode commits them"},
		{fresh, forwarding, queue, "a local user without alias"},
		{fresh, local, queue, "a child that is a mailbox, file or command"},
		{fresh, remote, queue, "to another host"},
		{fresh, sent, queue, "expanded by an alias into a committed child"},
		{fresh, tempfail, queue, "trouble with aliases or user names, or nowhere to send it now"},
		{fresh, permfail, queue, "no such user, a loop"},
		{forwarding, local, queue, "there is no .forward"},
		{forwarding, remote, queue, "there is no .forward, and the mailbox speaks LMTP"},
		{forwarding, sent, queue, "expanded by a .forward into a committed child"},
		{forwarding, tempfail, queue, "trouble with the .forward"},
		{forwarding, permfail, queue, "a loop, or the user is gone"},
		{local, sent, queue, "delivered, or expanded again because its owner no longer lists it"},
		{local, tempfail, queue, "any trouble"},
		{local, permfail, queue, "refused for good"},
		{local, Gone, queue, "delivered, and the full disk refuses the step to sent"},
		{remote, sent, net, "delivered"},
		{remote, tempfail, net, "4xx or any trouble"},
		{remote, permfail, net, "5xx"},
		{remote, Gone, net, "delivered, and the full disk refuses the step to sent"},
		{tempfail, fresh, queue, "its time has come"},
		{tempfail, permfail, queue, "too old, and tried often enough"},
		{permfail, Gone, queue, "its bounce is committed, or nobody wants one"},
		{sent, Gone, queue, "logged"},
	}
	for _, s := range []spooldir.State{fresh, forwarding, local, remote, tempfail, hold} {
		t = append(t,
			Step{s, sent, both, "the journal says delivered or expanded, or a committed child names it as parent"},
			Step{s, Gone, queue, "a committed bounce or success report names it as parent"})
		if s != hold {
			t = append(t, Step{s, hold, person, "parked"}, Step{hold, s, person, "released"})
		}
	}
	return t
}

// IllegalError says that somebody asked for a step that is not in the table:
// a mistake in the program.
type IllegalError struct {
	From, To spooldir.State
	By       Actor
}

func (e *IllegalError) Error() string {
	to := e.To
	if to == Gone {
		to = "gone"
	}
	return fmt.Sprintf("no legal step from %s to %s by %s", e.From, to, e.By)
}

type stepKey struct {
	from, to spooldir.State
	by       Actor
}

func legalSteps() map[stepKey]bool {
	legal := make(map[stepKey]bool)
	for _, s := range Table() {
		for _, by := range s.By {
			legal[stepKey{s.From, s.To, by}] = true
		}
	}
	return legal
}
