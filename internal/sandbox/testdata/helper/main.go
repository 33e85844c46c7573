//go:build linux

// Command helper puts itself into a sandbox and tells what it can still do
// there: one JSON object, an error text or nothing for each thing that it tries.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"dma/internal/sandbox"

	"github.com/fsnotify/fsnotify"
	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// setup is what the test wants.
type setup struct {
	Queue        *sandbox.QueuePaths
	Net          *sandbox.NetPaths
	Spool        string
	Outside      string // a folder that no policy names
	TCP, DNS     string // servers
	TLS          string
	Unix         string
	Metrics      string
	KeepThreads  int
	Capabilities bool // keep CAP_KILL alone instead, and tell what is left
}

const patience = 10 * time.Second

func main() {
	var s setup
	if err := json.Unmarshal([]byte(os.Args[1]), &s); err != nil {
		fatal(err)
	}
	// Threads that are there before, and stay.
	var early sync.WaitGroup
	begin, results := make(chan struct{}), make(chan string, s.KeepThreads)
	for range s.KeepThreads {
		early.Add(1)
		go func() {
			runtime.LockOSThread()
			early.Done()
			<-begin
			results <- forbidden(s)
		}()
	}
	early.Wait()
	var policy sandbox.Policy
	switch {
	case s.Capabilities:
		if err := sandbox.KeepCapabilities(sandbox.CapKill); err != nil {
			fatal(err)
		}
		data, err := os.ReadFile("/proc/self/status")
		if err != nil {
			fatal(err)
		}
		os.Stdout.Write(data)
		return
	case s.Queue != nil:
		policy = sandbox.Queue(*s.Queue)
	default:
		policy = sandbox.Net(*s.Net)
	}
	report, err := sandbox.Apply(policy)
	if err != nil {
		fatal(err)
	}
	out := map[string]string{"report": report.String()}
	close(begin)
	for range s.KeepThreads {
		if r := <-results; r != "" {
			out["old threads"] = r
		}
	}
	for range 4 { // new threads
		done := make(chan string)
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread ends
			done <- forbidden(s)
		}()
		if r := <-done; r != "" {
			out["new threads"] = r
		}
	}
	for name, try := range probes(s) {
		if err := try(); err != nil {
			out[name] = err.Error()
		} else {
			out[name] = "ok"
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		fatal(err)
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "helper:", err)
	os.Exit(1)
}

// forbidden tries what every policy forbids and returns what worked.
func forbidden(s setup) string {
	if fd, err := unix.Open(s.Outside, unix.O_RDONLY|unix.O_DIRECTORY, 0); !errors.Is(err, unix.EACCES) {
		return fmt.Sprintf("open %s: %d %v", s.Outside, fd, err)
	}
	if fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, 0); !errors.Is(err, unix.EPERM) {
		return fmt.Sprintf("netlink: %d %v", fd, err)
	}
	if n, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); n != 1 || err != nil {
		return fmt.Sprintf("no_new_privs: %d %v", n, err)
	}
	return ""
}

