package spooldir

import (
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"time"

	"dma/internal/address"
)

// RecipientKind says what the name of a recipient stands for.
type RecipientKind byte

// The kinds of recipient. All but Address occur only in messages of kind
// Child, which only the queue process makes.
const (
	Address   RecipientKind = iota // a mail address, to be routed
	LocalUser                      // the local user User, without aliases: they have been applied
	Mailbox                        // the mailbox of User, without aliases and .forward
	File                           // the file or, with a final slash, Maildir named by Target, as User
	Command                        // the command line Target, as User
)

var recipientKinds = [...]string{"address", "user", "mailbox", "file", "command"}

func (k RecipientKind) String() string { return recipientKinds[k] }

// Recipient is one recipient of an envelope.
type Recipient struct {
	Kind     RecipientKind
	Address  string // the mail address; for a mailbox, file or command the address whose expansion named it
	User     string // all but address: the local user as whom it is delivered
	Detail   string // all but address: what follows the + of user+detail
	Target   string // file, command: the path or the command line, as the user wrote it
	Source   string // file, command: the file that lists it: "forward" or "aliases"
	Original string // the address as first submitted, where an expansion changed it
	Notify   string // RFC 3461 NOTIFY as given: "NEVER" or a list of SUCCESS, FAILURE, DELAY
	ORCPT    string // RFC 3461 ORCPT as given, in xtext
}

// Label is the text that stands for the recipient in its file name.
func (r *Recipient) Label() string {
	switch r.Kind {
	case LocalUser, Mailbox:
		return r.User
	case File:
		return r.User + "=" + r.Target
	case Command:
		return r.User + "=|" + r.Target
	}
	return r.Address
}

// Parent names a recipient whose step a message of dma's own finishes: the
// expanded recipient of a child, a reported one of a bounce.
type Parent struct {
	Name Name
}

// Envelope is everything about a message that is not its content.
type Envelope struct {
	ID         string
	Arrival    time.Time // to the microsecond
	Sender     string    // "" is the null sender
	UID        int       // who submitted it, as the process that wrote the file states; -1 unknown
	EightBit   bool      // the content has octets above 127
	UTF8       bool      // an address or header field has (RFC 6531)
	Return     string    // RFC 3461 RET: "", "FULL" or "HDRS"
	EnvelopeID string    // RFC 3461 ENVID as given, in xtext
	Depth      int       // how many expansions led here; bounds loops
	Parents    []Parent  // child, bounce, success, delay
	Recipients []Recipient

	ContentLength   int64
	ContentChecksum uint32 // CRC-32

	encoded int // octets of the envelope in the file
}

// Kind is the kind of message, as its id shows it.
func (e *Envelope) Kind() Kind {
	k, _ := IDKind(e.ID)
	return k
}

// Name returns the file name of recipient n, counted from 1.
func (e *Envelope) Name(n int) Name { return NewName(e.ID, n, e.Recipients[n-1].Label()) }

// magic begins every message file and names the version of the format.
const magic = "dma-message 1"

// maxEnvelope bounds the envelope that a reader accepts, in octets. The
// largest legal one, MaxRecipients of the longest addresses, stays below.
const maxEnvelope = 64 << 20

// firstLine is the length of the first line, which is the same for all:
// magic, " crc32=" and 8 digits, " size=" and 10 digits, newline.
const firstLine = len(magic) + 7 + 8 + 6 + 10 + 1

// encode renders the envelope. Its length does not depend on ContentLength
// and ContentChecksum, so that it can be written again when these are known.
func (e *Envelope) encode() []byte {
	var b strings.Builder
	field := func(key string, values ...string) {
		b.WriteString(key)
		for _, v := range values {
			b.WriteByte(' ')
			b.WriteString(v)
		}
		b.WriteByte('\n')
	}
	pair := func(key, value string) string { return key + "=" + address.Encode(value) }

	field("id", e.ID)
	field("content", fmt.Sprintf("%020d", e.ContentLength), fmt.Sprintf("crc32=%08x", e.ContentChecksum))
	field("arrival", fmt.Sprintf("%d.%06d", e.Arrival.Unix(), e.Arrival.Nanosecond()/1000))
	field("sender", address.Encode(e.Sender))
	field("uid", strconv.Itoa(e.UID))
	if e.EightBit {
		field("body", "8bit")
	}
	if e.UTF8 {
		field("smtputf8")
	}
	if e.Return != "" {
		field("ret", e.Return)
	}
	if e.EnvelopeID != "" {
		field("envid", address.Encode(e.EnvelopeID))
	}
	if e.Depth != 0 {
		field("depth", strconv.Itoa(e.Depth))
	}
	for _, p := range e.Parents {
		field("parent", p.Name.String())
	}
	field("recipients", strconv.Itoa(len(e.Recipients)))
	for i := range e.Recipients {
		r := &e.Recipients[i]
		values := []string{strconv.Itoa(i + 1), r.Kind.String(), pair("address", r.Address)}
		for _, kv := range [...][2]string{
			{"user", r.User}, {"detail", r.Detail}, {"target", r.Target}, {"source", r.Source},
			{"original", r.Original}, {"notify", r.Notify}, {"orcpt", r.ORCPT},
		} {
			if kv[1] != "" {
				values = append(values, pair(kv[0], kv[1]))
			}
		}
		field("to", values...)
	}
	b.WriteByte('\n')

	size := firstLine + b.Len()
	rest := fmt.Sprintf(" size=%010d\n", size) + b.String()
	return []byte(fmt.Sprintf("%s crc32=%08x", magic, crc32.ChecksumIEEE([]byte(rest))) + rest)
}

