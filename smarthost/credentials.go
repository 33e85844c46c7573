package smarthost

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"dma/internal/config"
)

// How long a refused login is not tried again: the first time, and at most. Many
// hosts lock an account that has failed some times.
const (
	refusedMin = 5 * time.Minute
	refusedMax = time.Hour
)

// CredentialOptions say where Credentials come from.
type CredentialOptions struct {
	// File is the path of the file with the logins (AUTHPATH), which is read again
	// when it has changed. ParseAuth has its syntax.
	File string

	// Command returns the password or the token for a login in File that has
	// none (PASSWORDCMD). What it returns is kept until a host refuses it. One
	// call runs at a time; it has to end with ctx, after Wait at the latest. Its
	// error is shown, and must not hold a secret.
	Command func(ctx context.Context, user, host string) (string, error)

	// Wait bounds Command. Default 30s.
	Wait time.Duration

	// Problem, if not nil, is told what is wrong with File, when it has been read.
	Problem func(config.Problem)

	// Now is the clock; default time.Now.
	Now func() time.Time
}

// Credentials are the logins for other hosts. It is safe for use by many
// goroutines. A login that was refused is not tried again for 5 minutes, twice as
// long after each further time, an hour at most, unless File changes.
type Credentials struct {
	o       CredentialOptions
	running chan struct{} // held while Command runs

	mu       sync.Mutex
	file     textFile
	entries  []authEntry
	reported reporter
	given    map[string]Secret // by Command, for each login
	refusals map[string]*refusal
}

// refusal is what is remembered of a login that was refused.
type refusal struct {
	secret Secret
	reason string
	times  int
	at     time.Time
	until  time.Time
}

// login is what to log in with at one host.
type login struct {
	user      string
	secret    Secret
	mechanism string // the only one to use, in capitals; "" if there is a choice
	host      Host   // as File has it; Port 0 is any
	given     bool   // by Command, for an earlier session
}

// key names a login in maps.
func (l *login) key() string { return l.user + "\x00" + l.mechanism + "\x00" + destinationName(l.host) }

// NewCredentials returns the credentials that o describes.
func NewCredentials(o CredentialOptions) *Credentials {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Wait <= 0 {
		o.Wait = 30 * time.Second
	}
	return &Credentials{
		o: o, running: make(chan struct{}, 1), file: textFile{path: o.File}, reported: reporter{tell: o.Problem},
		given: make(map[string]Secret), refusals: make(map[string]*refusal),
	}
}

// refusedError says that a login is not tried, because it was refused lately.
type refusedError struct{ text string }

func (e *refusedError) Error() string { return e.text }

// lookup returns the login for a host, nil if there is none. The error is trouble
// of our own side, or a *refusedError.
func (c *Credentials) lookup(ctx context.Context, h Host) (*login, error) {
	if c == nil || c.o.File == "" {
		return nil, nil
	}
	l, err := c.find(h)
	if l == nil || err != nil {
		return nil, err
	}
	if l.secret.IsZero() {
		if err := c.ask(ctx, l); err != nil {
			return nil, err
		}
	}
	return l, c.patience(l)
}

// find reads the file, if it has changed, and returns the entry for a host.
func (c *Credentials) find(h Host) (*login, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	data, changed, err := c.file.read()
	if err != nil {
		return nil, err
	}
	if changed {
		var problems []config.Problem
		c.entries, problems = parseAuth(c.o.File, data, c.o.Command != nil)
		if mode := c.file.info.Mode().Perm(); mode&0o006 != 0 {
			text := fmt.Sprintf("its mode is %04o: everybody on this host can read the passwords; chmod o-rw %s", mode, c.o.File)
			problems = append(problems, config.Problem{File: c.o.File, Text: text})
		}
		c.reported.report(problems)
		clear(c.refusals)
		clear(c.given)
	}
	e := findAuth(c.entries, h)
	switch {
	case e == nil:
		return nil, nil
	case e.bad:
		return nil, fmt.Errorf("line %d of %s cannot be read, and may be for this host", e.line, c.o.File)
	}
	l := e.login
	return &l, nil
}

// ask gets the secret of a login from Command, or from what it gave before.
func (c *Credentials) ask(ctx context.Context, l *login) error {
	ctx, cancel := context.WithTimeout(ctx, c.o.Wait)
	defer cancel()
	select {
	case c.running <- struct{}{}:
		defer func() { <-c.running }()
	case <-ctx.Done():
		return fmt.Errorf("PASSWORDCMD for %s: %w", l.user, ctx.Err())
	}
	c.mu.Lock()
	l.secret, l.given = c.given[l.key()], true
	c.mu.Unlock()
	if !l.secret.IsZero() {
		return nil
	}
	l.given = false
	text, err := c.o.Command(ctx, l.user, destinationName(l.host))
	if err != nil {
		return fmt.Errorf("PASSWORDCMD for %s: %w", l.user, err)
	}
	if text, err = cleanSecret(text); err != nil {
		return fmt.Errorf("PASSWORDCMD for %s: what it prints %w", l.user, err)
	}
	l.secret = NewSecret(text)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.given[l.key()] = l.secret
	return nil
}

// patience is a *refusedError if a login was refused lately.
func (c *Credentials) patience(l *login) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.refusals[l.key()]
	if r == nil || !c.o.Now().Before(r.until) || !r.secret.equal(l.secret) {
		return nil
	}
	return &refusedError{fmt.Sprintf("the login of %s at %s was refused at %s (%s); it is not tried again before %s, unless %s changes",
		l.user, destinationName(l.host), clock(r.at), r.reason, clock(r.until), c.o.File)}
}

func clock(t time.Time) string { return t.Format("15:04:05") }

// refused notes that a host has refused a login. It reports whether there may be
// a new secret now: the refused one was given by Command some time ago.
func (c *Credentials) refused(l *login, reason error) (again bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := l.key()
	if s, ok := c.given[key]; ok && s.equal(l.secret) {
		delete(c.given, key)
	}
	now := c.o.Now()
	r := c.refusals[key]
	if r == nil || !r.secret.equal(l.secret) {
		r = &refusal{secret: l.secret}
		c.refusals[key] = r
	}
	if !now.Before(r.until) { // several at a time count as one
		r.at, r.until = now, now.Add(min(refusedMin<<min(r.times, 8), refusedMax))
		r.times++
		o := connectOutcome(reason)
		r.reason = o.Text()
	}
	return l.given
}

// accepted notes that a host has taken a login.
func (c *Credentials) accepted(l *login) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.refusals, l.key())
}

// maxSecret is the most octets of a password or token.
const maxSecret = 8192

// cleanSecret takes the end of the line off a secret and refuses what no protocol
// can carry. The error continues a sentence.
func cleanSecret(s string) (string, error) {
	s = strings.TrimSuffix(strings.TrimSuffix(s, "\n"), "\r")
	switch {
	case s == "":
		return "", errors.New("is empty")
	case len(s) > maxSecret:
		return "", fmt.Errorf("is longer than %d octets", maxSecret)
	case strings.ContainsAny(s, "\x00\x01\r\n"):
		return "", errors.New("has control characters or more than one line")
	}
	return s, nil
}
