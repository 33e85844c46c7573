//go:build !linux

package notify

// monotonic is for systemd.
func monotonic() string { return "" }
