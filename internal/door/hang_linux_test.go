package door

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dma/internal/crashtest"
	"dma/internal/hangfs"
	"dma/spooldir"
)

// TestHangingFiles: clients send open files of a file system that does not answer:
// one that does not block, whose poll hangs; one that does, whose close hangs; one
// that the receiver is the last to have, with data in memory that nobody writes, whose
// release hangs. Whether the kernel lets them come or not, the server goes on with
// others, and when it is killed all that it had is free for the next one.
func TestHangingFiles(t *testing.T) {
	crashtest.Need(t, hangfs.Available())
	dir := t.TempDir()
	queue := filepath.Join(dir, "q")
	if err := spooldir.Init(queue); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "hangs")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fs, err := hangfs.Mount(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fs.Close(); err != nil {
			t.Error(err)
		}
	})
	open := func(flags int) int {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	listener, err := Listen(filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	connect := func() int {
		fd, err := socket()
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, "s")})
		}
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	free := []byte{0, 0, 0, 1, 0, askFree}
	// Connections that are as an older kernel has all of them: files come through.
	known := setPassRights(t, listener, 1)
	files := []int{open(unix.O_RDONLY | unix.O_NONBLOCK), open(unix.O_RDWR), open(unix.O_RDONLY)}
	var conns []int
	for _, fd := range files {
		for _, octets := range [][]byte{free[:1], free} {
			// The second has a request that is answered, and a file behind it.
			conn := connect()
			if len(octets) > 1 {
				if _, err := unix.Write(conn, octets); err != nil {
					t.Fatal(err)
				}
			}
			if err := unix.Sendmsg(conn, octets[:1], unix.UnixRights(fd), nil, 0); err != nil {
				t.Fatal(err)
			}
			conns = append(conns, conn)
		}
	}
	setPassRights(t, listener, 0)
	memory, err := unix.Mmap(files[1], 0, 1, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil || memory[0] != 0 {
		t.Fatal(err)
	}
	for _, fd := range files { // from here on only the sockets have them
		unix.Close(fd)
	}
	fs.Hang()
	memory[0] = 1
	null, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, fd := range append(conns, null) {
			unix.Close(fd)
		}
	})

	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s, err := spooldir.Open(queue)
	if err != nil {
		t.Fatal(err)
	}
	c := Client{filepath.Join(dir, "s")}
	for life := range 2 {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), serverEnv+"="+dir)
		cmd.ExtraFiles = []*os.File{listener}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := submit(c, recipients(1), text); err != nil {
				t.Fatalf("life %d: %v", life, err)
			}
		}
		// Its connections are as its listener is.
		conn := connect()
		if err := unix.Sendmsg(conn, free, unix.UnixRights(null), nil, 0); known && err != unix.EPERM {
			t.Errorf("a file is sent: %v", err)
		}
		conns = append(conns, conn)
		_ = cmd.Process.Kill()
		go func() { _ = cmd.Wait() }() // which may hang until the file system has ended
		over := false
		for end := time.Now().Add(20 * time.Second); !over && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			lock, err := s.Lock(spooldir.QueueRole, "test")
			if over = err == nil; over {
				lock.Close()
			}
		}
		if !over {
			t.Fatalf("life %d: what the server had is not free", life)
		}
	}
}

// setPassRights has an older kernel's way with files for connections that are made
// from now on, or not, and reports whether the kernel has another one.
func setPassRights(t *testing.T, listener *os.File, on int) (known bool) {
	t.Helper()
	raw, err := listener.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { known = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSRIGHTS, on) == nil })
	}
	if err != nil {
		t.Fatal(err)
	}
	return known
}
