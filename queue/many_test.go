package queue

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"dma/internal/maillog"
	"dma/internal/passwd"
	"dma/spooldir"
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

// TestDeliveries: a journal is read on from where it ended, a torn line counts
// when it is whole, and another file is another journal.
func TestDeliveries(t *testing.T) {
	f := newFixture(t, memory(t))
	const id = "20400101T000000-00000000000000aa"
	path := filepath.Join(f.spool.Path(), spooldir.LogDir, id)
	var d deliveries
	is := func(n int) bool {
		t.Helper()
		is, err := d.of(f.spool, id)
		if err != nil {
			t.Fatal(err)
		}
		return is(n)
	}
	write := func(text []byte, flag int) {
		t.Helper()
		file, err := os.OpenFile(path, os.O_WRONLY|flag, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := file.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	line := func(event spooldir.Event, numbers ...int) []byte {
		e := spooldir.Entry{Time: testStart, Event: event, Recipients: numbers, Reply: "a reply"}
		return e.Encode()
	}
	if is(1) {
		t.Error("without a journal")
	}
	write(line(spooldir.Delivered, 1), os.O_CREATE)
	write(line(spooldir.Deferred, 2), os.O_APPEND)
	if !is(1) || is(2) || len(d.long) != 0 {
		t.Errorf("a short journal: %v, %v, remembered: %d", is(1), is(2), len(d.long))
	}
	for range longJournal/len(line(spooldir.Deferred, 2)) + 1 {
		write(line(spooldir.Deferred, 2), os.O_APPEND)
	}
	if !is(1) || is(2) || is(3) || len(d.long) != 1 {
		t.Errorf("a long journal: %v, %v, remembered: %d", is(1), is(2), len(d.long))
	}
	// What was read is not read again.
	write(line(spooldir.Delivered, 3), 0)
	last := line(spooldir.Delivered, 4, 5)
	write(last[:20], os.O_APPEND)
	if !is(1) || is(3) || is(4) {
		t.Errorf("a torn line: %v, %v, %v", is(1), is(3), is(4))
	}
	write(last[20:], os.O_APPEND)
	if !is(1) || !is(4) || !is(5) {
		t.Errorf("the line is whole: %v, %v, %v", is(1), is(4), is(5))
	}
	// A journal that lost something, and one that is another file.
	if err := os.Truncate(path, int64(len(line(spooldir.Delivered, 3)))); err != nil {
		t.Fatal(err)
	}
	if is(1) || !is(3) {
		t.Error("a shorter journal")
	}
	write(line(spooldir.Delivered, 6), os.O_APPEND)
	if !is(6) {
		t.Error("it has grown again")
	}
	if err := os.Rename(path, path+".x"); err != nil {
		t.Fatal(err)
	}
	if is(3) {
		t.Error("the journal is gone")
	}
	write(line(spooldir.Delivered, 7), os.O_CREATE)
	if is(3) || !is(7) {
		t.Error("another journal")
	}
	d.forget(id)
	if len(d.long) != 0 {
		t.Error("it is not forgotten")
	}
	if err := os.Mkdir(filepath.Join(f.spool.Path(), spooldir.LogDir, id+"d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := d.of(f.spool, id+"d"); err == nil {
		t.Error("a directory is a journal")
	}
}
