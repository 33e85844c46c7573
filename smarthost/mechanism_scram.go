package smarthost

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"
)

// Bounds of the work that a server may ask for: below the first one its verifier
// is worth too little (RFC 7677 section 4), above the second it costs too much.
const (
	minIterations = 4096
	maxIterations = 1 << 20
)

// scram is SCRAM (RFC 5802) without channel binding. User and password are taken
// as the file has them, which is right for ASCII; SASLprep is not applied.
type scram struct {
	l     *login
	hash  func() hash.Hash
	nonce string

	turn      int
	first     string // client-first-message-bare
	signature []byte // that the server has to show
	verified  bool
}

func newScramSHA256(l *login, _ int) mechanism {
	return &scram{l: l, hash: sha256.New, nonce: rand.Text()}
}

// gs2 is the header that says: no channel binding, no other identity.
const gs2 = "n,,"

// saslName escapes a user name (RFC 5801 section 4).
func saslName(s string) string { return strings.NewReplacer("=", "=3D", ",", "=2C").Replace(s) }

func (m *scram) start() ([]byte, error) {
	m.first = "n=" + saslName(m.l.user) + ",r=" + m.nonce
	return []byte(gs2 + m.first), nil
}

func (m *scram) next(challenge []byte) ([]byte, error) {
	m.turn++
	switch m.turn {
	case 1:
		return m.prove(string(challenge))
	case 2:
		return nil, m.verify(string(challenge))
	}
	return nil, errTurn
}

func (m *scram) done() error {
	if !m.verified {
		return errors.New("the relay has not shown that it knows the password")
	}
	return nil
}

// prove answers the server's first message with the proof that we know the
// password (RFC 5802 section 3).
func (m *scram) prove(serverFirst string) ([]byte, error) {
	nonce, salt, iterations, err := m.parseFirst(serverFirst)
	if err != nil {
		return nil, err
	}
	salted, err := pbkdf2.Key(m.hash, m.l.secret.reveal(), salt, iterations, m.hash().Size())
	if err != nil {
		return nil, fmt.Errorf("deriving the key: %w", err)
	}
	final := "c=" + base64.StdEncoding.EncodeToString([]byte(gs2)) + ",r=" + nonce
	message := []byte(m.first + "," + serverFirst + "," + final)
	clientKey := m.mac(salted, []byte("Client Key"))
	stored := m.hash()
	stored.Write(clientKey)
	proof := m.mac(stored.Sum(nil), message)
	for i := range proof {
		proof[i] ^= clientKey[i]
	}
	m.signature = m.mac(m.mac(salted, []byte("Server Key")), message)
	return []byte(final + ",p=" + base64.StdEncoding.EncodeToString(proof)), nil
}

// parseFirst takes the server's first message apart: r=, s=, i=, and what later
// versions may add.
func (m *scram) parseFirst(s string) (nonce string, salt []byte, iterations int, err error) {
	parts := strings.Split(s, ",")
	if len(parts) < 3 {
		return "", nil, 0, errors.New("the server's first message is too short")
	}
	nonce, isNonce := strings.CutPrefix(parts[0], "r=")
	text, isSalt := strings.CutPrefix(parts[1], "s=")
	count, isCount := strings.CutPrefix(parts[2], "i=")
	if !isNonce || !isSalt || !isCount {
		// This is also where m=, an extension that has to be understood, ends.
		return "", nil, 0, errors.New("the server's first message is not nonce, salt and count")
	}
	if !strings.HasPrefix(nonce, m.nonce) || len(nonce) == len(m.nonce) {
		return "", nil, 0, errors.New("the server's nonce does not continue ours")
	}
	salt, err = base64.StdEncoding.DecodeString(text)
	if err != nil || len(salt) == 0 {
		return "", nil, 0, errors.New("the server's salt cannot be read")
	}
	n, err := strconv.ParseUint(count, 10, 31)
	if err != nil || n < minIterations || n > maxIterations {
		return "", nil, 0, fmt.Errorf("the server's count of iterations is not between %d and %d", minIterations, maxIterations)
	}
	return nonce, salt, int(n), nil
}

// verify checks that the server knows the password too.
func (m *scram) verify(serverFinal string) error {
	first, _, _ := strings.Cut(serverFinal, ",")
	if reason, ok := strings.CutPrefix(first, "e="); ok {
		return fmt.Errorf("%w: %.100s", errLogin, oneLine(reason))
	}
	text, ok := strings.CutPrefix(first, "v=")
	got, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil {
		return errors.New("the server's last message cannot be read")
	}
	if !hmac.Equal(got, m.signature) {
		return errors.New("the server's signature is wrong: it does not know the password")
	}
	m.verified = true
	return nil
}

func (m *scram) mac(key, message []byte) []byte {
	h := hmac.New(m.hash, key)
	h.Write(message)
	return h.Sum(nil)
}
