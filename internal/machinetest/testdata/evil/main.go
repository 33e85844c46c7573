//go:build linux

// Command evil is dma-runner with one worker that has been taken over: where a
// test listens at the socket of a role, the process of that role goes into its
// sandbox, as the real one does, and then does what the test says. Where nobody
// listens it is dma-runner.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dma/agent"
	"dma/internal/config"
	"dma/internal/passwd"
	"dma/internal/sandbox"
	"dma/internal/wire"
	"dma/localwriter"
	"dma/parent"
	"dma/runner"
	"dma/spooldir"
)

// socket is where the test listens for a role.
const socket = "/opt/dma/evil/"

// order is what the test says, a line of JSON.
type order struct {
	Do   string
	Args []string
	Data []byte
	N    int
	Kind string // of a descriptor that goes along
}

// report is what came of it.
type report struct {
	Err  string
	Text string
	Data []byte
}

func main() {
	if len(os.Args) == 2 && (os.Args[1] == parent.RoleQueue || os.Args[1] == parent.RoleNet) {
		if conn, err := net.Dial("unix", socket+os.Args[1]); err == nil {
			if err := serve(os.Args[1], conn); err != nil {
				fmt.Fprintln(os.Stderr, "evil:", err)
				os.Exit(1)
			}
			return
		}
	}
	if act := user(os.Args[1:]); act != nil {
		if err := act(); err != nil {
			fmt.Fprintln(os.Stderr, "evil:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(runner.Main(os.Args[1:], runner.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}

// user returns what the program does for a user who is up to no good.
func user(args []string) func() error {
	switch {
	case len(args) == 2 && args[0] == "intrude":
		return func() error { return intrude(args[1]) }
	case len(args) == 2 && args[0] == "crowd":
		return func() error { return crowd(args[1], 200) }
	}
	return nil
}

// evil is the process.
type evil struct {
	config *config.Config
	client *parent.Client
	taken  []int // descriptors that the parent has sent
}

func serve(role string, conn net.Conn) error {
	text, err := parent.ReadSetup()
	if err != nil {
		return err
	}
	var setup struct{ Config *config.Config }
	if err := json.Unmarshal(text, &setup); err != nil {
		return err
	}
	e := &evil{config: setup.Config}
	spool, err := spooldir.Open(e.config.SpoolDir)
	if err != nil {
		return err
	}
	c := e.config
	policy := sandbox.Queue(sandbox.QueuePaths{Spool: spool.Path(), Aliases: c.Aliases, Metrics: c.Metrics})
	if role == parent.RoleNet {
		policy = sandbox.Net(sandbox.NetPaths{
			Spool: spool.Path(), SyncFiles: !spool.FileSystem().Ordered,
			Files: []string{c.AuthPath, c.CertFile, c.TLSPolicy, c.Rewrite, c.SenderRelay},
		})
	}
	r, err := sandbox.Apply(policy)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(control, unix.SOL_SOCKET, unix.SO_PASSRIGHTS, 1); err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
		return err
	}
	out := json.NewEncoder(conn)
	if err := out.Encode(report{Text: fmt.Sprintf("%d %s", os.Getpid(), r)}); err != nil {
		return err
	}
	in := bufio.NewScanner(conn)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		var o order
		if err := json.Unmarshal(in.Bytes(), &o); err != nil {
			return err
		}
		var answer report
		answer.Text, answer.Data, err = e.do(o)
		if err != nil {
			answer.Err = err.Error()
			var errno syscall.Errno
			if errors.As(err, &errno) {
				answer.Err = unix.ErrnoName(errno)
			}
		}
		if err := out.Encode(answer); err != nil {
			return err
		}
	}
	return nil
}

// control is the descriptor of the control socket.
const control = 3

func (e *evil) do(o order) (string, []byte, error) {
	a := o.Args
	switch o.Do {
	case "open":
		f, err := os.OpenFile(a[0], o.N|unix.O_NONBLOCK, 0o600)
		if err != nil {
			return "", nil, err
		}
		defer f.Close()
		if o.N&unix.O_ACCMODE == unix.O_WRONLY {
			_, err := f.Write(o.Data)
			return "", nil, err
		}
		var b [256]byte
		n, err := f.Read(b[:])
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return "", b[:n], err
	case "list":
		names, err := os.ReadDir(a[0])
		return fmt.Sprint(len(names)), nil, err
	case "remove":
		return "", nil, unix.Unlink(a[0])
	case "rename":
		return "", nil, unix.Rename(a[0], a[1])
	case "link":
		return "", nil, unix.Link(a[0], a[1])
	case "mkdir":
		return "", nil, unix.Mkdir(a[0], 0o700)
	case "symlink":
		return "", nil, unix.Symlink(a[0], a[1])
	case "chmod":
		return "", nil, unix.Chmod(a[0], uint32(o.N))
	case "chown":
		return "", nil, unix.Lchown(a[0], o.N, o.N)
	case "truncate":
		return "", nil, unix.Truncate(a[0], 0)
	case "append":
		f, err := os.OpenFile(a[0], os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return "", nil, err
		}
		defer f.Close()
		_, err = f.Write(o.Data)
		return "", nil, err
	case "lock":
		fd, err := unix.Open(a[0], unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", nil, err
		}
		return "", nil, unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	case "spawn":
		return "", nil, exec.Command(a[0], a[1:]...).Run()
	case "exec":
		return "", nil, unix.Exec(a[0], a, nil)
	case "connect":
		c, err := net.DialTimeout(a[0], a[1], 3*time.Second)
		if err == nil {
			c.Close()
		}
		return "", nil, err
	case "bind":
		return "", nil, bind(a[0], o.N)
	case "kill":
		return "", nil, unix.Kill(o.N, unix.SIGKILL)
	case "signal":
		return "", nil, unix.Kill(o.N, 0)
	case "ptrace":
		return "", nil, unix.PtraceAttach(o.N)
	case "setuid":
		return "", nil, unix.Setuid(o.N)
	case "unshare":
		return "", nil, unix.Unshare(unix.CLONE_NEWUSER)
	case "mount":
		return "", nil, unix.Mount("none", "/mnt", "tmpfs", 0, "")
	case "map":
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
		return "", nil, err
	case "send":
		return "", nil, e.send(o)
	case "flood":
		return e.flood(o)
	case "receive":
		b, err := e.receive()
		return "", b, err
	case "deliver":
		return e.deliver(o)
	case "agents":
		return e.agents(o)
	}
	return "", nil, errors.New("what?")
}

// bind binds a socket of a family, and listens.
func bind(family string, port int) error {
	var sa unix.Sockaddr
	var domain int
	switch {
	case family == "tcp":
		domain, sa = unix.AF_INET, &unix.SockaddrInet4{Port: port}
	case strings.HasPrefix(family, "/") || strings.HasPrefix(family, "@"):
		domain, sa = unix.AF_UNIX, &unix.SockaddrUnix{Name: family}
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, sa); err != nil {
		return err
	}
	return unix.Listen(fd, 1)
}

// send sends octets as they are to the parent, with a descriptor.
func (e *evil) send(o order) error {
	fd := -1
	kind, arg, _ := strings.Cut(o.Kind, ":")
	var pair [2]int
	var err error
	switch kind {
	case "":
	case "pipe":
		err = unix.Pipe2(pair[:], 0)
		fd = pair[0]
	case "file":
		fd, err = unix.Open(arg, unix.O_RDONLY, 0)
	default:
		err = errors.New("what?")
	}
	if err != nil {
		return err
	}
	var rights []byte
	if fd >= 0 {
		var fds []int
		for range max(o.N, 1) {
			fds = append(fds, fd)
		}
		rights = unix.UnixRights(fds...)
	}
	for sent := 0; sent < len(o.Data); {
		n, err := unix.SendmsgN(control, o.Data[sent:], rights, nil, unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EAGAIN) {
			unix.Poll([]unix.PollFd{{Fd: control, Events: unix.POLLOUT}}, 1000)
			continue
		}
		if err != nil {
			return err
		}
		sent, rights = sent+n, nil
	}
	if fd > control+10 {
		unix.Close(fd)
	}
	return nil
}

// flood sends a frame N times while it reads what comes, and counts the answers.
func (e *evil) flood(o order) (string, []byte, error) {
	failed := make(chan error, 1)
	go func() {
		for i := range o.N {
			frame := append([]byte(nil), o.Data...)
			binary.BigEndian.PutUint32(frame[5:], uint32(i))
			if err := e.send(order{Data: frame, Kind: o.Kind}); err != nil {
				failed <- err
				return
			}
		}
		failed <- nil
	}()
	answers := make(map[string]int)
	for got := 0; got < o.N; {
		b, err := e.receive()
		if err != nil {
			return "", nil, err
		}
		if len(b) > 5 && b[4] == '=' {
			got++
			status, _, _ := strings.Cut(string(b[5:]), "\x00")
			answers[status]++
		}
	}
	return fmt.Sprint(answers), nil, <-failed
}

// receive returns the next frame of the parent.
func (e *evil) receive() ([]byte, error) {
	read := func(b []byte) error {
		for have := 0; have < len(b); {
			var rights [64]byte
			n, oob, _, _, err := unix.Recvmsg(control, b[have:], rights[:], 0)
			if messages, err := unix.ParseSocketControlMessage(rights[:max(oob, 0)]); err == nil {
				for i := range messages {
					fds, _ := unix.ParseUnixRights(&messages[i])
					e.taken = append(e.taken, fds...)
				}
			}
			switch {
			case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
				if k, err := unix.Poll([]unix.PollFd{{Fd: control, Events: unix.POLLIN}}, 20_000); k == 0 && err == nil {
					return errors.New("silence")
				}
			case err != nil:
				return err
			case n == 0:
				return io.EOF
			default:
				have += n
			}
		}
		return nil
	}
	var head [5]byte
	if err := read(head[:]); err != nil {
		return nil, err
	}
	frame := make([]byte, min(binary.BigEndian.Uint32(head[:]), 1<<20))
	return frame, read(frame)
}

// connect makes the process a client of the parent in good form.
func (e *evil) connect() error {
	if e.client != nil {
		return nil
	}
	conn, err := wire.Inherited(control)
	if err != nil {
		return err
	}
	e.client = parent.NewClient(conn)
	return e.client.Ready(parent.Work{})
}

// agents starts N agents of a user and role one after another, and tells for each
// how many nanoseconds passed from the request to its first sign of life.
func (e *evil) agents(o order) (string, []byte, error) {
	if err := e.connect(); err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var took []string
	for range o.N {
		begun := time.Now()
		conn, err := e.client.StartAgent(ctx, o.Args[0], agent.Role(o.Args[1]))
		if err != nil {
			return "", nil, err
		}
		if err := conn.Send([]byte{'P'}); err != nil {
			return "", nil, err
		}
		conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, _, err := conn.Receive(1<<10, 0); err != nil {
			return "", nil, err
		}
		took = append(took, fmt.Sprint(time.Since(begun).Nanoseconds()))
		conn.Close()
		if err := e.client.StopAgent(ctx, o.Args[0], agent.Role(o.Args[1])); err != nil {
			return "", nil, err
		}
	}
	return strings.Join(took, " "), nil, nil
}

// deliver asks an agent, in good form, for what its user has not listed: a user,
// a kind, a target and a source.
func (e *evil) deliver(o order) (string, []byte, error) {
	if err := e.connect(); err != nil {
		return "", nil, err
	}
	c := e.config
	remote := agent.NewRemote(agent.RemoteOptions{Starter: e.client, Mailbox: c.Mailbox, CommandTime: c.CommandTime})
	defer remote.Close()
	content := "Subject: evil\n\nevil\n"
	job := &agent.Job{
		Kind: map[string]spooldir.RecipientKind{"mailbox": spooldir.Mailbox, "file": spooldir.File, "command": spooldir.Command}[o.Args[1]], Target: o.Args[2], Source: o.Args[3], Recipient: o.Args[0] + "@host.example",
		Message: localwriter.Message{
			ID: "20260101T000000-0123456789abcdef", Recipient: 1, Sender: "evil@host.example", Arrival: time.Unix(1e9, 0),
			Header: []byte("Delivered-To: x\n"), Content: strings.NewReader(content), Size: int64(len(content)),
		},
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	// Whatever uid and home it says, the parent and the agent find them out.
	who := passwd.User{Name: o.Args[0], UID: 2002, GID: 2002, Home: "/home/bob", Shell: "/bin/sh"}
	remote.Deliver(ctx, who, []*agent.Job{job}, func(*agent.Job) {})
	if errors.Is(job.Err, agent.ErrUnlisted) {
		return "unlisted", nil, nil
	}
	return job.Place, nil, job.Err
}
