package localtest

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What watches a mailbox sees new mail: the shell, mailx and who compares the
// times; in a new mailbox, in one that was read, and in one that was not.
func TestNewMail(t *testing.T) {
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) { newMail(w.site(t, "")) })
	}
}

func newMail(s *site) {
	s.t.Helper()
	shell := s.CommandAs("jim", "bash", "--norc", "-i")
	shell.Env = append(shell.Env, "MAIL=/var/mail/jim", "MAILCHECK=0", "PS1=>")
	term := s.terminal(shell)
	// prompt has the shell show a prompt, before which it looks for mail.
	prompts := 0
	prompt := func() {
		prompts++
		term.input("echo $((1000+" + strconv.Itoa(prompts) + "))\n")
		s.Await("prompt", func() bool {
			_, rest, ok := strings.Cut(term.String(), strconv.Itoa(1000+prompts)+"\r\n")
			return ok && strings.Contains(rest, ">")
		})
	}
	hasNew := func() bool { return s.Run(s.CommandAs("jim", "bash", "-c", "test -N /var/mail/jim"), "").Code == 0 }

	if s.Run(s.CommandAs("jim", "bsd-mailx", "-e"), "").Code == 0 {
		s.t.Error("mailx has mail before there is any")
	}
	prompt()
	for i, step := range []string{"the first", "one after reading", "one more"} {
		s.submit(message(step), "jim")
		s.drain()
		info, err := os.Stat(s.Path("var/mail/jim"))
		s.check(err)
		st := info.Sys().(*syscall.Stat_t)
		if atime := time.Unix(st.Atim.Unix()); atime.Unix() >= info.ModTime().Unix() {
			s.t.Errorf("%s: read at %v, changed at %v", step, atime, info.ModTime())
		}
		later(s.t, s.Path("var/mail/jim"), i)
		if !hasNew() {
			s.t.Errorf("%s: test -N says there is no new mail", step)
		}
		prompt()
		if i == 1 {
			continue // unread mail is there when the next arrives
		}
		if s.Run(s.CommandAs("jim", "bsd-mailx", "-e"), "").Code != 0 {
			s.t.Errorf("%s: mailx has no mail", step)
		}
		if hasNew() {
			s.t.Error("mailx has looked at it, and it is still new")
		}
	}
	term.input("exit\n")
	s.check(term.wait())
	if n := strings.Count(term.String(), "You have new mail in /var/mail/jim"); n != 3 {
		s.t.Errorf("the shell says %d times that there is new mail, want 3:\n%s", n, term)
	}
}

// later gives a file times of some seconds later, as if that had passed: the
// shell compares whole seconds.
func later(t testing.TB, path string, n int) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	by := time.Duration(n+1) * 10 * time.Second
	if err := os.Chtimes(path, time.Unix(st.Atim.Unix()).Add(by), info.ModTime().Add(by)); err != nil {
		t.Fatal(err)
	}
}
