// Bench measures dma: counts first (syncs, system calls, round trips), then
// rates, each beside the bare system calls of the same work in the same run.
// It is what scripts/bench runs.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	messages := flag.Int("n", 2000, "messages for the rates of submission")
	queued := flag.Int("q", 5000, "messages for the rates of draining")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	if err := run(ctx, *messages, *queued); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, messages, queued int) error {
	s, err := newSite()
	if err != nil {
		return err
	}
	defer s.remove()
	fmt.Printf("spool on %s\n\ncounts\n", s.fs)
	for _, f := range []func(context.Context) error{s.syncs, s.calls, s.trips} {
		if err := f(ctx); err != nil {
			return err
		}
	}
	fmt.Printf("\nrates (ratios are to the bare system calls of the same work, in this run)\n")
	if err := s.submission(ctx, messages); err != nil {
		return err
	}
	for _, kind := range []string{"mbox", "maildir", "smarthost"} {
		if err := s.draining(ctx, kind, queued); err != nil {
			return err
		}
	}
	return nil
}