func probes(s setup) map[string]func() error {
	at := func(elem ...string) string { return filepath.Join(append([]string{s.Spool}, elem...)...) }
	read := func(path string) func() error {
		return func() error { _, err := os.ReadFile(path); return err }
	}
	list := func(path string) func() error {
		return func() error { _, err := os.ReadDir(path); return err }
	}
	create := func(path string) func() error {
		return func() error {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return err
			}
			f.Close()
			return os.Remove(path)
		}
	}
	move := func(file, from, to string) func() error {
		return func() error {
			return unix.Renameat2(unix.AT_FDCWD, at(from, file), unix.AT_FDCWD, at(to, file), unix.RENAME_NOREPLACE)
		}
	}
	dial := func(network, addr string) func() error {
		return func() error {
			c, err := net.DialTimeout(network, addr, patience)
			if err != nil {
				return err
			}
			return c.Close()
		}
	}
	p := map[string]func() error{
		"read outside":       read(filepath.Join(s.Outside, "secret")),
		"write outside":      create(filepath.Join(s.Outside, "new")),
		"truncate outside":   func() error { return os.Truncate(filepath.Join(s.Outside, "secret"), 0) },
		"read through link":  read(at("remote", "link")),
		"read remote":        read(at("remote", "g")),
		"list remote":        list(at("remote")),
		"sync remote":        func() error { return syncDir(at("remote")) },
		"create in remote":   create(at("remote", "mine")),
		"remove from remote": func() error { return os.Remove(at("remote", "d")) },
		"read local":         read(at("local", "r")),
		"list local":         list(at("local")),
		"list new":           list(at("new")),
		"create in new":      create(at("new", "mine")),
		"list sent":          list(at("sent")),
		"read sent":          read(at("sent", "r")),
		"move out of sent":   move("s", "sent", "remote"),
		"move to sent":       move("b", "remote", "sent"),
		"move to corrupt":    move("c", "remote", "corrupt"),
		"move to new":        move("e", "remote", "new"),
		"move out of local":  move("l", "local", "sent"),
		"append to log":      func() error { return appendTo(at("log", "a")) },
		"create in log":      create(at("log", "new")),
		"remove from log":    func() error { return os.Remove(at("log", "b")) },
		"remove ballast":     func() error { return os.Remove(at("ballast")) },
		"own lock":           func() error { return lock(at("lock", "net")) },
		"other lock":         func() error { return lock(at("lock", "queue")) },
		"chmod":              func() error { return os.Chmod(at("mine"), 0o640) },
		"chmod setuid":       func() error { return unix.Chmod(at("mine"), 0o4750) },
		"chmod setgid":       func() error { return unix.Fchmodat(unix.AT_FDCWD, at("mine"), 0o2750, 0) },
		"fchmod setuid":      func() error { return unix.Fchmod(0, 0o4755) },
		"fchmodat2 setuid":   func() error { return unix.Fchmodat(unix.AT_FDCWD, at("mine"), 0o4750, unix.AT_SYMLINK_NOFOLLOW) },
		"create setuid":      openWith(at("new", "setuid"), unix.O_CREAT|unix.O_WRONLY, 0o4755),
		"create setgid":      openWith(at("new", "setgid"), unix.O_CREAT|unix.O_WRONLY, 0o2755),
		"unnamed setuid":     openWith(at("new"), unix.O_TMPFILE|unix.O_WRONLY, 0o4755),
		"openat2": func() error {
			fd, err := unix.Openat2(unix.AT_FDCWD, at("new", "setuid"), &unix.OpenHow{Flags: unix.O_CREAT | unix.O_WRONLY, Mode: 0o4755})
			if err == nil {
				unix.Close(fd)
			}
			return err
		},
		"read /etc":             read("/etc/passwd"),
		"mounts":                read("/proc/self/mountinfo"),
		"environment of parent": read(fmt.Sprintf("/proc/%d/environ", os.Getppid())),
		"null":                  create0,
		"exec":                  func() error { c := exec.Command("/bin/true"); return c.Run() },
		"execve":                func() error { return unix.Exec("/bin/true", []string{"true"}, nil) },
		"signal parent":         func() error { return unix.Kill(os.Getppid(), 0) },
		"signal self":           func() error { return unix.Kill(os.Getpid(), 0) },
		"ptrace":                func() error { return unix.PtraceAttach(os.Getppid()) },
		"read memory": func() error {
			var b [8]byte
			_, err := unix.ProcessVMReadv(os.Getppid(), []unix.Iovec{{Base: &b[0], Len: 8}}, []unix.RemoteIovec{{Base: 4096, Len: 8}}, 0)
			return err
		},
		"map code": func() error {
			b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
			if err == nil {
				unix.Munmap(b)
			}
			return err
		},
		"setuid":        func() error { return unix.Setresuid(0, 0, 0) },
		"bpf":           func() error { _, _, e := unix.Syscall(unix.SYS_BPF, 0, 0, 0); return zero(e) },
		"io_uring":      func() error { _, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, 0, 0, 0); return zero(e) },
		"later call":    func() error { _, _, e := unix.Syscall(1000, 0, 0, 0); return zero(e) },
		"fork":          func() error { _, _, e := unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0); return zero(e) },
		"raise a limit": func() error { return unix.Prlimit(0, unix.RLIMIT_CORE, &unix.Rlimit{}, nil) },
		"see a limit":   func() error { var l unix.Rlimit; return unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &l) },
		"own descriptor signals": func() error {
			_, err := unix.FcntlInt(0, unix.F_SETOWN, os.Getppid())
			return err
		},
		"unix dial": dial("unix", s.Unix),
		"tcp dial":  dial("tcp", s.TCP),
		"tcp listen": func() error {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			return l.Close()
		},
		"unix listen": func() error {
			l, err := net.Listen("unix", at("new", "sock"))
			if err != nil {
				return err
			}
			return l.Close()
		},
		"raw socket": func() error { _, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP); return err },
		"hosts":      func() error { _, err := net.LookupHost("localhost"); return err },
		"dns": func() error {
			r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, s.DNS)
			}}
			addrs, err := r.LookupHost(context.Background(), "relay.example.")
			if err == nil && !slices.Contains(addrs, "192.0.2.1") {
				err = fmt.Errorf("%v", addrs)
			}
			return err
		},
		"tls": func() error {
			c, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", s.TLS, &tls.Config{InsecureSkipVerify: true})
			if err != nil {
				return err
			}
			return c.Close()
		},
		"root certificates": func() error { _, err := x509.SystemCertPool(); return err },
		"fsnotify":          func() error { return watch(at("remote"), at("remote", "f"), at("sent", "f")) },
		"collect garbage":   func() error { runtime.GC(); return nil },
		"accept":            accept,
	}
	if s.Metrics != "" {
		p["replace a file"] = func() error {
			return renameio.WriteFile(s.Metrics, []byte("x"), 0o644, renameio.WithTempDir(filepath.Dir(s.Metrics)))
		}
	}
	return p
}

func zero(e unix.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

func create0() error { return os.WriteFile(os.DevNull, []byte("x"), 0) }

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func appendTo(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString("line\n"); err != nil {
		return err
	}
	return f.Sync()
}

func lock(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	return f.Truncate(0)
}

// watch moves a file and waits for the event.
func watch(dir, from, to string) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Add(dir); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	for {
		select {
		case ev := <-w.Events:
			if ev.Name == from {
				return nil
			}
		case err := <-w.Errors:
			return err
		case <-time.After(patience):
			return errors.New("no event")
		}
	}
}

// accept takes a connection from the listener that is descriptor 3.
func accept() error {
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	defer l.Close()
	l.(*net.UnixListener).SetDeadline(time.Now().Add(patience))
	c, err := l.Accept()
	if err != nil {
		return err
	}
	return c.Close()
}

// openWith makes a file of a mode.
func openWith(path string, flags int, mode uint32) func() error {
	return func() error {
		fd, err := unix.Open(path, flags, mode)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
}
