package spooldir

import "golang.org/x/sys/unix"

func statRoom(path string) (Room, error) {
	var st unix.Statfs_t
	if err := ignoringEINTR(func() error { return unix.Statfs(path, &st) }); err != nil {
		return Room{}, err
	}
	return Room{
		Bytes: st.F_bavail * int64(st.F_bsize), TotalBytes: int64(st.F_blocks) * int64(st.F_bsize),
		Inodes: int64(st.F_ffree), TotalInodes: int64(st.F_files),
	}, nil
}
