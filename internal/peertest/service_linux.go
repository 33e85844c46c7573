package peertest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// patience is how long the harness waits for anything.
const patience = time.Minute

// Log collects text that programs write.
type Log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write adds to the log.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// String is what was written so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Service is a program that runs until it is stopped, with its output in Log.
type Service struct {
	Log
	t       T
	name    string
	process *os.Process
	ended   chan struct{}
}

// Start starts a program. It is killed, with its process group, when the test
// ends, at the latest.
func (r *Root) Start(cmd *exec.Cmd) *Service {
	r.T.Helper()
	s := &Service{t: r.T, name: cmd.Args[0], ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = s, s
	cmd.SysProcAttr.Setpgid = true
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		r.T.Fatalf("%v: %v", cmd.Args, err)
	}
	s.process = cmd.Process
	go func() {
		_ = cmd.Wait()
		close(s.ended)
	}()
	r.T.Cleanup(s.Kill)
	return s
}

// Signal sends a signal to the program.
func (s *Service) Signal(signal syscall.Signal) { _ = s.process.Signal(signal) }

// Stop ends the program with SIGTERM and waits for it.
func (s *Service) Stop() {
	s.t.Helper()
	s.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
	case <-time.After(patience):
		s.t.Fatalf("%s did not stop\n%s", s.name, s)
	}
}

// Kill ends the program and its process group.
func (s *Service) Kill() {
	select {
	case <-s.ended:
	default:
		_ = syscall.Kill(-s.process.Pid, syscall.SIGKILL)
		<-s.ended
	}
}

// Ended is closed when the program has ended.
func (s *Service) Ended() <-chan struct{} { return s.ended }

// Pid is the process id.
func (s *Service) Pid() int { return s.process.Pid }

// Await waits until ok holds.
func (r *Root) Await(what string, ok func() bool) {
	r.T.Helper()
	Await(r.T, what, ok)
}

// Await waits until ok holds, a minute at most; it asks 50 times a second.
func Await(t T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s within a minute", what)
		}
	}
}

// AwaitPort waits until a server listens on a port of 127.0.0.1, without
// connecting to it.
func (s *Service) AwaitPort(addr string) {
	s.t.Helper()
	_, text, err := net.SplitHostPort(addr)
	port, err2 := strconv.Atoi(text)
	if err := errors.Join(err, err2); err != nil {
		s.t.Fatalf("%s: %v", addr, err)
	}
	want := fmt.Sprintf(":%04X 00000000:0000 0A ", port) // state LISTEN in proc_net_tcp(5)
	Await(s.t, fmt.Sprintf("server at %s (%s)", addr, s.name), func() bool {
		s.alive()
		data, err := os.ReadFile("/proc/net/tcp")
		return err == nil && bytes.Contains(data, []byte(want))
	})
}

// alive fails the test if the program has ended.
func (s *Service) alive() {
	s.t.Helper()
	select {
	case <-s.ended:
		s.t.Fatalf("%s ended:\n%s", s.name, s)
	default:
	}
}

// Syslog makes /dev/log and collects what programs of the root log.
func (r *Root) Syslog() *Log {
	r.T.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: r.Path("dev/log"), Net: "unixgram"})
	r.check(err)
	r.check(os.Chmod(r.Path("dev/log"), 0o666))
	log := new(Log)
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			fmt.Fprintf(log, "%s\n", strings.TrimRight(string(buf[:n]), "\n\x00"))
		}
	}()
	r.T.Cleanup(func() { conn.Close() })
	return log
}
