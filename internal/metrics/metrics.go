// Package metrics counts what happens to mail and writes the figures as a file
// in the text format of Prometheus, for a collector of text files: METRICS in
// dma.conf.
package metrics

import (
	"bytes"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"dma/internal/maillog"

	"github.com/google/renameio/v2"
)

// maxRelays bounds the relays of which the last success is told: without a
// smarthost every host in the world can become one.
const maxRelays = 100

// Metrics counts since the start of the process. Its methods may be called from
// several goroutines.
type Metrics struct {
	now func() time.Time

	mu       sync.Mutex
	attempts map[maillog.Status]int
	success  map[string]time.Time // by relay
}

// New makes a Metrics with a clock.
func New(now func() time.Time) *Metrics {
	return &Metrics{now: now, attempts: make(map[maillog.Status]int), success: make(map[string]time.Time)}
}

// Delivery counts an attempt. It is what maillog.Observed takes.
func (m *Metrics) Delivery(d maillog.Delivery) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.attempts[d.Status]++
	if d.Status != maillog.Sent || d.Relay == "" {
		return
	}
	if _, known := m.success[d.Relay]; !known && len(m.success) >= maxRelays {
		oldest := ""
		for r, at := range m.success {
			if oldest == "" || at.Before(m.success[oldest]) {
				oldest = r
			}
		}
		delete(m.success, oldest)
	}
	m.success[d.Relay] = m.now()
}

// Queue is what stands in the queue.
type Queue struct {
	Recipients map[string]int // by state
	Oldest     time.Time      // arrival of the oldest message; zero if the queue is empty
}

// Write replaces the file at path as a whole, readable for all: it names relays
// and no addresses. A collector never sees half of it.
func (m *Metrics) Write(path string, q Queue) error {
	err := renameio.WriteFile(path, m.encode(q), 0o644, renameio.WithTempDir(filepath.Dir(path)), renameio.IgnoreUmask())
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}

func (m *Metrics) encode(q Queue) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	var b bytes.Buffer
	head := func(name, kind, help string) { fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }

	head("dma_queue_recipients", "gauge", "Recipients in the queue, by the directory that they stand in.")
	for _, state := range slices.Sorted(maps.Keys(q.Recipients)) {
		fmt.Fprintf(&b, "dma_queue_recipients{state=%s} %d\n", label(state), q.Recipients[state])
	}
	head("dma_queue_oldest_seconds", "gauge", "Age of the oldest message in the queue, 0 if it is empty.")
	age := 0.0
	if !q.Oldest.IsZero() {
		age = max(m.now().Sub(q.Oldest).Seconds(), 0)
	}
	fmt.Fprintf(&b, "dma_queue_oldest_seconds %.0f\n", age)

	head("dma_attempts_total", "counter", "Attempts for recipients since the service started, by outcome.")
	for _, s := range []maillog.Status{maillog.Sent, maillog.Deferred, maillog.Bounced, maillog.Expired, maillog.Expanded} {
		fmt.Fprintf(&b, "dma_attempts_total{status=%s} %d\n", label(string(s)), m.attempts[s])
	}
	head("dma_last_success_timestamp_seconds", "gauge", "When a relay last took a message.")
	for _, relay := range slices.Sorted(maps.Keys(m.success)) {
		fmt.Fprintf(&b, "dma_last_success_timestamp_seconds{relay=%s} %d\n", label(relay), m.success[relay].Unix())
	}
	head("dma_written_timestamp_seconds", "gauge", "When this file was written: if it is old, the service does not run.")
	fmt.Fprintf(&b, "dma_written_timestamp_seconds %d\n", m.now().Unix())
	return b.Bytes()
}

// label quotes a label value.
func label(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(strings.ToValidUTF8(s, "?")) + `"`
}
