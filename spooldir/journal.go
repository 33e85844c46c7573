package spooldir

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"dma/internal/address"

	"golang.org/x/sys/unix"
)

// Event is what a journal line tells.
type Event string

// The events of a journal. Only Delivered binds: whoever takes a recipient up
// that a Delivered line lists moves it to sent. The others are history.
const (
	Queued    Event = "queued"    // the queue process saw the message for the first time
	Expanded  Event = "expanded"  // into a child message
	Delivered Event = "delivered" // a mailbox or another host has it
	Deferred  Event = "deferred"  // failed for now; Next says when again
	Refused   Event = "refused"   // not tried, since its destination is backing off; Next says when
	Failed    Event = "failed"    // failed for good
	Noticed   Event = "noticed"   // a delay notice was committed
	Bounced   Event = "bounced"   // a bounce was committed, or nobody wants one
	Kept      Event = "kept"      // failed, and so did its bounce: a person has to look
)

// Entry is one line of a journal.
type Entry struct {
	Time       time.Time // to the microsecond
	Event      Event
	Recipients []int // ascending; empty means the message as a whole
	Status     string
	Relay      string
	Reply      string    // the remote or local reason, untrusted text
	Next       time.Time // Deferred, Refused: when it is due again
	DSN        bool      // Delivered: the relay reports to the sender from here on
}

// Relayed reports whether somebody else has to report the delivery.
func (e *Entry) Relayed() bool { return e.DSN }

// Encode renders the line: time, event, recipients, fields, checksum.
func (e *Entry) Encode() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "%d.%06d %s %s", e.Time.Unix(), e.Time.Nanosecond()/1000, e.Event, encodeNumbers(e.Recipients))
	for _, kv := range [...][2]string{{"status", e.Status}, {"relay", e.Relay}, {"reply", e.Reply}} {
		if kv[1] != "" {
			b.WriteString(" " + kv[0] + "=" + address.Encode(kv[1]))
		}
	}
	if !e.Next.IsZero() {
		fmt.Fprintf(&b, " next=%d.%06d", e.Next.Unix(), e.Next.Nanosecond()/1000)
	}
	if e.DSN {
		b.WriteString(" dsn=relayed")
	}
	sum := crc32.Checksum([]byte(b.String()), castagnoli)
	return fmt.Appendf(nil, "%s #%08x\n", b.String(), sum)
}

// ParseEntry reads one line, without its newline.
func ParseEntry(line []byte) (Entry, error) {
	text, sum, ok := strings.Cut(string(line), " #")
	if !ok {
		return Entry{}, errors.New("no checksum")
	}
	if c, err := parseHex32(sum); err != nil || c != crc32.Checksum([]byte(text), castagnoli) {
		return Entry{}, errors.New("wrong checksum")
	}
	fields := strings.Split(text, " ")
	if len(fields) < 3 {
		return Entry{}, errors.New("too short")
	}
	var e Entry
	var err error
	if e.Time, err = parseStamp(fields[0]); err != nil {
		return Entry{}, err
	}
	switch e.Event = Event(fields[1]); e.Event {
	case Queued, Expanded, Delivered, Deferred, Refused, Failed, Noticed, Bounced, Kept:
	default:
		return Entry{}, errors.New("unknown event")
	}
	if e.Recipients, err = decodeNumbers(fields[2]); err != nil {
		return Entry{}, err
	}
	for _, f := range fields[3:] {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case "status":
			e.Status, err = address.Decode(value)
		case "relay":
			e.Relay, err = address.Decode(value)
		case "reply":
			e.Reply, err = address.Decode(value)
		case "next":
			e.Next, err = parseStamp(value)
		case "dsn":
			e.DSN = true
			if value != "relayed" {
				err = errors.New("unknown value")
			}
		default:
			err = errors.New("unknown field")
		}
		if err != nil {
			return Entry{}, err
		}
	}
	return e, nil
}

