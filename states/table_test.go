package states

import (
	"errors"
	"io"
	"path/filepath"
	"testing"

	"dma/spooldir"
)

func newSpool(t testing.TB) *spooldir.Spool {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "spool")
	if err := spooldir.Init(dir); err != nil {
		t.Fatal(err)
	}
	s, err := spooldir.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func submit(t testing.TB, s *spooldir.Spool, addrs ...string) []spooldir.Name {
	t.Helper()
	e := spooldir.Envelope{}
	for _, a := range addrs {
		e.Recipients = append(e.Recipients, spooldir.Recipient{Address: a})
	}
	d, err := s.Create(&e)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(d, "Subject: x\n\n"); err != nil {
		t.Fatal(err)
	}
	if err := d.Commit(); err != nil {
		t.Fatal(err)
	}
	var names []spooldir.Name
	for n, a := range addrs {
		names = append(names, spooldir.NewName(d.ID(), n+1, a))
	}
	return names
}

// TestTableIsSound checks what must hold for any table: nobody but the queue
// process makes a recipient end without an outcome, nothing leaves sent but to
// its end, and every state can be reached and left.
func TestTableIsSound(t *testing.T) {
	into, outOf := map[spooldir.State]bool{}, map[spooldir.State]bool{}
	for _, s := range Table() {
		into[s.To], outOf[s.From] = true, true
		if s.From == s.To {
			t.Errorf("a step from %s to itself", s.From)
		}
		if s.When == "" || len(s.By) == 0 {
			t.Errorf("%s to %q: nobody, or without a reason", s.From, s.To)
		}
		if s.From == spooldir.Sent && s.To != Gone {
			t.Errorf("from sent to %s", s.To)
		}
		for _, by := range s.By {
			if by == Net && s.From != spooldir.Remote && s.To != spooldir.Sent {
				t.Errorf("the net process moves from %s to %q", s.From, s.To)
			}
			if by == Administrator && s.From != spooldir.Hold && s.To != spooldir.Hold {
				t.Errorf("the administrator's step from %s to %q", s.From, s.To)
			}
		}
	}
	for _, state := range spooldir.States() {
		if !into[state] || !outOf[state] {
			t.Errorf("%s: reached %v, left %v", state, into[state], outOf[state])
		}
	}
}

// TestMoverMakesOnlyLegalSteps tries every pair of states for every actor.
func TestMoverMakesOnlyLegalSteps(t *testing.T) {
	legal := legalSteps()
	s := newSpool(t)
	all := append(spooldir.States(), Gone)
	for _, by := range []Actor{Submitter, Queue, Net, Administrator} {
		m := NewMover(s, by, nil, nil)
		for _, from := range spooldir.States() {
			for _, to := range all {
				if from == to {
					continue
				}
				name := submit(t, s, "a@b")[0]
				if from != spooldir.New {
					if err := s.Move(name, spooldir.New, from); err != nil {
						t.Fatal(err)
					}
				}
				err := m.Move(name, from, to, "")
				var illegal *IllegalError
				if want := legal[stepKey{from, to, by}]; want != (err == nil) || !want != errors.As(err, &illegal) {
					t.Errorf("%s to %q by %s: %v, and legal is %v", from, to, by, err, want)
				}
				at, _ := s.Find(name)
				if err != nil && (len(at) != 1 || at[0] != from) {
					t.Errorf("a refused step from %s to %q left it in %v", from, to, at)
				}
				for _, state := range at {
					s.Remove(name, state)
				}
			}
		}
	}
}

func TestMoverRings(t *testing.T) {
	s := newSpool(t)
	w := s.Unwatched(spooldir.Remote)
	var moved []string
	m := NewMover(s, Queue, nil, func(n spooldir.Name, from, to spooldir.State, reason string) {
		moved = append(moved, string(from)+">"+string(to)+" "+reason)
	})
	m.Ringing(spooldir.Remote, w.Bell(spooldir.Remote))
	names := submit(t, s, "a@b", "c@d", "e@f")
	s.Remove(names[1], spooldir.New) // an rm by hand: normal
	got, err := m.MoveAll(names, spooldir.New, spooldir.Remote, "why")
	if err != nil || len(got) != 2 || len(moved) != 2 || moved[0] != "new>remote why" {
		t.Errorf("%v, %v, %q", got, err, moved)
	}
	if w.Bell(spooldir.Remote).Silent() {
		t.Error("no bell rang")
	}
}
