package powercut

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Of the FUSE protocol (linux/fuse.h, version 7.31) only what one regular file needs.
const (
	opForget      = 2
	opGetattr     = 3
	opSetattr     = 4
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatfs      = 17
	opRelease     = 18
	opFsync       = 20
	opFlush       = 25
	opInit        = 26
	opInterrupt   = 36
	opDestroy     = 38
	opBatchForget = 42
	opFallocate   = 43

	openDirectIO = 1 // no page cache between the loop device and the disk

	initAsyncRead = 1 << 0
	initBigWrites = 1 << 5
	initMaxPages  = 1 << 22

	headerSize   = 40
	maxWrite     = 1 << 20
	servers      = 2
	closeTimeout = 20 * time.Second
)

// server serves one disk as a regular file mounted on top of path.
type server struct {
	fd   int
	path string
	disk *disk
	wg   sync.WaitGroup
}

// serve mounts d at path, which must be a regular file.
func serve(d *disk, path string) (*server, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/fuse: %w", err)
	}
	opt := fmt.Sprintf("fd=%d,rootmode=100000,user_id=0,group_id=0,allow_other,max_read=%d", fd, maxWrite)
	if err := unix.Mount("powercut", path, "fuse", unix.MS_NOSUID|unix.MS_NODEV, opt); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("mount fuse: %w", err)
	}
	s := &server{fd: fd, path: path, disk: d}
	for range servers {
		s.wg.Go(s.loop)
	}
	var st unix.Stat_t // the kernel must know the size before the loop device asks
	if err := unix.Stat(path, &st); err != nil {
		return nil, errors.Join(fmt.Errorf("stat the served disk: %w", err), s.close())
	}
	return s, nil
}

// close unmounts and waits for the last user of the file, which may be a loop
// device that something else on the machine is looking at.
func (s *server) close() error {
	if err := unix.Unmount(s.path, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the served disk: %w", err)
	}
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
		return unix.Close(s.fd)
	case <-time.After(closeTimeout):
		return errors.New("the served disk is still in use")
	}
}

func (s *server) loop() {
	buf := make([]byte, maxWrite+2*blockSize)
	for {
		n, err := unix.Read(s.fd, buf)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOENT): // ENOENT: a request was interrupted
		case err != nil: // ENODEV: unmounted
			return
		case n >= headerSize:
			if s.handle(buf[:n]) {
				return
			}
		}
	}
}

func (s *server) reply(unique uint64, errno unix.Errno, body []byte) {
	out := make([]byte, 16, 16+len(body))
	le := binary.LittleEndian
	le.PutUint32(out, uint32(16+len(body)))
	le.PutUint32(out[4:], uint32(-int32(errno)))
	le.PutUint64(out[8:], unique)
	_, _ = unix.Write(s.fd, append(out, body...)) // fails only for a request that is no longer awaited
}

// handle answers one request and reports whether it was the last.
func (s *server) handle(b []byte) (last bool) {
	le := binary.LittleEndian
	op, unique, arg := le.Uint32(b[4:]), le.Uint64(b[8:]), b[headerSize:]
	var body []byte
	var errno unix.Errno
	switch op {
	case opForget, opBatchForget, opInterrupt:
		return false // these have no reply
	case opInit:
		body = make([]byte, 64)
		le.PutUint32(body[0:], 7)
		le.PutUint32(body[4:], 31)
		le.PutUint32(body[8:], 1<<17) // max_readahead
		le.PutUint32(body[12:], le.Uint32(arg[12:])&(initAsyncRead|initBigWrites|initMaxPages))
		le.PutUint16(body[16:], 64) // max_background
		le.PutUint16(body[18:], 48) // congestion_threshold
		le.PutUint32(body[20:], maxWrite)
		le.PutUint32(body[24:], 1) // time_gran
		le.PutUint16(body[28:], maxWrite/blockSize)
	case opGetattr, opSetattr:
		body = make([]byte, 16+88)
		le.PutUint64(body[0:], 1<<32) // valid for long
		a := body[16:]
		le.PutUint64(a[0:], 1) // inode
		le.PutUint64(a[8:], uint64(s.disk.size))
		le.PutUint64(a[16:], uint64(s.disk.size)/sector)
		le.PutUint32(a[60:], unix.S_IFREG|0600)
		le.PutUint32(a[64:], 1) // links
		le.PutUint32(a[80:], blockSize)
	case opOpen:
		body = make([]byte, 16)
		le.PutUint32(body[8:], openDirectIO)
	case opRead:
		off, n := int64(le.Uint64(arg[8:])), int64(le.Uint32(arg[16:]))
		body = make([]byte, max(0, min(n, s.disk.size-off)))
		s.disk.readAt(body, off)
	case opWrite:
		off, n := int64(le.Uint64(arg[8:])), le.Uint32(arg[16:])
		errno = s.disk.change(record{kind: write, off: off, data: arg[40 : 40+n]})
		body = make([]byte, 8)
		le.PutUint32(body, n)
	case opFsync:
		errno = s.disk.flush()
	case opFallocate: // how the loop device discards and writes zeros
		off, n := int64(le.Uint64(arg[8:])), int64(le.Uint64(arg[16:]))
		errno = s.disk.change(record{kind: discard, off: off, size: min(n, s.disk.size-off)})
	case opStatfs:
		body = make([]byte, 80)
	case opRelease, opFlush:
	case opDestroy:
		last = true
	default:
		errno = unix.ENOSYS
	}
	if errno != 0 {
		body = nil
	}
	s.reply(unique, errno, body)
	return last
}
