package localtest

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Mail readers take messages out of the mailbox while hundreds arrive. In the end
// each message is in one place, whole.
func TestReaders(t *testing.T) {
	// Those that write back what they have read, or copy it without a lock, take for
	// granted that others append only: they take turns.
	for _, w := range ways() {
		t.Run(w.name+" mutt and mailx in turns", func(t *testing.T) {
			turn := 0
			readers(w.site(t, ""), 500, 0, 2, func(b *inbox) {
				if turn++; turn%2 == 0 {
					b.mutt("<save-message>/home/jim/by-mutt<enter>")
				} else {
					b.mailx()
				}
			})
		})
	}
	t.Run("installed Dovecot and mutt and mailx at once", func(t *testing.T) {
		readers(newHost(t, ""), 500, 30, 3, (*inbox).doveadm, func(b *inbox) { b.mutt("<delete-message>") }, (*inbox).look)
	})
	t.Run("installed mutt beside LMTP", func(t *testing.T) {
		readers(newHost(t, "MAILBOX lmtp:/run/dovecot/lmtp\n"), 60, 6, 2, func(b *inbox) { b.mutt("<delete-message>") }, (*inbox).look)
	})
}

// inbox is jim's mailbox, which programs read.
type inbox struct {
	*site
	mu     sync.Mutex
	rounds map[string]int
}

// forMutt tells which messages mutt takes, for which Dovecot does not look: the
// odd ones without an 8.
func forMutt(subject string) bool {
	return strings.HasPrefix(subject, "m") && strings.ContainsAny(subject[len(subject)-1:], "13579") && !strings.Contains(subject, "8")
}

// readers has programs, as many as given, read at the same time while n messages
// arrive by dma and others by Dovecot's delivery agent.
func readers(s *site, n, byDovecot, programs int, read ...func(*inbox)) {
	s.t.Helper()
	b := &inbox{site: s, rounds: make(map[string]int)}
	s.file("home/jim/.muttrc", `set move=no delete=yes confirmappend=no confirmcreate=no quit=yes copy=no resolve=no wait_key=no beep=no sleep_time=0
set spoolfile=/var/mail/jim folder=/home/jim
`, 0o600)
	s.file("home/jim/.mailrc", "set append quiet hold\n", 0o600)
	if byDovecot > 0 {
		s.startLMTP("mbox_dirty_syncs = no\n")
		s.Must(s.Command("doveadm", "mailbox", "create", "-u", "jim", "moved"), "")
	}
	if s.service == nil {
		s.serve()
	}

	var arriving, reading sync.WaitGroup
	arriving.Go(func() { s.smtp(numbered(n)) })
	arriving.Go(func() {
		for i := range byDovecot {
			// As root, which makes the dotlock for jim as group mail.
			res := s.Run(s.Command("/usr/lib/dovecot/dovecot-lda", "-d", "jim", "-f", "ann@far.example"), long(fmt.Sprintf("d%d", i)))
			if res.Code != 0 {
				s.t.Errorf("dovecot-lda: exit %d: %s", res.Code, res.Stderr)
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
				case <-time.After(50 * time.Millisecond):
				}
				if info, err := os.Stat(s.Path("var/mail/jim")); err == nil && info.Size() > 0 {
					f(b)
				}
				if s.t.Failed() {
					return
				}
			}
		})
	}
	arriving.Wait()
	s.Await("end of deliveries", func() bool {
		if s.t.Failed() || s.idle() && s.waiting() == 0 {
			return true
		}
		if s.waiting() > 0 { // for the lock, which somebody has had for half a minute
			s.flush()
		}
		return false
	})
	close(delivered)
	reading.Wait()
	s.empty()
	s.stop()

	want := numbered(n)
	for i := range byDovecot {
		want = append(want, fmt.Sprintf("d%d", i))
	}
	if b.rounds["<delete-message>"] > 0 { // what is left of it goes now, and nothing else
		b.mutt("<delete-message>")
		want = slices.DeleteFunc(want, forMutt)
	}
	var all []string
	for _, path := range []string{"var/mail/jim", "home/jim/by-mutt", "home/jim/by-mailx", "home/jim/mail/moved"} {
		list := s.mbox(path)
		s.t.Logf("%s: %d messages", path, len(list))
		for _, m := range list {
			if strings.Contains(m, "DON'T DELETE THIS MESSAGE") { // where Dovecot keeps its numbers
				continue
			}
			_, body, _ := strings.Cut(m, "\n\n")
			_, want, _ := strings.Cut(long(subjects([]string{m})[0]), "\n\n")
			if strings.TrimRight(body, "\n") != strings.TrimRight(want, "\n") {
				s.t.Errorf("%s: torn or changed:\n%s", path, m)
			}
			all = append(all, m)
		}
	}
	s.wantOnce("all mailboxes", all, want)
	s.t.Logf("rounds: %v", b.rounds)
	if len(b.rounds) < programs {
		s.t.Error("a reader has not read")
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
func (b *inbox) did(who string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rounds[who]++
}

// mutt does something with its messages, by keys. It writes the mailbox only if
// nothing has arrived since it looked, so one asks again.
func (b *inbox) mutt(keys string) {
	term, err := openTerminal(b.t, b.CommandAs("jim", "mutt", "-e",
		`push '<tag-pattern>~s [13579]$ !~s [8d]<enter><tag-prefix-cond>`+keys+`<end-cond>'`))
	if err == nil {
		term.repeat("q")
		err = term.wait()
	}
	if err != nil {
		b.t.Error(err)
	}
	b.did(keys)
}

// mailx moves the first three.
func (b *inbox) mailx() {
	res := b.Run(b.CommandAs("jim", "bsd-mailx", "-N"), "save 1-3 /home/jim/by-mailx\nquit\n")
	if res.Code != 0 && !strings.Contains(res.Stdout+res.Stderr, "No mail") {
		b.t.Errorf("mailx: exit %d: %s%s", res.Code, res.Stdout, res.Stderr)
	}
	b.did("mailx")
}

// look reads the mailbox with mailx, and changes nothing.
func (b *inbox) look() {
	if res := b.Run(b.CommandAs("jim", "bsd-mailx", "-N"), "from *\nexit\n"); res.Code != 0 && !strings.Contains(res.Stdout+res.Stderr, "No mail") {
		b.t.Errorf("mailx that exits: exit %d: %s%s", res.Code, res.Stdout, res.Stderr)
	}
	b.did("mailx that exits")
}

// doveadm lists all and moves some.
func (b *inbox) doveadm() {
	for _, args := range [][]string{
		{"fetch", "-u", "jim", "hdr.subject", "mailbox", "INBOX", "ALL"},
		{"move", "-u", "jim", "moved", "mailbox", "INBOX", "subject", "8"},
	} {
		if res := b.Run(b.Command("doveadm", args...), ""); res.Code != 0 {
			b.t.Errorf("doveadm %v: exit %d: %s", args, res.Code, res.Stderr)
		}
	}
	b.did("doveadm")
}

// long is a message of some lines, of a length of its own.
func long(subject string) string {
	m := message(subject)
	for i := range 5 + len(subject)*7%40 {
		m += fmt.Sprintf("line %d of %s\n", i, subject)
	}
	return m
}
