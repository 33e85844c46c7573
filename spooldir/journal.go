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

// The events of a journal. Delivered and Expanded bind: whoever takes a recipient
// up that such a line lists moves it to sent. The others are history, and keep a
// sender from being told twice.
const (
	Queued    Event = "queued"    // the queue process saw the message for the first time
	Expanded  Event = "expanded"  // into a child message
	Delivered Event = "delivered" // a mailbox or another host has it
	Deferred  Event = "deferred"  // failed for now; Next says when again
	Refused   Event = "refused"   // due, and not tried, since its destination is backing off; Next says when
	Failed    Event = "failed"    // failed for good
	Noticed   Event = "noticed"   // a delay notice was committed
	Bounced   Event = "bounced"   // a bounce was committed, or nobody wants one
	Reported  Event = "reported"  // a success report was committed
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
	DSN        bool      // Delivered, Expanded: somebody else reports to the sender from here on
	Owner      *int      // Queued: the uid that owns the message file
	Uncertain  bool      // Deferred: the peer had the whole message and did not answer; it may have taken it
}

// binds reports whether who takes its recipients up moves them to sent.
func (e *Entry) binds() bool { return e.Event == Delivered || e.Event == Expanded }

// Relayed reports whether somebody else has to report the delivery.
func (e *Entry) Relayed() bool { return e.DSN }

// maxReply is how much of a reply a journal keeps, in octets: a message with
// thousands of recipients and as many replies is to have a journal that can
// still be read.
const maxReply = 256

