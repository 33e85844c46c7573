package wire

import (
	"errors"
	"fmt"
	"os"
	"testing"
)

// TestKept: sockets with files are counted, whoever tells of them, up to the end.
func TestKept(t *testing.T) {
	k := NewKept()
	full := func() bool {
		select {
		case <-k.Full():
			return true
		default:
			return false
		}
	}
	for _, err := range []error{nil, os.ErrClosed, errors.New("x")} {
		if k.Closed(err) {
			t.Errorf("%v: kept", err)
		}
	}
	for n := range MaxKept + 1 {
		if got := full(); got != (n >= MaxKept) || k.Count() != n {
			t.Fatalf("after %d: %d, full: %v", n, k.Count(), got)
		}
		if !k.Closed(fmt.Errorf("%w: kept", ErrFiles)) {
			t.Fatal("not kept")
		}
	}
	if (*Kept)(nil).Closed(os.ErrClosed) || !(*Kept)(nil).Closed(ErrFiles) {
		t.Error("of nobody's")
	}
}
