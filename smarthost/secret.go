package smarthost

import (
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
)

// Secret is a password or a token. Whatever is done to print it, alone or as a
// part of something else, shows that there is one and not what it is.
type Secret struct {
	// A pointer, because fmt prints unexported fields of structs without asking
	// their methods, and follows no pointer to a string.
	value *string
}

const redacted = "[secret]"

// NewSecret returns s as a Secret.
func NewSecret(s string) Secret { return Secret{&s} }

// IsZero reports whether there is no secret; an empty one counts as none.
func (s Secret) IsZero() bool { return s.value == nil || *s.value == "" }

// reveal returns the secret, for the mechanisms.
func (s Secret) reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

func (s Secret) equal(o Secret) bool {
	return subtle.ConstantTimeCompare([]byte(s.reveal()), []byte(o.reveal())) == 1
}

// String returns a text that is the same for all secrets.
func (Secret) String() string { return redacted }

// GoString returns what String does.
func (Secret) GoString() string { return redacted }

// Format writes what String returns, for every verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue returns what String does.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns what String does.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