// parseFirstLine reads the size and the checksum of the envelope.
func parseFirstLine(line []byte) (size int, sum uint32, err error) {
	s := string(line)
	if len(s) != firstLine || s[len(s)-1] != '\n' {
		return 0, 0, errors.New("the first line is not complete")
	}
	crc, ok := strings.CutPrefix(s[:len(s)-1], magic+" crc32=")
	if !ok {
		return 0, 0, fmt.Errorf("it does not begin with %q", magic)
	}
	crc, digits, ok := strings.Cut(crc, " size=")
	if !ok {
		return 0, 0, errors.New("the first line has no size")
	}
	c, err := parseHex32(crc)
	if err != nil {
		return 0, 0, err
	}
	n, err := parseFixed(digits, 10)
	if err != nil {
		return 0, 0, err
	}
	if n < int64(firstLine)+1 || n > maxEnvelope {
		return 0, 0, fmt.Errorf("an envelope of %d octets", n)
	}
	return int(n), c, nil
}

// parseEnvelope reads an envelope, first line and final empty line included.
func parseEnvelope(data []byte) (*Envelope, error) {
	if len(data) < firstLine {
		return nil, errors.New("the first line is not complete")
	}
	size, sum, err := parseFirstLine(data[:firstLine])
	if err != nil {
		return nil, err
	}
	if len(data) != size {
		return nil, fmt.Errorf("the envelope has %d octets instead of %d", len(data), size)
	}
	if crc32.ChecksumIEEE(data[len(magic)+7+8:]) != sum {
		return nil, errors.New("the checksum of the envelope is wrong")
	}
	p := envelopeParser{e: &Envelope{UID: -1}}
	text := string(data[firstLine:])
	for {
		line, rest, ok := strings.Cut(text, "\n")
		if !ok {
			return nil, errors.New("the envelope has no end")
		}
		text = rest
		if line == "" {
			break
		}
		if err := p.line(line); err != nil {
			return nil, fmt.Errorf("envelope line %q: %w", clip(line), err)
		}
	}
	if text != "" {
		return nil, errors.New("text after the end of the envelope")
	}
	return p.finish()
}

type envelopeParser struct {
	e          *Envelope
	seen       map[string]bool
	recipients int
}

func (p *envelopeParser) line(line string) error {
	key, value, _ := strings.Cut(line, " ")
	e := p.e
	if key != "to" && key != "parent" {
		if p.seen == nil {
			p.seen = make(map[string]bool)
		}
		if p.seen[key] {
			return errors.New("it occurs twice")
		}
		p.seen[key] = true
	}
	var err error
	switch key {
	case "id":
		if _, ok := IDKind(value); !ok {
			return errors.New("no message id")
		}
		e.ID = value
	case "content":
		digits, sum, _ := strings.Cut(value, " ")
		if e.ContentLength, err = parseFixed(digits, 20); err != nil {
			return err
		}
		hex, ok := strings.CutPrefix(sum, "crc32=")
		if !ok {
			return errors.New("no checksum")
		}
		e.ContentChecksum, err = parseHex32(hex)
	case "arrival":
		e.Arrival, err = parseStamp(value)
	case "sender":
		e.Sender, err = address.Decode(value)
	case "uid":
		e.UID, err = strconv.Atoi(value)
	case "body":
		if value != "8bit" {
			return errors.New("unknown value")
		}
		e.EightBit = true
	case "smtputf8":
		if value != "" {
			return errors.New("unknown value")
		}
		e.UTF8 = true
	case "ret":
		if value != "FULL" && value != "HDRS" {
			return errors.New("unknown value")
		}
		e.Return = value
	case "envid":
		e.EnvelopeID, err = address.Decode(value)
	case "depth":
		e.Depth, err = strconv.Atoi(value)
		if err == nil && e.Depth < 0 {
			err = errors.New("negative")
		}
	case "parent":
		var n Name
		n, err = ParseName(value)
		e.Parents = append(e.Parents, Parent{Name: n})
	case "recipients":
		p.recipients, err = strconv.Atoi(value)
		if err == nil && (p.recipients < 1 || p.recipients > MaxRecipients) {
			err = errors.New("out of range")
		}
	case "to":
		return p.recipient(value)
	default:
		return errors.New("unknown field")
	}
	return err
}

