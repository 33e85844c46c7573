package config

// RunDir is where the service of the host has its socket and its locks.
const RunDir = "/run/dma"
