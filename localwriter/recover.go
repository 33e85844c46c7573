package localwriter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// Mend implements Session.
func (s *mboxSession) Mend(ctx context.Context, m Message) error {
	return failure(opMend, s.box.Path, s.mendTail(ctx, m))
}

func (s *mboxSession) mendTail(ctx context.Context, m Message) error {
	if err := errors.Join(s.failed, m.check(), ctx.Err(), s.flush()); err != nil {
		return err
	}
	off, ok, err := s.seek(ctx, m)
	if err != nil {
		return err
	}
	if !ok {
		return s.cutTail(m)
	}
	how, err := s.compare(m, off)
	if err != nil || how.place != lost || off+how.size <= s.size {
		return err
	}
	return s.cut(off)
}

// seek returns where the message begins.
func (s *mboxSession) seek(ctx context.Context, m Message) (off int64, ok bool, err error) {
	if s.found == nil {
		if s.found, err = s.search(ctx); err != nil {
			return 0, false, err
		}
	}
	return s.find(ctx, m.key())
}

// recover looks for a Suspect message. Done tells that nothing is left to write;
// otherwise the mailbox is ready to have the message appended.
func (s *mboxSession) recover(ctx context.Context, m Message) (done, already bool, err error) {
	if err := s.flush(); err != nil {
		return false, false, err
	}
	off, ok, err := s.seek(ctx, m)
	if err != nil {
		return false, false, err
	}
	if ok {
		return s.mend(m, off)
	}
	for _, hole := range s.found.holes {
		how, err := s.compare(m, hole)
		if err != nil {
			return false, false, err
		}
		if how.place == lost && how.kept >= enoughKept {
			return s.mend(m, hole)
		}
	}
	return false, false, s.cutTail(m)
}

// enoughKept is how many bytes of a message have to have survived at their
// place to believe that zero bytes before them belong to it.
const enoughKept = 32

// mend does what has to be done about a message that begins at off.
func (s *mboxSession) mend(m Message, off int64) (done, already bool, err error) {
	how, err := s.compare(m, off)
	if err != nil {
		return false, false, err
	}
	switch how.place {
	case whole:
		return true, true, s.rewrite(m, off)
	case lost:
		empty, err := s.zeroFrom(min(off+how.size, s.size))
		if err != nil {
			return false, false, err
		}
		if empty {
			return false, false, s.cut(off)
		}
		return true, false, s.rewrite(m, off)
	}
	if lost, err := s.zeroAt(off - 1); lost || err != nil {
		return false, false, err // it is not where a reader would have seen it
	}
	marked, err := s.marked(m, off)
	return marked, marked, err
}

// cut removes what stands at the end of the file.
func (s *mboxSession) cut(off int64) error {
	if err := s.truncate(off, s.size); err != nil {
		return err
	}
	s.found.forget(off)
	return s.readTail()
}

// A place says what stands where a message should.
type place int

const (
	other place = iota // something else
	whole              // the message
	lost               // the message, with zero bytes for some of it, or cut off by the end of the file
)

// A comparison is what compare found.
type comparison struct {
	place place
	kept  int64 // bytes that are in the file and not zero
	size  int64 // length of the rendering, if place is not other
}

// compare holds the rendering of m against the file from off on.
func (s *mboxSession) compare(m Message, off int64) (comparison, error) {
	s.read = true
	c := comparison{place: whole}
	r := m.render()
	want, have := make([]byte, 32<<10), make([]byte, 32<<10)
	for {
		n, err := io.ReadFull(r, want)
		if n == 0 && err == io.EOF {
			return c, nil
		}
		if err != nil && err != io.ErrUnexpectedEOF {
			return comparison{}, fmt.Errorf("reading the message: %w", err)
		}
		at := off + c.size
		c.size += int64(n)
		got := min(max(s.size-at, 0), int64(n))
		if _, err := s.f.ReadAt(have[:got], at); err != nil {
			return comparison{}, err
		}
		if got < int64(n) {
			c.place = lost
		}
		if bytes.Equal(want[:got], have[:got]) {
			c.kept += got - int64(bytes.Count(have[:got], []byte{0}))
			continue
		}
		for i, b := range have[:got] {
			switch {
			case b == want[i]:
				if b != 0 {
					c.kept++
				}
			case b == 0:
				c.place = lost
			default:
				return comparison{}, nil
			}
		}
	}
}

