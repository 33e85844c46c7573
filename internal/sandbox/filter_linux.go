//go:build amd64 || arm64

package sandbox

import (
	"math"
	"os"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// condition is what an argument of a system call has to be. Its lower 32 bits
// are looked at, which is all that the kernel uses of the arguments in question.
type condition struct {
	arg    int
	high   bool   // look at the upper 32 bits instead
	mask   uint32 // the bits that count
	values []uint32
}

// call is an allowed system call; all conditions have to hold.
type call struct {
	number uintptr
	when   []condition
}

func is(arg int, values ...uint32) condition {
	return condition{arg: arg, mask: math.MaxUint32, values: values}
}

// without is that an argument has none of some bits.
func without(arg int, bits uint32) condition {
	return condition{arg: arg, mask: bits, values: []uint32{0}}
}

// null is that a pointer is nil.
func null(arg int) []condition {
	return []condition{is(arg, 0), {arg: arg, high: true, mask: math.MaxUint32, values: []uint32{0}}}
}

// calls returns the system calls that a policy allows: what the Go runtime, its
// files and its network need, and no way to start a program, to reach another
// process, to map code or to change the system.
func calls(p Policy) []call {
	self := uint32(os.Getpid())
	var all []call
	plain := func(numbers ...uintptr) {
		for _, n := range numbers {
			all = append(all, call{number: n})
		}
	}
	when := func(number uintptr, conditions ...condition) {
		all = append(all, call{number, conditions})
	}
	plain(runtimeCalls...)
	plain(fileCalls...)
	plain(oldFileCalls...)

	// A thread, not a process, and in no new namespace.
	const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET
	const thread = unix.CLONE_THREAD | unix.CLONE_VM | unix.CLONE_SIGHAND
	when(unix.SYS_CLONE, condition{arg: 0, mask: namespaces | thread, values: []uint32{thread}})
	// Signals to itself: the runtime preempts by them.
	when(unix.SYS_KILL, is(0, self))
	when(unix.SYS_TGKILL, is(0, self))
	// No new code.
	when(unix.SYS_MMAP, without(2, unix.PROT_EXEC))
	when(unix.SYS_MPROTECT, without(2, unix.PROT_EXEC))
	when(unix.SYS_PRCTL, is(0, unix.PR_SET_VMA, unix.PR_GET_NO_NEW_PRIVS, unix.PR_GET_SECCOMP, unix.PR_GET_DUMPABLE))
	// Looking at limits.
	when(unix.SYS_PRLIMIT64, null(2)...)
	// Flags and locks; not the owner of a descriptor, who gets signals.
	when(unix.SYS_FCNTL, is(1, unix.F_DUPFD, unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL, unix.F_GETLK, unix.F_SETLK, unix.F_SETLKW,
		unix.F_DUPFD_CLOEXEC, unix.F_OFD_GETLK, unix.F_OFD_SETLK, unix.F_OFD_SETLKW))

	// Files, but none by which a program would run as the user or group of this
	// process.
	const privilege = unix.S_ISUID | unix.S_ISGID
	when(unix.SYS_OPENAT, without(3, privilege))
	for number, mode := range oldOpenCalls {
		when(number, without(mode, privilege))
	}
	if p.Attributes {
		when(unix.SYS_FCHMOD, without(1, privilege))
		when(unix.SYS_FCHMODAT, without(2, privilege))
		when(unix.SYS_FCHMODAT2, without(2, privilege))
		for number, mode := range oldModeCalls {
			when(number, without(mode, privilege))
		}
		plain(unix.SYS_UTIMENSAT)
		plain(oldAttributeCalls...)
	}
	kinds := []uint32{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_SEQPACKET}
	kind := condition{arg: 1, mask: 0xf, values: kinds}
	// Inherited sockets are used under every policy.
	plain(socketCalls...)
	switch p.Network {
	case Unix:
		plain(unix.SYS_CONNECT, unix.SYS_ACCEPT4)
		when(unix.SYS_SOCKET, is(0, unix.AF_UNIX), kind)
	case Internet:
		plain(unix.SYS_CONNECT)
		kind.values = kinds[:2]
		when(unix.SYS_SOCKET, is(0, unix.AF_UNIX, unix.AF_INET, unix.AF_INET6), kind, is(2, 0, unix.IPPROTO_TCP, unix.IPPROTO_UDP))
	}
	return all
}

// The offsets in struct seccomp_data, and its arguments.
const (
	offsetNumber = 0
	offsetArch   = 4
	offsetArgs   = 16
)

// newest is the highest number of a system call of which is known what it does.
// A later one does not exist for the process, rather than being forbidden, so
// that it falls back to an older one.
const newest = unix.SYS_LANDLOCK_RESTRICT_SELF + 20

// filterFor assembles the filter of a policy.
func filterFor(p Policy) ([]unix.SockFilter, error) {
	const (
		allow = unix.SECCOMP_RET_ALLOW
		deny  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
		none  = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
		kill  = unix.SECCOMP_RET_KILL_PROCESS
	)
	load := func(offset int) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: uint32(offset)}
	}
	jump := func(op uint16, k uint32, yes, no int) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k, Jt: uint8(yes), Jf: uint8(no)}
	}
	ret := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }

	filter := []unix.SockFilter{
		load(offsetArch), jump(unix.BPF_JEQ, auditArch, 1, 0), ret(kill),
		load(offsetNumber),
	}
	if foreignBit != 0 { // the x32 ABI of the same architecture
		filter = append(filter, jump(unix.BPF_JSET, foreignBit, 0, 1), ret(kill))
	}
	all := calls(p)
	// The frequent ones first: the kernel walks through.
	slices.SortStableFunc(all, func(a, b call) int { return len(a.when) - len(b.when) })
	for _, c := range all {
		body := []unix.SockFilter{}
		for _, w := range c.when {
			offset := offsetArgs + 8*w.arg
			if w.high {
				offset += 4 // both architectures are little endian
			}
			body = append(body, load(offset))
			if w.mask != math.MaxUint32 {
				body = append(body, unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: w.mask})
			}
			for i, v := range w.values {
				body = append(body, jump(unix.BPF_JEQ, v, len(w.values)-i, 0))
			}
			body = append(body, ret(deny))
		}
		body = append(body, ret(allow))
		filter = append(filter, jump(unix.BPF_JEQ, uint32(c.number), 0, len(body)))
		filter = append(filter, body...)
	}
	return append(filter,
		// It has the mode of a new file in memory, where nobody can look at it.
		jump(unix.BPF_JEQ, unix.SYS_OPENAT2, 1, 0),
		jump(unix.BPF_JGT, newest, 0, 1), ret(none), ret(deny)), nil
}

