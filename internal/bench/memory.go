package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"dma/spooldir"
)

// memory measures the service with a queue of n messages for a smarthost that
// takes no connections.
func (s *site) memory(ctx context.Context, n int) error {
	if _, err := os.Stat("/proc/self/smaps_rollup"); err != nil {
		fmt.Printf("\nmemory: not here: %v\n", err)
		return nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	l.Close() // nobody listens there now
	if err := s.configure("mbox:"+s.path("mail")+"/%u", l.Addr().String()); err != nil {
		return err
	}
	fmt.Printf("\nmemory of dma-runner, all of its processes\n")
	for _, n := range []int{0, n} {
		if err := s.fill(n, "friend@example.org"); err != nil {
			return err
		}
		if err := s.footprint(ctx, n); err != nil {
			return err
		}
	}
	return s.empty()
}

// footprint starts the service, waits until nothing is left in new/ and prints
// what it takes.
func (s *site) footprint(ctx context.Context, n int) error {
	log, err := os.Create(s.path("log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := s.command(ctx, "dma-runner")
	cmd.Stderr = log
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}()
	tempfail := filepath.Join(s.path("spool"), string(spooldir.Tempfail))
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		names, err := os.ReadDir(tempfail)
		if err != nil {
			return err
		}
		if len(names) == n {
			break
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return fmt.Errorf("%d of %d messages are in tempfail after five minutes", len(names), n)
		}
	}
	settled := time.Since(start)
	time.Sleep(2 * time.Second)
	pids, err := family(cmd.Process.Pid)
	if err != nil {
		return err
	}
	var pss, rss, peak int
	for _, pid := range pids {
		pss += field(pid, "smaps_rollup", "Pss")
		rss += field(pid, "smaps_rollup", "Rss")
		peak += field(pid, "status", "VmHWM")
	}
	fmt.Printf("  %5d queued: PSS %.1f MB, RSS %.1f MB, peak RSS %.1f MB; %d processes; all in tempfail after %v\n",
		n, float64(pss)/1024, float64(rss)/1024, float64(peak)/1024, len(pids), settled.Round(100*time.Millisecond))
	return nil
}

// family returns a process and all that descend from it.
func family(pid int) ([]int, error) {
	list := []int{pid}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil, err
	}
	for _, task := range tasks {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for word := range strings.FieldsSeq(string(data)) {
			child, err := strconv.Atoi(word)
			if err != nil {
				return nil, err
			}
			more, err := family(child)
			if err != nil {
				return nil, err
			}
			list = append(list, more...)
		}
	}
	return list, nil
}

// field is an amount in kB from a file of proc(5); 0 if it is not there.
func field(pid int, file, name string) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			return n
		}
	}
	return 0
}
