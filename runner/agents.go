package runner

import "dma/parent"

// An agent takes 2 MB. Where mail comes for many users at a time, few seats cost a
// start of a process for each message; and so do many on a machine that has no
// memory for them.
const (
	memoryPerAgent = 16 << 20
	fewestAgents   = 32
)

// mostAgents is how many agents may live on a machine with so much memory, 0 if
// that is not known.
func mostAgents(memory uint64) int {
	return int(min(max(memory/memoryPerAgent, fewestAgents), parent.MaxAgents))
}
