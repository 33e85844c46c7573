package dsn

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/mail"
	"strings"
	"time"
	"unicode/utf8"
)

// DefaultSizeCap is the size of an original message, in bytes, above which a
// report holds only its header.
const DefaultSizeCap = 64 << 10

// ErrNullSender is returned for a report to the null sender. Reports are never
// answered by reports (RFC 3464 section 2).
var ErrNullSender = errors.New("dsn: no report goes to the null sender")

// Report is everything that a report is made from.
type Report struct {
	Kind         Kind
	ReportingMTA string // name of this host; letters, digits and "._-" only
	MessageID    string // of the report, without angle brackets
	From         string // header address; "" means MAILER-DAEMON@ReportingMTA
	To           string // the envelope sender of the original message

	// Postmaster marks a report to the postmaster about a message which was a
	// report itself and could not be delivered.
	Postmaster bool

	Arrival    time.Time // when the original message was submitted; zero if not known
	Now        time.Time // date of the report
	EnvelopeID string    // ENVID, decoded; or ""
	Recipients []Recipient

	// Original is the content of the original message with LF line ends, Size
	// its length in bytes. A nil Original leaves out the third part.
	Original io.ReaderAt
	Size     int64

	// Return asks for the whole message in a failure report. Other reports have
	// the header only (RFC 3461 section 4.3), and so has a message that is larger
	// than SizeCap or that no relay could take back as it is: with NUL, CR or a line
	// over 998 bytes. A header larger than SizeCap is cut after a whole field.
	// SizeCap is in bytes; 0 means DefaultSizeCap. That much is held in memory.
	Return  Return
	SizeCap int64
}

// Recipient is what happened to one recipient.
type Recipient struct {
	Original       string    // the ORCPT parameter as given, still encoded; or ""
	Final          string    // the address that was tried
	Status         string    // enhanced status; replaced by a general one if it doesn't suit the kind
	RemoteMTA      string    // name of the host that answered; or ""
	Diagnostic     string    // "smtp; 550 5.1.1 no such user", "x-unix; ..."; the type is added if missing
	LastAttempt    time.Time // zero if there was none
	WillRetryUntil time.Time // for delayed reports; zero if not known
}

// Message is a finished report, with LF line ends. No line is longer than 998
// bytes.
type Message struct {
	EightBit bool // holds 8-bit data: BODY=8BITMIME in the envelope
	UTF8     bool // its header is UTF-8, or a part is of a message/global type: SMTPUTF8
	data     []byte
}

// Len returns the length of the report in bytes.
func (m *Message) Len() int64 { return int64(len(m.data)) }

// WriteTo writes the report.
func (m *Message) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(m.data)
	return int64(n), err
}

// part is one body part. Content ends with a newline, except where it is another's.
type part struct {
	description string
	mediaType   string
	encoding    string // content transfer encoding
	content     []byte
}

// WriteTo builds the report and writes it. It writes nothing if the report
// cannot be built; see Build.
func (r *Report) WriteTo(w io.Writer) (int64, error) {
	m, err := r.Build()
	if err != nil {
		return 0, err
	}
	return m.WriteTo(w)
}

// Build makes the report. It fails with ErrNullSender, when a field that the
// caller answers for (Kind, ReportingMTA, MessageID, From, Now, no recipients) is
// not usable, or when Original cannot be read.
func (r *Report) Build() (*Message, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	original, why, err := r.enclosure()
	if err != nil {
		return nil, fmt.Errorf("dsn: reading the original message: %w", err)
	}
	parts := []part{r.notification(original, why), r.deliveryStatus()}
	if original != nil {
		parts = append(parts, *original)
	}

	m := new(Message)
	for _, p := range parts {
		m.EightBit = m.EightBit || p.encoding == "8bit"
		m.UTF8 = m.UTF8 || strings.HasPrefix(p.mediaType, "message/global")
	}
	to := r.toHeader()
	m.UTF8 = m.UTF8 || !isASCII(to)
	delimiter := boundary(r.MessageID, parts)

	var b bytes.Buffer
	from := r.From
	if from == "" {
		from = "MAILER-DAEMON@" + r.ReportingMTA
	}
	fmt.Fprintf(&b, "From: Mail Delivery System <%s>\n", from)
	fmt.Fprintf(&b, "To: %s\n", to)
	fmt.Fprintf(&b, "Subject: %s\n", r.subject())
	fmt.Fprintf(&b, "Date: %s\n", date(r.Now))
	fmt.Fprintf(&b, "Message-ID: <%s>\n", r.MessageID)
	b.WriteString("Auto-Submitted: auto-replied\nMIME-Version: 1.0\n")
	fmt.Fprintf(&b, "Content-Type: multipart/report; report-type=%s;\n\tboundary=\"%s\"\n", reportType(parts), delimiter)
	fmt.Fprintf(&b, "Content-Transfer-Encoding: %s\n", encodingName(m.EightBit))
	b.WriteString("\nThis is a delivery report in MIME format.\n")
	for _, p := range parts {
		fmt.Fprintf(&b, "\n--%s\nContent-Description: %s\nContent-Type: %s\nContent-Transfer-Encoding: %s\n\n",
			delimiter, p.description, p.mediaType, p.encoding)
		b.Write(p.content)
	}
	fmt.Fprintf(&b, "\n--%s--\n", delimiter)
	m.data = b.Bytes()
	return m, nil
}

