package spooldir

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The modes of a message file. The step from one to the other commits all its
// names at once.
const (
	modeUncommitted = 0o600
	modeCommitted   = 0o640

	// modeHeld is uncommitted, and says that its submitter has held the lock of the
	// file since before it had this mode. The cleaner, of the same group, can so ask
	// whether the submitter is alive: it takes an open file to ask for a lock.
	modeHeld = 0o620
)

// uncommitted reports whether the mode of a file says that its submitter has
// not committed it. A strange umask can make it less than modeUncommitted.
func uncommitted(mode uint32) bool { return mode&0o040 == 0 }

// ErrUncommitted says that the message of a name in new or tmp is still being
// written, or that its submitter died: it is no mail, and only the cleaner may
// touch it. What has left new was committed; there it is corrupt.
var ErrUncommitted = errors.New("not committed")

// ErrGone says that a name is not where it was: somebody moved or removed it.
// For a worker that is normal, and the end of its business with the name.
var ErrGone = errors.New("the name has gone")

// CorruptError says that a file under a recipient's name cannot be a message.
// The file belongs into the directory corrupt, for a person to look at.
type CorruptError struct {
	Path   string
	Reason string
}

func (e *CorruptError) Error() string { return e.Path + ": " + e.Reason }

// Message is an open, committed message file whose envelope is sound.
// ReadAt, Size and Content concern the content alone.
type Message struct {
	*Envelope
	Submitter int       // uid that owns the file, and so submitted it or is dma's own
	Modified  time.Time // when its content was last written, before the commit

	spool  *Spool
	f      *os.File
	inode  inode
	offset int64 // where the content begins
	locked bool
}

// Open opens the message that a name in a state belongs to and checks its
// envelope, which has to name the recipient as the file name does. Errors:
// ErrGone, ErrUncommitted, a *CorruptError, anything else is trouble of the
// machine. The caller closes the message.
func (s *Spool) Open(state State, name Name) (*Message, error) {
	path := s.file(state, name.file)
	f, err := openRegular(path)
	if errors.Is(err, ErrUncommitted) && state != New && state != Tmp {
		// What is under way was committed: its owner has a descriptor of it.
		err = &CorruptError{path, "its owner has made it unreadable"}
	}
	if err != nil {
		return nil, err
	}
	m, err := s.read(f, state, path, name)
	if err != nil {
		f.Close()
		return nil, err
	}
	return m, nil
}

// OpenAny is Open for a worker to whom one name stands for all names of its
// message: if that one has gone, it opens the message by another name in the
// same state. It knows the others if it has seen the message before.
func (s *Spool) OpenAny(state State, name Name) (*Message, error) {
	m, err := s.Open(state, name)
	if !errors.Is(err, ErrGone) {
		return m, err
	}
	s.mu.Lock()
	c, ok := s.envelopes[name.ID]
	s.mu.Unlock()
	if !ok {
		return nil, err
	}
	for n := range c.env.Recipients {
		other := c.env.Name(n + 1)
		if _, err := os.Lstat(s.file(state, other.file)); err == nil {
			if m, err := s.Open(state, other); !errors.Is(err, ErrGone) {
				return m, err
			}
		}
	}
	return nil, err
}

