package queue

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"dma/internal/maillog"
	"dma/internal/passwd"
	"dma/states"
)

// TestManyRecipients takes one message for many users from new to its end.
// DMA_MANY says for how many, for who wants to measure.
func TestManyRecipients(t *testing.T) {
	n := 300
	if s := os.Getenv("DMA_MANY"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	f := newFixture(t, memory(t))
	var lookups, gone atomic.Int64
	ended := make(chan struct{})
	f.users.point = func() { lookups.Add(1) }
	f.log.on = func(e logEvent) {
		if e.name == maillog.EventMoved && e.attrs["to"] == "gone" && gone.Add(1) == int64(n) {
			close(ended)
		}
	}
	var to []string
	for i := range n {
		name := fmt.Sprintf("user%05d", i)
		f.users.users[name] = passwd.User{Name: name, UID: 1000 + i, GID: 1000 + i, Home: "/home/" + name}
		to = append(to, name)
	}
	f.q.clock = states.SystemClock{}
	f.q.forwarding.Run, f.q.local.Run, f.q.commands.Run = f.q.runForwarding, f.q.runLocal, f.q.runLocal
	f.send("s@remote.test", to...)

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	start := time.Now()
	stopped := make(chan error, 1)
	go func() { stopped <- f.q.Run(ctx) }()
	select {
	case <-ended:
	case <-ctx.Done():
		t.Errorf("%d of %d recipients are done", gone.Load(), n)
	}
	t.Logf("%d recipients: %v, %d lookups of users", n, time.Since(start), lookups.Load())
	cancel()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if trouble := f.log.of(maillog.EventWorkerTrouble); len(trouble) > 0 {
		t.Error(trouble)
	}
	// Seven are needed: to route it, to line it up in two states, and for each of
	// the two agents. What stands somewhere may be lined up again.
	if most := int64(20 * n); lookups.Load() > most {
		t.Errorf("%d lookups of users, more than %d", lookups.Load(), most)
	}
}
