package sysfault

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// spec describes one system call. where lists the arguments that name a file,
// two letters each: f0 is the descriptor in argument 0, p1 the path in argument
// 1 relative to the directory in argument 0, c0 a path relative to the current
// directory, r0 a descriptor that is only read. size is the argument that
// counts bytes, vector marks a call with a list of buffers.
type spec struct {
	name  string
	class Class
	where string
	size  int
}

const vector = -1

// specs returns the calls that are looked at, by number.
func specs() map[uint64]spec {
	return map[uint64]spec{
		unix.SYS_OPEN:            {"open", Look, "c0", 0},
		unix.SYS_CREAT:           {"creat", Mutate, "c0", 0},
		unix.SYS_OPENAT:          {"openat", Look, "p1", 0},
		unix.SYS_OPENAT2:         {"openat2", Look, "p1", 0},
		unix.SYS_READ:            {"read", Look, "f0", 0},
		unix.SYS_PREAD64:         {"pread64", Look, "f0", 0},
		unix.SYS_READV:           {"readv", Look, "f0", 0},
		unix.SYS_GETDENTS64:      {"getdents64", Look, "f0", 0},
		unix.SYS_WRITE:           {"write", Mutate, "f0", 2},
		unix.SYS_PWRITE64:        {"pwrite64", Mutate, "f0", 2},
		unix.SYS_WRITEV:          {"writev", Mutate, "f0", vector},
		unix.SYS_PWRITEV:         {"pwritev", Mutate, "f0", vector},
		unix.SYS_PWRITEV2:        {"pwritev2", Mutate, "f0", 0},
		unix.SYS_COPY_FILE_RANGE: {"copy_file_range", Mutate, "f2r0", 4},
		unix.SYS_SENDFILE:        {"sendfile", Mutate, "f0r1", 3},
		unix.SYS_SPLICE:          {"splice", Mutate, "f2r0", 4},
		unix.SYS_LINK:            {"link", Mutate, "c0c1", 0},
		unix.SYS_LINKAT:          {"linkat", Mutate, "p1p3", 0},
		unix.SYS_SYMLINK:         {"symlink", Mutate, "c1", 0},
		unix.SYS_SYMLINKAT:       {"symlinkat", Mutate, "p2", 0},
		unix.SYS_RENAME:          {"rename", Mutate, "c0c1", 0},
		unix.SYS_RENAMEAT:        {"renameat", Mutate, "p1p3", 0},
		unix.SYS_RENAMEAT2:       {"renameat2", Mutate, "p1p3", 0},
		unix.SYS_UNLINK:          {"unlink", Mutate, "c0", 0},
		unix.SYS_UNLINKAT:        {"unlinkat", Mutate, "p1", 0},
		unix.SYS_MKDIR:           {"mkdir", Mutate, "c0", 0},
		unix.SYS_MKDIRAT:         {"mkdirat", Mutate, "p1", 0},
		unix.SYS_RMDIR:           {"rmdir", Mutate, "c0", 0},
		unix.SYS_MKNODAT:         {"mknodat", Mutate, "p1", 0},
		unix.SYS_CHMOD:           {"chmod", Mutate, "c0", 0},
		unix.SYS_FCHMOD:          {"fchmod", Mutate, "f0", 0},
		unix.SYS_FCHMODAT:        {"fchmodat", Mutate, "p1", 0},
		unix.SYS_FCHMODAT2:       {"fchmodat2", Mutate, "p1", 0},
		unix.SYS_CHOWN:           {"chown", Mutate, "c0", 0},
		unix.SYS_LCHOWN:          {"lchown", Mutate, "c0", 0},
		unix.SYS_FCHOWN:          {"fchown", Mutate, "f0", 0},
		unix.SYS_FCHOWNAT:        {"fchownat", Mutate, "p1", 0},
		unix.SYS_UTIMENSAT:       {"utimensat", Mutate, "p1", 0},
		unix.SYS_TRUNCATE:        {"truncate", Mutate, "c0", 0},
		unix.SYS_FTRUNCATE:       {"ftruncate", Mutate, "f0", 0},
		unix.SYS_FALLOCATE:       {"fallocate", Mutate, "f0", 0},
		unix.SYS_FSYNC:           {"fsync", Sync, "f0", 0},
		unix.SYS_FDATASYNC:       {"fdatasync", Sync, "f0", 0},
		unix.SYS_SYNC_FILE_RANGE: {"sync_file_range", Sync, "f0", 0},
		unix.SYS_SYNCFS:          {"syncfs", Sync, "f0", 0},
		unix.SYS_FLOCK:           {"flock", Lock, "f0", 0},
		unix.SYS_FCNTL:           {"fcntl", Lock, "f0", 0},
		unix.SYS_CLOSE:           {"close", Close, "f0", 0},
	}
}