// restrictCalls puts a filter on all threads.
func restrictCalls(filter []unix.SockFilter) error {
	// TSYNC works on the other threads from this one, which has to stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	var pin runtime.Pinner
	pin.Pin(&filter[0])
	defer pin.Unpin()
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return errno
	}
	if thread != 0 { // this one could not be brought along
		return unix.EBUSY
	}
	return nil
}

// runtimeCalls are those of the Go runtime.
var runtimeCalls = []uintptr{
	unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_GETRES, unix.SYS_GETTIMEOFDAY,
	unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_PWAIT2, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_CREATE1, unix.SYS_EVENTFD2, unix.SYS_PIPE2,
	unix.SYS_PPOLL, unix.SYS_PSELECT6, unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY,
	unix.SYS_MADVISE, unix.SYS_MUNMAP, unix.SYS_MREMAP, unix.SYS_BRK, unix.SYS_MINCORE, unix.SYS_MEMBARRIER,
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_RT_SIGTIMEDWAIT, unix.SYS_SIGALTSTACK, unix.SYS_RESTART_SYSCALL,
	unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_GETTID, unix.SYS_GETPID, unix.SYS_GETPPID, unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ,
	unix.SYS_GETRANDOM, unix.SYS_UNAME, unix.SYS_SYSINFO, unix.SYS_GETRUSAGE, unix.SYS_GETCPU, unix.SYS_TIMES,
	unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID, unix.SYS_GETGROUPS, unix.SYS_GETRESUID, unix.SYS_GETRESGID, unix.SYS_GETPGID,
}

// fileCalls work on files; which of them, Landlock and the file system say.
var fileCalls = []uintptr{
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_CLOSE, unix.SYS_CLOSE_RANGE,
	unix.SYS_FSTAT, unix.SYS_NEWFSTATAT, unix.SYS_STATX, unix.SYS_LSEEK,
	unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREADV, unix.SYS_PWRITEV, unix.SYS_PREADV2, unix.SYS_PWRITEV2,
	unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_FLOCK, unix.SYS_FTRUNCATE, unix.SYS_TRUNCATE, unix.SYS_FALLOCATE, unix.SYS_FADVISE64,
	unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT, unix.SYS_UNLINKAT,
	unix.SYS_GETDENTS64, unix.SYS_GETCWD, unix.SYS_READLINKAT, unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2, unix.SYS_STATFS, unix.SYS_FSTATFS,
	unix.SYS_INOTIFY_INIT1, unix.SYS_INOTIFY_ADD_WATCH, unix.SYS_INOTIFY_RM_WATCH,
	unix.SYS_DUP, unix.SYS_DUP3, unix.SYS_UMASK, unix.SYS_COPY_FILE_RANGE, unix.SYS_SENDFILE, unix.SYS_SPLICE,
}

// socketCalls work on sockets that there are.
var socketCalls = []uintptr{
	unix.SYS_SENDTO, unix.SYS_RECVFROM, unix.SYS_SENDMSG, unix.SYS_RECVMSG, unix.SYS_SENDMMSG, unix.SYS_RECVMMSG, unix.SYS_SHUTDOWN,
	unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_GETSOCKOPT, unix.SYS_SETSOCKOPT,
}