// check verifies what the caller answers for.
func (r *Report) check() error {
	if r.To == "" || r.To == "<>" {
		return ErrNullSender
	}
	left, right, _ := strings.Cut(r.MessageID, "@")
	switch {
	case r.Kind.String() == "":
		return fmt.Errorf("dsn: unknown kind %d of report", r.Kind)
	case !isHost(r.ReportingMTA):
		return fmt.Errorf("dsn: %.80q is not a host name", r.ReportingMTA)
	case !isHost(left) || !isHost(right):
		return fmt.Errorf("dsn: %.80q is not a message id", r.MessageID)
	case r.From != "" && !isAddress(r.From):
		return fmt.Errorf("dsn: %.80q is not an address", r.From)
	case r.Now.IsZero():
		return errors.New("dsn: the report has no date")
	case len(r.Recipients) == 0:
		return errors.New("dsn: the report has no recipients")
	case r.Size < 0:
		return fmt.Errorf("dsn: size %d of the original message", r.Size)
	}
	return nil
}

func (r *Report) subject() string {
	if r.Postmaster {
		return "Delivery report that could not be delivered"
	}
	switch r.Kind {
	case Failed:
		return "Mail could not be delivered"
	case Delayed:
		return "Mail is delayed"
	case Relayed:
		return "Mail was passed to another mail system"
	case Expanded:
		return "Mail was passed on to several addresses"
	}
	return "Mail was delivered"
}

// toHeader returns the address for the To field. The envelope decides where the
// report goes, so what cannot stand in a header is replaced by an empty group.
func (r *Report) toHeader() string {
	to := r.To
	if !strings.Contains(to, "@") {
		to += "@" + r.ReportingMTA
	}
	if !isAddress(to) {
		return "undisclosed-recipients:;"
	}
	return "<" + to + ">"
}

// isAddress reports whether s is an addr-spec that can stand between angle
// brackets as it is.
func isAddress(s string) bool {
	if len(s) > maxAddress || cleanAddress(s, true) != s {
		return false
	}
	a, err := mail.ParseAddress("<" + s + ">")
	return err == nil && a.Name == "" && a.String() == "<"+s+">"
}

// isHost reports whether s consists of the characters of host names.
func isHost(s string) bool {
	if s == "" || len(s) > maxHost || strings.HasPrefix(s, ".") || strings.HasSuffix(s, ".") || strings.Contains(s, "..") {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c != '.' && c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}

// boundary derives the delimiter from the id and the content. Since it is a hash
// of what it must not occur in, nobody can write content that holds it; the loop
// makes sure all the same.
func boundary(id string, parts []part) string {
	h := sha256.New()
	io.WriteString(h, id)
	for _, p := range parts {
		fmt.Fprintf(h, "\n%d\n", len(p.content))
		h.Write(p.content)
	}
	for {
		sum := h.Sum(nil)
		s := "=_dma_" + hex.EncodeToString(sum[:16])
		if !occurs(s, parts) {
			return s
		}
		h.Write(sum)
	}
}

func occurs(s string, parts []part) bool {
	for _, p := range parts {
		if bytes.Contains(p.content, []byte(s)) {
			return true
		}
	}
	return false
}

func reportType(parts []part) string {
	_, subtype, _ := strings.Cut(parts[1].mediaType, "/")
	return subtype
}

// date formats t as RFC 5322 section 3.3 has it.
func date(t time.Time) string { return t.Format("Mon, 02 Jan 2006 15:04:05 -0700") }

func encodingName(eightBit bool) string {
	if eightBit {
		return "8bit"
	}
	return "7bit"
}

// hasUTF8 reports whether s is valid UTF-8 beyond ASCII.
func hasUTF8[T string | []byte](s T) bool { return !isASCII(s) && utf8.ValidString(string(s)) }
