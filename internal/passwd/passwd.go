// Package passwd finds local users by name and by uid, without cgo: in a file
// in the format of passwd(5), or where the system keeps its users.
//
// Its errors have two kinds. ErrUnknown says that the sources were asked and
// have no such user, which is final. Every other error means that it could not
// be told, which is temporary.
package passwd

import (
	"context"
	"errors"
	"strings"
	"unicode/utf8"
)

// ErrUnknown is the error for a user that does not exist.
var ErrUnknown = errors.New("no such user")

// User is an entry of the user database.
type User struct {
	Name     string // a name that ValidName takes
	UID, GID int
	Gecos    string // as it stands there; see FullName
	Home     string // an absolute path, or empty
	Shell    string
}

// Source is a user database. Its methods may be called at the same time.
type Source interface {
	// Lookup returns the user called name. The error wraps ErrUnknown if there
	// is none; a name that ValidName refuses is nobody's.
	Lookup(ctx context.Context, name string) (User, error)

	// LookupID returns the first user with the given uid. The error wraps
	// ErrUnknown if there is none.
	LookupID(ctx context.Context, uid int) (User, error)
}

const maxName = 256

// ValidName reports whether name can be the name of a user: UTF-8, not empty,
// no longer than 256 octets, without control characters, colon or slash, not
// beginning with - or +, and neither "." nor "..": names go into paths and
// arguments of commands.
func ValidName(name string) bool {
	if name == "" || len(name) > maxName || name == "." || name == ".." || name[0] == '-' || name[0] == '+' {
		return false
	}
	return !strings.ContainsAny(name, ":/") && !hasControl(name) && utf8.ValidString(name)
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r >= 0x7f && r < 0xa0 })
}

// maxFullName is the length in octets at which FullName stops.
const maxFullName = 256

// FullName returns the user's name in real life: the first field of Gecos, up
// to a comma, with & as the login name with a capital. It is UTF-8 without
// control characters and without blanks around it; octets that are not UTF-8
// are read as ISO 8859-1. It is empty if Gecos has none.
func (u User) FullName() string {
	field, _, _ := strings.Cut(u.Gecos, ",")
	runes := []rune(field)
	if !utf8.ValidString(field) {
		runes = runes[:0]
		for i := 0; i < len(field); i++ {
			runes = append(runes, rune(field[i]))
		}
	}
	var b strings.Builder
	for _, r := range runes {
		switch {
		case b.Len() >= maxFullName:
		case r == '&':
			b.WriteString(capital(u.Name))
		case r >= 0x20 && r < 0x7f || r >= 0xa0:
			b.WriteRune(r)
		}
	}
	return strings.Trim(b.String(), " ")
}

func capital(s string) string {
	if s != "" && 'a' <= s[0] && s[0] <= 'z' {
		return string(s[0]-'a'+'A') + s[1:]
	}
	return s
}
