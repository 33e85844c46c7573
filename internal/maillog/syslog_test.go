package maillog

import (
	"bufio"
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// socketPath returns a short name, since socket names are limited to some hundred
// bytes.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "maillog")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "log")
}

func listen(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func receive(t *testing.T, c net.Conn) string {
	t.Helper()
	b := make([]byte, 64<<10)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// clock is moved by hand.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func TestSyslogLines(t *testing.T) {
	path := socketPath(t)
	server := listen(t, path)
	var fallback bytes.Buffer
	l := New(slog.New(atNoon{NewSyslogHandler(SyslogOptions{Sockets: []string{path}, Fallback: &fallback})}))
	pid := os.Getpid()
	l.Cleaned("tmp/a\n<0>b")
	l.FileSystem("x")
	l.DiskLow(1, 2)
	for _, want := range []string{
		fmt.Sprintf(`<22>Mar  4 12:00:00 dma[%d]: info cleaned name="tmp/a\n<0>b"`, pid),
		fmt.Sprintf(`<20>Mar  4 12:00:00 dma[%d]: warn file-system warning=x`, pid),
		fmt.Sprintf(`<19>Mar  4 12:00:00 dma[%d]: error disk-low free=1 floor=2`, pid),
	} {
		if got := receive(t, server); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if fallback.Len() != 0 {
		t.Errorf("fallback has %q", fallback.String())
	}
}

func TestSyslogStream(t *testing.T) {
	path := socketPath(t)
	server, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	var fallback bytes.Buffer
	l := New(slog.New(atNoon{NewSyslogHandler(SyslogOptions{Tag: "x", Sockets: []string{path + "-none", path}, Fallback: &fallback})}))
	l.Cleaned("a")
	l.Cleaned("b")
	c, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	r := bufio.NewReader(c)
	for _, name := range []string{"a", "b"} {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("<22>Mar  4 12:00:00 x[%d]: info cleaned name=%s\n", os.Getpid(), name); line != want {
			t.Errorf("got %q, want %q", line, want)
		}
	}
	if fallback.Len() != 0 {
		t.Errorf("fallback has %q", fallback.String())
	}
}

func TestSyslogFallbackAndReturn(t *testing.T) {
	path := socketPath(t)
	var fallback bytes.Buffer
	clk := &clock{noon}
	l := New(slog.New(atNoon{NewSyslogHandler(SyslogOptions{Sockets: []string{path}, Fallback: &fallback, Now: clk.now})}))
	lines := func() int { return strings.Count(fallback.String(), "\n") }

	l.Cleaned("1")
	if want := "2026-03-04T12:00:00.089Z info cleaned name=1\n"; fallback.String() != want {
		t.Errorf("fallback has %q, want %q", fallback.String(), want)
	}

	// A socket that appears is not looked for before its time.
	server := listen(t, path)
	clk.t = noon.Add(syslogBackoff - time.Nanosecond)
	l.Cleaned("2")
	if lines() != 2 {
		t.Errorf("fallback has %q", fallback.String())
	}
	clk.t = noon.Add(syslogBackoff)
	l.Cleaned("3")
	if got := receive(t, server); !strings.HasSuffix(got, "name=3") {
		t.Errorf("got %q", got)
	}

	// The logger is restarted: no line is lost and the clock stands still.
	server.Close()
	os.Remove(path)
	server = listen(t, path)
	l.Cleaned("4")
	if got := receive(t, server); !strings.HasSuffix(got, "name=4") {
		t.Errorf("got %q", got)
	}

	// The logger goes away.
	server.Close()
	os.Remove(path)
	l.Cleaned("5")
	if lines() != 3 || !strings.HasSuffix(fallback.String(), "name=5\n") {
		t.Errorf("fallback has %q", fallback.String())
	}
}

// TestSyslogStuck has a logger that does not read. The first line that finds its
// queue full goes to the fallback after the bound, and the next ones at once.
func TestSyslogStuck(t *testing.T) {
	path := socketPath(t)
	server := listen(t, path)
	var fallback bytes.Buffer
	clk := &clock{noon}
	l := New(slog.New(NewSyslogHandler(SyslogOptions{Sockets: []string{path}, Fallback: &fallback, Bound: 20 * time.Millisecond, Now: clk.now})))
	sent := 0
	for fallback.Len() == 0 {
		if sent++; sent > 1_000_000 {
			t.Fatal("the queue of the socket never fills")
		}
		l.Cleaned(fmt.Sprint(sent))
	}
	for range 1000 {
		l.Cleaned("more")
	}
	if got := strings.Count(fallback.String(), "\n"); got != 1001 {
		t.Errorf("fallback has %d lines", got)
	}
	// What the socket took is whole and in order.
	for i := 1; i < sent; i++ {
		if got := receive(t, server); !strings.HasSuffix(got, fmt.Sprintf("name=%d", i)) {
			t.Fatalf("line %d is %q", i, got)
		}
	}
}

// TestSyslogBusy has a line in the socket's way that does not end.
func TestSyslogBusy(t *testing.T) {
	var fallback bytes.Buffer
	h := NewSyslogHandler(SyslogOptions{Sockets: []string{socketPath(t)}, Fallback: &fallback, Bound: time.Millisecond}).(*handler)
	h.out.(*syslogOutput).busy <- struct{}{}
	New(slog.New(h)).Cleaned("x")
	if !strings.HasSuffix(fallback.String(), "name=x\n") {
		t.Errorf("fallback has %q", fallback.String())
	}
}

// smallConn refuses long datagrams as the BSDs do.
type smallConn struct {
	net.Conn
	got []string
}

func (c *smallConn) SetWriteDeadline(time.Time) error { return nil }
func (c *smallConn) Close() error                     { return nil }
func (c *smallConn) Write(p []byte) (int, error) {
	if len(p) > 2048 {
		return 0, &net.OpError{Op: "write", Err: os.NewSyscallError("write", syscall.EMSGSIZE)}
	}
	c.got = append(c.got, string(p))
	return len(p), nil
}

func TestSyslogLongLine(t *testing.T) {
	var fallback bytes.Buffer
	h := NewSyslogHandler(SyslogOptions{Sockets: []string{socketPath(t)}, Fallback: &fallback}).(*handler)
	c := new(smallConn)
	h.out.(*syslogOutput).conn = c
	long := strings.Repeat("ü", 500)
	New(slog.New(h)).Corrupt(long, long, long)
	if len(c.got) != 1 || len(c.got[0]) > shortSyslog || len(c.got[0]) < shortSyslog-4 || fallback.Len() != 0 {
		t.Fatalf("syslog got %q, fallback %q", c.got, fallback.String())
	}
	if strings.ToValidUTF8(c.got[0], "") != c.got[0] {
		t.Error("a character was cut")
	}
}
