package crashtest

import (
	"errors"
	"os"
	"testing"
)

// Enabled reports whether the tests that need root and mount file systems are
// wanted: CI=true, as continuous integration sets it, or DMA_SYSTEM_TESTS=1.
func Enabled() bool {
	return os.Getenv("CI") == "true" || os.Getenv("DMA_SYSTEM_TESTS") == "1"
}

// Missing is something that a test needs and that can be installed.
type Missing struct {
	What   string // a program or a device
	Remedy string // the command that provides it
}

func (m *Missing) Error() string { return m.What + " is missing: " + m.Remedy }

// Need decides for a test that needs root whether it runs. unavailable is the
// reason why it cannot run here, or nil. The test is skipped if such tests are
// not wanted or cannot run; it fails if root wants them and what lacks is a
// *Missing, so that a machine that should run them does not skip them quietly.
func Need(t testing.TB, unavailable error) {
	t.Helper()
	var missing *Missing
	switch {
	case !Enabled():
		t.Skip("a system test: set DMA_SYSTEM_TESTS=1 and run as root")
	case unavailable == nil:
	case os.Geteuid() == 0 && errors.As(unavailable, &missing):
		t.Fatal(unavailable)
	default:
		t.Skip(unavailable)
	}
}
