package smarthost

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"dma/internal/config"
)

// How long a refused login is not tried again: the first time, and at most. Many
// hosts lock an account that has failed some times.
const (
	refusedMin = 5 * time.Minute
	refusedMax = time.Hour
)

// Refusal is what is known of a login that a host has refused. It holds no secret.
type Refusal struct {
	Login     string    `json:"login"`
	Host      string    `json:"host"` // as the file with the logins has it
	Mechanism string    `json:"mechanism,omitempty"`
	Relay     string    `json:"relay"`  // host[ip]:port
	Reason    string    `json:"reason"` // what it said
	Code      string    `json:"code"`   // of it, in neutral words: the senders of mail may see it
	Times     int       `json:"times"`
	At        time.Time `json:"at"`
	Until     time.Time `json:"until"` // it is not tried before

	// Flushed says that Flush has given the login a try out of turn.
	Flushed bool `json:"flushed,omitempty"`
}

// refusal is a Refusal and the secret that was refused; the zero Secret if it was
// refused to an earlier process, which kept none.
type refusal struct {
	Refusal
	secret Secret
}

func (r *refusal) key() string { return r.Login + "\x00" + r.Mechanism + "\x00" + r.Host }

// refusalFile is what the state file holds. File, Size and Changed say of which
// file with logins it speaks.
type refusalFile struct {
	File    string    `json:"file"`
	Size    int64     `json:"size"`
	Changed time.Time `json:"changed"`
	Refused []Refusal `json:"refused"`
}

// maxRefusals bounds the refusals and the octets of the file that keeps them.
const (
	maxRefusals    = 1000
	maxRefusalFile = 4 << 20
)

// ReadRefusals returns the refusals that CredentialOptions.State keeps, in order of
// host and login. A file that is not there, or is damaged, keeps none.
func ReadRefusals(path string) ([]Refusal, error) {
	kept, err := readRefusals(path)
	return kept.Refused, err
}

func readRefusals(path string) (refusalFile, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return refusalFile{}, nil
	}
	if err != nil {
		return refusalFile{}, err
	}
	defer f.Close()
	var kept refusalFile
	// What stands after the first value is the rest of a longer one.
	if json.NewDecoder(io.LimitReader(f, maxRefusalFile)).Decode(&kept) != nil || len(kept.Refused) > maxRefusals {
		return refusalFile{}, nil
	}
	return kept, nil
}

// restore takes over what an earlier process knew, if it is about the same state of
// the file with the logins. The caller holds the lock.
func (c *Credentials) restore(info fs.FileInfo) {
	if c.o.State == "" {
		return
	}
	kept, err := readRefusals(c.o.State)
	if err != nil {
		c.keptError(err)
		return
	}
	if kept.File != c.o.File || kept.Size != info.Size() || !kept.Changed.Equal(info.ModTime()) {
		return
	}
	now := c.o.Now()
	for _, k := range kept.Refused {
		k.Until = earlier(k.Until, k.At.Add(refusedMax))
		if k.At.After(now) {
			k.Until = now // the clock was set back
		}
		k.Times = min(max(k.Times, 1), 100)
		k.Relay, k.Code = oneLine(k.Relay), oneLine(k.Code)
		r := &refusal{Refusal: k}
		c.refusals[r.key()] = r
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// keep writes what is known for the next process. The file is written in place, so
// that a process can which may make no files there; one that is cut off in the
// middle is worth nothing, and costs one login. The caller holds the lock.
func (c *Credentials) keep() {
	info := c.file.Info()
	if c.o.State == "" || info == nil {
		return
	}
	kept := refusalFile{File: c.o.File, Size: info.Size(), Changed: info.ModTime()}
	for _, key := range slices.Sorted(maps.Keys(c.refusals)) {
		if len(kept.Refused) < maxRefusals {
			kept.Refused = append(kept.Refused, c.refusals[key].Refusal)
		}
	}
	slices.SortStableFunc(kept.Refused, func(a, b Refusal) int {
		return strings.Compare(a.Host+"\x00"+a.Login, b.Host+"\x00"+b.Login)
	})
	data, err := json.Marshal(&kept)
	if err == nil {
		err = overwrite(c.o.State, append(data, '\n'))
	}
	c.keptError(err)
}

func overwrite(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Truncate(int64(len(data)))
	}
	return errors.Join(err, f.Close())
}

// keptError tells that refusals cannot be kept, once.
func (c *Credentials) keptError(err error) {
	var problems []config.Problem
	if err != nil {
		problems = []config.Problem{{File: c.o.State, Text: fmt.Sprintf("refused logins are not remembered from one run to the next: %v", err)}}
	}
	c.unkept.Report(problems)
}

// patience is an error if a login was refused lately.
func (c *Credentials) patience(l *login) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.refusals[l.key()]
	if r == nil || !c.o.Now().Before(r.Until) || !r.secret.IsZero() && !r.secret.equal(l.secret) {
		return nil
	}
	return &refusedError{fmt.Sprintf("%s has refused our login at %s (%s); it is not tried again before %s",
		r.Relay, clock(r.At), r.Code, clock(r.Until))}
}

