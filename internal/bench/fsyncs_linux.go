package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fsyncs counts the calls of fsync(2) and fdatasync(2) of all processes of the
// machine: the file system is to be left to what is measured. Where the kernel
// does not count them, why says so and the count is 0.
type fsyncs struct {
	files []*os.File
	why   error
}

// countFsyncs begins to count: those of one process, or of all where pid is -1.
func countFsyncs(pid int) *fsyncs {
	c := new(fsyncs)
	for _, call := range []string{"fsync", "fdatasync"} {
		id, err := tracepoint("syscalls/sys_enter_" + call)
		if err != nil {
			c.why = err
			return c
		}
		if pid < 0 {
			for cpu := range runtime.NumCPU() {
				c.open(id, -1, cpu)
			}
			continue
		}
		// Threads that these start are counted with them.
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		for _, t := range threads {
			if tid, err := strconv.Atoi(filepath.Base(t)); err == nil {
				c.open(id, tid, -1)
			}
		}
		if len(threads) == 0 {
			c.why = fmt.Errorf("no process %d: %v", pid, err)
		}
	}
	return c
}

func (c *fsyncs) open(id uint64, pid, cpu int) {
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Config: id, Bits: unix.PerfBitInherit}
	attr.Size = uint32(unsafe.Sizeof(attr))
	fd, err := unix.PerfEventOpen(&attr, pid, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		c.why = fmt.Errorf("perf_event_open: %w", err)
		return
	}
	c.files = append(c.files, os.NewFile(uintptr(fd), "perf"))
}

// end ends counting and returns the count.
func (c *fsyncs) end() int {
	n := uint64(0)
	for _, f := range c.files {
		var count [8]byte
		if _, err := f.Read(count[:]); err != nil {
			c.why = err
		}
		n += binary.NativeEndian.Uint64(count[:])
		f.Close()
	}
	return int(n)
}

// tracepoint returns the number of a tracepoint, for which it mounts tracefs in
// the namespace of this process.
func tracepoint(name string) (uint64, error) {
	const dir = "/sys/kernel/tracing"
	file := filepath.Join(dir, "events", name, "id")
	text, err := os.ReadFile(file)
	if err != nil {
		if err := unix.Mount("tracefs", dir, "tracefs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return 0, fmt.Errorf("mount tracefs: %w", err)
		}
		text, err = os.ReadFile(file)
	}
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
}
