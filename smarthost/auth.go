package smarthost

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// mechanism is the client's side of one exchange of a SASL mechanism (RFC 4422).
// Its errors say nothing of the secret.
type mechanism interface {
	// start returns the initial response; nil if the mechanism has none.
	start() ([]byte, error)

	// next returns the response to a challenge. It is an error if the mechanism
	// has no further one, so an exchange ends.
	next(challenge []byte) ([]byte, error)

	// done says whether the peer, which accepts the login, has done its part.
	done() error
}

// mechanisms are those that there are, the strongest first.
var mechanisms = [...]struct {
	name  string
	token bool // the secret is an OAuth 2 token, not a password
	make  func(l *login, port int) mechanism
}{
	{"SCRAM-SHA-256", false, newScramSHA256},
	{"CRAM-MD5", false, newCramMD5},
	{"PLAIN", false, newPlain},
	{"LOGIN", false, newLogin},
	{"OAUTHBEARER", true, newOAuthBearer},
	{"XOAUTH2", true, newXOAuth2},
}

// knownMechanism reports whether name is a mechanism, in capitals.
func knownMechanism(name string) bool {
	for i := range mechanisms {
		if mechanisms[i].name == name {
			return true
		}
	}
	return false
}

// chooseMechanisms returns the mechanisms to try of those that a peer offers, by
// index. A login that names one gets that only. Tokens cannot be told from
// passwords: a secret is taken for a token only if the peer offers nothing else.
func chooseMechanisms(offered []string, l *login) (list []int) {
	var tokens []int
	for i := range mechanisms {
		m := &mechanisms[i]
		has := false
		for _, o := range offered {
			has = has || strings.EqualFold(o, m.name)
		}
		switch {
		case !has || l.mechanism != "" && l.mechanism != m.name:
		case m.token:
			tokens = append(tokens, i)
		default:
			list = append(list, i)
		}
	}
	if len(list) == 0 {
		return tokens
	}
	return list
}

// errLogin is the class of errors of mechanisms that are a refused login, as
// against other trouble.
var errLogin = errors.New("login refused")

// isRefused reports whether err is a login that the peer has refused.
func isRefused(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.refused
}

// maxInitial is the longest AUTH command with an initial response (RFC 5321
// section 4.5.3.1.4); a longer response waits for its turn.
const maxInitial = 512 - len("\r\n")

// auth logs in where there are credentials. A peer that refuses a secret which a
// command had given earlier gets the one that the command gives now, once.
func (s *Session) auth(ctx context.Context) error {
	l := s.peer.login
	if l == nil {
		return nil
	}
	if s.tls == "" {
		return s.failure("AUTH", "7.11", "the connection is not encrypted, and passwords and tokens never cross such a one")
	}
	if len(s.ext.auth) == 0 {
		return s.failure("AUTH", "7.4", "the relay offers no AUTH, and there are credentials for it")
	}
	list := chooseMechanisms(s.ext.auth, l)
	if len(list) == 0 {
		want := ""
		if l.mechanism != "" {
			want = " but " + l.mechanism + " is wanted"
		}
		return s.failure("AUTH", "7.4", fmt.Sprintf("the relay offers no AUTH mechanism that can be used: it has %.200s%s", strings.Join(s.ext.auth, " "), want))
	}
	err := s.login(list, l)
	if isRefused(err) && s.cfg.Credentials.refused(l, err) {
		fresh, again := s.cfg.Credentials.lookup(ctx, s.peer.host)
		if again != nil || fresh == nil || fresh.secret.equal(l.secret) {
			return neutral(err, l.user)
		}
		if err = s.login(list, fresh); isRefused(err) {
			s.cfg.Credentials.refused(fresh, err)
		}
		l = fresh
	}
	if err == nil {
		s.cfg.Credentials.accepted(l)
	}
	return neutral(err, l.user)
}

// neutral returns an error of a login in words that the sender of a message may
// see: what the peer says may name the login.
func neutral(err error, user string) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	fit := *e
	const instead = "the relay refuses our login"
	switch {
	case e.Reply != nil && names(e.Reply.Message, user):
		reply := *e.Reply
		reply.Message = instead
		fit.Reply = &reply
	case e.Reply == nil && e.refused && names(e.Err.Error(), user):
		fit.Err = errors.New(instead)
	}
	return &fit
}

