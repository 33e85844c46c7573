package localtest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"dma/internal/peertest"
)

// startLMTP starts Dovecot with an LMTP server at /run/dovecot/lmtp, a socket for
// those alone who talk to it.
func (s *site) startLMTP(conf string) *peertest.Service {
	s.t.Helper()
	client := s.owner
	if s.owner == "root" {
		client = "dmanet"
	}
	return s.startLMTPFor(client, conf)
}

func (s *site) startLMTPFor(client, conf string) *peertest.Service {
	s.t.Helper()
	d := s.StartDovecot(`protocols = lmtp
service lmtp {
  unix_listener lmtp {
    mode = 0600
    user = ` + client + `
  }
  inet_listener lmtp {
    port = 2424
  }
}
auth_username_format = %Ln
mail_privileged_group = mail
` + conf)
	s.Await("Dovecot", func() bool { return strings.Contains(d.String(), " starting up ") })
	return d
}

// Dovecot as the server of the mailboxes: 200 messages go over one session; who
// is unknown to it, or over quota, is reported, and nobody else.
func TestDovecotLMTP(t *testing.T) {
	s := newSite(t, "MAILBOX lmtp:/run/dovecot/lmtp\nCONCURRENCY 1\nUSERS /srv/jim/passwd\n")
	s.User("full", 2002)
	s.Write("srv/jim/passwd", "")
	for i, name := range []string{"jim", "full", "stranger"} {
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
	report := s.Read(s.annBox)
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

// quota is a configuration of Dovecot with room for 60 messages a user. Who has no
// room can have some again.
const quota = `mail_location = maildir:~/Maildir
mail_plugins = quota
protocol lmtp {
  mail_plugins = quota
}
plugin {
  quota = maildir:User quota
  quota_rule = *:messages=60
}
quota_full_tempfail = yes
passdb {
  driver = static
  args = nopassword=y
}
`

// The net process, in its sandbox, hands mail for the users of a host to Dovecot,
// over a socket that nobody else may use, and over TCP. Each recipient has a reply:
// who has no room waits, and gets the mail later.
func TestInstalledLMTP(t *testing.T) {
	const n = 30
	for _, c := range []struct{ name, server, from string }{
		{"socket", "/run/dovecot/lmtp", "local"},
		{"TCP", "127.0.0.1:2424", "127.0.0.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newHost(t, "MAILBOX lmtp:"+c.server+"\nCONCURRENCY 1\n")
			s.Await("sandbox", func() bool { return strings.Contains(s.log(), " sandboxed role=net ") })
			if !strings.Contains(s.log(), ` sandboxed role=net report="no_new_privs=yes landlock=abi`) {
				t.Errorf("the net process has no sandbox:\n%s", s.log())
			}
			s.Must(s.CommandAs("kate", "sh", "-c", "mkdir -p Maildir/new Maildir/cur Maildir/tmp; for i in $(seq 60); do echo x >Maildir/cur/$i:2,S; done"), "")
			forJim := numbered(n)
			if c.name == "socket" {
				s.closedSocket()
				forJim = append(forJim, "early")
			}
			d := s.startLMTP(quota)
			if c.name == "socket" {
				s.flush()
			}
			for _, subject := range numbered(n) {
				s.submit(message(subject), "jim", "kate", "ann")
			}
			log := s.drain()
			for to, status := range map[string]string{"jim": "sent 2.0.0", "ann": "sent 2.0.0", "kate": "deferred 4.2.2"} {
				s.wantStatus(log, to, slices.Repeat([]string{status}, n)...)
			}
			if got := strings.Count(d.String(), "Connect from "+c.from); got != 1 {
				t.Errorf("%d sessions for %d messages:\n%.3000s", got, n, d)
			}
			if out := s.Must(s.Command("mailq"), ""); s.waiting() != n || strings.Count(out, "452 4.2.2 <kate@host.example> Quota exceeded") != n {
				t.Errorf("mailq says\n%s", out)
			}
			s.Must(s.Command("doveadm", "expunge", "-u", "kate", "mailbox", "INBOX", "all"), "")
			s.flush()
			for user, want := range map[string][]string{"jim": forJim, "ann": numbered(n), "kate": numbered(n)} {
				s.wantOnce(user+"'s Maildir", s.maildir("home/"+user+"/Maildir"), want)
			}
			s.empty()
		})
	}
}

// closedSocket shows what an administrator sees who has left the socket to root.
// A message for jim waits then.
func (s *site) closedSocket() {
	s.t.Helper()
	d := s.startLMTPFor("root", quota)
	s.submit(message("early"), "jim")
	s.wantStatus(s.drain(), "jim", "deferred 4.4.1")
	if out := s.Must(s.Command("mailq"), ""); !strings.Contains(out, "4.4.1 connect: /run/dovecot/lmtp: permission denied; uid 602, which delivers, has to be able to write to it\n") {
		s.t.Errorf("mailq says\n%s", out)
	}
	if res := s.Run(s.Command("dma-runner", "check"), ""); res.Code != 78 || !strings.Contains(res.Stdout, "uid 602, which delivers, cannot write to /run/dovecot/lmtp") {
		s.t.Errorf("dma-runner check: %+v", res)
	}
	d.Stop()
}
