// Dma-runner is the service behind dma: it delivers what is queued. See
// dma-runner(8).
package main

import (
	"os"

	"dma/runner"
)

func main() {
	os.Exit(runner.Main(os.Args[1:], runner.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}
