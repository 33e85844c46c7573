//go:build !linux

package spooldir

// renameExclusive renames src to dst and fails with EEXIST when there is a
// dst.
func renameExclusive(src, dst string) error { return linkThenUnlink(src, dst) }
