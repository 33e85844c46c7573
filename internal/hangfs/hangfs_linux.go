// Package hangfs is a file system of one file that stops answering, as every user
// of a machine can mount one with FUSE.
package hangfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"dma/internal/crashtest"
)

// Of the FUSE protocol (linux/fuse.h) only what one regular file needs.
const (
	opForget      = 2
	opGetattr     = 3
	opSetattr     = 4
	opOpen        = 14
	opRead        = 15
	opStatfs      = 17
	opRelease     = 18
	opFlush       = 25
	opInit        = 26
	opInterrupt   = 36
	opBatchForget = 42

	initBigWrites = 1 << 5
	initWriteback = 1 << 16 // what is written stays in memory first

	headerSize = 40
	maxWrite   = 64 << 10
	size       = 1 << 20 // of the file, in octets
)

// FS is one file. Close ends all that waits for it.
type FS struct {
	fd   int
	path string
	mute atomic.Bool
	wg   sync.WaitGroup
}

// Available returns why the file system cannot be mounted here, or nil.
func Available() error {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return &crashtest.Missing{What: "/dev/fuse", Remedy: "modprobe fuse"}
	} else if err != nil {
		return err
	}
	return unix.Close(fd)
}

// Mount mounts the file on top of the regular file at path, for every user.
func Mount(path string) (*FS, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/fuse: %w", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=100000,user_id=0,group_id=0,allow_other", fd)
	if err := unix.Mount("hangfs", path, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("mount fuse: %w", err)
	}
	f := &FS{fd: fd, path: path}
	f.wg.Go(f.serve)
	// With what is written in memory the kernel believes itself alone about the size.
	if err := unix.Truncate(path, size); err != nil {
		return nil, errors.Join(fmt.Errorf("truncate: %w", err), f.Close())
	}
	return f, nil
}

// Hang makes the file system answer nothing any more.
func (f *FS) Hang() { f.mute.Store(true) }

// Close ends the file system: everything that waits for an answer gets an error.
func (f *FS) Close() error {
	err := unix.Unmount(f.path, unix.MNT_FORCE|unix.MNT_DETACH)
	if err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	f.wg.Wait()
	return unix.Close(f.fd)
}

func (f *FS) serve() {
	buf := make([]byte, maxWrite+4096)
	for {
		n, err := unix.Read(f.fd, buf)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOENT): // ENOENT: a request was interrupted
		case err != nil: // the end
			return
		case n >= headerSize && !f.mute.Load():
			f.handle(buf[:n])
		}
	}
}

// handle answers one request.
func (f *FS) handle(b []byte) {
	le := binary.LittleEndian
	op, unique, arg := le.Uint32(b[4:]), le.Uint64(b[8:]), b[headerSize:]
	var body []byte
	var errno unix.Errno
	switch op {
	case opForget, opBatchForget, opInterrupt:
		return // these have no reply
	case opInit:
		body = make([]byte, 64)
		le.PutUint32(body[0:], 7)
		le.PutUint32(body[4:], 31)
		le.PutUint32(body[12:], le.Uint32(arg[12:])&(initBigWrites|initWriteback))
		le.PutUint16(body[16:], 64) // max_background
		le.PutUint16(body[18:], 48) // congestion_threshold
		le.PutUint32(body[20:], maxWrite)
		le.PutUint32(body[24:], 1) // time_gran
	case opGetattr, opSetattr:
		body = make([]byte, 16+88)
		le.PutUint64(body[0:], 1<<32) // valid for long
		a := body[16:]
		le.PutUint64(a[0:], 1) // inode
		le.PutUint64(a[8:], size)
		le.PutUint64(a[16:], size/512)
		le.PutUint32(a[60:], unix.S_IFREG|0o666)
		le.PutUint32(a[64:], 1) // links
		le.PutUint32(a[80:], 4096)
	case opOpen:
		body = make([]byte, 16)
	case opRead:
		body = make([]byte, le.Uint32(arg[16:]))
	case opStatfs:
		body = make([]byte, 80)
	case opRelease, opFlush:
	default:
		errno = unix.ENOSYS
	}
	out := make([]byte, 16, 16+len(body))
	le.PutUint32(out, uint32(16+len(body)))
	le.PutUint32(out[4:], uint32(-int32(errno)))
	le.PutUint64(out[8:], unique)
	_, _ = unix.Write(f.fd, append(out, body...)) // fails only for a request that is no longer awaited
}
