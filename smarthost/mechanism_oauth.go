package smarthost

import (
	"fmt"
	"strconv"
)

// oauthBearer is OAUTHBEARER (RFC 7628).
type oauthBearer struct {
	l      *login
	port   int
	asked  bool
	failed bool
}

func newOAuthBearer(l *login, port int) mechanism { return &oauthBearer{l: l, port: port} }

func (m *oauthBearer) start() ([]byte, error) {
	host := m.l.host.Name
	if m.l.host.IP.IsValid() {
		host = m.l.host.IP.String()
	}
	return []byte("n,a=" + saslName(m.l.user) + ",\x01host=" + host + "\x01port=" + strconv.Itoa(m.port) +
		"\x01auth=Bearer " + m.l.secret.reveal() + "\x01\x01"), nil
}

// next answers the description of an error, after which the refusal comes
// (section 3.2.3).
func (m *oauthBearer) next(challenge []byte) ([]byte, error) {
	switch {
	case m.failed:
		return nil, errTurn
	case len(challenge) == 0 && !m.asked:
		m.asked = true // the initial response was overlooked
		return m.start()
	}
	m.failed = true
	return []byte{1}, nil
}

func (m *oauthBearer) done() error { return notAfterError(m.failed) }

// xoauth2 is XOAUTH2, which Google has described and others have taken over.
type xoauth2 struct {
	l      *login
	asked  bool
	failed bool
}

func newXOAuth2(l *login, _ int) mechanism { return &xoauth2{l: l} }

func (m *xoauth2) start() ([]byte, error) {
	return []byte("user=" + m.l.user + "\x01auth=Bearer " + m.l.secret.reveal() + "\x01\x01"), nil
}

func (m *xoauth2) next(challenge []byte) ([]byte, error) {
	switch {
	case m.failed:
		return nil, errTurn
	case len(challenge) == 0 && !m.asked:
		m.asked = true
		return m.start()
	}
	m.failed = true
	return nil, nil
}

func (m *xoauth2) done() error { return notAfterError(m.failed) }

// notAfterError is the error of a peer that refuses a token and takes it then.
func notAfterError(failed bool) error {
	if failed {
		return fmt.Errorf("%w: the relay describes an error and accepts the login after it", errLogin)
	}
	return nil
}
