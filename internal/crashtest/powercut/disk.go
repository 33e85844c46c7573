package powercut

import (
	"bytes"
	"sync"
	"syscall"
)

// blockSize is the unit in which a disk keeps its content.
const blockSize = 4096

// sector is the unit that a disk writes whole or not at all.
const sector = 512

type kind uint8

const (
	write   kind = iota
	discard      // reads as zeros afterwards
	flush        // every earlier record is durable
	mark         // an event that the test noted
)

type record struct {
	kind kind
	off  int64
	data []byte // of a write
	size int64  // of a discard
	note any    // of a mark
}

// disk is a sparse disk in memory, on its own or as a copy-on-write view of a
// parent, which must not change while it has views.
type disk struct {
	size   int64
	parent *disk

	mu        sync.Mutex
	blocks    map[int64][]byte
	recording bool
	log       []record
	onWrite   func(off int64, n int) syscall.Errno
	onFlush   func() syscall.Errno
}

func newDisk(size int64) *disk { return &disk{size: size, blocks: map[int64][]byte{}} }

func (d *disk) view() *disk {
	return &disk{size: d.size, blocks: map[int64][]byte{}, parent: d}
}

// record starts or ends the log of writes and flushes.
func (d *disk) record(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.recording = on
}

func (d *disk) mark(note any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = append(d.log, record{kind: mark, note: note})
}

// block returns block b, nil if it is all zeros.
func (d *disk) block(b int64) []byte {
	for ; d != nil; d = d.parent {
		if p, ok := d.blocks[b]; ok {
			return p
		}
	}
	return nil
}

func (d *disk) readAt(p []byte, off int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(p) > 0 {
		o := off % blockSize
		n := min(int64(len(p)), blockSize-o)
		if src := d.block(off / blockSize); src != nil {
			copy(p[:n], src[o:o+n])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+n
	}
}

var zeros [blockSize]byte

// put changes the content. The caller holds mu, or the disk is not yet in use.
func (d *disk) put(p []byte, off int64) {
	for len(p) > 0 {
		b, o := off/blockSize, off%blockSize
		n := min(int64(len(p)), blockSize-o)
		if n == blockSize && bytes.Equal(p[:n], zeros[:]) {
			d.blocks[b] = nil // mkfs writes a lot of zeros
		} else {
			own := d.blocks[b]
			if own == nil {
				own = make([]byte, blockSize)
				copy(own, d.block(b))
				d.blocks[b] = own
			}
			copy(own[o:], p[:n])
		}
		p, off = p[n:], off+n
	}
}

func (d *disk) apply(r record) {
	switch r.kind {
	case write:
		d.put(r.data, r.off)
	case discard:
		for off, end := r.off, r.off+r.size; off < end; {
			n := min(end-off, blockSize-off%blockSize)
			d.put(zeros[:n], off)
			off += n
		}
	}
}

// change is a write or discard from the block device.
func (d *disk) change(r record) syscall.Errno {
	d.mu.Lock()
	fault := d.onWrite
	d.mu.Unlock()
	if fault != nil && r.kind == write {
		if errno := fault(r.off, len(r.data)); errno != 0 {
			return errno
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.recording {
		r.data = bytes.Clone(r.data)
		d.log = append(d.log, r)
	}
	d.apply(r)
	return 0
}

// flush is a cache flush from the block device. A write that is served at the
// same time counts as flushed if it has reached the log first, as on a disk.
func (d *disk) flush() syscall.Errno {
	d.mu.Lock()
	fault := d.onFlush
	d.mu.Unlock()
	if fault != nil {
		if errno := fault(); errno != 0 {
			return errno
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.recording {
		d.log = append(d.log, record{kind: flush})
	}
	return 0
}

func (d *disk) setFaults(onWrite func(int64, int) syscall.Errno, onFlush func() syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.onWrite, d.onFlush = onWrite, onFlush
}
