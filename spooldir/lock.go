package spooldir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Role is a part in the service that only one process at a time may play on a
// spool.
type Role string

// The roles.
const (
	QueueRole Role = "queue" // moves names, expands, delivers locally, reports
	NetRole   Role = "net"   // takes from remote and speaks to other hosts
)

// ErrLocked says that another process plays the role.
var ErrLocked = errors.New("another process serves this spool")

// RoleLock is a held role. The kernel gives it back when the process ends,
// however it ends.
type RoleLock struct{ f *os.File }

// lockPatience is how long Lock goes on while the role seems taken: a
// submitter that asks whether a service runs holds the lock for an instant.
const lockPatience = 500 * time.Millisecond

// Lock takes a role. purpose ("service", "drain") is written into the lock
// file, for Holder and for people. It returns ErrLocked when another process
// has the role and keeps it.
func (s *Spool) Lock(role Role, purpose string) (*RoleLock, error) {
	path := s.file(LockDir, string(role))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	deadline := time.Now().Add(lockPatience)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, ErrLocked
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	// For people; that it cannot be written on a full disk does not matter.
	if f.Truncate(0) == nil {
		fmt.Fprintf(f, "%s %d\n", purpose, os.Getpid())
	}
	return &RoleLock{f}, nil
}

// Close gives the role back.
func (l *RoleLock) Close() error { return l.f.Close() }

// Holder returns the purpose that the process stated which holds a role, ""
// if nobody does. An error that wraps fs.ErrPermission says that the caller
// may not know.
func (s *Spool) Holder(role Role) (string, error) {
	f, err := os.OpenFile(s.file(LockDir, string(role)), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	err = ignoringEINTR(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) })
	if err == nil {
		return "", nil
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return "", err
	}
	var buf [64]byte
	n, _ := f.Read(buf[:])
	purpose, _, _ := strings.Cut(string(buf[:n]), " ")
	if purpose == "" {
		purpose = "service"
	}
	return purpose, nil
}

// ServiceRunning reports whether somebody plays the queue role, so that a
// submitter need not start a drain. An error that wraps fs.ErrPermission says
// that the caller may not know, and so may not drain either.
func (s *Spool) ServiceRunning() (bool, error) {
	purpose, err := s.Holder(QueueRole)
	return purpose != "", err
}
