package notify

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

func env(list ...string) func(string) string {
	return func(key string) string {
		for _, kv := range list {
			if k, v, _ := strings.Cut(kv, "="); k == key {
				return v
			}
		}
		return ""
	}
}

// listen is a manager.
func listen(t *testing.T) (*net.UnixConn, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, path
}

func TestMessages(t *testing.T) {
	c, path := listen(t)
	m, err := Connect(env("NOTIFY_SOCKET="+path), 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		send func() error
		want string
	}{
		{m.Ready, "READY=1"},
		{m.Reloading, `RELOADING=1(\nMONOTONIC_USEC=[0-9]+)?`},
		{m.Stopping, "STOPPING=1"},
		{m.Alive, "WATCHDOG=1"},
		{func() error { return m.Status("two\nREADY=1\x7f lines") }, "STATUS=two READY=1  lines"},
	} {
		if err := tc.send(); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 256)
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buf)
		if err != nil || !regexp.MustCompile("^"+tc.want+"$").Match(buf[:n]) {
			t.Errorf("got %q, %v; want %q", buf[:n], err, tc.want)
		}
	}
	c.Close()
	if m.Ready() == nil {
		t.Error("a manager that has gone takes messages")
	}
}

func TestConnect(t *testing.T) {
	for _, tc := range []struct {
		env     []string
		watched time.Duration
		bad     bool
	}{
		{},
		{env: []string{"WATCHDOG_USEC=1000000"}}, // nobody to tell
		{env: []string{"NOTIFY_SOCKET=/x"}},
		{env: []string{"NOTIFY_SOCKET=@x"}},
		{env: []string{"NOTIFY_SOCKET=/"}, bad: true},
		{env: []string{"NOTIFY_SOCKET=vsock:2:1"}, bad: true},
		{env: []string{"NOTIFY_SOCKET=x"}, bad: true},
		{env: []string{"NOTIFY_SOCKET=/x", "WATCHDOG_USEC=1000000"}, watched: 500 * time.Millisecond},
		{env: []string{"NOTIFY_SOCKET=/x", "WATCHDOG_USEC=1000000", "WATCHDOG_PID=7"}, watched: 500 * time.Millisecond},
		{env: []string{"NOTIFY_SOCKET=/x", "WATCHDOG_USEC=1000000", "WATCHDOG_PID=8"}},
		{env: []string{"NOTIFY_SOCKET=/x", "WATCHDOG_USEC=0"}, bad: true},
		{env: []string{"NOTIFY_SOCKET=/x", "WATCHDOG_USEC=9223372036854775807"}, bad: true},
		{env: []string{"NOTIFY_SOCKET=/x", "WATCHDOG_USEC=soon"}, bad: true},
	} {
		m, err := Connect(env(tc.env...), 7)
		if (err != nil) != tc.bad || m.Watched() != tc.watched {
			t.Errorf("%v: %v, %v", tc.env, m.Watched(), err)
		}
	}
	m, err := Connect(env(), 7)
	if err != nil || m.Ready() != nil || m.Alive() != nil {
		t.Errorf("without a manager: %v", err)
	}
}

// TestSockets starts the test binary with sockets as descriptors 3 and 4.
func TestSockets(t *testing.T) {
	if os.Getenv("NOTIFY_TEST_CHILD") != "" {
		s, err := Sockets(func(k string) string {
			if k == "LISTEN_PID" && os.Getenv(k) == "me" {
				return strconv.Itoa(os.Getpid())
			}
			return os.Getenv(k)
		}, os.Getpid())
		if err != nil {
			fmt.Println("error")
		}
		for _, s := range s {
			l, err := net.FileListener(s.File)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Println(s.Name, filepath.Base(l.Addr().String()))
		}
		return
	}
	dir := t.TempDir()
	var files []*os.File
	for _, name := range []string{"a", "b"} {
		l, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		f, err := l.(*net.UnixListener).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, tc := range []struct {
		env   []string
		files []*os.File
		want  string
	}{
		{nil, files, ""},
		{[]string{"LISTEN_FDS=2", "LISTEN_PID=1"}, files, ""},
		{[]string{"LISTEN_FDS=2"}, files, ""},
		{[]string{"LISTEN_FDS=2", "LISTEN_PID=me"}, files, "unknown a\nunknown b\n"},
		{[]string{"LISTEN_FDS=2", "LISTEN_PID=me", "LISTEN_FDNAMES=submit:other"}, files, "submit a\nother b\n"},
		{[]string{"LISTEN_FDS=2", "LISTEN_PID=me", "LISTEN_FDNAMES=submit"}, files, "error\n"},
		{[]string{"LISTEN_FDS=-1", "LISTEN_PID=me"}, files, "error\n"},
		{[]string{"LISTEN_FDS=100000", "LISTEN_PID=me"}, files, "error\n"},
		{[]string{"LISTEN_FDS=two", "LISTEN_PID=me"}, files, "error\n"},
		{[]string{"LISTEN_FDS=1", "LISTEN_PID=me"}, []*os.File{null}, "error\n"},
	} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestSockets$")
		cmd.Env = append(tc.env, "NOTIFY_TEST_CHILD=1")
		cmd.ExtraFiles = tc.files
		out, err := cmd.CombinedOutput()
		got, _, _ := strings.Cut(string(out), "PASS\n")
		if err != nil || got != tc.want {
			t.Errorf("%v: %q, %v; want %q", tc.env, out, err, tc.want)
		}
	}
}
