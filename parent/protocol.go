package parent

import (
	"encoding/binary"
	"errors"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"

	"dma/internal/passwd"
)

// The first arguments of the processes.
const (
	RoleQueue   = "role-queue"
	RoleNet     = "role-net"
	RoleAgent   = "role-agent"
	RoleInspect = "role-inspect"
)

// The kinds of messages.
const (
	kindReady    = 'r' // worker: at work
	kindPong     = 'p' // worker: answers a ping: idle or busy, a number that grows with each thing begun, how often it has looked
	kindLookup   = 'l' // queue: name
	kindLookupID = 'i' // queue: uid
	kindStart    = 'a' // queue: name, role; a connection comes with the answer
	kindStop     = 'k' // queue: name, role
	kindPassword = 'w' // net: login, host
	kindPing     = 'P' // parent
	kindLook     = 'L' // parent: look at everything once more
	kindAnswer   = '=' // parent: a status and what belongs to it
)

// What a worker says of itself.
const (
	stateIdle = "idle"
	stateBusy = "busy"
)

// The statuses of an answer.
const (
	statusOK      = "ok"
	statusUnknown = "unknown" // no such user
	statusBusy    = "busy"    // an earlier agent is alive
	statusRefused = "refused" // never, as things are configured: why
	statusTrouble = "trouble" // not now: why
)

// Bounds of messages, in octets.
const (
	maxRequest = 1 << 10
	maxAnswer  = passwordSize + 1<<10
	maxText    = 512
	headSize   = 5
	maxFields  = 8
)

// errGarbage is the error for what is no message of the protocol.
var errGarbage = errors.New("not a message of the protocol")

// message is one frame of the control socket.
type message struct {
	number uint32
	kind   byte
	fields []string

	conn *os.File // that came with an answer
}

func (m message) encode() []byte {
	b := binary.BigEndian.AppendUint32(nil, m.number)
	b = append(b, m.kind)
	for i, f := range m.fields {
		if i > 0 {
			b = append(b, 0)
		}
		b = append(b, strings.ReplaceAll(f, "\x00", "")...)
	}
	return b
}

func decode(b []byte) (message, error) {
	if len(b) < headSize {
		return message{}, errGarbage
	}
	m := message{number: binary.BigEndian.Uint32(b), kind: b[4]}
	if len(b) > headSize {
		m.fields = strings.SplitN(string(b[headSize:]), "\x00", maxFields+1)
	}
	if len(m.fields) > maxFields {
		return message{}, errGarbage
	}
	return m, nil
}

// userFields and parseUser carry a user in an answer.
func userFields(u passwd.User) []string {
	return []string{statusOK, u.Name, strconv.Itoa(u.UID), strconv.Itoa(u.GID), u.Gecos, u.Home, u.Shell}
}

func parseUser(fields []string) (passwd.User, error) {
	if len(fields) != 7 {
		return passwd.User{}, errGarbage
	}
	uid, ok1 := parseID(fields[2])
	gid, ok2 := parseID(fields[3])
	if !ok1 || !ok2 || !passwd.ValidName(fields[1]) {
		return passwd.User{}, errGarbage
	}
	return passwd.User{Name: fields[1], UID: uid, GID: gid, Gecos: fields[4], Home: fields[5], Shell: fields[6]}, nil
}

// parseID reads a uid or gid; the highest, 2^32-1, means "none" to the kernel.
func parseID(s string) (int, bool) {
	v, err := strconv.ParseUint(s, 10, 32)
	return int(v), err == nil && v != 1<<32-1 && int(v) >= 0
}

// oneLine returns text as one printable line of at most maxText octets.
func oneLine(text string) string {
	line := strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 || r == utf8.RuneError {
			return '?'
		}
		return r
	}, text[:min(len(text), maxText)])
	return line[:min(len(line), maxText)]
}
