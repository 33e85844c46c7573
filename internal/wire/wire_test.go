package wire

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// ends returns the two ends of a connection.
func ends(t *testing.T) (a, b *Conn) {
	t.Helper()
	x, y, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	a, b = New(x), New(y)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// file returns an open file with the given text.
func file(t *testing.T, text string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestMessages(t *testing.T) {
	a, b := ends(t)
	messages := [][]byte{{}, []byte("one"), bytes.Repeat([]byte("x"), 1<<20)}
	go func() {
		for _, m := range messages {
			if err := a.Send(m); err != nil {
				t.Error(err)
			}
		}
		a.Close()
	}()
	for _, want := range messages {
		got, files, err := b.Receive(1<<20, 0)
		if err != nil || len(files) != 0 || !bytes.Equal(got, want) {
			t.Fatalf("%d octets, %d files, %v; want %d octets", len(got), len(files), err, len(want))
		}
	}
	if _, _, err := b.Receive(1, 0); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
}

func TestFiles(t *testing.T) {
	a, b := ends(t)
	b.AcceptFiles()
	big := bytes.Repeat([]byte("y"), 1<<20)
	go func() {
		a.Send([]byte("two"), file(t, "first"), file(t, "second"))
		a.Send(big, file(t, "third"))
		a.Send([]byte("none"))
	}()
	for _, want := range []struct {
		message []byte
		texts   []string
	}{{[]byte("two"), []string{"first", "second"}}, {big, []string{"third"}}, {[]byte("none"), nil}} {
		got, files, err := b.Receive(1<<20, 2)
		if err != nil || !bytes.Equal(got, want.message) || len(files) != len(want.texts) {
			t.Fatalf("%d octets, %d files, %v", len(got), len(files), err)
		}
		for i, f := range files {
			text, err := io.ReadAll(f)
			if err != nil || string(text) != want.texts[i] {
				t.Errorf("file %d: %q %v", i, text, err)
			}
			f.Close()
		}
	}
}

// descriptors counts those of this process.
func descriptors(t *testing.T) int {
	t.Helper()
	dir, err := os.ReadDir("/dev/fd")
	if err != nil {
		t.Skip(err)
	}
	return len(dir)
}

func TestHostile(t *testing.T) {
	frame := func(size, files byte, rest string) []byte {
		return append([]byte{0, 0, 0, size, files}, rest...)
	}
	for _, test := range []struct {
		name  string
		bytes []byte
		files int // sent with the bytes
		allow int
		want  error
	}{
		{"half a header", []byte{0, 0}, 0, 1, io.ErrUnexpectedEOF},
		{"half a message", frame(9, 0, "four"), 0, 1, io.ErrUnexpectedEOF},
		{"too long", []byte{0xff, 0xff, 0xff, 0xff, 0}, 0, 1, ErrTooLong},
		{"says a file, sends none", frame(1, 1, "x"), 0, 1, ErrFiles},
		{"sends a file, says none", frame(1, 0, "x"), 1, 1, ErrFiles},
		{"a file nobody wants", frame(1, 1, "x"), 1, 0, ErrFiles},
		{"many files", frame(1, 9, "x"), 9, 4, ErrFiles},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, b := ends(t)
			var files []*os.File
			for range test.files {
				files = append(files, file(t, "x"))
			}
			b.AcceptFiles()
			before := descriptors(t)
			if len(files) > 0 {
				if _, err := a.sendFiles(test.bytes, files); err != nil {
					t.Fatal(err)
				}
			} else if _, err := a.f.Write(test.bytes); err != nil {
				t.Fatal(err)
			}
			a.Close()
			if _, _, err := b.Receive(64, test.allow); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			b.Close()
			if after := descriptors(t); after > before-2 {
				t.Errorf("%d descriptors before, %d after both ends were closed", before, after)
			}
		})
	}
}

// TestClose: it ends a Receive in progress, and the other end can still read what
// was said last although it has sent what nobody read.
func TestClose(t *testing.T) {
	a, b := ends(t)
	ended := make(chan error)
	go func() {
		_, _, err := b.Receive(1, 0)
		ended <- err
	}()
	if _, err := a.f.Write([]byte{0}); err != nil { // within a frame
		t.Fatal(err)
	}
	if err := b.Send([]byte("last")); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("ended by %v", err)
	}
	if got, _, err := a.Receive(64, 0); err != nil || string(got) != "last" {
		t.Errorf("%q, %v", got, err)
	}
	if _, _, err := a.Receive(64, 0); err != io.EOF {
		t.Errorf("then %v", err)
	}
	if err := b.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
}

func TestDeadline(t *testing.T) {
	_, b := ends(t)
	b.SetDeadline(time.Unix(1, 0))
	if _, _, err := b.Receive(1, 0); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
