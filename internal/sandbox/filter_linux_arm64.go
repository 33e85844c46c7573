package sandbox

import "golang.org/x/sys/unix"

const (
	auditArch  = unix.AUDIT_ARCH_AARCH64
	foreignBit = 0
)

// This architecture has no older forms.
var (
	oldFileCalls, oldAttributeCalls []uintptr
	oldOpenCalls, oldModeCalls      map[uintptr]int
)