// refusedError says that a login is not tried, because it was refused lately.
type refusedError struct{ text string }

func (e *refusedError) Error() string { return e.text }

func clock(t time.Time) string { return t.Format("15:04:05") }

// refused notes that a host has refused a login, and tells the administrator. It
// reports whether there may be a new secret now: the refused one was given by
// Command some time ago.
func (c *Credentials) refused(l *login, reason error) (again bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := l.key()
	if s, ok := c.given[key]; ok && s.equal(l.secret) {
		delete(c.given, key)
	}
	now := c.o.Now()
	r := c.refusals[key]
	if r == nil || !r.secret.IsZero() && !r.secret.equal(l.secret) {
		r = &refusal{Refusal: Refusal{Login: l.user, Host: destinationName(l.host), Mechanism: l.mechanism}}
		c.refusals[key] = r
	}
	r.secret = l.secret
	if now.Before(r.Until) { // several at a time count as one
		return l.given
	}
	o := connectOutcome(reason)
	r.At, r.Until = now, now.Add(min(refusedMin<<min(r.Times, 8), refusedMax))
	r.Times++
	r.Relay, r.Reason, r.Code = o.Relay, o.Text(), replyCode(&o)
	c.tell(l.line, fmt.Sprintf("%s refuses the login of %s: %s; it is not tried again before %s, unless this file changes or the queue is flushed",
		r.Relay, r.Login, r.Reason, clock(r.Until)))
	c.keep()
	return l.given
}

// replyCode returns the codes of a reply without its text.
func replyCode(o *Outcome) string {
	bare := Outcome{Reply: o.Reply}
	if bare.Reply.Message = ""; bare.Reply.Code == 0 {
		return "in the middle of the exchange"
	}
	return bare.Text()
}

// accepted notes that a host has taken a login.
func (c *Credentials) accepted(l *login) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refusals[l.key()] != nil {
		delete(c.refusals, l.key())
		c.keep()
	}
}

// Flush lets refused logins be tried again, since somebody may have mended the
// account at the other host. Since cron may call it each minute, a login gets such
// a try at once only the first time, and after that 5 minutes after it was refused
// last.
func (c *Credentials) Flush() {
	if c == nil || c.o.File == "" {
		return
	}
	// What an earlier process has left is known when the file has been read; where
	// that fails, the next lookup says so.
	_ = c.refresh()
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.o.Now()
	changed := false
	for _, r := range c.refusals {
		if now.Before(r.Until) && (!r.Flushed || !now.Before(r.At.Add(refusedMin))) {
			r.Until, r.Flushed, changed = now, true, true
		}
	}
	if changed {
		c.keep()
	}
}
