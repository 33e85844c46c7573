package localtest

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"dma/internal/peertest"
)

// startLMTP starts Dovecot with an LMTP server at /run/dovecot/lmtp.
func (s *site) startLMTP(conf string) *peertest.Service {
	s.t.Helper()
	d := s.StartDovecot(`protocols = lmtp
service lmtp {
  unix_listener lmtp {
    mode = 0666
  }
}
auth_username_format = %Ln
mail_privileged_group = mail
` + conf)
	s.Await("Dovecot", func() bool { _, err := os.Stat(s.Path("run/dovecot/lmtp")); return err == nil })
	return d
}

// Dovecot as the server of the mailboxes: 200 messages go over one session; who
// is unknown to it, or over quota, is reported, and nobody else.
func TestDovecotLMTP(t *testing.T) {
	s := newSite(t, "MAILBOX lmtp:/run/dovecot/lmtp\nCONCURRENCY 1\nUSERS /srv/jim/passwd\n")
	s.User("full", 2002)
	s.User("ann", 2003)
	s.Write("srv/jim/passwd", "")
	for i, name := range []string{"jim", "full", "ann", "stranger"} {
		s.Append("srv/jim/passwd", fmt.Sprintf("%s:x:%d:%d::/home/%s:/bin/sh\n", name, 2001+i, 2001+i, name))
	}
	d := s.startLMTP(`mail_location = maildir:~/Maildir
recipient_delimiter = +
mail_plugins = quota
protocol lmtp {
  mail_plugins = quota
}
plugin {
  quota = maildir:User quota
  quota_rule = *:messages=201
}
passdb {
  driver = static
  args = nopassword=y
}
`)
	s.Must(s.CommandAs("full", "sh", "-c", "mkdir -p Maildir/new Maildir/cur Maildir/tmp; for i in $(seq 201); do echo x >Maildir/cur/$i:2,S; done"), "")
	for i := range 200 {
		s.submit(message(fmt.Sprintf("m%d", i)), "jim")
	}
	log := s.drain()
	if n := strings.Count(log, "status=sent"); n != 200 {
		t.Errorf("%d of 200 sent:\n%.3000s", n, log)
	}
	s.wantOnce("Maildir", s.maildir("home/jim/Maildir"), numbered(200))
	s.Await("end of the session", func() bool { return strings.Contains(d.String(), "Disconnect from local") })
	if n := strings.Count(d.String(), "Connect from local"); n != 1 {
		t.Errorf("%d sessions for 200 messages:\n%.3000s", n, d)
	}

	s.Must(s.CommandAs("jim", "sendmail", "-odq", "-i", "-f", "ann@host.example", "jim", "stranger", "full"), message("to three"))
	log = s.drain()
	s.wantStatus(log, "jim", "sent 2.0.0")
	s.wantStatus(log, "stranger", "bounced 5.1.1")
	s.wantStatus(log, "full", "bounced 5.2.2")
	s.wantOnce("Maildir", s.maildir("home/jim/Maildir"), append(numbered(200), "to three"))
	report := strings.Join(s.maildir("home/ann/Maildir"), "")
	for _, line := range []string{"Final-Recipient: rfc822; stranger@host.example", "Final-Recipient: rfc822; full@host.example", "Status: 5.2.2"} {
		if !strings.Contains(report, "\n"+line) {
			t.Errorf("the report lacks %q:\n%s", line, report)
		}
	}
	if strings.Contains(report, "Final-Recipient: rfc822; jim@") {
		t.Errorf("the report names jim:\n%s", report)
	}
	s.empty()
}
