package tinyfs

import "golang.org/x/sys/unix"

func mount(dir, opts string) error {
	return unix.Mount("tinyfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, opts)
}

// unmount detaches the file system even if it is busy, so that the test's
// directory can be removed, and says so.
func unmount(dir string) error {
	err := unix.Unmount(dir, 0)
	if err != nil {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	}
	return err
}