func (p *envelopeParser) recipient(value string) error {
	fields := strings.Split(value, " ")
	if len(fields) < 3 {
		return errors.New("too short")
	}
	if len(p.e.Recipients) >= p.recipients || fields[0] != strconv.Itoa(len(p.e.Recipients)+1) {
		return errors.New("out of order")
	}
	var r Recipient
	known := false
	for k, name := range recipientKinds {
		if name == fields[1] {
			r.Kind, known = RecipientKind(k), true
		}
	}
	if !known {
		return errors.New("unknown kind of recipient")
	}
	for _, f := range fields[2:] {
		key, enc, _ := strings.Cut(f, "=")
		v, err := address.Decode(enc)
		if err != nil {
			return err
		}
		field := r.field(key)
		if field == nil || *field != "" {
			return fmt.Errorf("unknown or repeated %q", clip(key))
		}
		*field = v
	}
	if err := r.check(); err != nil {
		return err
	}
	p.e.Recipients = append(p.e.Recipients, r)
	return nil
}

// field returns where the value of a key of a "to" line goes, nil for an
// unknown key.
func (r *Recipient) field(key string) *string {
	switch key {
	case "address":
		return &r.Address
	case "user":
		return &r.User
	case "detail":
		return &r.Detail
	case "target":
		return &r.Target
	case "source":
		return &r.Source
	case "original":
		return &r.Original
	case "notify":
		return &r.Notify
	case "orcpt":
		return &r.ORCPT
	}
	return nil
}

// check refuses a recipient that no writer of ours makes.
func (r *Recipient) check() error {
	for _, s := range [...]string{r.Address, r.User, r.Detail, strings.ReplaceAll(r.Target, "\t", ""), r.Source, r.Original, r.Notify, r.ORCPT} {
		if hasControl(s) {
			return errControl
		}
	}
	switch {
	case r.Address == "":
		return errors.New("a recipient without address")
	case r.Kind == Address && (r.User != "" || r.Target != "" || r.Source != ""):
		return errors.New("an address with a user or target")
	case r.Kind != Address && r.User == "":
		return errors.New("a local recipient without user")
	case (r.Kind == File || r.Kind == Command) && (r.Target == "" || r.Source != "forward" && r.Source != "aliases"):
		return errors.New("a file or command without target or source")
	}
	return nil
}

func (p *envelopeParser) finish() (*Envelope, error) {
	for _, key := range [...]string{"id", "content", "arrival", "sender", "uid", "recipients"} {
		if !p.seen[key] {
			return nil, fmt.Errorf("the envelope has no %s", key)
		}
	}
	if len(p.e.Recipients) != p.recipients {
		return nil, fmt.Errorf("the envelope has %d recipients instead of %d", len(p.e.Recipients), p.recipients)
	}
	return p.e, p.e.check()
}

// errControl refuses what would break out of its line in a mailbox, a session or
// a report. No door takes it: only somebody who has taken the submitting program
// over can have written it.
var errControl = errors.New("a control character in an address or an option")

// hasControl reports whether s has a control character.
func hasControl(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] == 0x7f {
			return true
		}
	}
	return false
}

// check refuses what no writer of ours makes, of all but the recipients.
func (e *Envelope) check() error {
	if hasControl(e.Sender) || hasControl(e.EnvelopeID) {
		return errControl
	}
	if e.Return != "" && e.Return != "FULL" && e.Return != "HDRS" {
		return fmt.Errorf("RET %q", clip(e.Return))
	}
	return e.checkInternal()
}

// checkInternal makes sure that what only dma makes stands only in messages
// whose id says that dma made them.
func (e *Envelope) checkInternal() error {
	own := e.Kind() != Submitted
	if own != (len(e.Parents) > 0) {
		return errors.New("parents and id do not agree")
	}
	if e.Kind() != Child {
		for i := range e.Recipients {
			if e.Recipients[i].Kind != Address {
				return errors.New("a local user, mailbox, file or command outside of a child message")
			}
		}
	}
	return nil
}

func parseHex32(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 16, 32)
	if err != nil || len(s) != 8 || strings.ToLower(s) != s {
		return 0, errors.New("no checksum of 8 hexadecimal digits")
	}
	return uint32(n), nil
}

func parseFixed(s string, digits int) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || len(s) != digits || n < 0 || s[0] == '+' {
		return 0, fmt.Errorf("no number of %d digits", digits)
	}
	return n, nil
}

// parseStamp reads seconds and six digits of microseconds since 1970.
func parseStamp(s string) (time.Time, error) {
	sec, frac, ok := strings.Cut(s, ".")
	s64, err := strconv.ParseInt(sec, 10, 64)
	if !ok || err != nil {
		return time.Time{}, errors.New("no time")
	}
	us, err := parseFixed(frac, 6)
	if err != nil {
		return time.Time{}, errors.New("no time")
	}
	return time.Unix(s64, us*1000).UTC(), nil
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}

// size is the length of the envelope in the file, in octets.
func (e *Envelope) size() int { return e.encoded }
