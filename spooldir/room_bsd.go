//go:build darwin || dragonfly || freebsd

package spooldir

import "golang.org/x/sys/unix"

func statRoom(path string) (Room, error) {
	var st unix.Statfs_t
	if err := ignoringEINTR(func() error { return unix.Statfs(path, &st) }); err != nil {
		return Room{}, err
	}
	return Room{
		Bytes: int64(st.Bavail) * int64(st.Bsize), TotalBytes: int64(st.Blocks) * int64(st.Bsize),
		Inodes: int64(st.Ffree), TotalInodes: int64(st.Files),
	}, nil
}
