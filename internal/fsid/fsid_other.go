//go:build !linux

package fsid

// As calls f: root's right to pass closed doors cannot be given up.
func As(_, _ int, f func() error) error { return f() }
