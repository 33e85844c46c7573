package sendmail

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dma/internal/config"
	"dma/internal/door"
	"dma/spooldir"
)

// spoolDoor is the first door: the spool itself, written by this process.
type spoolDoor struct {
	*spooldir.Spool
	floor  config.Space
	socket string // of the service that serves the spool, "" if there is none
}

// openSpool finds out whether this process may make files in the spool before
// anybody writes a message in vain: where the group of the program file has no
// effect, it may not.
func openSpool(c *config.Config) (*spoolDoor, error) {
	s, err := spooldir.Open(c.SpoolDir)
	if err != nil {
		return nil, err
	}
	for _, state := range [...]spooldir.State{spooldir.Tmp, spooldir.New} {
		dir := filepath.Join(s.Path(), string(state))
		if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
			return nil, fmt.Errorf("writing in %s: %w; the spool's owner can, and everybody if dma is installed setgid and may use that", dir, err)
		}
	}
	return &spoolDoor{s, c.MinFree, c.Door()}, nil
}

func (d *spoolDoor) Free() error {
	room, err := d.Room()
	if err != nil {
		return err
	}
	return d.Spool.Free(int64(d.floor.Of(uint64(room.TotalBytes))))
}

func (d *spoolDoor) Scratch() (Scratch, error) {
	return openUnnamed(filepath.Join(d.Path(), string(spooldir.Tmp)))
}

func (d *spoolDoor) Create(e *spooldir.Envelope, host string) (Draft, error) {
	if err := door.Check(e); err != nil {
		return nil, err
	}
	draft, err := door.Begin(d.Spool, e, host)
	if err != nil {
		return nil, err // not a Draft that is no draft
	}
	return draft, nil
}

// NeedsDrain implements Door. Where another process serves the queue, or may be
// doing so unseen, there is nothing to start; nor where the caller is neither
// the spool's owner nor root. On a spool that all users share the service is for
// who comes to its socket: a drain of ours would run users' commands in the world
// of our caller, with its limits and its view of the file system, in which a home
// and the .forward in it may be missing.
func (d *spoolDoor) NeedsDrain() bool {
	if uid := os.Getuid(); uid != 0 && uid != d.Owner() {
		return false
	}
	running, err := d.ServiceRunning()
	if err != nil && (os.Getuid() != 0 || !errors.Is(err, fs.ErrPermission)) || running {
		return false
	}
	// Root who may not look, as in a container: a drain ends at once beside a service.
	return !(d.Shared() && knock(d.socket))
}

// knock connects to a socket, hangs up, and reports whether somebody listens there:
// a service, or the manager that starts it for that.
func knock(path string) bool {
	if path == "" {
		return false
	}
	syscall.ForkLock.RLock()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return false
	}
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	return err == nil || errors.Is(err, unix.EAGAIN) // so many come to it
}

// openUnlinked makes a file in dir and takes its name away. Should the process
// die between the two, the queue's cleaner knows the name as that of a message
// that never was committed.
func openUnlinked(dir string) (*os.File, error) {
	name := filepath.Join(dir, spooldir.NewID(time.Now()))
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(name); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
