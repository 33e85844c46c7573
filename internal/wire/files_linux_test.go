package wire

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// part is something that is sent, with or without a file, out of band or not.
type part struct {
	bytes string
	file  *os.File
	flags int
}

// sent returns an end that has got, before it was a Conn, what only an older
// kernel lets through, and the other end.
func sent(t *testing.T, parts ...part) (*Conn, int) {
	t.Helper()
	fds, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if err := unix.SetNonblock(fd, true); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range parts {
		var rights []byte
		if p.file != nil {
			rights = unix.UnixRights(int(p.file.Fd()))
		}
		if err := unix.Sendmsg(fds[1], []byte(p.bytes), rights, nil, p.flags); err != nil {
			t.Fatal(err)
		}
	}
	c := New(os.NewFile(uintptr(fds[0]), "socket"))
	t.Cleanup(func() { c.Close(); unix.Close(fds[1]) })
	return c, fds[1]
}

// TestFilesStay: a file that nobody wants is never taken out of the socket, in
// which place of a frame it comes, and is not closed with the connection.
func TestFilesStay(t *testing.T) {
	const frame = "\x00\x00\x00\x03\x00abc"
	for _, tt := range []struct {
		name   string
		parts  func(f *os.File) []part
		before int // frames
		unread bool
	}{
		{"with the first octet", func(f *os.File) []part { return []part{{frame, f, 0}} }, 0, false},
		{"within the header", func(f *os.File) []part { return []part{{frame[:2], nil, 0}, {frame[2:], f, 0}} }, 0, false},
		{"within the message", func(f *os.File) []part { return []part{{frame[:6], nil, 0}, {frame[6:], f, 0}} }, 0, false},
		{"with the next frame", func(f *os.File) []part { return []part{{frame, nil, 0}, {frame, f, 0}} }, 1, false},
		{"behind all that is read", func(f *os.File) []part { return []part{{frame, nil, 0}, {frame, nil, 0}, {frame, f, 0}} }, 0, true},
		{"out of band", func(f *os.File) []part { return []part{{frame[:1], f, unix.MSG_OOB}, {frame[1:], nil, 0}} }, 0, false},
		{"out of band behind", func(f *os.File) []part { return []part{{frame, nil, 0}, {"x", f, unix.MSG_OOB}} }, 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// The other end of a pipe tells when the last descriptor is closed.
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			c, peer := sent(t, tt.parts(w)...)
			w.Close()
			// A kernel may tell of the file before the reader has come to it.
			for n := 0; n <= tt.before && !tt.unread; n++ {
				got, _, err := c.Receive(64, 1)
				if errors.Is(err, ErrFiles) {
					break
				}
				if err != nil || string(got) != "abc" || n == tt.before {
					t.Errorf("received: %q, %v", got, err)
				}
			}
			if err := c.Close(); !errors.Is(err, ErrFiles) {
				t.Errorf("closed: %v", err)
			}
			poll := []unix.PollFd{{Fd: int32(r.Fd()), Events: unix.POLLIN}}
			if n, err := unix.Poll(poll, 0); n != 0 || err != nil {
				t.Errorf("the file is closed: %d, %v", n, err)
			}
			// The peer sees the end all the same.
			if n, err := unix.Write(peer, []byte("x")); err != unix.EPIPE {
				t.Errorf("sent after the end: %d, %v", n, err)
			}
		})
	}
}

// TestFilesRefused: where the kernel can, it lets no file come.
func TestFilesRefused(t *testing.T) {
	a, b := ends(t)
	_, err := a.sendFiles([]byte{0, 0, 0, 0, 0}, []*os.File{file(t, "x")})
	var unknown error
	if err := b.Raw(func(fd int) { _, unknown = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSRIGHTS) }); err != nil {
		t.Fatal(err)
	}
	if unknown != nil {
		t.Logf("this kernel cannot refuse them: %v", unknown)
		return
	}
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("sent: %v", err)
	}
	if err := a.Send([]byte("abc")); err != nil {
		t.Fatal(err)
	}
	if got, _, err := b.Receive(64, 0); err != nil || string(got) != "abc" {
		t.Errorf("%q, %v", got, err)
	}
}
