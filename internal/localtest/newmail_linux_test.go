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
// times. It was read before, and something else was delivered before.
func TestNewMail(t *testing.T) {
	s := newSite(t, "")
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
		t.Error("mailx has mail before there is any")
	}
	prompt()
	for i, step := range []string{"the first", "a second", "one after reading"} {
		if i == 2 {
			s.Must(s.CommandAs("jim", "cat", "/var/mail/jim"), "")
			read(t, s.Path("var/mail/jim"))
			if hasNew() {
				t.Error("read, and still new")
			}
		}
		time.Sleep(20 * time.Millisecond) // so that the file has another time
		s.submit(message(step), "jim")
		s.drain()
		info, err := os.Stat(s.Path("var/mail/jim"))
		s.check(err)
		st := info.Sys().(*syscall.Stat_t)
		if atime := time.Unix(st.Atim.Unix()); !atime.Before(info.ModTime()) {
			t.Errorf("%s: read at %v, changed at %v", step, atime, info.ModTime())
		}
		if !hasNew() {
			t.Errorf("%s: test -N says there is no new mail", step)
		}
		if s.Run(s.CommandAs("jim", "bsd-mailx", "-e"), "").Code != 0 {
			t.Errorf("%s: mailx has no mail", step)
		}
		prompt()
	}
	term.input("exit\n")
	s.check(term.wait())
	if n := strings.Count(term.String(), "You have new mail in /var/mail/jim"); n != 3 {
		t.Errorf("the shell says %d times that there is new mail, want 3:\n%s", n, term)
	}
}

// read gives a file the time of now as that of its last access, as reading does
// on a file system that keeps it.
func read(t *testing.T, path string) {
	t.Helper()
	info, err := os.Stat(path)
	if err == nil {
		err = os.Chtimes(path, time.Now(), info.ModTime())
	}
	if err != nil {
		t.Fatal(err)
	}
}
