//go:build !linux

package localwriter

// renameExclusive renames a file and fails with EEXIST if the new name is
// taken.
func renameExclusive(fromDir int, from string, toDir int, to string) error {
	return linkThenUnlink(fromDir, from, toDir, to)
}
