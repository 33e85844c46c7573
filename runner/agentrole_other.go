//go:build !linux

package runner

// untraceable has nothing to do: a process of another group than its user's is
// not traced by the user.
func untraceable() error { return nil }

// noCapabilities has nothing to ask for.
func noCapabilities() error { return nil }
