package smarthost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/emersion/go-smtp"

	"dma/internal/config"
)

// drains are credentials of one process after another, with one state.
type drains struct {
	t        *testing.T
	o        CredentialOptions
	now      time.Time
	host     Host
	problems []string
}

func newDrains(t *testing.T, auth string) *drains {
	d := &drains{t: t, now: time.Date(2026, 3, 4, 5, 0, 0, 0, time.UTC), host: Host{Name: "relay.example", Port: 25}}
	d.o = CredentialOptions{
		File: writeAuth(t, auth), State: filepath.Join(t.TempDir(), "logins"),
		Now:     func() time.Time { return d.now },
		Problem: func(p config.Problem) { d.problems = append(d.problems, p.String()) },
	}
	return d
}

// refuse is what a host says to a wrong password, with the login in it.
func refuse() error {
	return &Error{Relay: "relay.example[192.0.2.1]:25", Command: "AUTH", refused: true, Reply: &smtp.SMTPError{
		Code: 535, EnhancedCode: smtp.EnhancedCode{5, 7, 8}, Message: "no such password for me",
	}}
}

// drain is one process: it tries to log in, unless it has to wait, and is refused.
func (d *drains) drain() (tried bool) {
	d.t.Helper()
	c := NewCredentials(d.o)
	l, err := c.lookup(d.t.Context(), d.host)
	var wait *refusedError
	switch {
	case errors.As(err, &wait):
		if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), d.o.File) || names(err.Error(), "me") {
			d.t.Errorf("an outcome says %v", err)
		}
		return false
	case err != nil || l == nil:
		d.t.Fatalf("%v, %v", l, err)
	}
	c.refused(l, refuse())
	return true
}

func (d *drains) expect(minutes int, want bool) {
	d.t.Helper()
	d.now = d.now.Add(time.Duration(minutes) * time.Minute)
	if got := d.drain(); got != want {
		d.t.Errorf("at %s: tried %v, want %v", d.now.Format("15:04"), got, want)
	}
}

// TestRefusalKept: a drain each minute does not try a wrong password each time.
func TestRefusalKept(t *testing.T) {
	d := newDrains(t, "# comment\nme|relay.example:hunter2\n")
	tried := 0
	for range 24 * 60 {
		if d.drain() {
			tried++
		}
		d.now = d.now.Add(time.Minute)
	}
	if tried < 24 || tried > 29 {
		t.Errorf("%d logins in a day", tried)
	}
	data, err := os.ReadFile(d.o.State)
	if err != nil || strings.Contains(string(data), "hunter2") || strings.Contains(string(data), b64("hunter2")) {
		t.Errorf("%s, %v", data, err)
	}
	if info, err := os.Stat(d.o.State); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}
	if len(d.problems) != tried || d.problems[0] != d.o.File+":2: relay.example[192.0.2.1]:25 refuses the login of me: "+
		"535 5.7.8 no such password for me; it is not tried again before 05:05:00, unless this file changes or the queue is flushed" {
		t.Errorf("%d, %s", len(d.problems), d.problems[0])
	}
	list, err := ReadRefusals(d.o.State)
	if err != nil || len(list) != 1 || list[0].Login != "me" || list[0].Times != tried || list[0].Host != "relay.example" {
		t.Error(list, err)
	}
}

