package sandbox

import "golang.org/x/sys/unix"

const (
	auditArch  = unix.AUDIT_ARCH_X86_64
	foreignBit = 0x40000000
)

// These are the forms without a directory, which newer architectures do not have;
// of those with a mode, which argument it is.
var (
	oldOpenCalls = map[uintptr]int{unix.SYS_OPEN: 2}
	oldModeCalls = map[uintptr]int{unix.SYS_CHMOD: 1}
	oldFileCalls = []uintptr{
		unix.SYS_STAT, unix.SYS_LSTAT, unix.SYS_RENAME, unix.SYS_LINK, unix.SYS_UNLINK,
		unix.SYS_READLINK, unix.SYS_ACCESS, unix.SYS_DUP2, unix.SYS_PIPE, unix.SYS_EPOLL_WAIT, unix.SYS_POLL, unix.SYS_SELECT,
		unix.SYS_TIME, unix.SYS_GETDENTS, unix.SYS_ARCH_PRCTL, unix.SYS_GETRLIMIT,
	}
	oldAttributeCalls = []uintptr{unix.SYS_UTIMES}
)
