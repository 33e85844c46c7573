package sendmail

import (
	"fmt"
	"io"
)

// body keeps the body of a message, in memory or, where it is long, in a
// scratch file.
type body struct {
	create   func() (Scratch, error)
	buf      []byte // all of it, or what is not in file yet
	file     Scratch
	eightBit bool // it has an octet above 127
}

// spillSize is how much is written to a scratch file at once, in octets.
const spillSize = 256 << 10

func (b *body) write(p []byte) error {
	b.eightBit = b.eightBit || !isASCII(p)
	b.buf = append(b.buf, p...)
	if len(b.buf) < spillSize || b.file == nil && len(b.buf) <= maxMemory {
		return nil
	}
	if b.file == nil {
		f, err := b.create()
		if err != nil {
			return fmt.Errorf("keeping a long message: %w", err)
		}
		b.file = f
	}
	return b.spill()
}

func (b *body) spill() error {
	_, err := b.file.Write(b.buf)
	b.buf = b.buf[:0]
	if err != nil {
		return fmt.Errorf("keeping a long message: %w", err)
	}
	return nil
}

func (b *body) writeTo(w io.Writer) error {
	if b.file == nil {
		_, err := w.Write(b.buf)
		return err
	}
	if err := b.spill(); err != nil {
		return err
	}
	if _, err := b.file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("reading back a long message: %w", err)
	}
	buf := make([]byte, spillSize)
	for {
		n, err := b.file.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading back a long message: %w", err)
		}
	}
}

func (b *body) close() {
	if b.file != nil {
		b.file.Close() // a file without a name: there is nothing to lose
	}
}

// crlfWriter writes LF for every CRLF.
type crlfWriter struct {
	w   io.Writer
	cr  bool // a CR is held back
	buf []byte
}

func (c *crlfWriter) Write(p []byte) (int, error) {
	c.buf = c.buf[:0]
	for _, b := range p {
		if c.cr && b != '\n' {
			c.buf = append(c.buf, '\r')
		}
		if c.cr = b == '\r'; !c.cr {
			c.buf = append(c.buf, b)
		}
	}
	if _, err := c.w.Write(c.buf); err != nil {
		return 0, err
	}
	return len(p), nil
}

// flush writes a CR that is the last octet of all.
func (c *crlfWriter) flush() error {
	if !c.cr {
		return nil
	}
	c.cr = false
	_, err := c.w.Write([]byte{'\r'})
	return err
}

func isASCII(p []byte) bool {
	for _, c := range p {
		if c >= 0x80 {
			return false
		}
	}
	return true
}
