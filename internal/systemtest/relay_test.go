package systemtest

import (
	"strings"
	"testing"

	"dma/spooldir"
)

// What the configuration demands of the relay holds for the real programs:
// without TLS nothing goes to a peer that has to have it, no password either,
// and the mail waits with the reason.
func TestNothingInClear(t *testing.T) {
	for name, conf := range map[string]string{
		"TLS from the start":     "SECURETRANSFER\n",
		"STARTTLS":               "SECURETRANSFER\nSTARTTLS\n",
		"STARTTLS alone":         "STARTTLS\n",
		"verified":               "SECURETRANSFER\nSTARTTLS\nVERIFYCERT\n",
		"fingerprint":            "SECURETRANSFER\nSTARTTLS\nFINGERPRINT " + strings.Repeat("ab", 32) + "\n",
		"policy":                 "TLSPOLICY @/tlspolicy\n",
		"password":               "AUTHPATH @/auth.conf\n",
		"password, opportunist":  "AUTHPATH @/auth.conf\nSECURETRANSFER\nSTARTTLS\nOPPORTUNISTIC_TLS\nINSECURE\n",
		"password from command":  "AUTHPATH @/auth.cmd\nPASSWORDCMD echo geheim\nINSECURE\n",
		"credentials unreadable": "AUTHPATH @/no-such-file\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := newSiteWith(t, siteOptions{dir: dir, conf: strings.ReplaceAll(conf, "@", dir)})
			s.write(s.path("auth.conf"), "me|127.0.0.1:geheim\n")
			s.write(s.path("auth.cmd"), "me|127.0.0.1\n")
			s.write(s.path("tlspolicy"), "* verify\n")
			s.post("secret", "-f", "alice", "friend@far.example")
			r := s.drain()
			if c := s.sink.Counts(); c.Mails != 0 {
				t.Errorf("the sink got %d MAIL commands in clear", c.Mails)
			}
			if n := len(s.in(spooldir.Tempfail)); n != 1 {
				t.Fatalf("tempfail holds %d names, want the one that waits", n)
			}
			q := s.mailq()
			if len(q) != 1 || q[0].Reason == "" {
				t.Errorf("mailq says %+v", q)
			}
			if strings.Contains(r.stderr, "geheim") || strings.Contains(q[0].Reason, "geheim") {
				t.Error("the password is told")
			}
		})
	}
}

// Senders of mail for other hosts are rewritten; what stays here is not.
func TestRewritten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := newSiteWith(t, siteOptions{dir: dir, conf: "MASQUERADE example.net\nREWRITE " + dir + "/rewrite\n"})
	s.write(s.path("rewrite"), "alice: alice.w@example.com\n")
	for _, from := range []string{"alice", "bob", "guest@elsewhere.example"} {
		s.post("from "+from, "-f", from, "friend@far.example", "carol")
	}
	s.drain()
	got := make(map[string]string)
	for _, m := range s.sink.Transactions() {
		_, rest, _ := strings.Cut(string(m.Content), "Subject: from ")
		subject, _, _ := strings.Cut(rest, "\r\n")
		got[subject] = m.From
		for _, line := range strings.Split(string(m.Content), "\r\n") {
			if strings.HasPrefix(line, "From:") && !strings.Contains(line, m.From) {
				t.Errorf("%s: the header says %q, the envelope %s", subject, line, m.From)
			}
		}
	}
	want := map[string]string{"alice": "alice.w@example.com", "bob": "bob@example.net", "guest@elsewhere.example": "guest@elsewhere.example"}
	for from, sender := range want {
		if got[from] != sender {
			t.Errorf("mail of %s went out from %q, want %q", from, got[from], sender)
		}
	}
	for _, m := range s.mailbox("carol") {
		if strings.Contains(m.text, "example.net") || strings.Contains(m.text, "example.com") {
			t.Errorf("a local copy was rewritten:\n%s", m.text)
		}
	}
}
