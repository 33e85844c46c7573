// Bench measures dma: counts first (syncs, system calls, round trips), then
// rates, each beside the bare system calls of the same work in the same run, then
// memory. With -p it compares with other mail systems instead.
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
	waiting := flag.Int("m", 20000, "messages that wait for the figures of memory")
	beside := flag.Bool("p", false, "compare with Debian's Postfix and dma (Linux, root)")
	local := flag.Bool("l", false, "compare local delivery with theirs (Linux, root)")
	only := flag.String("k", "", "of that comparison only loads with this in their names")
	rounds := flag.Int("r", 3, "rounds of that comparison")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	if *local {
		os.Exit(compareLocal(ctx, max(*rounds, 1), *only))
	}
	if *beside {
		os.Exit(compare(ctx, max(*rounds, 1)))
	}
	if err := run(ctx, *messages, *queued, *waiting); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, messages, queued, waiting int) error {
	s, err := newSite()
	if err != nil {
		return err
	}
	defer s.remove()
	fmt.Printf("spool on %s\n\ncounts\n", s.fs)
	for _, f := range []func(context.Context) error{s.syncs, s.calls, s.trips, s.connections, s.farAway} {
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
	return s.memory(ctx, waiting)
}
