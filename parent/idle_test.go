package parent

import (
	"testing"
	"time"

	"dma/internal/wire"
)

// TestStay: a service that has a reason to go on is asked again later, and ends
// when the reason has gone.
func TestStay(t *testing.T) {
	f := newFixture(t)
	reasons, asked, ended := 2, 0, 0
	o := f.options()
	o.UntilIdle, o.IdleFor = true, 10*time.Second
	o.Stay = func() bool { asked++; return asked <= reasons }
	f.idle = newIdleness(o, func() { ended++ })

	session := func(w *worker) (*session, *wire.Conn) {
		a, b, err := wire.Pair()
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := wire.New(a), wire.New(b)
		t.Cleanup(func() { ours.Close(); theirs.Close() })
		return &session{parent: f.parent, worker: w, conn: ours, bad: make(chan error, 1)}, theirs
	}
	queue, queueEnd := session(f.queue)
	net, netEnd := session(f.net)
	report := func(looks string) {
		f.idle.report(queue, true, "0", looks)
		f.idle.report(net, true, "0", looks)
	}
	toldToLook := func() {
		t.Helper()
		for _, end := range []*wire.Conn{queueEnd, netEnd} {
			frame, _, err := end.Receive(maxAnswer, 0)
			if err != nil {
				t.Fatal(err)
			}
			if m, err := decode(frame); err != nil || m.kind != kindLook {
				t.Fatalf("%v, %v", m, err)
			}
		}
	}
	report("0")
	for round := range reasons + 1 {
		report("0")
		if asked != round || ended != 0 {
			t.Fatalf("round %d: asked %d times, ended %d times", round, asked, ended)
		}
		f.clock.advance(o.IdleFor)
		report("0")
		toldToLook()
		report("1")
		if asked != round+1 {
			t.Fatalf("round %d: asked %d times", round, asked)
		}
		report("0")
		if last := round == reasons; ended != 0 && !last || ended == 0 && last {
			t.Fatalf("round %d: ended %d times", round, ended)
		}
	}
}