// names reports whether a text has the name of a user as a word of its own, or the
// local part of a name that is an address, as it is or in base64.
func names(text, user string) bool {
	text, user = text+" "+strings.Join(decoded(text), " "), strings.ToLower(user)
	words := []string{user}
	if local, _, ok := strings.Cut(user, "@"); ok && local != "" {
		words = append(words, local)
	}
	letter := func(c byte) bool {
		return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c >= 0x80
	}
	text = strings.ToLower(text)
	for _, w := range words {
		for at := 0; ; {
			i := strings.Index(text[at:], w)
			if i < 0 {
				break
			}
			i += at
			end := i + len(w)
			if (i == 0 || !letter(text[i-1])) && (end == len(text) || !letter(text[end])) {
				return true
			}
			at = i + 1
		}
	}
	return false
}

// login tries mechanisms until the peer takes or refuses the login. Only where it
// says that a mechanism will not do, the next one has its turn.
func (s *Session) login(list []int, l *login) error {
	var err error
	for _, i := range list {
		var next bool
		if next, err = s.exchange(mechanisms[i].name, mechanisms[i].make(l, s.peer.host.Port), l); !next {
			break
		}
	}
	return err
}

// exchange has one AUTH (RFC 4954 section 4). If another mechanism may be better,
// next is true.
func (s *Session) exchange(name string, m mechanism, l *login) (next bool, err error) {
	const command = "AUTH"
	said := []string{l.secret.reveal()}
	encode := func(response []byte) string {
		text := base64.StdEncoding.EncodeToString(response)
		said = append(said, text)
		return text
	}
	line := command + " " + name
	initial, err := m.start()
	if err != nil {
		return false, s.authFailure(name, err, said)
	}
	if initial != nil {
		text := encode(initial)
		if text == "" {
			text = "="
		}
		if len(line)+1+len(text) <= maxInitial {
			line, initial = line+" "+text, nil
		}
	}
	for {
		r, err := s.ask(line, s.wire.t.Auth)
		if errors.Is(err, errReply) {
			err = fmt.Errorf("%w (it is not shown)", errReply) // it may repeat what was said
		}
		if err != nil {
			return false, s.trouble(command, r, err)
		}
		if r.Code/100 == 2 {
			if err := m.done(); err != nil {
				return false, s.authFailure(name, err, said)
			}
			return false, nil
		}
		if r.Code != 334 {
			if repeats(strings.Join(r.lines, "\n")+r.Message, said) {
				r.Message = unshown
			}
			e := s.trouble(command, r, nil)
			if e.refused = r.Code/100 == 5; e.refused {
				e.detail = "7.8"
			}
			return r.Code == 504 || r.Code == 534, e
		}
		challenge, err := challengeOf(&r)
		var response []byte
		if initial != nil {
			response, initial = initial, nil
		} else if err == nil || name == "LOGIN" { // which needs no challenge but a turn
			response, err = m.next(challenge)
		}
		if err != nil {
			return false, s.authFailure(name, err, said)
		}
		line = encode(response)
	}
}

// challengeOf decodes a 334.
func challengeOf(r *reply) ([]byte, error) {
	if len(r.lines) != 1 {
		return nil, errors.New("the challenge has several lines")
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(r.lines[0]))
	if err != nil {
		return nil, errors.New("the challenge is not in base64")
	}
	return b, nil
}

// authFailure is the error of a mechanism.
func (s *Session) authFailure(name string, err error, said []string) error {
	text := name + ": " + err.Error()
	if repeats(text, said) {
		text = name + ": " + unshown
	}
	e := s.failure("AUTH", "7.0", text)
	if e.refused = errors.Is(err, errLogin); e.refused {
		e.detail = "7.8"
	}
	return e
}

const unshown = "(the reply repeats the secret and is not shown)"

// repeats reports whether a peer's text has something in it that was said to the
// peer in secret, or the secret in base64 together with something else.
func repeats(text string, said []string) bool {
	has := func(text string) bool {
		return slices.ContainsFunc(said, func(s string) bool { return s != "" && strings.Contains(text, s) })
	}
	if has(text) {
		return true
	}
	for _, word := range decoded(text) {
		if has(word) {
			return true
		}
	}
	return false
}

// decoded returns what the words of a text are if they are base64. What cannot be
// decoded to its end is decoded as far as it goes.
func decoded(text string) (list []string) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	for word := range strings.FieldsFuncSeq(text, func(r rune) bool { return !strings.ContainsRune(alphabet, r) }) {
		b, _ := base64.RawStdEncoding.DecodeString(word)
		list = append(list, string(b))
	}
	return list
}
