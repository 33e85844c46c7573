package parent

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"dma/agent"
)

// stuckChild is a process that hangs in the kernel: to be killed does not end it.
type stuckChild struct{ gone chan struct{} }

func (c stuckChild) ended() <-chan struct{} { return c.gone }
func (c stuckChild) err() error             { return nil }
func (c stuckChild) kill()                  {}

// TestStuckAgents: agents that were killed and do not go take no other user's
// place, up to a bound, and their own user gets no second one.
func TestStuckAgents(t *testing.T) {
	var a agents
	var children []stuckChild
	start := func(i int) error {
		name := fmt.Sprintf("user%d", i)
		e, err := a.reserve(name, 1000+i, agent.MailboxRole)
		if err != nil {
			return err
		}
		life, err := newTether()
		if err != nil {
			t.Fatal(err)
		}
		life.started(nil)
		c := stuckChild{make(chan struct{})}
		children = append(children, c)
		a.started(e, c, life)
		return nil
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	stop := func(i int) {
		t.Helper()
		if a.stop(over, fmt.Sprintf("user%d", i), agent.MailboxRole) == nil {
			t.Fatalf("user%d's agent has gone", i)
		}
	}
	for i := range maxDoomed {
		if err := start(i); err != nil {
			t.Fatal(i, err)
		}
		stop(i)
		if err := start(i); !errors.Is(err, agent.ErrBusy) {
			t.Fatalf("a second one for user%d: %v", i, err)
		}
	}
	if err := start(maxDoomed); err == nil {
		t.Error("one more than can be stuck")
	}
	last := a.live[len(a.live)-1].gone
	close(children[len(children)-1].gone) // the file system answers again
	<-last
	if err := start(maxDoomed); err != nil {
		t.Error(err)
	}
	for _, c := range append(children[:maxDoomed-1:maxDoomed-1], children[maxDoomed:]...) {
		close(c.gone)
	}
}
