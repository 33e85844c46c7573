package peertest

import (
	"strings"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

// The other tests stand on this: accounts, devices and programs of the root,
// dma in it, and the log.
func TestRoot(t *testing.T) {
	Need(t)
	r := NewRoot(t, Peers())
	r.User("alice", 2001)
	r.Group("friends", 2100, "alice")
	log := r.Syslog()
	got := r.Must(r.CommandAs("alice", "sh", "-c", "id -un; id -Gn; hostname; pwd; echo >/dev/null && test -w /etc/passwd || echo guarded"), "")
	if want := "alice\nalice friends\n" + Hostname + "\n/home/alice\nguarded\n"; got != want {
		t.Errorf("as alice: %q, want %q", got, want)
	}
	r.Must(r.Command("logger", "-t", "test", "a line"), "")
	r.Await("line in the log", func() bool { return strings.Contains(log.String(), "test: a line") })
	r.InstallDMA()
	if res := r.Run(r.Command("sendmail", "-Z"), ""); res.Code != 64 || !strings.Contains(res.Stderr, "-Z") {
		t.Errorf("sendmail -Z: %+v", res)
	}
	for _, p := range []string{"procmail", "vacation", "mutt", "bsd-mailx", "maildrop", "cron", "postalias", "postmap", "smtp-sink", "dovecot"} {
		if r.Command(p).Path == p {
			t.Errorf("no %s", p)
		}
	}
}