// openRegular opens a file for reading without following a symbolic link,
// waiting for the other end of a FIFO or waking a device.
func openRegular(path string) (*os.File, error) {
	var fd int
	open := func() (err error) {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		return err
	}
	err := ignoringEINTR(open)
	if errors.Is(err, fs.ErrPermission) {
		// The mode of an uncommitted file of another user keeps us out. It may be
		// committed between the two looks.
		var st unix.Stat_t
		switch err2 := unix.Lstat(path, &st); {
		case err2 != nil || st.Mode&unix.S_IFMT != unix.S_IFREG:
		case uncommitted(uint32(st.Mode)):
			return nil, ErrUncommitted
		default:
			err = ignoringEINTR(open)
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, ErrGone
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EMLINK):
		return nil, &CorruptError{path, "a symbolic link"}
	case errors.Is(err, unix.ENXIO):
		return nil, &CorruptError{path, "not a regular file"}
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func (s *Spool) read(f *os.File, state State, path string, name Name) (*Message, error) {
	corrupt := func(format string, args ...any) error {
		return &CorruptError{path, fmt.Sprintf(format, args...)}
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok:
		return nil, fmt.Errorf("%s: no stat", path)
	case !info.Mode().IsRegular():
		return nil, corrupt("not a regular file")
	case uncommitted(uint32(info.Mode().Perm())) && (state == New || state == Tmp):
		return nil, ErrUncommitted
	case info.Mode().Perm() != modeCommitted:
		return nil, corrupt("mode %04o, which no submitter sets", info.Mode().Perm())
	}
	dev, ino := uint64(st.Dev), uint64(st.Ino)

	env := s.cachedEnvelope(name.ID, dev, ino)
	if env == nil {
		if env, err = readEnvelope(f, path); err != nil {
			return nil, err
		}
		s.cacheEnvelope(env, dev, ino)
	}
	offset := int64(env.size())
	switch {
	case env.ID != name.ID:
		return nil, corrupt("the envelope is that of message %s", env.ID)
	case name.N > len(env.Recipients):
		return nil, corrupt("the envelope has no recipient %d", name.N)
	case env.Name(name.N) != name:
		return nil, corrupt("the envelope names recipient %d as %s", name.N, env.Name(name.N))
	case info.Size() != offset+env.ContentLength:
		return nil, corrupt("%d octets of content instead of %d", info.Size()-offset, env.ContentLength)
	case env.Kind() != Submitted && int(st.Uid) != s.owner:
		return nil, corrupt("a %s message that uid %d wrote", env.Kind(), st.Uid)
	}
	return &Message{Envelope: env, Submitter: int(st.Uid), Modified: info.ModTime(), spool: s, f: f, inode: inode{dev, ino}, offset: offset}, nil
}

// readEnvelope reads the envelope at the beginning of f.
func readEnvelope(f *os.File, path string) (*Envelope, error) {
	buf := make([]byte, 4096)
	n, err := f.ReadAt(buf, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	buf = buf[:n]
	if n < firstLine {
		return nil, &CorruptError{path, "the first line is not complete"}
	}
	size, _, err := parseFirstLine(buf[:firstLine])
	if err != nil {
		return nil, &CorruptError{path, err.Error()}
	}
	if size > n {
		rest := make([]byte, size)
		copy(rest, buf)
		if _, err := f.ReadAt(rest[n:], int64(n)); err == io.EOF {
			return nil, &CorruptError{path, "the envelope is not complete"}
		} else if err != nil {
			return nil, err
		}
		buf = rest
	}
	env, err := parseEnvelope(buf[:size])
	if err != nil {
		return nil, &CorruptError{path, err.Error()}
	}
	env.encoded = size
	return env, nil
}

// cacheLimit bounds the recipients of the envelopes that a Spool remembers.
const cacheLimit = 4 * MaxRecipients

func (s *Spool) cachedEnvelope(id string, dev, ino uint64) *Envelope {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.envelopes[id]; ok && c.dev == dev && c.ino == ino {
		return c.env
	}
	return nil
}

func (s *Spool) cacheEnvelope(e *Envelope, dev, ino uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.envelopes[e.ID]; ok {
		s.cached -= len(old.env.Recipients)
	}
	for id, c := range s.envelopes {
		if s.cached+len(e.Recipients) <= cacheLimit && len(s.envelopes) < 4096 {
			break
		}
		s.cached -= len(c.env.Recipients)
		delete(s.envelopes, id)
	}
	s.cached += len(e.Recipients)
	s.envelopes[e.ID] = cachedEnvelope{dev, ino, e}
}

func (s *Spool) forgetEnvelope(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.envelopes[id]; ok {
		s.cached -= len(c.env.Recipients)
		delete(s.envelopes, id)
	}
}

// Close closes the file and gives back the lock, if it is held.
func (m *Message) Close() error {
	if m.locked {
		return errors.Join(m.Unlock(), m.f.Close())
	}
	return m.f.Close()
}

// ReadAt reads from the content.
func (m *Message) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= m.ContentLength {
		return 0, io.EOF
	}
	if room := m.ContentLength - off; int64(len(p)) > room {
		n, err := m.f.ReadAt(p[:room], m.offset+off)
		if err == nil {
			err = io.EOF
		}
		return n, err
	}
	return m.f.ReadAt(p, m.offset+off)
}

// Content returns a reader over the content from its beginning.
func (m *Message) Content() *io.SectionReader {
	return io.NewSectionReader(m.f, m.offset, m.ContentLength)
}

// Verify reads the whole content and compares it with the checksum in the
// envelope. It returns a *CorruptError if they differ: a torn write. How much there
// is to read is the submitter's word, and can be more than the disk holds.
func (m *Message) Verify(ctx context.Context) error {
	h := crc32.NewIEEE()
	content := m.Content()
	buf := make([]byte, min(m.ContentLength, 128<<10)+1)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := content.Read(buf)
		h.Write(buf[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if h.Sum32() != m.ContentChecksum {
		return &CorruptError{m.f.Name(), "the checksum of the content is wrong"}
	}
	return nil
}

// Links returns how many names the message still has, in all directories.
func (m *Message) Links() (int, error) {
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Fstat(int(m.f.Fd()), &st) }); err != nil {
		return 0, err
	}
	return int(st.Nlink), nil
}

// Lock takes the lock of the message, flock(2) on its inode, and holds it
// until Unlock or Close: the queue process while it moves names of the message,
// whoever gathers recipients of one message while it looks for their names. It
// waits for others in this process, whose work ends, and for no other process:
// then the error wraps ErrBusy.
func (m *Message) Lock(ctx context.Context) error {
	err := m.spool.lock(ctx, m.f, m.inode)
	m.locked = err == nil
	return err
}

// Unlock gives the lock back and keeps the message open.
func (m *Message) Unlock() error {
	m.locked = false
	return m.spool.unlock(m.f, m.inode)
}

// In reports whether recipient n of a message has its name in a state. A name
// of another file does not count: whoever takes that up by name finds out what
// is wrong with it.
func (s *Spool) In(m *Message, n int, state State) (bool, error) {
	var st unix.Stat_t
	path := s.file(state, m.Name(n).file)
	err := ignoringEINTR(func() error { return unix.Lstat(path, &st) })
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	return m.inode == inode{uint64(st.Dev), uint64(st.Ino)}, nil
}

// Standing returns the numbers of the recipients whose names stand in a state.
func (s *Spool) Standing(m *Message, state State) ([]int, error) {
	var numbers []int
	for n := 1; n <= len(m.Recipients); n++ {
		in, err := s.In(m, n, state)
		if err != nil {
			return nil, err
		}
		if in {
			numbers = append(numbers, n)
		}
	}
	return numbers, nil
}

// Stands reports whether any recipient of m has its name in one of states.
func (s *Spool) Stands(m *Message, states ...State) (bool, error) {
	for _, state := range states {
		for n := 1; n <= len(m.Recipients); n++ {
			if in, err := s.In(m, n, state); in || err != nil {
				return in, err
			}
		}
	}
	return false, nil
}

// Find returns the states in which a name stands, in the order of States.
func (s *Spool) Find(name Name) ([]State, error) {
	var in []State
	for _, state := range States() {
		var st unix.Stat_t
		path := s.file(state, name.file)
		err := ignoringEINTR(func() error { return unix.Lstat(path, &st) })
		if err == nil {
			in = append(in, state)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, &fs.PathError{Op: "lstat", Path: path, Err: err}
		}
	}
	return in, nil
}

// SubmittedBy returns the uid of whoever handed a message in. The envelope's
// word counts only in a file that the owner of the spool wrote, such as one that
// came through the socket; any other file was written by its submitter.
func (s *Spool) SubmittedBy(m *Message) int {
	if m.Submitter == s.owner {
		return m.UID
	}
	return m.Submitter
}
