package states

import (
	"errors"

	"dma/spooldir"
)

// Mover makes the steps of one actor.
type Mover struct {
	spool  *spooldir.Spool
	by     Actor
	legal  map[stepKey]bool
	bells  map[spooldir.State]*spooldir.Bell
	syncer *spooldir.Syncer
	moved  func(name spooldir.Name, from, to spooldir.State, reason string)
}

// NewMover makes a Mover for an actor. moved is told of every step made, after
// it; the syncer makes outcomes durable (nil: nobody does).
func NewMover(s *spooldir.Spool, by Actor, syncer *spooldir.Syncer, moved func(name spooldir.Name, from, to spooldir.State, reason string)) *Mover {
	return &Mover{spool: s, by: by, legal: legalSteps(), bells: make(map[spooldir.State]*spooldir.Bell), syncer: syncer, moved: moved}
}

// Ringing makes the Mover ring the bell of a state when it moves a name
// there, so that a worker in the same process needs no event of the system.
func (m *Mover) Ringing(state spooldir.State, bell *spooldir.Bell) { m.bells[state] = bell }

// Move makes a step. spooldir.ErrGone says that somebody else moved or removed
// the name first. A delivered recipient whose step from local or remote to sent
// the full disk refuses is removed instead.
func (m *Mover) Move(name spooldir.Name, from, to spooldir.State, reason string) error {
	if !m.legal[stepKey{from, to, m.by}] {
		return &IllegalError{from, to, m.by}
	}
	if to == Gone {
		return m.remove(name, from, reason)
	}
	bell := m.bells[to]
	if bell != nil {
		bell.Expect(name)
	}
	err := m.spool.Move(name, from, to)
	if err != nil && bell != nil {
		bell.Unexpect(name)
	}
	var full *spooldir.FullError
	if errors.As(err, &full) && to == spooldir.Sent && (from == spooldir.Local || from == spooldir.Remote) {
		return m.remove(name, from, reason+" (the disk is full: removed at once)")
	}
	if err != nil {
		return err
	}
	if m.moved != nil {
		m.moved(name, from, to, reason)
	}
	if m.syncer != nil && outcome(to) {
		m.syncer.Note(name, to)
	}
	if bell != nil {
		bell.Ring(name)
	}
	return nil
}

func (m *Mover) remove(name spooldir.Name, from spooldir.State, reason string) error {
	if err := m.spool.Remove(name, from); err != nil {
		return err
	}
	if m.moved != nil {
		m.moved(name, from, Gone, reason)
	}
	if m.syncer != nil {
		m.syncer.Note(name, from)
	}
	return nil
}

// outcome reports whether reaching a state has to become durable soon: a claim
// that is undone repeats work, an outcome that is undone repeats mail.
func outcome(to spooldir.State) bool {
	return to == spooldir.Sent || to == spooldir.Tempfail || to == spooldir.Permfail
}

// MoveAll makes the same step for several names of one message. It goes on
// after ErrGone and stops at any other error; it returns the names that moved.
func (m *Mover) MoveAll(names []spooldir.Name, from, to spooldir.State, reason string) ([]spooldir.Name, error) {
	var moved []spooldir.Name
	for _, n := range names {
		err := m.Move(n, from, to, reason)
		if errors.Is(err, spooldir.ErrGone) {
			continue
		}
		if err != nil {
			return moved, err
		}
		moved = append(moved, n)
	}
	return moved, nil
}
