package parent

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"dma/internal/wire"
)

// dup copies a descriptor, as a child that is started does.
func dup(t testing.TB, f *os.File) *os.File {
	fd := -1
	raw, err := f.SyscallConn()
	if err == nil {
		err = raw.Control(func(from uintptr) { fd, _ = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0) })
	}
	if err != nil || fd < 0 {
		t.Errorf("%s: %v", f.Name(), err)
		return nil
	}
	return os.NewFile(uintptr(fd), f.Name())
}

// conn returns the connection of a fake process.
func (c *fakeChild) conn() *wire.Conn { return wire.New(c.conns[0]) }
