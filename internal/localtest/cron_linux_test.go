package localtest

import (
	"strings"
	"testing"
)

// The output of cron's jobs reaches the user that root is an alias for, and the
// users whose jobs they are.
func TestCron(t *testing.T) {
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) { cron(w.site(t, "ALIASUSER jim\n")) })
	}
}

func cron(s *site) {
	s.t.Helper()
	s.Append("etc/aliases", "cronjobs: /home/jim/jobs\n")
	jobs := "PATH=/usr/sbin:/usr/bin:/sbin:/bin\n" +
		"@reboot root echo to root; echo an error >&2\n" +
		"@reboot root true\n" +
		"@reboot jim printf 'Gr\\303\\274\\303\\237e\\n'\n"
	mails := 3
	if s.owner == "root" {
		jobs += "@reboot kate id -un\n"
		mails++
	}
	s.Write("etc/crontab", jobs+"MAILTO=cronjobs\n@reboot root echo to an alias\n")
	s.Write("etc/environment", "")
	s.Write("etc/default/locale", "")
	for _, kind := range []string{"auth", "account", "password", "session", "session-noninteractive"} { // as a script of its package does
		name, _, _ := strings.Cut(kind, "-")
		s.Write("etc/pam.d/common-"+kind, name+" required pam_permit.so\n")
	}
	log := s.Syslog()
	if s.service == nil {
		s.serve()
	}
	s.Start(s.Command("cron", "-f"))
	defer func() {
		if s.t.Failed() {
			s.t.Logf("cron says\n%s\ndma\n%s", log, s.log())
		}
	}()
	s.Await("mail from cron", func() bool { return strings.Count(s.log(), " status=sent ") >= mails })
	s.drain() // what was delivered may not have been let go yet
	s.empty()
	s.stop()
	s.wantSubjects("mailbox", s.mbox("var/mail/jim"), "Cron <root@host> echo to root; echo an error >&2", `Cron <jim@host> printf 'Gr\303\274\303\237e\n'`)
	s.wantSubjects("jobs", s.mbox("home/jim/jobs"), "Cron <root@host> echo to an alias")
	for _, m := range s.mbox("var/mail/jim") {
		root := strings.Contains(m, "to root")
		for _, line := range []struct {
			root bool
			text string
		}{
			{true, "From: root@host.example (Cron Daemon)"}, {true, "To: root@host.example"}, {true, "Return-Path: <root@host.example>"}, {true, "to root\nan error\n"},
			{false, "Return-Path: <jim@host.example>"}, {false, "To: jim@host.example"}, {false, "Grüße"},
		} {
			if line.root == root && !strings.Contains(m, "\n"+line.text) && !strings.HasPrefix(m, line.text) {
				s.t.Errorf("the mail lacks %q:\n%s", line.text, m)
			}
		}
	}
	if s.owner != "root" {
		return
	}
	if m := strings.Join(s.mbox("var/mail/kate"), ""); !strings.Contains(m, "(dma, from userid 2003)\n") || !strings.HasSuffix(m, "\n\nkate\n") {
		s.t.Errorf("kate got\n%s", m)
	}
	s.wantOwner("var/mail/kate", "kate", 0o660)
}
