package localtest

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"dma/internal/peertest"
)

// Mail readers take messages out of the mailbox while hundreds arrive. In the end
// each message is in one place, whole. Those that change the mailbox take turns:
// they hold no lock while a person looks at it, and each takes for granted that
// others append only. Dovecot's own delivery and those that only look are there
// at the same time.
func TestReaders(t *testing.T) {
	t.Run("mutt and mailx", func(t *testing.T) {
		turn := 0
		readers(t, 500, 0, 2, func(s *box) {
			if turn++; turn%2 == 0 {
				s.mutt()
			} else {
				s.mailx()
			}
		})
	})
	t.Run("Dovecot", func(t *testing.T) { readers(t, 300, 30, 3, (*box).doveadm, (*box).look) })
}

// box is a mailbox that programs read.
type box struct {
	*site
	rounds map[string]int
	mu     sync.Mutex
}

// readers has programs, as many as given, read at the same time while n messages
// arrive by dma and others by Dovecot's delivery agent.
func readers(t *testing.T, n, byDovecot, programs int, read ...func(*box)) {
	s := &box{site: newSite(t, ""), rounds: make(map[string]int)}
	s.file("home/jim/.muttrc", `set move=no delete=yes confirmappend=no confirmcreate=no quit=yes copy=no resolve=no wait_key=no beep=no sleep_time=0
set spoolfile=/var/mail/jim folder=/home/jim
`, 0o600)
	s.file("home/jim/.mailrc", "set append quiet hold\n", 0o600)
	s.check(os.WriteFile(s.Path("var/mail/jim"), nil, 0o660))
	s.Own("var/mail/jim", "jim", 0o660)
	if byDovecot > 0 {
		s.StartDovecot("protocols = lmtp\nmail_privileged_group = mail\nservice stats {\n  unix_listener stats-writer {\n    mode = 0666\n  }\n}\n")
		s.Await("Dovecot", func() bool { _, err := os.Stat(s.Path("run/dovecot/auth-userdb")); return err == nil })
		s.Must(s.Command("doveadm", "mailbox", "create", "-u", "jim", "moved"), "")
	}
	s.serve()

	var arriving, reading sync.WaitGroup
	arriving.Go(func() { s.smtp(numbered(n)) })
	arriving.Go(func() {
		for i := range byDovecot {
			res := s.Run(s.CommandAs("jim", "/usr/lib/dovecot/dovecot-lda", "-f", "ann@far.example"), long(fmt.Sprintf("d%d", i)))
			if res.Code != 0 {
				t.Errorf("dovecot-lda: exit %d: %s", res.Code, res.Stderr)
				return
			}
		}
	})
	delivered := make(chan struct{})
	for _, f := range read {
		reading.Go(func() {
			for {
				select {
				case <-delivered:
					return
				case <-time.After(10 * time.Millisecond):
				}
				if info, err := os.Stat(s.Path("var/mail/jim")); err == nil && info.Size() > 0 {
					f(s)
				}
				if t.Failed() {
					return
				}
			}
		})
	}
	arriving.Wait()
	peertest.Await(t, "end of deliveries", func() bool {
		return t.Failed() || strings.Contains(s.Must(s.CommandAs("jim", "mailq"), ""), "empty")
	})
	close(delivered)
	reading.Wait()
	s.stop()

	var all []string
	for _, path := range []string{"var/mail/jim", "home/jim/by-mutt", "home/jim/by-mailx", "home/jim/mail/moved"} {
		list := s.mbox(path)
		t.Logf("%s: %d messages", path, len(list))
		for _, m := range list {
			if strings.Contains(m, "DON'T DELETE THIS MESSAGE") { // where Dovecot keeps its numbers
				continue
			}
			_, body, _ := strings.Cut(m, "\n\n")
			_, want, _ := strings.Cut(long(subjects([]string{m})[0]), "\n\n")
			if strings.TrimRight(body, "\n") != strings.TrimRight(want, "\n") {
				t.Errorf("%s: torn or changed:\n%s", path, m)
			}
			all = append(all, m)
		}
	}
	want := numbered(n)
	for i := range byDovecot {
		want = append(want, fmt.Sprintf("d%d", i))
	}
	s.wantOnce("all mailboxes", all, want)
	t.Logf("rounds: %v", s.rounds)
	if len(s.rounds) < programs {
		t.Error("a reader has not read")
	}
}

// smtp submits messages in one session.
func (s *site) smtp(subjects []string) {
	var session strings.Builder
	session.WriteString("EHLO client.example\r\n")
	for _, subject := range subjects {
		fmt.Fprintf(&session, "MAIL FROM:<ann@far.example>\r\nRCPT TO:<jim@host.example>\r\nDATA\r\n%s.\r\n", strings.ReplaceAll(long(subject), "\n", "\r\n"))
	}
	session.WriteString("QUIT\r\n")
	if res := s.Run(s.CommandAs("jim", "sendmail", "-bs"), session.String()); res.Code != 0 {
		s.t.Errorf("sendmail -bs: exit %d\n%.2000s%s", res.Code, res.Stdout, res.Stderr)
	}
}

// did counts a round of a reader.
func (s *box) did(who string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rounds[who]++
}

// mutt moves some of the messages. It writes the mailbox only if nothing has
// arrived since it looked, so one asks again.
func (s *box) mutt() {
	term, err := openTerminal(s.t, s.CommandAs("jim", "mutt", "-e", `push '<tag-pattern>~s [13579]$<enter><tag-prefix-cond><save-message>/home/jim/by-mutt<enter><end-cond>'`))
	if err == nil {
		term.repeat("q")
		err = term.wait()
	}
	if err != nil {
		s.t.Error(err)
	}
	s.did("mutt")
}

// mailx moves the first three.
func (s *box) mailx() {
	res := s.Run(s.CommandAs("jim", "bsd-mailx", "-N"), "save 1-3 /home/jim/by-mailx\nquit\n")
	if res.Code != 0 && !strings.Contains(res.Stdout+res.Stderr, "No mail") {
		s.t.Errorf("mailx: exit %d: %s%s", res.Code, res.Stdout, res.Stderr)
	}
	s.did("mailx")
}

// look reads the mailbox with mutt and mailx, and changes nothing.
func (s *box) look() {
	term, err := openTerminal(s.t, s.CommandAs("jim", "mutt", "-R", "-e", "push q"))
	if err == nil {
		term.repeat("q")
		err = term.wait()
	}
	if err != nil {
		s.t.Error(err)
	}
	s.did("mutt -R")
	if res := s.Run(s.CommandAs("jim", "bsd-mailx", "-N"), "from *\nexit\n"); res.Code != 0 && !strings.Contains(res.Stdout+res.Stderr, "No mail") {
		s.t.Errorf("mailx that exits: exit %d: %s%s", res.Code, res.Stdout, res.Stderr)
	}
	s.did("mailx that exits")
}

// doveadm lists all and moves some.
func (s *box) doveadm() {
	for _, args := range [][]string{
		{"fetch", "-u", "jim", "hdr.subject", "mailbox", "INBOX", "ALL"},
		{"move", "-u", "jim", "moved", "mailbox", "INBOX", "subject", "8"},
	} {
		if res := s.Run(s.Command("doveadm", args...), ""); res.Code != 0 {
			s.t.Errorf("doveadm %v: exit %d: %s", args, res.Code, res.Stderr)
		}
	}
	s.did("doveadm")
}

// long is a message of some lines, of a length of its own.
func long(subject string) string {
	m := message(subject)
	for i := range 5 + len(subject)*7%40 {
		m += fmt.Sprintf("line %d of %s\n", i, subject)
	}
	return m
}
