//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"dma/spooldir"
)

// intrusion is a message that a submitter who has taken the setgid program over
// puts into the spool, and what happens to it after it was committed.
type intrusion struct {
	Envelope spooldir.Envelope
	Content  string
	Tamper   string // append, truncate, empty, closed, open, rewrite, grow, lock, sparse

	// Where Lines are given they are the envelope, without its first and its
	// last line and whatever they say, and Names are those of its recipients.
	Lines []string
	Names []string
}

// intrude reads intrusions, carries them out, and prints their ids. What it locks
// stays so until its input ends.
func intrude(spoolPath string) error {
	spool, err := spooldir.Open(spoolPath)
	if err != nil {
		return err
	}
	var list []intrusion
	if err := json.NewDecoder(os.Stdin).Decode(&list); err != nil {
		return err
	}
	var locked []*os.File
	for _, x := range list {
		if x.Lines != nil {
			if err := forge(spoolPath, x); err != nil {
				return err
			}
			continue
		}
		d, err := spool.Create(&x.Envelope)
		if err != nil {
			return err
		}
		f, err := os.OpenFile(filepath.Join(spoolPath, "tmp", d.ID()), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		if _, err := io.WriteString(d, x.Content); err != nil {
			return err
		}
		if err := d.Commit(); err != nil {
			return err
		}
		if x.Tamper == "lock" {
			if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
				return err
			}
			locked = append(locked, f)
		}
		size, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		switch x.Tamper {
		case "append":
			for range 1000 {
				io.WriteString(f, "more\n")
			}
		case "truncate":
			f.Truncate(size - 3)
		case "empty":
			f.Truncate(0)
		case "closed":
			f.Chmod(0)
		case "open":
			f.Chmod(0o666)
		case "rewrite":
			f.WriteAt([]byte("From: somebody"), size-20)
		case "grow":
			f.Truncate(1 << 40)
		case "sparse":
			if err := stretch(f, 1<<40); err != nil {
				return err
			}
		}
		if x.Tamper != "lock" {
			f.Close()
		}
		fmt.Println(d.ID())
	}
	if len(locked) > 0 {
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	}
	return nil
}

// stretch makes a message one with a sound envelope and size octets of content, most
// of them a hole.
func stretch(f *os.File, size int64) error {
	var buf [4096]byte
	n, err := f.ReadAt(buf[:], 0)
	if err != nil && err != io.EOF {
		return err
	}
	head, _, ok := bytes.Cut(buf[:n], []byte("\n\n"))
	at := bytes.Index(head, []byte("\ncontent "))
	sum := bytes.Index(head, []byte(" size="))
	if !ok || at < 0 || sum < 8 {
		return fmt.Errorf("no envelope: %q", buf[:n])
	}
	head = buf[:len(head)+2]
	copy(head[at+len("\ncontent "):], fmt.Sprintf("%020d", size))
	copy(head[sum-8:], fmt.Sprintf("%08x", crc32.ChecksumIEEE(head[sum:])))
	if _, err := f.WriteAt(head, 0); err != nil {
		return err
	}
	return f.Truncate(int64(len(head)) + size)
}

// forge commits a file whose checksums are right, and whose envelope no writer of
// dma's makes.
func forge(spoolPath string, x intrusion) error {
	text := strings.Join(x.Lines, "\n") + "\n" +
		fmt.Sprintf("content %020d crc32=%08x\n\n", len(x.Content), crc32.ChecksumIEEE([]byte(x.Content)))
	const first = "dma-message 1 crc32=12345678"
	rest := fmt.Sprintf(" size=%010d\n", len(first)+len(" size=1234567890\n")+len(text)) + text
	data := fmt.Sprintf("dma-message 1 crc32=%08x%s%s", crc32.ChecksumIEEE([]byte(rest)), rest, x.Content)
	place := filepath.Join(spoolPath, "new")
	tmp := filepath.Join(spoolPath, "tmp", strings.SplitN(x.Names[0], ".", 2)[0])
	if err := os.WriteFile(tmp, []byte(data), 0o600); err != nil {
		return err
	}
	for _, name := range x.Names {
		if err := os.Link(tmp, filepath.Join(place, name)); err != nil {
			return err
		}
	}
	if err := os.Remove(tmp); err != nil {
		return err
	}
	return os.Chmod(filepath.Join(place, x.Names[0]), 0o640)
}

// crowd opens connections to a socket, and sends half a frame, a request whose
// answer it does not read, or nothing, until its input ends.
func crowd(path string, most int) error {
	begun := 0
	for i := range most {
		// One that waits until there is room in the queue of the socket.
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
			return err
		}
		switch i % 3 {
		case 0:
			syscall.Sendto(fd, []byte{0, 0, 1}, syscall.MSG_NOSIGNAL, nil)
		case 1:
			syscall.Sendto(fd, []byte{0, 0, 0, 1, 0, 'l'}, syscall.MSG_NOSIGNAL, nil)
		}
		begun++
	}
	fmt.Println("begun", begun)
	io.Copy(io.Discard, os.Stdin)
	return nil
}
