package metrics

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"dma/internal/maillog"
)

func TestWrite(t *testing.T) {
	now := time.Unix(1700000000, 0)
	m := New(func() time.Time { return now })
	for _, d := range []maillog.Delivery{
		{Status: maillog.Sent, Relay: "local"}, {Status: maillog.Sent, Relay: `odd"host\`}, {Status: maillog.Deferred, Relay: "down"},
	} {
		m.Delivery(d)
	}
	path := filepath.Join(t.TempDir(), "dma.prom")
	q := Queue{Recipients: map[string]int{"tempfail": 3, "new": 0}, Oldest: now.Add(-time.Hour)}
	for range 2 { // the second time it replaces
		if err := m.Write(path, q); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`dma_queue_recipients{state="tempfail"} 3`, `dma_queue_recipients{state="new"} 0`, "dma_queue_oldest_seconds 3600",
		`dma_attempts_total{status="sent"} 2`, `dma_attempts_total{status="deferred"} 1`, `dma_attempts_total{status="bounced"} 0`,
		`dma_last_success_timestamp_seconds{relay="odd\"host\\"} 1700000000`, "dma_written_timestamp_seconds 1700000000",
	} {
		if !strings.Contains(string(data), want+"\n") {
			t.Errorf("%s is missing in\n%s", want, data)
		}
	}
	if strings.Contains(string(data), `"down"`) {
		t.Error("a relay that never took anything has a last success")
	}
	line := regexp.MustCompile(`^(# (HELP|TYPE) dma_[a-z_]+ .+|dma_[a-z_]+(\{[a-z]+="([^"\\\n]|\\.)*"\})? [0-9]+)$`)
	for _, l := range strings.Split(strings.TrimSuffix(string(data), "\n"), "\n") {
		if !line.MatchString(l) {
			t.Errorf("not in the text format: %s", l)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, %v; want 0644", info.Mode(), err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("%d files in the folder, want the one", len(entries))
	}
}

func TestRelaysAreBounded(t *testing.T) {
	at := time.Unix(0, 0)
	m := New(func() time.Time { at = at.Add(time.Second); return at })
	for i := range 3 * maxRelays {
		m.Delivery(maillog.Delivery{Status: maillog.Sent, Relay: fmt.Sprint(i)})
	}
	if len(m.success) != maxRelays {
		t.Errorf("%d relays are kept", len(m.success))
	}
	if _, ok := m.success[fmt.Sprint(3*maxRelays-1)]; !ok {
		t.Error("the newest is not among them")
	}
}
