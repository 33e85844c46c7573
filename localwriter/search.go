package localwriter

import (
	"bytes"
	"context"
	"hash/maphash"
	"slices"
)

// Bounds for what is remembered of a mailbox. With more marked messages than
// maxFound, each Suspect one costs a pass over the file.
const (
	maxFound = 1 << 18
	maxHoles = 64
)

// findings is what one pass over a mailbox found.
type findings struct {
	seed maphash.Seed

	// messages maps the hash of the value of an X-Dma-Delivery field to where
	// the From_ line before it begins; the last one of a value counts. It is nil
	// if there were more than maxFound.
	messages map[uint64]int64

	// holes are places where a message should begin and a zero byte stands, in
	// ascending order; the last maxHoles of them.
	holes []int64
}

func (f *findings) addHole(off int64) {
	i, there := slices.BinarySearch(f.holes, off)
	if there {
		return
	}
	f.holes = slices.Insert(f.holes, i, off)
	if len(f.holes) > maxHoles {
		f.holes = slices.Delete(f.holes, 0, 1)
	}
}

// filled forgets holes from off to end.
func (f *findings) filled(off, end int64) {
	f.holes = slices.DeleteFunc(f.holes, func(h int64) bool { return off <= h && h < end })
}

// forget drops what stood behind off.
func (f *findings) forget(off int64) {
	f.holes = slices.DeleteFunc(f.holes, func(h int64) bool { return h >= off })
	for k, at := range f.messages {
		if at >= off {
			delete(f.messages, k)
		}
	}
}

// search makes the findings of the mailbox.
func (s *mboxSession) search(ctx context.Context) (*findings, error) {
	f := &findings{seed: maphash.MakeSeed(), messages: make(map[uint64]int64)}
	err := s.scan(ctx, func(key []byte, off int64) {
		if f.messages == nil {
			return
		}
		f.messages[maphash.Bytes(f.seed, key)] = off
		if len(f.messages) > maxFound {
			f.messages = nil
		}
	}, f.addHole)
	return f, err
}

// find returns where the message with the key begins.
func (s *mboxSession) find(ctx context.Context, key string) (off int64, ok bool, err error) {
	if s.found.messages != nil {
		off, ok = s.found.messages[maphash.String(s.found.seed, key)]
		return off, ok, nil
	}
	err = s.scan(ctx, func(k []byte, at int64) {
		if string(k) == key {
			off, ok = at, true
		}
	}, func(int64) {})
	return off, ok, err
}

// scan reads the whole mailbox and calls message for each X-Dma-Delivery line
// right behind a From_ line that begins a message, and hole for each zero byte
// where a message should begin. A message can be reported twice.
func (s *mboxSession) scan(ctx context.Context, message func(key []byte, off int64), hole func(off int64)) error {
	s.read = true
	const overlap = 2 * maxHead
	buf := make([]byte, min(256<<10, s.size))
	for off := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := buf[:min(int64(len(buf)), s.size-off)]
		if _, err := s.f.ReadAt(b, off); err != nil {
			return err
		}
		w := window{b, off}
		w.messages(message)
		w.holes(hole)
		if off+int64(len(b)) >= s.size {
			return nil
		}
		off += int64(len(b)) - overlap
	}
}

// A window is a part of a mailbox, from off on.
type window struct {
	b   []byte
	off int64
}

// messages reports the marked messages in the window.
func (w window) messages(found func(key []byte, off int64)) {
	field := []byte("\n" + idField)
	for i := 0; ; {
		n := bytes.Index(w.b[i:], field)
		if n < 0 {
			return
		}
		i += n
		near := max(0, i-maxHead)
		begin := bytes.LastIndexAny(w.b[near:i], "\n\x00") + 1 + near
		line, value := w.b[begin:i], w.b[i+len(field):]
		i += len(field)
		end := bytes.IndexByte(value[:min(len(value), maxID+32)], '\n')
		if end > 0 && bytes.HasPrefix(line, from) && (w.boundary(begin) || w.behindLost(begin)) {
			found(value[:end], w.off+int64(begin))
		}
	}
}

// holes reports where a message should begin and there are zero bytes instead
// of it, or of the rest of its From_ line or the line with its id.
func (w window) holes(found func(off int64)) {
	for i := 0; i < len(w.b); {
		n := bytes.IndexByte(w.b[i:], 0)
		if n < 0 {
			return
		}
		i += n
		near := max(0, i-maxHead)
		begin := bytes.LastIndex(w.b[near:i], []byte("\n\n")) + 2 + near
		if begin < near+2 {
			begin = 0
		}
		head := w.b[begin:i]
		if w.boundary(begin) && bytes.HasPrefix(head, from[:min(len(from), len(head))]) {
			found(w.off + int64(begin))
		}
		for i < len(w.b) && w.b[i] == 0 {
			i++
		}
	}
}

// boundary reports whether a message can begin at b[i]: behind an empty line,
// or where the file begins.
func (w window) boundary(i int) bool {
	return w.off+int64(i) == 0 || i >= 2 && w.b[i-1] == '\n' && w.b[i-2] == '\n'
}

// behindLost reports whether a message can begin at b[i] because the end of the
// one before it, or its first newline, was in a block that did not reach the
// disk. Blocks end at multiples of 512.
func (w window) behindLost(i int) bool {
	at := w.off + int64(i)
	return i >= 1 && w.b[i-1] == 0 && at%512 == 0 ||
		i >= 2 && w.b[i-1] == '\n' && w.b[i-2] == 0 && (at-1)%512 == 0
}
