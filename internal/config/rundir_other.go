//go:build !linux

package config

// RunDir is where the service of the host has its socket and its locks.
const RunDir = "/var/run/dma"
