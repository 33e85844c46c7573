package queue

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"dma/agent"
	"dma/localwriter"
	"dma/spooldir"
)

// TestUnfinished: nothing comes behind what may stand in a mailbox in part, until
// that is delivered, is taken away, or has failed too often.
func TestUnfinished(t *testing.T) {
	const bob, alice = "bob", "alice"
	type fixtureOf struct {
		*fixture
		got   []string // ids that the agent got, and whether they were suspect
		tears map[string]bool
		errs  map[string]error // what else became of a delivery
	}
	setup := func(t *testing.T) *fixtureOf {
		f := &fixtureOf{fixture: newFixture(t, memory(t)), tears: make(map[string]bool), errs: make(map[string]error)}
		f.agent.deliver = func(jobs []*agent.Job, done func(*agent.Job)) {
			for _, j := range jobs {
				f.got = append(f.got, fmt.Sprint(j.Message.ID[len(j.Message.ID)-2:], j.Message.Suspect))
				if j.Err = f.errs[j.Message.ID]; f.tears[j.Message.ID] {
					j.Err = fmt.Errorf("%w: died", agent.ErrUnfinished)
				}
				done(j)
			}
		}
		return f
	}
	local := func(f *fixtureOf, user string) spooldir.Name {
		n := f.send("s@remote.test", user)[0]
		f.step(spooldir.New, n)
		f.step(spooldir.Forwarding, n)
		return n
	}
	run := func(f *fixtureOf, user string, names ...spooldir.Name) string {
		f.got = nil
		f.run(batch{spooldir.Local, user, names})
		for i := range f.got {
			for k, n := range names {
				f.got[i] = strings.Replace(f.got[i], n.ID[len(n.ID)-2:], fmt.Sprint(k), 1)
			}
		}
		return strings.Join(f.got, " ")
	}
	expect := func(t *testing.T, what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: the agent got %q, want %q", what, got, want)
		}
	}
	stand := func(t *testing.T, f *fixtureOf, name spooldir.Name, want string) {
		t.Helper()
		if got := f.where(name); got != want {
			t.Errorf("%s stands in %q, want %q", name, got, want)
		}
	}

	t.Run("mended", func(t *testing.T) {
		f := setup(t)
		a, b, c, d, e := local(f, bob), local(f, bob), local(f, bob), local(f, alice), local(f, bob)
		f.tears[a.ID], f.tears[b.ID] = true, true
		expect(t, "two are torn", run(f, bob, a, b), "0false 1false")
		stand(t, f, a, "local")
		expect(t, "a later one", run(f, bob, c), "")
		stand(t, f, c, "local")
		expect(t, "somebody else's", run(f, alice, d), "0false")
		stand(t, f, d, "sent")
		clear(f.tears)
		expect(t, "the second alone", run(f, bob, b), "")
		expect(t, "both, and the later one", run(f, bob, c, b, a), "2true 1true 0false")
		for _, n := range []spooldir.Name{a, b, c} {
			stand(t, f, n, "sent")
		}
		expect(t, "afterwards", run(f, bob, e), "0false")
	})
	t.Run("one by one", func(t *testing.T) {
		f := setup(t)
		a, b, c := local(f, bob), local(f, bob), local(f, bob)
		f.tears[a.ID], f.tears[b.ID] = true, true
		run(f, bob, a, b)
		clear(f.tears)
		expect(t, "the first with the later one", run(f, bob, c, a), "1true")
		expect(t, "then the second", run(f, bob, c, b), "1true 0false")
	})
	locked := &localwriter.Error{Op: "open mbox", Path: "/m", Status: "4.2.0", Err: errors.New("mailbox is locked")}
	for about, err := range map[string]error{
		"locked": locked, "not looked for": localwriter.Behind("/m"), "other trouble": errors.New("no .forward"),
	} {
		t.Run("torn, and then "+about, func(t *testing.T) {
			f := setup(t)
			a, b := local(f, bob), local(f, bob)
			f.tears[a.ID] = true
			run(f, bob, a)
			delete(f.tears, a.ID)
			f.errs[a.ID] = err
			expect(t, "again", run(f, bob, a), "0true")
			stand(t, f, a, "local")
			expect(t, "a later one", run(f, bob, b), "")
			delete(f.errs, a.ID)
			expect(t, "both", run(f, bob, b, a), "1true 0false")
			stand(t, f, a, "sent")
			stand(t, f, b, "sent")
		})
	}
	t.Run("torn, and then looked for", func(t *testing.T) {
		f := setup(t)
		a, b := local(f, bob), local(f, bob)
		f.tears[a.ID] = true
		run(f, bob, a)
		delete(f.tears, a.ID)
		f.errs[a.ID] = &localwriter.Error{Op: "append to", Path: "/m", Status: "4.3.1", Err: errors.New("full")}
		run(f, bob, a)
		stand(t, f, a, "tempfail")
		expect(t, "a later one", run(f, bob, b), "0false")
	})
	t.Run("not taken back", func(t *testing.T) {
		f := setup(t)
		a, b := local(f, bob), local(f, bob)
		f.errs[a.ID] = &localwriter.Error{Op: "take back from", Path: "/m", Status: "4.3.0", Err: errors.New("another program wrote to it")}
		expect(t, "one", run(f, bob, a), "0false")
		stand(t, f, a, "local")
		expect(t, "a later one", run(f, bob, b), "")
	})
	t.Run("cut off by a kill, and then locked", func(t *testing.T) {
		f := setup(t)
		a, b, c := local(f, bob), local(f, bob), local(f, alice)
		f.q.doubt(a.ID)
		f.errs[a.ID], f.errs[c.ID] = locked, locked
		expect(t, "one", run(f, bob, a), "0true")
		stand(t, f, a, "local")
		expect(t, "a later one", run(f, bob, b), "")
		expect(t, "a fresh one", run(f, alice, c), "0false")
		stand(t, f, c, "tempfail")
	})
	t.Run("taken away", func(t *testing.T) {
		f := setup(t)
		a, b := local(f, bob), local(f, bob)
		f.tears[a.ID] = true
		run(f, bob, a)
		if err := os.Remove(f.file(spooldir.Local, a)); err != nil {
			t.Fatal(err)
		}
		expect(t, "the other", run(f, bob, b), "0false")
	})
	t.Run("too often", func(t *testing.T) {
		f := setup(t)
		a, b := local(f, bob), local(f, bob)
		f.tears[a.ID] = true
		for i := range maxUnfinished {
			stand(t, f, a, "local")
			if got, want := run(f, bob, a), fmt.Sprint("0", i > 0); got != want {
				t.Fatalf("the agent got %q, want %q", got, want)
			}
		}
		stand(t, f, a, "tempfail")
		expect(t, "the other", run(f, bob, b), "0false")
		if f.where(b) != "sent" || len(f.q.unfinished) != 0 {
			t.Errorf("%s, %v", f.where(b), f.q.unfinished)
		}
	})
}
