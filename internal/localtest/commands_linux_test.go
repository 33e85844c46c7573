package localtest

import (
	"os"
	"strings"
	"testing"
)

const procmailrc = `MAILDIR=$HOME/Mail
DEFAULT=$HOME/Mail/inbox
LOGFILE=$HOME/Mail/log
:0:
* ^Subject: list
lists
:0
* ^Subject: folder
folder/
:0
* ^Subject: drop
/dev/null
:0
* ^Subject: for ann
! ann
:0:
* ^Subject: mailbox
/var/mail/jim
:0
* ^Subject: refused
{
  EXITCODE=67
  HOST
}
`

// procmail, set-uid as its package has it, files what MAILBOX and a .forward of
// thirty years hand to it, sends on by sendmail, and makes mailboxes that lack.
func TestProcmail(t *testing.T) {
	for _, w := range ways() {
		for _, c := range []struct{ name, conf, forward string }{
			{"MAILBOX", "MAILBOX pipe:/usr/bin/procmail -f-\n", ""},
			{".forward", "", `"|IFS=' ' && exec procmail -f- || exit 75 #jim"` + "\n"},
			{"MAILBOX -d", `MAILBOX pipe:/usr/bin/procmail -d "$USER"`, ""},
		} {
			s := w.site(t, c.conf)
			t.Run(w.name+" "+c.name, func(t *testing.T) {
				t.Parallel() // procmail sleeps a second for each new mailbox
				procmail(s.in(t), c.forward)
			})
		}
	}
}

func procmail(s *site, forward string) {
	s.t.Helper()
	s.file("home/jim/.procmailrc", procmailrc, 0o600)
	s.check(os.Mkdir(s.Path("home/jim/Mail"), 0o700))
	s.Own("home/jim/Mail", "jim", 0o700)
	if forward != "" {
		s.file("home/jim/.forward", forward, 0o600)
	}
	for _, subject := range []string{"list 1", "list 2", "folder 1", "folder 2", "drop", "other", "for ann", "mailbox"} {
		s.submit(message(subject), "jim")
	}
	s.drain()
	s.submit(message("refused"), "jim@localhost")
	log := s.drain()
	if !strings.Contains(log, "dsn=5.1.1") || !strings.Contains(log, "status=bounced") {
		s.t.Errorf("exit 67 of procmail is not a bounce with 5.1.1:\n%s", log)
	}
	s.wantSubjects("lists", s.mbox("home/jim/Mail/lists"), "list 1", "list 2")
	s.wantSubjects("folder", s.maildir("home/jim/Mail/folder"), "folder 1", "folder 2")
	s.wantSubjects("inbox", s.mbox("home/jim/Mail/inbox"), "other")
	s.wantSubjects("mailbox", s.mbox("var/mail/jim"), "mailbox")
	s.wantOwner("home/jim/Mail/lists", "jim", 0o600)
	s.wantOwner("var/mail/jim", "jim", 0o660)
	first := s.Read("home/jim/Mail/inbox")
	if !strings.HasPrefix(first, "From ann@far.example ") || !strings.Contains(first, "\nReturn-Path: <ann@far.example>\n") {
		s.t.Errorf("procmail filed\n%s", first)
	}
	// ann has no .procmailrc, and no mailbox yet.
	sent := s.mbox(s.annBox)
	s.wantSubjects("ann's mailbox", sent, "for ann")
	if len(sent) == 1 && !strings.Contains(sent[0], "Return-Path: <jim@host.example>\n") {
		s.t.Errorf("ann got\n%s", sent[0])
	}
	if s.owner == "root" {
		s.wantOwner(s.annBox, "ann", 0o660)
	}
}

// maildrop files by ~/.mailfilter, and its exit code counts.
func TestMaildrop(t *testing.T) {
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) {
			s := w.site(t, "MAILBOX pipe:/usr/bin/maildrop\n")
			s.file("home/jim/.mailfilter", `DEFAULT="$HOME/inbox"
if (/^Subject: list/)
	to "$HOME/lists"
if (/^Subject: folder/)
	to "$HOME/folder"
if (/^Subject: refused/)
{
	EXITCODE=77
	exit
}
if (/^Subject: later/)
{
	EXITCODE=75
	exit
}
`, 0o600)
			for _, sub := range []string{"new", "cur", "tmp"} {
				s.check(os.MkdirAll(s.Path("home/jim/folder", sub), 0o700))
				s.Own("home/jim/folder/"+sub, "jim", 0o700)
			}
			s.Own("home/jim/folder", "jim", 0o700)
			for _, subject := range []string{"list 1", "list 2", "folder 1", "other"} {
				s.submit(message(subject), "jim")
			}
			s.wantStatus(s.drain(), "jim", "sent 2.0.0", "sent 2.0.0", "sent 2.0.0", "sent 2.0.0")
			s.submit(message("refused"), "jim")
			s.wantStatus(s.drain(), "jim", "bounced 5.7.0")
			s.submit(message("later"), "jim")
			s.wantStatus(s.drain(), "jim", "deferred 4.3.0")
			s.wantSubjects("lists", s.mbox("home/jim/lists"), "list 1", "list 2")
			s.wantSubjects("folder", s.maildir("home/jim/folder"), "folder 1")
			s.wantSubjects("inbox", s.mbox("home/jim/inbox"), "other")
			if s.owner != "root" {
				return
			}
			// Who has no filter has a mailbox, which maildrop makes by its own group.
			s.submit(message("for kate"), "kate")
			s.wantStatus(s.drain(), "kate", "sent 2.0.0")
			s.wantSubjects("kate's mailbox", s.mbox("var/mail/kate"), "for kate")
			s.wantOwner("var/mail/kate", "kate", 0o600)
		})
	}
}