// Encode renders the line: time, event, recipients, fields, checksum. A long
// reply is cut.
func (e *Entry) Encode() []byte {
	var b strings.Builder
	reply := e.Reply
	if len(reply) > maxReply {
		reply = strings.ToValidUTF8(reply[:maxReply], "") + "..."
	}
	fmt.Fprintf(&b, "%d.%06d %s %s", e.Time.Unix(), e.Time.Nanosecond()/1000, e.Event, encodeNumbers(e.Recipients))
	for _, kv := range [...][2]string{{"status", e.Status}, {"relay", e.Relay}, {"reply", reply}} {
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
	if e.Owner != nil {
		fmt.Fprintf(&b, " owner=%d", *e.Owner)
	}
	if e.Uncertain {
		b.WriteString(" duplicate=possible")
	}
	sum := crc32.ChecksumIEEE([]byte(b.String()))
	return fmt.Appendf(nil, "%s #%08x\n", b.String(), sum)
}

// ParseEntry reads one line, without its newline.
func ParseEntry(line []byte) (Entry, error) {
	text, sum, ok := strings.Cut(string(line), " #")
	if !ok {
		return Entry{}, errors.New("no checksum")
	}
	if c, err := parseHex32(sum); err != nil || c != crc32.ChecksumIEEE([]byte(text)) {
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
	case Queued, Expanded, Delivered, Deferred, Refused, Failed, Noticed, Bounced, Reported, Kept:
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
		case "owner":
			var uid int
			uid, err = strconv.Atoi(value)
			e.Owner = &uid
			if err == nil && (uid < 0 || strconv.Itoa(uid) != value) {
				err = errors.New("no uid")
			}
		case "dsn":
			e.DSN = true
			if value != "relayed" {
				err = errors.New("unknown value")
			}
		case "duplicate":
			e.Uncertain = true
			if value != "possible" {
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

	index map[int]*history // by recipient, once somebody asks
	all   map[Event]bool   // events of the message as a whole
}

// history is what a journal says about one recipient.
type history struct {
	attempts int
	last     *Entry // the newest that has a status
	outcome  *Entry // the newest that is an end
	next     time.Time
	events   map[Event]bool

	uncertain bool
}

// about returns the history of recipient n.
func (j *Journal) about(n int) *history {
	if j.index == nil {
		j.index, j.all = make(map[int]*history), make(map[Event]bool)
		for i := range j.Entries {
			e := &j.Entries[i]
			if len(e.Recipients) == 0 {
				j.all[e.Event] = true
			}
			for _, r := range e.Recipients {
				h := j.index[r]
				if h == nil {
					h = &history{events: make(map[Event]bool)}
					j.index[r] = h
				}
				h.add(e)
			}
		}
	}
	if h := j.index[n]; h != nil {
		return h
	}
	return &history{}
}

func (h *history) add(e *Entry) {
	h.events[e.Event] = true
	if e.binds() {
		h.outcome = e
	}
	if e.Event == Deferred || e.Event == Refused {
		h.attempts++
	}
	h.uncertain = h.uncertain || e.Uncertain
	if e.Status != "" {
		h.last = e
	}
	if !e.Next.IsZero() {
		h.next = e.Next
	}
}

// Delivered reports whether recipient n is delivered.
func (j *Journal) Delivered(n int) bool { return j.about(n).events[Delivered] }

// Outcome returns the newest entry that says that nothing is left to do for
// recipient n: that it is delivered, or that a committed child has taken its place.
// It is nil if there is none.
func (j *Journal) Outcome(n int) *Entry { return j.about(n).outcome }

// Attempts returns how often recipient n was due in vain. Times at which its
// destination's back-off refused it count: behind a host that is down for good
// mail has to expire like other mail.
func (j *Journal) Attempts(n int) int { return j.about(n).attempts }

// Uncertain reports whether a peer may have the message for recipient n from an
// attempt that failed.
func (j *Journal) Uncertain(n int) bool { return j.about(n).uncertain }

// Last returns the newest entry about recipient n that names a reason, nil if
// there is none.
func (j *Journal) Last(n int) *Entry { return j.about(n).last }

// Next returns when recipient n is due again; the zero time means at once.
func (j *Journal) Next(n int) time.Time { return j.about(n).next }

// Has reports whether the journal has an event for recipient n, or for the
// message as a whole.
func (j *Journal) Has(event Event, n int) bool {
	return j.about(n).events[event] || j.all[event]
}

// Owner returns the uid that owned the file of the message when it was taken
// up first, -1 if the journal does not say.
func (j *Journal) Owner() int {
	for i := range j.Entries {
		if e := &j.Entries[i]; e.Event == Queued && e.Owner != nil {
			return *e.Owner
		}
	}
	return -1
}

// maxJournal bounds the journal that is read, in octets. The beginning of a
// larger one would not say what was delivered since: it is an error.
const maxJournal = 256 << 20

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
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if info.Size() > maxJournal {
		return nil, fmt.Errorf("%s has %d octets, more than is read", f.Name(), info.Size())
	}
	return parseJournal(io.LimitReader(f, maxJournal)) // it may grow meanwhile
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
		fd, err = unix.Open(s.journal(id), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, modeJournal)
		return err
	})
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if full(err) && s.ReleaseBallast() {
		return s.CreateJournal(id)
	}
	if err != nil {
		return false, &fs.PathError{Op: "create", Path: s.journal(id), Err: err}
	}
	if s.shared {
		// The net process appends by the group, whatever our umask.
		if err := unix.Fchmod(fd, modeJournal); err != nil {
			unix.Close(fd)
			return true, &fs.PathError{Op: "chmod", Path: s.journal(id), Err: err}
		}
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
	n, err := f.Write(lines)
	if full(err) && s.ReleaseBallast() {
		if n > 0 { // begin a line of its own
			lines = append([]byte("\n"), lines...)
		}
		_, err = f.Write(lines)
	}
	if err != nil {
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
	// Looking at the newest ones is enough for replies that repeat, and keeps
	// ten thousand different ones cheap.
	for i := len(entries) - 1; i >= max(0, len(entries)-16); i-- {
		o := &entries[i]
		if o.Event == e.Event && o.Status == e.Status && o.Relay == e.Relay && o.Reply == e.Reply && o.DSN == e.DSN && o.Owner == e.Owner && o.Uncertain == e.Uncertain && o.Time.Equal(e.Time) && o.Next.Equal(e.Next) {
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