// encodeNumbers writes 1,2,3,7 as "1-3,7", and none as "-".
func encodeNumbers(numbers []int) string {
	if len(numbers) == 0 {
		return "-"
	}
	var b strings.Builder
	for i := 0; i < len(numbers); {
		j := i
		for j+1 < len(numbers) && numbers[j+1] == numbers[j]+1 {
			j++
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(numbers[i]))
		if j > i {
			b.WriteString("-" + strconv.Itoa(numbers[j]))
		}
		i = j + 1
	}
	return b.String()
}

func decodeNumbers(s string) ([]int, error) {
	if s == "-" {
		return nil, nil
	}
	var numbers []int
	for _, part := range strings.Split(s, ",") {
		lo, hi, isRange := strings.Cut(part, "-")
		if !isRange {
			hi = lo
		}
		a, err1 := strconv.Atoi(lo)
		b, err2 := strconv.Atoi(hi)
		if err1 != nil || err2 != nil || a < 1 || b < a || b > MaxRecipients ||
			len(numbers) > 0 && a <= numbers[len(numbers)-1] {
			return nil, errors.New("bad list of recipients")
		}
		for n := a; n <= b; n++ {
			numbers = append(numbers, n)
		}
	}
	return numbers, nil
}

// Journal is what a journal file says, in the order in which it was written.
type Journal struct {
	Entries []Entry
	Damaged int // lines that a torn write has spoilt, and that say nothing
}

// Delivered reports whether recipient n is delivered.
func (j *Journal) Delivered(n int) bool {
	for i := range j.Entries {
		if e := &j.Entries[i]; e.Event == Delivered && contains(e.Recipients, n) {
			return true
		}
	}
	return false
}

// Attempts returns how often recipient n was tried in vain. Times at which
// its destination's back-off refused it do not count.
func (j *Journal) Attempts(n int) int {
	count := 0
	for i := range j.Entries {
		if e := &j.Entries[i]; e.Event == Deferred && contains(e.Recipients, n) {
			count++
		}
	}
	return count
}

// Last returns the newest entry about recipient n that names a reason, nil if
// there is none.
func (j *Journal) Last(n int) *Entry {
	for i := len(j.Entries) - 1; i >= 0; i-- {
		if e := &j.Entries[i]; e.Status != "" && contains(e.Recipients, n) {
			return e
		}
	}
	return nil
}

// Next returns when recipient n is due again; the zero time means at once.
func (j *Journal) Next(n int) time.Time {
	for i := len(j.Entries) - 1; i >= 0; i-- {
		if e := &j.Entries[i]; !e.Next.IsZero() && contains(e.Recipients, n) {
			return e.Next
		}
	}
	return time.Time{}
}

// Has reports whether the journal has an event for recipient n.
func (j *Journal) Has(event Event, n int) bool {
	for i := range j.Entries {
		if e := &j.Entries[i]; e.Event == event && (len(e.Recipients) == 0 || contains(e.Recipients, n)) {
			return true
		}
	}
	return false
}

func contains(sorted []int, n int) bool {
	_, ok := slices.BinarySearch(sorted, n)
	return ok
}

// maxJournal bounds how much of a journal is read, in octets.
const maxJournal = 64 << 20

