package spooldir

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
)

// longJournal is the size from which what a journal says is remembered, in
// octets.
const longJournal = 16 << 10

// Deliveries is what journals say of who is delivered or expanded. A long journal is read
// on from where it ended the last time: a message for thousands of mailboxes is
// asked about for each of them, and has a line more each time. The zero value is
// ready; it may be used by several goroutines.
type Deliveries struct {
	mu   sync.Mutex
	long map[string]*delivered // by message id
}

// delivered is what one journal says.
type delivered struct {
	mu      sync.Mutex
	info    fs.FileInfo
	read    int64 // octets, up to the end of a line
	numbers map[int]bool
}

// Of reads the journal of a message as far as it is new, and returns whether a
// recipient is done: delivered, or expanded into a child. A journal that is not there says nothing.
func (d *Deliveries) Of(s *Spool, id string) (func(n int) bool, error) {
	f, err := openRegular(s.journal(id))
	if errors.Is(err, ErrGone) {
		return func(int) bool { return false }, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", f.Name())
	case info.Size() > maxJournal:
		return nil, fmt.Errorf("%s has %d octets, more than is read", f.Name(), info.Size())
	}
	d.mu.Lock()
	j := d.long[id]
	if j == nil {
		j = new(delivered)
		if info.Size() >= longJournal {
			if d.long == nil {
				d.long = make(map[string]*delivered)
			}
			d.long[id] = j
		}
	}
	d.mu.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.readOn(f, info); err != nil {
		return nil, err
	}
	return func(n int) bool {
		j.mu.Lock()
		defer j.mu.Unlock()
		return j.numbers[n]
	}, nil
}

func (j *delivered) readOn(f *os.File, info fs.FileInfo) error {
	if j.info == nil || !os.SameFile(j.info, info) || info.Size() < j.read {
		j.read, j.numbers = 0, make(map[int]bool)
	}
	j.info = info
	br := bufio.NewReader(io.NewSectionReader(f, j.read, max(info.Size()-j.read, 0)))
	for {
		line, err := br.ReadBytes('\n')
		if err == io.EOF {
			return nil // what is left may be a line that is being written
		}
		if err != nil {
			return err
		}
		j.read += int64(len(line))
		e, err := ParseEntry(line[:len(line)-1])
		if err != nil || !e.binds() {
			continue
		}
		for _, n := range e.Recipients {
			j.numbers[n] = true
		}
	}
}

// Forget lets go of what is known of a message.
func (d *Deliveries) Forget(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.long, id)
}
