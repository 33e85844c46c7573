package spooldir

import "golang.org/x/sys/unix"

func statRoom(path string) (Room, error) {
	var st unix.Statvfs_t
	if err := ignoringEINTR(func() error { return unix.Statvfs(path, &st) }); err != nil {
		return Room{}, err
	}
	return Room{
		Bytes: int64(st.Bavail) * int64(st.Frsize), TotalBytes: int64(st.Blocks) * int64(st.Frsize),
		Inodes: int64(st.Ffree), TotalInodes: int64(st.Files),
	}, nil
}
