//go:build !linux

package main

import (
	"context"
	"fmt"
	"os"
)

// compareLocal needs Linux.
func compareLocal(context.Context, int, string) int {
	fmt.Fprintln(os.Stderr, "bench: -l needs Linux")
	return 77
}
