package localtest

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// mutt and mailx take messages out of the mailbox while 500 arrive, and Dovecot
// reads it, moves messages out of it and delivers to it. In the end each message
// is in one place, whole.
func TestReaders(t *testing.T) {
	const n, byDovecot = 500, 50
	s := newSite(t, "")
	s.startLMTP("mail_location = mbox:~/mail:INBOX=/var/mail/%n\nrecipient_delimiter = +\nprotocol lmtp {\n  auth_username_format = %Ln\n}\n")
	s.file("home/jim/.muttrc", `set move=no delete=yes confirmappend=no quit=yes copy=no resolve=no wait_key=no beep=no sleep_time=0
set spoolfile=/var/mail/jim folder=/home/jim
`, 0o600)
	s.file("home/jim/.mailrc", "set append quiet nohold\n", 0o600)
	s.check(os.WriteFile(s.Path("var/mail/jim"), nil, 0o660))
	s.Own("var/mail/jim", "jim", 0o660)
	service := s.serve()

	var arriving sync.WaitGroup
	arrived := make(chan struct{})
	arriving.Go(func() { // by SMTP, which is one process
		var session strings.Builder
		session.WriteString("EHLO client.example\r\n")
		for _, subject := range numbered(n) {
			fmt.Fprintf(&session, "MAIL FROM:<ann@far.example>\r\nRCPT TO:<jim>\r\nDATA\r\n%s.\r\n", strings.ReplaceAll(long(subject), "\n", "\r\n"))
		}
		session.WriteString("QUIT\r\n")
		res := s.Run(s.CommandAs("jim", "sendmail", "-bs"), session.String())
		if ok := strings.Count(res.Stdout, "\r\n250 2.6.0") + strings.Count(res.Stdout, "\r\n250 2.0.0"); res.Code != 0 || ok < n {
			t.Errorf("%d messages accepted: exit %d\n%.2000s%s", ok, res.Code, res.Stdout, res.Stderr)
		}
	})
	arriving.Go(func() { // from Dovecot's own
		for i := range byDovecot {
			res := s.Run(s.CommandAs("jim", "/usr/lib/dovecot/dovecot-lda", "-f", "ann@far.example"), long(fmt.Sprintf("d%d", i)))
			if res.Code != 0 {
				t.Errorf("dovecot-lda: exit %d: %s", res.Code, res.Stderr)
			}
		}
	})
	go func() { arriving.Wait(); close(arrived) }()

	var readers sync.WaitGroup
	// loop repeats f until all is delivered.
	delivered := make(chan struct{})
	loop := func(f func(round int)) {
		readers.Go(func() {
			for round := 0; ; round++ {
				select {
				case <-delivered:
					return
				case <-time.After(10 * time.Millisecond):
				}
				if t.Failed() {
					return
				}
				f(round)
			}
		})
	}
	rounds := make([]int, 4)
	loop(func(round int) { // mutt and mailx, in turns
		info, err := os.Stat(s.Path("var/mail/jim"))
		if err != nil || info.Size() == 0 {
			return
		}
		if round%2 == 0 {
			// Messages of odd numbers, if there are some.
			term := s.terminal(s.CommandAs("jim", "mutt", "-e", `push "<tag-pattern>~s [13579]$<enter><tag-prefix-cond><save-message>/home/jim/by-mutt<enter><end-cond><sync-mailbox><quit>"`))
			if err := term.wait(); err != nil && !strings.Contains(err.Error(), "No mail") {
				t.Error(err)
			}
			rounds[0]++
			return
		}
		res := s.Run(s.CommandAs("jim", "bsd-mailx", "-N"), "save /Subject: by-mailx\nsave (2-5) /home/jim/by-mailx\nsave 1 /home/jim/by-mailx\nquit\n")
		if res.Code != 0 && !strings.Contains(res.Stdout+res.Stderr, "No mail") {
			t.Errorf("mailx: exit %d: %s%s", res.Code, res.Stdout, res.Stderr)
		}
		rounds[1]++
	})
	loop(func(round int) {
		if round%2 == 0 {
			if res := s.Run(s.Command("doveadm", "fetch", "-u", "jim", "hdr.subject", "mailbox", "INBOX", "ALL"), ""); res.Code != 0 {
				t.Errorf("doveadm fetch: exit %d: %s", res.Code, res.Stderr)
			}
			rounds[2]++
			return
		}
		if res := s.Run(s.Command("doveadm", "move", "-u", "jim", "moved", "mailbox", "INBOX", "subject", "7"), ""); res.Code != 0 && !strings.Contains(res.Stderr, "Mailbox doesn't exist") {
			t.Errorf("doveadm move: exit %d: %s", res.Code, res.Stderr)
		}
		rounds[3]++
	})
	<-arrived
	s.Await("end of deliveries", func() bool {
		return t.Failed() || strings.Contains(s.Must(s.CommandAs("jim", "mailq"), ""), "empty")
	})
	close(delivered)
	readers.Wait()
	service.Stop()

	var all []string
	for _, path := range []string{"var/mail/jim", "home/jim/by-mutt", "home/jim/by-mailx", "home/jim/mbox", "home/jim/mail/moved"} {
		list := s.mbox(path)
		t.Logf("%s: %d messages", path, len(list))
		for _, m := range list {
			subject := subjects([]string{m})[0]
			if _, body, _ := strings.Cut(long(subject), "\n\n"); !strings.HasSuffix(strings.TrimRight(m, "\n"), "\n\n"+strings.TrimRight(body, "\n")) && !strings.Contains(m, "DON'T DELETE THIS MESSAGE") {
				t.Errorf("%s: torn or changed:\n%s", path, m)
			}
			if !strings.Contains(m, "DON'T DELETE THIS MESSAGE") { // the place where Dovecot keeps its numbers
				all = append(all, m)
			}
		}
	}
	want := numbered(n)
	for i := range byDovecot {
		want = append(want, fmt.Sprintf("d%d", i))
	}
	s.wantOnce("all mailboxes", all, want)
	t.Logf("rounds of mutt, mailx, doveadm fetch, doveadm move: %v", rounds)
	for _, r := range rounds {
		if r == 0 {
			t.Error("a reader has not read")
		}
	}
}

// long is a message of some lines, of a length of its own.
func long(subject string) string {
	m := message(subject)
	for i := range 5 + len(subject)*7%40 {
		m += fmt.Sprintf("line %d of %s\n", i, subject)
	}
	return m
}
