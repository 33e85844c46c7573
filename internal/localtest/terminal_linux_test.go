package localtest

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dma/internal/peertest"
)

// terminal is a program of a root on a terminal of its own.
type terminal struct {
	peertest.Log // what it shows
	t            testing.TB
	cmd          *exec.Cmd
	master       *os.File
	shown        chan struct{} // closed when it shows nothing more
}

// terminal starts a program on a terminal.
func (s *site) terminal(cmd *exec.Cmd) *terminal {
	s.t.Helper()
	term, err := openTerminal(s.t, cmd)
	if err != nil {
		s.t.Fatalf("terminal: %v", err)
	}
	return term
}

// openTerminal is for goroutines, which may not end the test.
func openTerminal(t testing.TB, cmd *exec.Cmd) (*terminal, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, err
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		return nil, err
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer slave.Close()
	if err := slave.Chmod(0o666); err != nil {
		return nil, err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	cmd.Env = append(cmd.Env, "TERM=vt100")
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	t.Cleanup(func() { master.Close() })
	term := &terminal{t: t, cmd: cmd, master: master, shown: make(chan struct{})}
	go func() {
		defer close(term.shown)
		_, _ = io.Copy(term, master) // ends with EIO when the last slave is closed
	}()
	return term, nil
}

// input types a text.
func (term *terminal) input(text string) {
	term.t.Helper()
	if _, err := io.WriteString(term.master, text); err != nil {
		term.t.Errorf("terminal: %v", err)
	}
}

// repeat types a text ten times a second until the program has ended.
func (term *terminal) repeat(text string) {
	go func() {
		for {
			select {
			case <-term.shown:
				return
			case <-time.After(100 * time.Millisecond):
				_, _ = io.WriteString(term.master, text) // fails when it has ended
			}
		}
	}()
}

// wait waits for the end of the program, and reports how it ended.
func (term *terminal) wait() error {
	timer := time.AfterFunc(time.Minute, func() { _ = term.cmd.Process.Kill() })
	defer timer.Stop()
	err := term.cmd.Wait()
	<-term.shown
	if err != nil {
		return fmt.Errorf("%v: %w\n%s", term.cmd.Args, err, strings.ReplaceAll(term.String(), "\x1b", "^["))
	}
	return nil
}
