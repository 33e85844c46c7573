//go:build !linux

package crashtest

import (
	"errors"
	"os"
	"testing"
)

// Main is the body of a TestMain: it runs the tests and exits. Private mount
// namespaces exist on Linux only.
func Main(m *testing.M) { os.Exit(m.Run()) }

// Private says why there is no private mount namespace.
func Private() error { return errors.New("needs Linux") }