// call fills in a Call for what tid is about to do. ok is false if it concerns
// no file below a root or is of no wanted class.
func (tr *tracer) call(tid int, s spec, args [6]uint64) (c Call, ok bool, err error) {
	class := s.class
	switch s.name {
	case "fcntl":
		switch args[1] {
		case unix.F_SETLK, unix.F_SETLKW, unix.F_OFD_SETLK, unix.F_OFD_SETLKW:
		default:
			return c, false, nil
		}
	case "open", "openat", "openat2":
		flags := args[1]
		if s.name == "openat" {
			flags = args[2]
		} else if s.name == "openat2" { // struct open_how begins with the flags
			b, err := peek(tid, args[2], 8)
			if err != nil || len(b) < 8 {
				return c, false, err
			}
			flags = binary.LittleEndian.Uint64(b)
		}
		if flags&(unix.O_CREAT|unix.O_TRUNC) != 0 || flags&unix.O_TMPFILE == unix.O_TMPFILE {
			class = Mutate
		}
	}
	c = Call{Tid: tid, Name: s.name, Args: args}
	for i := 0; i < len(s.where); i += 2 {
		kind, arg := s.where[i], int(s.where[i+1]-'0')
		p, err := file(tid, kind, arg, args)
		if err != nil {
			return c, false, err
		}
		p, in := tr.below(p)
		if in && kind == 'r' {
			c.Class |= Look
		} else if in {
			c.Class |= class
		}
		switch {
		case i == 0:
			c.Path = p
		case kind != 'r':
			c.Path2 = p
		case in && c.Class == Look:
			c.Path = p
		}
	}
	return c, c.Class&tr.classes != 0, nil
}

// file returns the path that an argument stands for, or "" for none.
func file(tid int, kind byte, arg int, args [6]uint64) (string, error) {
	if kind == 'f' || kind == 'r' {
		return link(tid, fmt.Sprintf("fd/%d", int32(args[arg])))
	}
	b, err := peek(tid, args[arg], unix.PathMax)
	if err != nil {
		return "", err
	}
	name, _, _ := bytes.Cut(b, []byte{0})
	if bytes.HasPrefix(name, []byte("/")) {
		return filepath.Clean(string(name)), nil
	}
	dir := "cwd"
	if kind == 'p' && int32(args[arg-1]) != unix.AT_FDCWD {
		dir = fmt.Sprintf("fd/%d", int32(args[arg-1]))
	}
	at, err := link(tid, dir)
	if at == "" {
		return "", err
	}
	return filepath.Join(at, string(name)), nil // an empty name is the descriptor itself
}

// link reads a symbolic link of /proc. A descriptor that is not open, or a
// process that is gone, is no error: the call itself will fail or not happen.
func link(tid int, name string) (string, error) {
	p, err := os.Readlink(fmt.Sprintf("/proc/%d/%s", tid, name))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("cannot look into the traced process: %w", err)
	}
	return p, nil
}

// peek reads up to n bytes of a process's memory, less where it ends before.
func peek(tid int, addr uint64, n int) ([]byte, error) {
	buf := make([]byte, n)
	const page = 4096 // a transfer stops at the first range that is not there
	first := min(n, int(page-addr%page))
	remote := []unix.RemoteIovec{{Base: uintptr(addr), Len: first}}
	if n > first {
		remote = append(remote, unix.RemoteIovec{Base: uintptr(addr) + uintptr(first), Len: n - first})
	}
	got, err := unix.ProcessVMReadv(tid, []unix.Iovec{{Base: &buf[0], Len: uint64(n)}}, remote, 0)
	switch {
	case err == nil:
		return buf[:got], nil
	case errors.Is(err, unix.EFAULT), errors.Is(err, unix.ESRCH):
		return nil, nil
	}
	return nil, fmt.Errorf("cannot read the memory of the traced process: %w", err)
}

// below reports whether p lies below a root, if need be after following the
// symbolic links on the way, and returns the path that does.
func (tr *tracer) below(p string) (string, bool) {
	if !strings.HasPrefix(p, "/") {
		return p, false // a socket, a pipe
	}
	in := func(p string) bool {
		for _, r := range tr.roots {
			if p == r || strings.HasPrefix(p, strings.TrimSuffix(r, "/")+"/") {
				return true
			}
		}
		return false
	}
	if in(p) {
		return p, true
	}
	if dir, err := filepath.EvalSymlinks(filepath.Dir(p)); err == nil {
		if q := filepath.Join(dir, filepath.Base(p)); in(q) {
			return q, true
		}
	}
	return p, false
}