// dovecot-lda as the command that a mailbox is behind.
func TestDovecotLDA(t *testing.T) {
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) {
			s := w.site(t, `MAILBOX pipe:/usr/lib/dovecot/dovecot-lda -f "$SENDER" -a "$ORIGINAL_RECIPIENT" -m "$EXTENSION"`+"\n")
			conf := "protocols = lda\nprotocol lda {\n  lda_mailbox_autocreate = yes\n}\n"
			inbox := func(user string) []string { return s.mbox("var/mail/" + user) }
			lists := func() []string { return s.mbox("home/jim/mail/lists") }
			if s.owner == "root" { // users are not in group mail, and so make no dotlock
				conf += "mail_location = maildir:~/Maildir\n"
				inbox = func(user string) []string { return s.maildir("home/" + user + "/Maildir") }
				lists = func() []string { return s.maildir("home/jim/Maildir/.lists") }
			}
			s.StartDovecot(conf)
			for _, to := range []string{"jim", "jim+lists", "jim+lists", "jim@localhost"} {
				s.submit(message("for "+to), to)
			}
			log := s.drain()
			if strings.Count(log, "status=sent") != 4 {
				t.Errorf("the log says\n%s", log)
			}
			s.wantSubjects("mailbox", inbox("jim"), "for jim", "for jim@localhost")
			s.wantSubjects("folder", lists(), "for jim+lists", "for jim+lists")
			if s.owner == "root" {
				s.submit(message("for ann"), "ann")
				s.drain()
				s.wantSubjects("ann's mailbox", inbox("ann"), "for ann")
				s.wantOwner("home/ann/Maildir/new", "ann", 0o700|os.ModeDir)
			}

			// What it cannot do now is tried again.
			s.Write("etc/dovecot/dovecot.conf", "nonsense")
			s.submit(message("later"), "jim")
			s.wantStatus(s.drain(), "jim", "deferred 4.3.0")
		})
	}
}

// vacation answers once, as the user who is away, and the mail is kept.
func TestVacation(t *testing.T) {
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) {
			s := w.site(t, "")
			s.file("home/jim/.forward", "\\jim, \"|/usr/bin/vacation jim\"\n", 0o644)
			s.file("home/jim/.vacation.msg", "Subject: away\n\nI read \"$SUBJECT\" next week.\n", 0o600)
			s.Must(s.CommandAs("jim", "vacation", "-I"), "")
			sender := "jim"
			if s.owner == "root" {
				sender = "ann"
			}
			for _, subject := range []string{"first", "second"} {
				s.Must(s.CommandAs(sender, "sendmail", "-odq", "-i", "-f", "ann@host.example", "jim"),
					strings.Replace(message(subject), "ann@far.example", "ann@host.example", 1))
				s.drain()
			}
			// vacation does not wait for the sendmail that it starts.
			s.Await("answer", func() bool { s.drain(); return len(s.mbox(s.annBox)) > 0 })
			s.wantSubjects("mailbox", s.mbox("var/mail/jim"), "first", "second")
			answers := s.mbox(s.annBox)
			s.wantSubjects("answers", answers, "away")
			for _, line := range []string{
				"Received: by host.example (dma, from userid 2001)\n", "Return-Path: <jim@host.example>\n", "From: Jim Example <jim@host.example>\n", "\n\nI read \"first\" next week.\n",
			} {
				if !strings.Contains(strings.Join(answers, ""), line) {
					t.Errorf("the answer lacks %q:\n%s", line, answers)
				}
			}
			s.empty()
		})
	}
}

// What a command says in its first line goes before its exit code, and to the
// sender.
func TestCommandSays(t *testing.T) {
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) { commandSays(w.site(t, "")) })
	}
}

func commandSays(s *site) {
	s.t.Helper()
	for _, c := range []struct{ command, want string }{
		{`echo 5.7.1 No thanks; exit 77`, "bounced 5.7.1"},
		{`echo 4.2.1 Not now; exit 77`, "deferred 4.2.1"},
		{`echo 5.2.2 Too full; exit 75`, "bounced 5.2.2"},
		{`echo No thanks; exit 77`, "bounced 5.7.0"},
		{`echo 5.7.1 Never mind; exit 0`, "sent 2.0.0"},
		{`kill -9 $$`, "deferred 4.3.0"},
		{`exec /nonexistent/program`, "deferred 4.3.0"},
	} {
		s.file("home/jim/.forward", `"|`+c.command+`"`+"\n", 0o600)
		s.submit(message("to a command"), "-N", "never", "jim")
		s.wantStatus(s.drain(), "jim=|"+c.command, c.want)
	}
	s.file("home/jim/.forward", `"|echo 5.7.1 No thanks; exit 77"`, 0o600)
	s.Must(s.CommandAs("jim", "sendmail", "-odq", "-i", "-f", "ann@host.example", "jim"), message("refused"))
	s.drain()
	report := s.Read(s.annBox)
	for _, line := range []string{"\nStatus: 5.7.1\n", "\nDiagnostic-Code: x-unix; ", " No thanks\n"} {
		if !strings.Contains(report, line) {
			s.t.Errorf("the bounce lacks %q:\n%s", line, report)
		}
	}
}
