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
	buf := make([]byte, 256<<10)
	for off := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := buf[:min(int64(len(buf)), s.size-off)]
		if _, err := s.f.ReadAt(b, off); err != nil {
			return err
		}
		scanMessages(b, func(key []byte, i int) { message(key, off+int64(i)) }, off == 0)
		scanHoles(b, func(i int) { hole(off + int64(i)) }, off == 0)
		if off+int64(len(b)) >= s.size {
			return nil
		}
		off += int64(len(b)) - overlap
	}
}

// scanMessages reports the marked messages that begin in b, at the beginning
// of which a message may begin if first is set.
func scanMessages(b []byte, found func(key []byte, i int), first bool) {
	field := []byte("\n" + idField)
	for i := 0; ; {
		n := bytes.Index(b[i:], field)
		if n < 0 {
			return
		}
		i += n
		begin := bytes.LastIndexByte(b[max(0, i-maxHead):i], '\n') + 1 + max(0, i-maxHead)
		line, value := b[begin:i], b[i+len(field):]
		i += len(field)
		end := bytes.IndexByte(value[:min(len(value), maxID+32)], '\n')
		if end > 0 && bytes.HasPrefix(line, from) && boundary(b, begin, first) {
			found(value[:end], begin)
		}
	}
}

// scanHoles reports where in b a zero byte stands at the beginning of a
// message.
func scanHoles(b []byte, found func(i int), first bool) {
	for i := 0; i < len(b); {
		n := bytes.IndexByte(b[i:], 0)
		if n < 0 {
			return
		}
		i += n
		if boundary(b, i, first) {
			found(i)
		}
		for i < len(b) && b[i] == 0 {
			i++
		}
	}
}

// boundary reports whether a message can begin at b[i]: behind an empty line,
// or where the file begins.
func boundary(b []byte, i int, first bool) bool {
	return i == 0 && first || i >= 2 && b[i-1] == '\n' && b[i-2] == '\n'
}
