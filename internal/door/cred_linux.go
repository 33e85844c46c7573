package door

import "golang.org/x/sys/unix"

// peer returns the effective uid of the process that connected to a socket, as
// the kernel saw it then.
func peer(fd int) (int, error) {
	c, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return -1, err
	}
	return int(c.Uid), nil
}
