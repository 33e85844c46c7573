package main

import (
	"bytes"
	"context"
	"fmt"
	"net"

	"dma/internal/crashtest/sysfault"
	"dma/internal/smtptest"
	"dma/smarthost"
	"dma/spooldir"
)

// syncs counts the syncs of submissions.
func (s *site) syncs(ctx context.Context) error {
	if err := sysfault.Supported(); err != nil {
		fmt.Printf("  syncs and system calls: not here: %v\n", err)
		return nil
	}
	for _, n := range []int{1, 10, 1000} {
		var to []string
		for i := range n {
			to = append(to, fmt.Sprintf("user%d@example.org", i))
		}
		count, all, err := s.trace(ctx, func() (sysfault.Result, error) {
			return sysfault.Run(ctx, s.submit(ctx, to...), sysfault.Scope{Roots: []string{s.path("spool")}, Classes: sysfault.All}, nil)
		})
		if err != nil {
			return err
		}
		fmt.Printf("  submission to %4d recipients: %d syncs, %d system calls on the spool\n", n, count, all)
	}
	return s.empty()
}

func (s *site) trace(ctx context.Context, run func() (sysfault.Result, error)) (syncs, all int, err error) {
	res, err := run()
	if err != nil {
		return 0, 0, err
	}
	if !res.State.Exited() || res.State.ExitStatus() != 0 {
		return 0, 0, fmt.Errorf("the traced program ended with %v", res.State)
	}
	for _, c := range res.Calls {
		if c.Class&sysfault.Sync != 0 {
			syncs++
		}
	}
	return syncs, len(res.Calls), nil
}

// empty throws the queue away.
func (s *site) empty() error {
	spool, err := spooldir.Open(s.path("spool"))
	if err != nil {
		return err
	}
	for _, state := range spooldir.States() {
		var names []spooldir.Name
		if err := spool.Scan(state, func(n spooldir.Name) bool { names = append(names, n); return true }, nil); err != nil {
			return err
		}
		for _, n := range names {
			if err := spool.Remove(n, state); err != nil {
				return err
			}
		}
	}
	return nil
}

// calls counts the system calls on spool and mailbox between new and the end
// of a message: those of a drain of 100 less those of a drain of none.
func (s *site) calls(ctx context.Context) error {
	if sysfault.Supported() != nil {
		return nil
	}
	drain := func() (sysfault.Result, error) {
		return sysfault.Run(ctx, s.command(ctx, "dma-runner", "drain"),
			sysfault.Scope{Roots: []string{s.path("spool"), s.path("mail")}, Classes: sysfault.All}, nil)
	}
	syncs0, all0, err := s.trace(ctx, drain)
	if err != nil {
		return err
	}
	const n = 100
	if err := s.fill(n, "alice"); err != nil {
		return err
	}
	syncs, all, err := s.trace(ctx, drain)
	if err != nil {
		return err
	}
	fmt.Printf("  a message from new to the mailbox and gone: %.1f system calls, %.2f syncs (of %d drained together to one mbox)\n",
		float64(all-all0)/n, float64(syncs-syncs0)/n, n)
	return nil
}

// trips counts the round trips of transactions.
func (s *site) trips(ctx context.Context) error {
	sink := smtptest.NewSink(smtptest.SinkOptions{})
	addr, err := sink.Listen("127.0.0.1:0")
	if err != nil {
		return err
	}
	defer sink.Close()
	for _, n := range []int{1, 50, 500} {
		var meter smtptest.Meter
		hosts, err := smarthost.ParseHosts([]string{addr.String()}, 25)
		if err != nil {
			return err
		}
		relay := smarthost.New(smarthost.Config{Name: "bench.example", Hosts: hosts, Dial: func(ctx context.Context, network, a string) (net.Conn, error) {
			return meter.Dial(ctx, network, a)
		}})
		m := smarthost.Message{ID: "bench", Sender: "a@bench.example", Content: bytes.NewReader(s.msg), Size: int64(len(s.msg))}
		for i := range n {
			m.Recipients = append(m.Recipients, smarthost.Recipient{N: i + 1, Address: fmt.Sprintf("u%d@example.org", i)})
		}
		relay.Deliver(ctx, m, func([]int, []smarthost.Outcome) {})
		first := meter.RoundTrips()
		relay.Deliver(ctx, m, func([]int, []smarthost.Outcome) {})
		fmt.Printf("  %3d recipients by SMTP: %d round trips with the connection, %d for the next message\n", n, first, meter.RoundTrips()-first)
	}
	return nil
}
