package spooldir

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"dma/internal/address"
)

// Kind says where a message comes from. The kind of a message that dma made
// itself is the last letter of its id, so that the name alone shows it.
type Kind byte

// The kinds of message.
const (
	Submitted Kind = 0   // handed in by a user or a program
	Child     Kind = 'c' // the expansion of a recipient by an alias or a .forward
	Bounce    Kind = 'b' // a report of failed recipients
	Success   Kind = 's' // a report of delivered recipients, asked for by NOTIFY=SUCCESS
	Delay     Kind = 'd' // a notice that recipients are late
)

func (k Kind) String() string {
	switch k {
	case Child:
		return "child"
	case Bounce:
		return "bounce"
	case Success:
		return "success"
	case Delay:
		return "delay"
	}
	return "submitted"
}

// idTime is the time part of an id, in UTC.
const idTime = "20060102T150405"

// idLength is the length of the id of a submitted message; the kinds that dma
// makes itself have one letter more.
const idLength = len(idTime) + 1 + 16

// NewID makes the id of a submitted message: the time of arrival to the
// second, for people and for sorting, and 64 random bits. They are those of the
// runtime's generator (ChaCha8, seeded by the kernel): nobody can guess them,
// and crypto/rand would cost each submission more than the rest of it.
func NewID(now time.Time) string {
	return fmt.Sprintf("%s-%016x", now.UTC().Format(idTime), rand.Uint64())
}

// DeriveID makes the id of a message of the given kind whose cause is
// recipient n of the message parent. It is a pure function, so that whoever
// repeats a step after a kill makes the same message again and not a second
// one. Its 64 bits are a hash over the parent's random ones.
func DeriveID(parent string, n int, kind Kind) string {
	sum := sha256.Sum256([]byte(parent + "." + strconv.Itoa(n) + string(rune(kind))))
	stamp, _, _ := strings.Cut(parent, "-")
	return stamp + "-" + hex.EncodeToString(sum[:8]) + string(rune(kind))
}

// IDKind returns the kind that an id shows, and whether it is an id at all.
func IDKind(id string) (Kind, bool) {
	if len(id) != idLength && len(id) != idLength+1 {
		return 0, false
	}
	for i := range idLength {
		c := id[i]
		switch {
		case i == 8:
			if c != 'T' {
				return 0, false
			}
		case i == len(idTime):
			if c != '-' {
				return 0, false
			}
		case i < len(idTime):
			if c < '0' || c > '9' {
				return 0, false
			}
		case c < '0' || c > 'f' || c > '9' && c < 'a':
			return 0, false
		}
	}
	if len(id) == idLength {
		return Submitted, true
	}
	switch k := Kind(id[idLength]); k {
	case Child, Bounce, Success, Delay:
		return k, true
	}
	return 0, false
}

// IDTime returns the time of arrival that an id begins with, to the second; the
// zero time for what is no id.
func IDTime(id string) time.Time {
	if _, ok := IDKind(id); !ok {
		return time.Time{}
	}
	t, err := time.Parse(idTime, id[:len(idTime)])
	if err != nil {
		return time.Time{}
	}
	return t
}

// MaxRecipients is the most recipients that one message may have. A file can
// have 65,000 names on ext4, which leaves room for every other use of a link.
const MaxRecipients = 10000

// nameMax is the longest file name that every supported file system takes.
const nameMax = 255

// Name is the file name of one recipient: "<id>.<n>-<address>". Programs read
// the id and n; the address is there for people.
type Name struct {
	ID   string
	N    int // number of the recipient in the envelope, from 1
	file string
}

// NewName makes the name of recipient n of message id. The address may be any
// text; octets other than letters, digits and @._+=- become %XX, and the name
// is cut to fit nameMax octets, never in the middle of a %XX.
func NewName(id string, n int, addr string) Name {
	head := id + "." + strconv.Itoa(n) + "-"
	tail := address.SpoolName(addr)
	if room := nameMax - len(head); len(tail) > room {
		tail = tail[:room]
		if i := strings.LastIndexByte(tail, '%'); i >= 0 && i > len(tail)-3 {
			tail = tail[:i]
		}
	}
	return Name{ID: id, N: n, file: head + tail}
}

// ParseName takes a file name apart. It refuses whatever NewName cannot make.
func ParseName(file string) (Name, error) {
	bad := func(why string) (Name, error) {
		return Name{}, fmt.Errorf("%q is no name of a recipient: %s", file, why)
	}
	if len(file) > nameMax {
		return bad("too long")
	}
	id, rest, ok := strings.Cut(file, ".")
	if !ok {
		return bad("no number")
	}
	if _, ok := IDKind(id); !ok {
		return bad("no message id")
	}
	digits, _, ok := strings.Cut(rest, "-")
	if !ok {
		return bad("no number")
	}
	n, err := strconv.Atoi(digits)
	if err != nil || n < 1 || n > MaxRecipients || strconv.Itoa(n) != digits {
		return bad("no number of a recipient")
	}
	return Name{ID: id, N: n, file: file}, nil
}

// Label is what the name says to people: the address, encoded and perhaps cut.
func (n Name) Label() string {
	head := len(n.ID) + 1 + len(strconv.Itoa(n.N)) + 1
	return n.file[min(head, len(n.file)):]
}

// String is the file name.
func (n Name) String() string { return n.file }

// Ref is the name without its address, "<id>.<n>": the form for logs and
// trace headers.
func (n Name) Ref() string { return n.ID + "." + strconv.Itoa(n.N) }
