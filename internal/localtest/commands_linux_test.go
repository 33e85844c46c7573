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
* ^Subject: refused
{
  EXITCODE=67
  HOST
}
`

// procmail files what MAILBOX and a .forward of thirty years hand to it.
func TestProcmail(t *testing.T) {
	for _, c := range []struct{ name, conf, forward string }{
		{"MAILBOX", "MAILBOX pipe:/usr/bin/procmail -f-\n", ""},
		{".forward", "", `"|IFS=' ' && exec procmail -f- || exit 75 #jim"` + "\n"},
		{"MAILBOX -d", `MAILBOX pipe:/usr/bin/procmail -d "$USER"`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, c.conf)
			s.file("home/jim/.procmailrc", procmailrc, 0o600)
			s.check(os.Mkdir(s.Path("home/jim/Mail"), 0o700))
			s.Own("home/jim/Mail", "jim", 0o700)
			if c.forward != "" {
				s.file("home/jim/.forward", c.forward, 0o600)
			}
			for _, subject := range []string{"list 1", "list 2", "folder 1", "folder 2", "drop", "other"} {
				s.submit(message(subject), "jim")
			}
			s.drain()
			s.submit(message("refused"), "jim@localhost")
			log := s.drain()
			if !strings.Contains(log, "dsn=5.1.1") || !strings.Contains(log, "status=bounced") {
				t.Errorf("exit 67 of procmail is not a bounce with 5.1.1:\n%s", log)
			}
			s.wantSubjects("lists", s.mbox("home/jim/Mail/lists"), "list 1", "list 2")
			s.wantSubjects("folder", s.maildir("home/jim/Mail/folder"), "folder 1", "folder 2")
			s.wantSubjects("inbox", s.mbox("home/jim/Mail/inbox"), "other")
			if n := len(s.mbox("var/mail/jim")); n != 0 {
				t.Errorf("%d messages in the mailbox", n)
			}
			first := s.Read("home/jim/Mail/inbox")
			if !strings.HasPrefix(first, "From ann@far.example ") || !strings.Contains(first, "\nReturn-Path: <ann@far.example>\n") {
				t.Errorf("procmail filed\n%s", first)
			}
		})
	}
}

// maildrop files by ~/.mailfilter, and its exit code counts.
func TestMaildrop(t *testing.T) {
	s := newSite(t, "MAILBOX pipe:/usr/bin/maildrop\n")
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
}

// dovecot-lda as the command that a mailbox is behind.
func TestDovecotLDA(t *testing.T) {
	s := newSite(t, `MAILBOX pipe:/usr/lib/dovecot/dovecot-lda -f "$SENDER" -a "$ORIGINAL_RECIPIENT" -m "$EXTENSION"`+"\n")
	s.StartDovecot("protocols = lda\nprotocol lda {\n  lda_mailbox_autocreate = yes\n}\n")
	for _, to := range []string{"jim", "jim+lists", "jim+lists", "jim@localhost"} {
		s.submit(message("for "+to), to)
	}
	log := s.drain()
	if strings.Count(log, "status=sent") != 4 {
		t.Errorf("the log says\n%s", log)
	}
	s.wantSubjects("mailbox", s.mbox("var/mail/jim"), "for jim", "for jim@localhost")
	s.wantSubjects("folder", s.mbox("home/jim/mail/lists"), "for jim+lists", "for jim+lists")

	// What it cannot do now is tried again.
	s.Write("etc/dovecot/dovecot.conf", "nonsense")
	s.submit(message("later"), "jim")
	s.wantStatus(s.drain(), "jim", "deferred 4.3.0")
}

// vacation answers once, and the mail is kept.
func TestVacation(t *testing.T) {
	s := newSite(t, "")
	s.Append("etc/aliases", "ann: \"|cat >>$HOME/answers\"\n")
	s.file("home/jim/.forward", "\\jim, \"|/usr/bin/vacation jim\"\n", 0o644)
	s.file("home/jim/.vacation.msg", "Subject: away\n\nI read \"$SUBJECT\" next week.\n", 0o600)
	s.Must(s.CommandAs("jim", "vacation", "-I"), "")
	for _, subject := range []string{"first", "second"} {
		s.Must(s.CommandAs("jim", "sendmail", "-odq", "-i", "-f", "ann@host.example", "jim"),
			strings.Replace(message(subject), "ann@far.example", "ann@host.example", 1))
		s.drain()
	}
	s.Await("answer", func() bool { s.drain(); return s.Run(s.Command("test", "-s", "/home/jim/answers"), "").Code == 0 })
	s.drain()
	s.wantSubjects("mailbox", s.mbox("var/mail/jim"), "first", "second")
	answers := s.Read("home/jim/answers")
	if strings.Count(answers, "\nSubject: away\n") != 1 || !strings.Contains(answers, "I read \"first\" next week.\n") {
		t.Errorf("the answers are\n%s", answers)
	}
	s.empty()
}

// What a command says in its first line goes before its exit code, and to the
// sender.
func TestCommandSays(t *testing.T) {
	s := newSite(t, "")
	for _, c := range []struct{ command, want string }{
		{`echo 5.7.1 No thanks; exit 77`, "bounced 5.7.1"},
		{`echo 4.2.1 Not now; exit 77`, "deferred 4.2.1"},
		{`echo 5.2.2 Too full; exit 75`, "bounced 5.2.2"},
		{`echo No thanks; exit 77`, "bounced 5.7.0"},
		{`echo 5.7.1 Never mind; exit 0`, "sent 2.0.0"},
		{`kill -9 $$`, "deferred 4.3.0"},
		{`exec /nonexistent/program`, "deferred 4.3.0"},
	} {
		t.Run(c.command, func(t *testing.T) {
			s := &site{s.In(t), t}
			s.file("home/jim/.forward", `"|`+c.command+`"`+"\n", 0o600)
			s.submit(message("to a command"), "-N", "never", "jim")
			s.wantStatus(s.drain(), "jim=|"+c.command, c.want)
		})
	}
	s.Append("etc/aliases", "ann: /home/jim/reports\n")
	s.file("home/jim/.forward", `"|echo 5.7.1 No thanks; exit 77"`, 0o600)
	s.Must(s.CommandAs("jim", "sendmail", "-odq", "-i", "-f", "ann@host.example", "jim"), message("refused"))
	s.drain()
	report := s.Read("home/jim/reports")
	for _, line := range []string{"\nStatus: 5.7.1\n", "\nDiagnostic-Code: x-unix; ", " No thanks\n"} {
		if !strings.Contains(report, line) {
			t.Errorf("the bounce lacks %q:\n%s", line, report)
		}
	}
}
