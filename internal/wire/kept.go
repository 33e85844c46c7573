package wire

import (
	"errors"
	"sync"
)

// MaxKept is how many sockets with files a process keeps open, each for a
// descriptor and for good, before it has to end.
const MaxKept = 100

// ErrKept is why a process has to end that keeps MaxKept sockets.
var ErrKept = errors.New("clients and agents have sent too many files, which only the end of the process frees")

// Kept counts the sockets that a process keeps, whoever has them. A nil Kept
// counts nothing.
type Kept struct {
	mu   sync.Mutex
	n    int
	full chan struct{}
}

// NewKept returns a Kept that has counted nothing.
func NewKept() *Kept { return &Kept{full: make(chan struct{})} }

// Closed takes what [Conn.Close] returned, and reports whether the socket is kept.
func (k *Kept) Closed(err error) bool {
	if !errors.Is(err, ErrFiles) {
		return false
	}
	if k == nil {
		return true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.n++; k.n == MaxKept {
		close(k.full)
	}
	return true
}

// Count returns how many are kept.
func (k *Kept) Count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.n
}

// Full is closed when MaxKept are kept.
func (k *Kept) Full() <-chan struct{} { return k.full }
