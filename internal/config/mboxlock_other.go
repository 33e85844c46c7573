//go:build !linux

package config

// systemMboxLock is the MBOXLOCK of the system: on the BSDs and macOS mail.local(8)
// and mail(1) lock with flock(2).
const systemMboxLock = "flock"
