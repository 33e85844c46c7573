//go:build !linux

package spooldir

// statFileSystem knows nothing about file systems outside Linux: each file is
// synced.
func statFileSystem(string) FileSystem { return FileSystem{} }

// reliableLocks reports whether a lock on an open file is seen by whoever else has
// that file.
func reliableLocks(int) bool { return false }
