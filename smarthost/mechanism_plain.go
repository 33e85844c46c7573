package smarthost

import (
	"crypto/hmac"
	"crypto/md5"
	"encoding/hex"
	"errors"
)

// errTurn is a challenge after the last response.
var errTurn = errors.New("the relay asks for more than the mechanism has")

// plain is PLAIN (RFC 4616).
type plain struct {
	l     *login
	asked bool
}

func newPlain(l *login, _ int) mechanism { return &plain{l: l} }

func (m *plain) start() ([]byte, error) {
	return []byte("\x00" + m.l.user + "\x00" + m.l.secret.reveal()), nil
}

// next says it again to servers that overlook the initial response.
func (m *plain) next([]byte) ([]byte, error) {
	if m.asked {
		return nil, errTurn
	}
	m.asked = true
	return m.start()
}

func (m *plain) done() error { return nil }

// loginMechanism is LOGIN, which no RFC has: the server asks twice, in words that
// differ from one to the next, for the user and for the password.
type loginMechanism struct {
	l    *login
	turn int
}

func newLogin(l *login, _ int) mechanism { return &loginMechanism{l: l} }

func (m *loginMechanism) start() ([]byte, error) { return nil, nil }

func (m *loginMechanism) next([]byte) ([]byte, error) {
	m.turn++
	switch m.turn {
	case 1:
		return []byte(m.l.user), nil
	case 2:
		return []byte(m.l.secret.reveal()), nil
	}
	return nil, errTurn
}

func (m *loginMechanism) done() error { return m.l.asked(m.turn >= 2) }

// cramMD5 is CRAM-MD5 (RFC 2195).
type cramMD5 struct {
	l        *login
	answered bool
}

func newCramMD5(l *login, _ int) mechanism { return &cramMD5{l: l} }

func (m *cramMD5) start() ([]byte, error) { return nil, nil }

func (m *cramMD5) next(challenge []byte) ([]byte, error) {
	if m.answered {
		return nil, errTurn
	}
	m.answered = true
	mac := hmac.New(md5.New, []byte(m.l.secret.reveal()))
	mac.Write(challenge)
	return []byte(m.l.user + " " + hex.EncodeToString(mac.Sum(nil))), nil
}

func (m *cramMD5) done() error { return m.l.asked(m.answered) }

// asked is the error of a peer that takes a login before it has seen one.
func (l *login) asked(yes bool) error {
	if !yes {
		return errors.New("the relay accepts the login without having seen it")
	}
	return nil
}
