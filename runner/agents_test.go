package runner

import (
	"testing"

	"dma/parent"
)

func TestMostAgents(t *testing.T) {
	for _, test := range []struct {
		memory uint64
		want   int
	}{
		{0, 32}, {256 << 20, 32}, {1 << 30, 64}, {2 << 30, 128}, {1 << 40, parent.MaxAgents},
	} {
		if got := mostAgents(test.memory); got != test.want {
			t.Errorf("%d MiB: %d agents, want %d", test.memory>>20, got, test.want)
		}
	}
}