// ReadJournal reads the journal of a message. Damaged lines are passed over
// and counted. A missing journal is an error that wraps fs.ErrNotExist.
func (s *Spool) ReadJournal(id string) (*Journal, error) {
	f, err := openRegular(s.journal(id))
	if errors.Is(err, ErrGone) {
		err = &fs.PathError{Op: "open", Path: s.journal(id), Err: fs.ErrNotExist}
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseJournal(io.LimitReader(f, maxJournal))
}

func parseJournal(r io.Reader) (*Journal, error) {
	j := &Journal{}
	br := bufio.NewReader(r)
	for {
		line, err := br.ReadBytes('\n')
		if err != nil && err != io.EOF {
			return nil, err
		}
		if body, whole := bytes.CutSuffix(line, []byte("\n")); whole && len(body) > 0 {
			if e, err := ParseEntry(body); err == nil {
				j.Entries = append(j.Entries, e)
			} else {
				j.Damaged++
			}
		} else if len(line) > 0 && !whole {
			j.Damaged++
		}
		if err == io.EOF {
			return j, nil
		}
	}
}

func (s *Spool) journal(id string) string { return s.file(LogDir, id) }

// CreateJournal makes the empty journal of a message if there is none, and
// reports whether it made one. Only the queue process does so: it makes it
// before a recipient leaves new.
func (s *Spool) CreateJournal(id string) (bool, error) {
	fd := -1
	err := ignoringEINTR(func() (err error) {
		fd, err = unix.Open(s.journal(id), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o660)
		return err
	})
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "create", Path: s.journal(id), Err: err}
	}
	return true, unix.Close(fd)
}

// AppendJournal adds lines to the journal of a message, which has to exist
// (an error that wraps fs.ErrNotExist says that it does not). With sync it
// returns only when they are on disk.
func (s *Spool) AppendJournal(id string, sync bool, entries ...Entry) error {
	path := s.journal(id)
	fd := -1
	err := ignoringEINTR(func() (err error) {
		fd, err = unix.Open(path, unix.O_RDWR|unix.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	var lines []byte
	if torn, err := endsTorn(f); err != nil {
		return err
	} else if torn {
		lines = append(lines, '\n') // ends a line that a crash cut off
	}
	for i := range entries {
		lines = append(lines, entries[i].Encode()...)
	}
	if _, err := f.Write(lines); err != nil {
		return err
	}
	if sync {
		return f.Sync()
	}
	return nil
}

// endsTorn reports whether the last octet of f is no newline.
func endsTorn(f *os.File) (bool, error) {
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return false, err
	}
	var last [1]byte
	if _, err := f.ReadAt(last[:], info.Size()-1); err != nil {
		return false, err
	}
	return last[0] != '\n', nil
}

// RemoveJournal removes the journal of a message whose last name is gone.
func (s *Spool) RemoveJournal(id string) error {
	s.forgetEnvelope(id)
	err := ignoringEINTR(func() error { return unix.Unlink(s.journal(id)) })
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &fs.PathError{Op: "unlink", Path: s.journal(id), Err: err}
	}
	return nil
}

// Due returns the mtime of a journal: when the first recipient of the message
// is due again. The zero time means that there is no journal.
func (s *Spool) Due(id string) (time.Time, error) {
	var st unix.Stat_t
	err := ignoringEINTR(func() error { return unix.Lstat(s.journal(id), &st) })
	if errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, &fs.PathError{Op: "lstat", Path: s.journal(id), Err: err}
	}
	return time.Unix(st.Mtim.Unix()), nil
}

// SetDue sets the mtime of a journal. The queue process does so after each
// append and at start.
func (s *Spool) SetDue(id string, due time.Time) error {
	if err := os.Chtimes(s.journal(id), due, due); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Merge adds an entry to others. Recipients with the same story share a line.
func Merge(entries []Entry, e Entry) []Entry {
	for i := range entries {
		o := &entries[i]
		if o.Event == e.Event && o.Status == e.Status && o.Relay == e.Relay && o.Reply == e.Reply && o.DSN == e.DSN && o.Time.Equal(e.Time) && o.Next.Equal(e.Next) {
			sorted := len(o.Recipients) == 0 || len(e.Recipients) == 0 || e.Recipients[0] > o.Recipients[len(o.Recipients)-1]
			o.Recipients = append(o.Recipients, e.Recipients...)
			if !sorted {
				slices.Sort(o.Recipients)
				o.Recipients = slices.Compact(o.Recipients)
			}
			return entries
		}
	}
	return append(entries, e)
}
