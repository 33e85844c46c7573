// Package notify speaks the protocol by which a service manager and its
// services tell each other where they are: sd_notify(3) for the state of the
// service and its watchdog, sd_listen_fds(3) for sockets that the manager has
// opened. systemd is the manager that is meant; others speak it as well. Where
// there is none everything here does nothing.
package notify

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// sendTime bounds one message to the manager.
const sendTime = 5 * time.Second

// Manager is the service manager of this process.
type Manager struct {
	addr     *net.UnixAddr
	watchdog time.Duration
}

// Connect reads from the environment who manages the process with a pid. No
// manager is no error. The caller keeps the variables NOTIFY_SOCKET,
// WATCHDOG_USEC and WATCHDOG_PID from the programs that it starts.
func Connect(getenv func(string) string, pid int) (*Manager, error) {
	m := &Manager{}
	path := getenv("NOTIFY_SOCKET")
	if path == "" {
		return m, nil
	}
	// "@" stands for the NUL of an abstract socket, as package net has it. There
	// are other families, for virtual machines; a service of one meets none.
	if path[0] != '/' && path[0] != '@' || len(path) < 2 || strings.ContainsRune(path, 0) {
		return m, fmt.Errorf("NOTIFY_SOCKET %q: not supported", path)
	}
	m.addr = &net.UnixAddr{Name: path, Net: "unixgram"}
	text := getenv("WATCHDOG_USEC")
	if text == "" {
		return m, nil
	}
	if whose := getenv("WATCHDOG_PID"); whose != "" && whose != strconv.Itoa(pid) {
		return m, nil // another process is watched
	}
	usec, err := strconv.ParseUint(text, 10, 63)
	if err != nil || usec == 0 || usec > uint64(1<<63-1)/1000 {
		return m, fmt.Errorf("WATCHDOG_USEC %q: no time", text)
	}
	m.watchdog = time.Duration(usec) * time.Microsecond
	return m, nil
}

// Watched returns how often Alive has to be called: half the time after which
// the manager takes the service for dead. 0 means that it does not watch.
func (m *Manager) Watched() time.Duration { return m.watchdog / 2 }

// Ready says that the service works, or works again after Reloading.
func (m *Manager) Ready() error { return m.send("READY=1") }

// Reloading says that the service reads its configuration again. Ready ends it.
func (m *Manager) Reloading() error { return m.send("RELOADING=1" + monotonic()) }

// Stopping says that the service has begun to end.
func (m *Manager) Stopping() error { return m.send("STOPPING=1") }

// Alive feeds the watchdog.
func (m *Manager) Alive() error { return m.send("WATCHDOG=1") }

// Status tells people what the service is doing, in one line.
func (m *Manager) Status(text string) error {
	return m.send("STATUS=" + strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return ' '
		}
		return r
	}, text))
}

func (m *Manager) send(state string) error {
	if m.addr == nil {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, m.addr)
	if err != nil {
		return fmt.Errorf("service manager: %w", err)
	}
	defer c.Close()
	if err := c.SetWriteDeadline(time.Now().Add(sendTime)); err != nil {
		return fmt.Errorf("service manager: %w", err)
	}
	if n, err := c.Write([]byte(state)); err != nil {
		return fmt.Errorf("service manager: %w", err)
	} else if n != len(state) {
		return errors.New("service manager: message cut off")
	}
	return nil
}