// rewrite writes m at off, over itself.
func (s *mboxSession) rewrite(m Message, off int64) error {
	fd := s.f.Fd()
	flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	// With O_APPEND, pwrite(2) of Linux writes at the end, whatever it is told.
	if _, err := unix.FcntlInt(fd, unix.F_SETFL, flags&^unix.O_APPEND); err != nil {
		return err
	}
	end, err := writeAt(int(fd), m.render(), off)
	if _, resetErr := unix.FcntlInt(fd, unix.F_SETFL, flags); resetErr != nil {
		s.failed = resetErr
	}
	if err = errors.Join(err, s.failed); err != nil {
		return err
	}
	s.size = max(s.size, end)
	s.found.filled(off, end)
	if zero, err := s.zeroAt(end); err != nil {
		return err
	} else if zero {
		s.found.addHole(end)
	}
	return s.readTail()
}

// writeAt writes all of r at off, and returns where it ends.
func writeAt(fd int, r io.Reader, off int64) (end int64, err error) {
	buf := make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(r, buf)
		if n == 0 && err == io.EOF {
			return off, nil
		}
		if err != nil && err != io.ErrUnexpectedEOF {
			return off, err
		}
		for b := buf[:n]; len(b) > 0; {
			w, err := unix.Pwrite(fd, b, off)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err == nil && w == 0 {
				err = io.ErrShortWrite
			}
			if err != nil {
				return off, err
			}
			b, off = b[w:], off+int64(w)
		}
	}
}

// cutTail removes, from the end of the file, a beginning of m that is too short
// to name it, and zero bytes behind a complete message.
func (s *mboxSession) cutTail(m Message) error {
	end, err := s.lastNonZero()
	if err != nil {
		return err
	}
	b := make([]byte, min(end, maxHead+2))
	if _, err := s.f.ReadAt(b, end-int64(len(b))); err != nil && err != io.EOF {
		return err
	}
	// Neither line of the head is empty, so it can begin only behind the last
	// empty line, or where the file begins.
	begin := bytes.LastIndex(b, []byte("\n\n"))
	switch {
	case begin >= 0:
		begin += 2
	case int64(len(b)) == end:
		begin = 0
	default:
		return nil
	}
	if !bytes.HasPrefix([]byte(m.head()), b[begin:]) {
		return nil
	}
	if off := end - int64(len(b)-begin); off < s.size {
		return s.cut(off)
	}
	return nil
}

// lastNonZero returns the length of the file without the zero bytes at its end.
func (s *mboxSession) lastNonZero() (int64, error) {
	s.read = true
	buf := make([]byte, 64<<10)
	for end := s.size; end > 0; {
		b := buf[:min(end, int64(len(buf)))]
		if _, err := s.f.ReadAt(b, end-int64(len(b))); err != nil && err != io.EOF {
			return 0, err
		}
		if rest := bytes.TrimRight(b, "\x00"); len(rest) > 0 {
			return end - int64(len(b)-len(rest)), nil
		}
		end -= int64(len(b))
	}
	return 0, nil
}

// zeroFrom reports whether nothing but zero bytes stands from off on.
func (s *mboxSession) zeroFrom(off int64) (bool, error) {
	buf := make([]byte, 64<<10)
	for off < s.size {
		b := buf[:min(s.size-off, int64(len(buf)))]
		if _, err := s.f.ReadAt(b, off); err != nil {
			return false, err
		}
		if len(bytes.TrimLeft(b, "\x00")) > 0 {
			return false, nil
		}
		off += int64(len(b))
	}
	return true, nil
}

// zeroAt reports whether a zero byte stands at off.
func (s *mboxSession) zeroAt(off int64) (bool, error) {
	if off < 0 || off >= s.size {
		return false, nil
	}
	var b [1]byte
	_, err := s.f.ReadAt(b[:], off)
	return b[0] == 0, err
}
