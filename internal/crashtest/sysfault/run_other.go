//go:build !(linux && amd64)

package sysfault

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
)

// Supported says that there is no tracing on this system.
func Supported() error { return fmt.Errorf("sysfault needs linux/amd64: %w", errors.ErrUnsupported) }

// Run returns the error of Supported and does not start cmd.
func Run(context.Context, *exec.Cmd, Scope, func(Call) Action) (Result, error) {
	return Result{}, Supported()
}