func TestRefusalKeptUntil(t *testing.T) {
	const auth = "me|relay.example:hunter2\n"
	t.Run("the file changes", func(t *testing.T) {
		d := newDrains(t, auth)
		d.expect(0, true)
		d.expect(1, false)
		if err := os.WriteFile(d.o.File, []byte("# mended\n"+auth), 0o600); err != nil {
			t.Fatal(err)
		}
		d.expect(1, true)
		d.expect(4, false)
		d.expect(1, true) // and the count began anew
	})
	t.Run("the login is accepted", func(t *testing.T) {
		d := newDrains(t, auth)
		d.expect(0, true)
		d.now = d.now.Add(5 * time.Minute)
		c := NewCredentials(d.o)
		l, err := c.lookup(t.Context(), d.host)
		if err != nil {
			t.Fatal(err)
		}
		c.accepted(l)
		if list, err := ReadRefusals(d.o.State); err != nil || len(list) > 0 {
			t.Error(list, err)
		}
		d.expect(0, true)
		d.expect(4, false)
	})
	t.Run("the queue is flushed", func(t *testing.T) {
		d := newDrains(t, auth)
		d.expect(0, true)
		d.expect(1, false)
		NewCredentials(d.o).Flush()
		d.expect(0, true) // at once
		for range 4 {     // cron flushes each minute
			d.now = d.now.Add(time.Minute)
			NewCredentials(d.o).Flush()
			d.expect(0, false)
		}
		d.now = d.now.Add(time.Minute)
		NewCredentials(d.o).Flush()
		d.expect(0, true)
		c := NewCredentials(d.o) // the same in one process
		if _, err := c.lookup(t.Context(), d.host); err == nil {
			t.Error("not kept")
		}
		d.now = d.now.Add(5 * time.Minute)
		c.Flush()
		if _, err := c.lookup(t.Context(), d.host); err != nil {
			t.Error(err)
		}
		(*Credentials)(nil).Flush()
		NewCredentials(CredentialOptions{}).Flush()
	})
	t.Run("the clock is set back", func(t *testing.T) {
		d := newDrains(t, auth)
		d.expect(0, true)
		d.expect(-24*60, true)
		d.expect(9, false)
		d.expect(1, true)
	})
	t.Run("it is about another file, or damaged", func(t *testing.T) {
		d := newDrains(t, auth)
		d.expect(0, true)
		other := newDrains(t, auth)
		other.o.State = d.o.State
		other.expect(0, true)
		for _, text := range []string{"", "{", `{"file":`, strings.Repeat("[", 1<<16), `[1]`} {
			if err := os.WriteFile(d.o.State, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			d.expect(0, true)
			d.expect(0, false)
		}
	})
	t.Run("it cannot be kept", func(t *testing.T) {
		d := newDrains(t, auth)
		d.o.State = filepath.Join(t.TempDir(), "no", "such", "folder")
		d.expect(0, true)
		if len(d.problems) != 2 || !strings.Contains(d.problems[1], "refused logins are not remembered") {
			t.Errorf("%q", d.problems)
		}
		target := filepath.Join(t.TempDir(), "target")
		d.o.State = filepath.Join(t.TempDir(), "link")
		if err := os.Symlink(target, d.o.State); err != nil {
			t.Fatal(err)
		}
		d.expect(0, true)
		if _, err := os.Lstat(target); err == nil {
			t.Error("a link was followed")
		}
	})
}

// TestRefusalOfCommand: a secret that was refused to an earlier process is not
// known to the next one; the command is not even asked while the login rests.
func TestRefusalOfCommand(t *testing.T) {
	d := newDrains(t, "me|relay.example\n")
	asked := 0
	d.o.Command = func(context.Context, string, string) (string, error) {
		asked++
		return fmt.Sprint("token", asked), nil
	}
	d.expect(0, true)
	d.expect(1, false)
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	d.expect(4, true)
	d.expect(9, false)
	d.expect(1, true) // another token, and the same login: the count goes on
}

// TestRefusalIsNeutral: what the sender of a message may see names neither the
// login nor the file; what the administrator sees names both.
func TestRefusalIsNeutral(t *testing.T) {
	const user, local = "Some.Body@corp.example", "some.body"
	for _, reply := range []string{
		"535 5.7.8 no such user Some.Body@corp.example", "535 5.7.8 no password of some.body fits",
		"535 5.7.8 " + b64(user) + " is refused", "454 4.7.0 too many logins of <SOME.BODY@corp.example>", "535 5.7.8 authentication failed",
	} {
		synctest.Test(t, func(t *testing.T) {
			var problems []string
			_, creds, err := converse(t, user+"|relay.example:hunter2", "hello AUTH PLAIN\nC: AUTH\nS: "+reply, func(o *CredentialOptions) {
				o.Problem = func(p config.Problem) { problems = append(problems, p.String()) }
			})
			first := connectOutcome(err)
			_, again := creds.lookup(t.Context(), Host{Name: "relay.example", Port: 465})
			second := fmt.Sprint(again)
			for _, s := range []string{err.Error(), first.Text(), second} {
				if strings.Contains(strings.ToLower(s), local) || strings.Contains(s, b64(user)) || strings.Contains(s, creds.o.File) {
					t.Errorf("%s: %s", reply, s)
				}
			}
			if first.Relay != "relay.example[192.0.2.1]:465" || !strings.HasPrefix(first.Text(), reply[:9]) {
				t.Errorf("%+v", first)
			}
			if strings.HasSuffix(reply, "failed") && first.Text() != reply {
				t.Error(first.Text())
			}
			if strings.HasPrefix(reply, "4") {
				if again != nil {
					t.Error(again)
				}
				return
			}
			if !strings.Contains(second, "relay.example[192.0.2.1]:465 has refused our login at 00:00:00 (535 5.7.8); it is not tried again before 00:05:00") {
				t.Error(second)
			}
			if len(problems) != 1 || !strings.HasPrefix(problems[0], creds.o.File+":1: relay.example[192.0.2.1]:465 refuses the login of "+user+": "+reply) {
				t.Errorf("%q", problems)
			}
		})
	}
}

func TestNames(t *testing.T) {
	for text, want := range map[string]bool{
		"me": true, "for me.": true, "<ME@other.example>": true, "message": false, "same": false, "some me": true, "mechanism": false, "": false,
		"m\u00e9": false, "me\u00e9": false, b64("to me"): true,
	} {
		if names(text, "me") != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
}
