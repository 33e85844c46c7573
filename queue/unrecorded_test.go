package queue

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dma/agent"
	"dma/internal/maillog"
	"dma/spooldir"
)

// TestUnrecorded: a disk that takes neither the line in the journal nor the step
// must not make a message be delivered again.
func TestUnrecorded(t *testing.T) {
	f := newFixture(t, memory(t))
	name := f.send("s@remote.test", "alice")[0]
	f.step(spooldir.New, name)
	f.step(spooldir.Forwarding, name)
	journal := filepath.Join(f.spool.Path(), spooldir.LogDir, name.ID)
	sent := filepath.Join(f.spool.Path(), string(spooldir.Sent))
	delivered := 0
	f.agent.deliver = func(jobs []*agent.Job, done func(*agent.Job)) {
		if delivered++; delivered == 1 {
			if err := errors.Join(os.Remove(journal), os.Rename(sent, sent+"x")); err != nil {
				t.Error(err)
			}
		}
		for _, j := range jobs {
			j.Place = "/var/mail/alice"
			done(j)
		}
	}
	try := func() {
		t.Helper()
		if _, err := f.handle(spooldir.Local, name); err != nil {
			t.Fatal(err)
		}
		for _, b := range f.take() {
			f.run(b)
		}
	}
	for n := range 3 {
		try()
		if got := f.where(name); got != "local" || delivered != 1 {
			t.Fatalf("try %d: it stands in %q, delivered %d times", n, got, delivered)
		}
		if trouble := f.log.of(maillog.EventWorkerTrouble); len(trouble) == 0 {
			t.Fatalf("try %d: nobody hears of the trouble", n)
		}
	}
	if err := os.Rename(sent+"x", sent); err != nil {
		t.Fatal(err)
	}
	try()
	if got := f.where(name); got != "sent" || delivered != 1 {
		t.Errorf("it stands in %q, delivered %d times", got, delivered)
	}
	if len(f.q.unrecorded) != 0 {
		t.Errorf("%d names are remembered", len(f.q.unrecorded))
	}
}

// TestRemovedByFullDisk: a recipient whose name the full disk let only be removed
// is reported like others, and takes the journal along.
func TestRemovedByFullDisk(t *testing.T) {
	f := newFixture(t, memory(t))
	name := f.submit(spooldir.Envelope{Sender: "s@remote.test", Recipients: []spooldir.Recipient{
		{Address: "alice", Notify: "SUCCESS"}, {Address: "bob"},
	}}, "Subject: x\n\n")[0]
	f.step(spooldir.New, name)
	f.step(spooldir.Forwarding, name)
	m := f.open(spooldir.Local, name)
	e := spooldir.Entry{Time: f.clock.now, Event: spooldir.Delivered, Recipients: []int{1, 2}, Status: "2.0.0", Relay: "local"}
	if err := f.spool.AppendJournal(m.ID, false, e); err != nil {
		t.Fatal(err)
	}
	for n := range m.Recipients {
		if _, err := os.Stat(filepath.Join(f.spool.Path(), spooldir.LogDir, m.ID)); err != nil {
			t.Errorf("recipient %d: %v", n+1, err)
		}
		if err := f.spool.Remove(m.Name(n+1), spooldir.Local); err != nil {
			t.Fatal(err)
		}
		f.q.endRemoved(m, []int{n + 1})
	}
	if _, err := f.spool.ReadJournal(m.ID); !os.IsNotExist(err) && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the journal: %v", err)
	}
	reports := f.names(spooldir.New)
	if len(reports) != 1 {
		t.Fatalf("new holds %v, want one report", reports)
	}
	if text := content(t, f.open(spooldir.New, reports[0])); !strings.Contains(text, "Action: delivered") || !strings.Contains(text, "alice@host.test") || strings.Contains(text, "bob@") {
		t.Errorf("the report says\n%s", text)
	}
	f.step(spooldir.New, reports[0]) // nothing is left of its parent
	if got := f.where(reports[0]); got != "remote" {
		t.Errorf("the report stands in %q", got)
	}
	if trouble := f.log.of(maillog.EventWorkerTrouble); len(trouble) != 0 {
		t.Error(trouble)
	}
}
