//go:build freebsd || darwin

package door

import "golang.org/x/sys/unix"

// solLocal is the level of the options of unix sockets, SOL_LOCAL.
const solLocal = 0

// peer returns the effective uid of the process that connected to a socket, as
// the kernel saw it then.
func peer(fd int) (int, error) {
	c, err := unix.GetsockoptXucred(fd, solLocal, unix.LOCAL_PEERCRED)
	if err != nil {
		return -1, err
	}
	return int(c.Uid), nil
}
