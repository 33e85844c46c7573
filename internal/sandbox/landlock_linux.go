package sandbox

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The rights of Landlock that concern a file itself, and so can be given to
// one that is no directory.
const fileAccess = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_READ_FILE |
	unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV

// landlockABI is the newest version of Landlock whose rights are handled here.
const landlockABI = 7

// handled returns the rights that a version of Landlock knows: what is handled
// and given by no rule is denied.
func handled(abi int) unix.LandlockRulesetAttr {
	a := unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1} // ABI 1: all up to this one
	if abi >= 2 {
		a.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= 3 {
		a.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= 4 {
		a.Handled_access_net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	if abi >= 5 {
		a.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	if abi >= 6 {
		a.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET
	}
	return a
}

// access translates rights.
func (r Rights) access() uint64 {
	var a uint64
	for _, t := range []struct {
		right  Rights
		access uint64
	}{
		{Read, unix.LANDLOCK_ACCESS_FS_READ_FILE},
		{List, unix.LANDLOCK_ACCESS_FS_READ_DIR},
		{Write, unix.LANDLOCK_ACCESS_FS_WRITE_FILE},
		{Truncate, unix.LANDLOCK_ACCESS_FS_TRUNCATE},
		{Create, unix.LANDLOCK_ACCESS_FS_MAKE_REG},
		{Remove, unix.LANDLOCK_ACCESS_FS_REMOVE_FILE},
		{Move, unix.LANDLOCK_ACCESS_FS_REFER},
		{Odd, unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO |
			unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_SYM},
	} {
		if r&t.right != 0 {
			a |= t.access
		}
	}
	return a
}

// restrictFiles puts the paths of a policy on all threads. It returns the
// version of Landlock in force, 0 if there is none, and what is missing.
func restrictFiles(p Policy) (abi int, missing []string, err error) {
	version, err := landlockVersion(unix.LANDLOCK_CREATE_RULESET_VERSION)
	if err != nil {
		return 0, []string{"Landlock, which this kernel does not have or has turned off"}, nil
	}
	abi = min(version, landlockABI)
	if abi < 2 {
		for _, path := range p.Paths {
			if path.Rights&Move != 0 {
				return 0, []string{"Landlock with renames between directories, which begins with Linux 5.19"}, nil
			}
		}
	}
	attr := handled(abi)
	if p.Network == Internet {
		attr.Handled_access_net &^= unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	if abi < 3 {
		missing = append(missing, "Landlock for cutting files, which begins with Linux 6.2")
	}
	// Each thread gets a domain of its own: before this was mended, the scope of
	// signals kept the threads of one process from each other.
	const signalsMended = 1 << 1
	if errata, err := landlockVersion(unix.LANDLOCK_CREATE_RULESET_ERRATA); abi >= 6 && err == nil && errata&signalsMended != 0 {
		attr.Scoped |= unix.LANDLOCK_SCOPE_SIGNAL
	}
	n, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return 0, nil, os.NewSyscallError("landlock_create_ruleset", errno)
	}
	ruleset := int(n)
	defer unix.Close(ruleset)
	paths := append([]Path{{Path: taskDir, Rights: Read | List, Optional: true}}, p.Paths...)
	for _, path := range paths {
		if err := addRule(ruleset, path, attr.Handled_access_fs); err != nil {
			return 0, nil, err
		}
	}
	if err := allThreads("landlock_restrict_self", unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(ruleset), 0, 0, 0, 0); err != nil {
		return 0, nil, err
	}
	return abi, missing, nil
}

// landlockVersion asks the kernel about Landlock: flag says what.
func landlockVersion(flag uintptr) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, flag)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// addRule adds a path to a ruleset. A path that is optional and cannot be
// opened is left out: it could not be used either.
func addRule(ruleset int, p Path, handled uint64) error {
	fd, err := unix.Open(p.Path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		if p.Optional && (errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) || errors.Is(err, unix.ENOTDIR)) {
			return nil
		}
		return &os.PathError{Op: "open", Path: p.Path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: p.Path, Err: err}
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: p.Rights.access() & handled, Parent_fd: int32(fd)}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		rule.Allowed_access &= fileAccess
	}
	if rule.Allowed_access == 0 {
		return nil
	}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("landlock_add_rule %s: %w", p.Path, errno)
	}
	return nil
}
