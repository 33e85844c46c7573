package smarthost

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"time"

	"dma/internal/config"
	"dma/internal/mapfile"
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

	// State is the path of a file that remembers refused logins when the program
	// ends, with the name of each and no secret; "" remembers none. It is made
	// with mode 0600.
	State string

	// Problem, if not nil, is told what is wrong with File, with Command and with
	// logins: this is for the administrator, and has their names. Outcomes, which
	// the senders of mail may see, have not.
	Problem func(config.Problem)

	// Now is the clock; default time.Now.
	Now func() time.Time
}

// Credentials are the logins for other hosts. It is safe for use by many
// goroutines. A login that was refused is not tried again for 5 minutes, twice as
// long after each further time, an hour at most, unless File changes or Flush is
// called.
type Credentials struct {
	o       CredentialOptions
	running chan struct{} // held while Command runs

	mu       sync.Mutex
	file     mapfile.File
	entries  []authEntry
	reported mapfile.Reporter  // of the content of file
	unread   mapfile.Reporter  // that it cannot be read
	unkept   mapfile.Reporter  // that State cannot be
	restored bool              // State has been read
	given    map[string]Secret // by Command, for each login
	refusals map[string]*refusal
}

// login is what to log in with at one host.
type login struct {
	user      string
	secret    Secret
	mechanism string // the only one to use, in capitals; "" if there is a choice
	host      Host   // as File has it; Port 0 is any
	given     bool   // by Command, for an earlier session
	line      int    // in File
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
		o: o, running: make(chan struct{}, 1), file: mapfile.File{Path: o.File}, reported: mapfile.Reporter{Tell: o.Problem},
		unread: mapfile.Reporter{Tell: o.Problem}, unkept: mapfile.Reporter{Tell: o.Problem},
		given: make(map[string]Secret), refusals: make(map[string]*refusal),
	}
}

// ownError is trouble of our own side, in words that the sender of a message may
// see. Problem has the others.
type ownError struct {
	text  string
	cause error // nil if Problem was told of it before
}

func (e *ownError) Error() string { return e.text }
func (e *ownError) Unwrap() error { return e.cause }

// tell tells the administrator what is wrong with a line of the file; line 0 is
// the file.
func (c *Credentials) tell(line int, text string) {
	if c.o.Problem != nil {
		c.o.Problem(config.Problem{File: c.o.File, Line: line, Text: oneLine(text)})
	}
}

// lookup returns the login for a host, nil if there is none. The error is an
// *ownError or a *refusedError.
func (c *Credentials) lookup(ctx context.Context, h Host) (*login, error) {
	if c == nil || c.o.File == "" {
		if h.Login != "" {
			return nil, &ownError{text: "the sender has a login for it, and there is no file with credentials"}
		}
		return nil, nil
	}
	l, err := c.find(h)
	if l == nil || err != nil {
		return nil, err
	}
	if l.secret.IsZero() {
		// A secret that an earlier process was given is not known here: what
		// comes is taken for it, so that its refusal counts.
		if err := c.patience(l); err != nil {
			return nil, err
		}
		if err := c.ask(ctx, l); err != nil {
			c.tell(l.line, err.Error())
			return nil, &ownError{"our password for it cannot be had", err}
		}
	}
	return l, c.patience(l)
}

// refresh reads the file if it has changed.
func (c *Credentials) refresh() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	data, changed, err := c.file.Read()
	if err != nil {
		c.unread.Report([]config.Problem{{File: c.o.File, Text: "the logins cannot be read, and mail waits: " + reason(err).Error()}})
		return &ownError{"our logins cannot be read", err}
	}
	c.unread.Report(nil)
	if !changed {
		return nil
	}
	entries, problems := parseAuth(c.o.File, data, c.o.Command != nil)
	c.entries = entries
	info := c.file.Info()
	problems = append(problems, authModeProblems(c.o.File, info.Mode())...)
	c.reported.Report(problems)
	clear(c.given)
	if !c.restored {
		c.restored = true
		c.restore(info)
		return nil
	}
	if len(c.refusals) > 0 {
		clear(c.refusals)
		c.keep()
	}
	return nil
}

// reason is an error without the operation and the path.
func reason(err error) error {
	var e *fs.PathError
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}

// authModeProblems says who else may read the file with the logins.
func authModeProblems(file string, mode fs.FileMode) []config.Problem {
	if mode.Perm()&0o006 == 0 {
		return nil
	}
	text := fmt.Sprintf("its mode is %04o: everybody on this host can read the passwords; chmod o-rw %s", mode.Perm(), file)
	return []config.Problem{{File: file, Text: text}}
}

// find returns the entry for a host.
func (c *Credentials) find(h Host) (*login, error) {
	if err := c.refresh(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := findAuth(c.entries, h)
	switch {
	case e == nil && h.Login != "":
		return nil, &ownError{text: "the sender's login for it is not in the file with the credentials"}
	case e == nil:
		return nil, nil
	case e.bad:
		return nil, &ownError{text: "our login for it cannot be read"}
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
