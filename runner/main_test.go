package runner

import (
	"errors"
	"fmt"
	"testing"
)

// TestExitError: an exit code without a reason can be printed too.
func TestExitError(t *testing.T) {
	for want, err := range map[string]error{
		"exit status 75": &exitError{code: exitTempfail},
		"no mail: full":  &exitError{exitTempfail, fmt.Errorf("no mail: %w", errors.New("full"))},
	} {
		if got := fmt.Sprintf("%v", err); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
