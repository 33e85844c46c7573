package door

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"dma/internal/wire"
)

// backlog is how many connections wait for the server; more wait in connect.
const backlog = 128

// Listen makes a socket at path to which everybody can connect, and listens. A
// socket that stands there and at which nobody listens is replaced; a socket
// that somebody serves, and anything that is no socket, is left alone and an
// error. The folder is made if only it is missing; it has to belong to this user
// or root and to be closed to writers of any other, since who can write there
// could put a socket of his own in place.
//
// Two that call Listen for one path at the same time both succeed, and the later
// one is reached: the caller holds the queue's role on its spool.
func Listen(path string) (*os.File, error) {
	f, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return f, nil
}

func listen(path string) (*os.File, error) {
	if !filepath.IsAbs(path) {
		return nil, errors.New("its path has to begin with /")
	}
	dir := filepath.Dir(path)
	// It is made under another name, so that nobody meets one that is not ready,
	// and so that the old one goes in the same step in which the new one comes.
	fresh := filepath.Join(dir, ".new-"+strconv.FormatUint(uint64(rand.Uint32()), 36))
	if err := errors.Join(checkLength(path), checkLength(fresh)); err != nil {
		return nil, err
	}
	if err := checkFolder(dir); err != nil {
		return nil, err
	}
	if err := checkPlace(path); err != nil {
		return nil, err
	}
	fd, err := socket()
	if err != nil {
		return nil, err
	}
	wire.RefuseFiles(fd)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: fresh})
	if err == nil {
		// Until it listens, a connection is refused.
		if err = unix.Chmod(fresh, 0o666); err == nil {
			err = unix.Listen(fd, backlog)
		}
		if err == nil {
			err = checkPlace(path)
		}
		if err == nil {
			err = unix.Rename(fresh, path)
		}
		if err != nil {
			_ = unix.Unlink(fresh)
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// checkFolder makes sure that nobody else can put a socket into dir.
func checkFolder(dir string) error {
	if err := os.Mkdir(dir, 0o755); err == nil {
		// Whatever the umask says: everybody has to come through.
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir() || !ok:
		return fmt.Errorf("%s is no directory", dir)
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to uid %d, who could replace the socket; it has to belong to root or uid %d", dir, st.Uid, os.Geteuid())
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("others can write in %s and replace the socket; chmod go-w %s", dir, dir)
	}
	return nil
}

// checkPlace makes sure that a new socket may take the place at path.
func checkPlace(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("something that is no socket stands there; move it away")
	}
	fd, err := socket()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	switch err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	case err == nil, errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINPROGRESS):
		return errors.New("somebody listens there already; stop that service first")
	default:
		return err
	}
}

// Inherited returns the listening socket that the process was started with as
// descriptor fd.
func Inherited(fd int) (*os.File, error) {
	unix.CloseOnExec(fd)
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	address, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	if _, ok := address.(*unix.SockaddrUnix); !ok || kind != unix.SOCK_STREAM {
		return nil, fmt.Errorf("descriptor %d is no stream socket of this host", fd)
	}
	if listening, err := isListening(fd); err == nil && !listening {
		return nil, fmt.Errorf("descriptor %d does not listen", fd)
	}
	wire.RefuseFiles(fd)
	// Before os.NewFile, which asks the poller to watch only what never blocks.
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	return os.NewFile(uintptr(fd), "listener"), nil
}

func isListening(fd int) (bool, error) {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return n != 0, err
}
