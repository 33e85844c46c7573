package runner

import (
	"context"
	"time"

	"dma/internal/metrics"
	"dma/spooldir"
)

// metricsEvery is the time between two writings of the METRICS file.
const metricsEvery = 15 * time.Second

// writeMetrics keeps the METRICS file up to date until ctx ends, and once more
// then.
func (h *half) writeMetrics(ctx context.Context) {
	if h.config.Metrics == "" {
		return
	}
	failed := false
	write := func() {
		q, err := depth(h.spool)
		if err == nil {
			err = h.metrics.Write(h.config.Metrics, q)
		}
		if err != nil && !failed { // said once, until it works again
			h.log.WorkerTrouble("metrics", err)
		}
		failed = err != nil
	}
	tick := time.NewTicker(metricsEvery)
	defer tick.Stop()
	for {
		write()
		select {
		case <-ctx.Done():
			write()
			return
		case <-tick.C:
		}
	}
}

// depth counts the recipients by state. It reads names only.
func depth(s *spooldir.Spool) (metrics.Queue, error) {
	q := metrics.Queue{Recipients: make(map[string]int)}
	oldest := ""
	for _, state := range spooldir.States() {
		n := 0
		err := s.Scan(state, func(name spooldir.Name) bool {
			n++
			if oldest == "" || name.ID < oldest {
				oldest = name.ID
			}
			return true
		}, nil)
		if err != nil {
			return q, err
		}
		q.Recipients[string(state)] = n
	}
	if oldest != "" {
		q.Oldest = spooldir.IDTime(oldest)
	}
	return q, nil
}
