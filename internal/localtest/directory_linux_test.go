package localtest

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"dma/internal/peertest"
)

// directory is a machine with dma installed as two users of its own, where dora
// and others stand in a source of nsswitch.conf, and in no file of /etc.
type directory struct {
	*site
	service *peertest.Service
}

const extraUsers = "var/lib/extrausers/passwd"

func newDirectory(t testing.TB) *directory {
	t.Helper()
	peertest.Need(t)
	d := &directory{site: &site{Root: peertest.NewRoot(t, peertest.Peers()), t: t}}
	d.User("jim", 2001)
	d.InstallHost()
	d.Write("etc/aliases", "postmaster: root\nroot: jim\n")
	// Who is in no file that changed a moment ago might be in it in a moment.
	old := time.Now().Add(-time.Hour)
	d.check(os.Chtimes(d.Path("etc/aliases"), old, old))
	d.Write("etc/dma/dma.conf", "MAILNAME host.example\nRETRY_MIN 1h\nMINFREE 0\n")
	d.Write("etc/nsswitch.conf", "passwd: files extrausers\ngroup: files extrausers\nshadow: files extrausers\n")
	var users strings.Builder
	for i, name := range []string{"dora", "hangs", "fails", "missing"} {
		fmt.Fprintf(&users, "%s:x:%d:3001::/home/%[1]s:/bin/sh\n", name, 3001+i)
		d.check(os.Mkdir(d.Path("home", name), 0o755))
		d.check(os.Chown(d.Path("home", name), 3001+i, 3001))
	}
	d.Write(extraUsers, users.String())
	d.Write("var/lib/extrausers/group", "dora:x:3001:\nteam:x:3900:dora\nothers:x:3901:jim\n")
	d.Write("var/lib/extrausers/shadow", "")
	d.Write("home/dora/run", "#!/bin/sh\ngrep -E '^(Uid|Gid|Groups):' /proc/self/status | tr -s '\\t ' '  ' >> $HOME/seen\ncat >> $HOME/got\n")
	d.Write("home/dora/.forward", "\\dora, |/home/dora/run\n")
	for path, mode := range map[string]os.FileMode{"home/dora/run": 0o755, "home/dora/.forward": 0o644} {
		d.check(os.Chown(d.Path(path), 3001, 3001))
		d.check(os.Chmod(d.Path(path), mode))
	}
	if out := d.Must(d.Command("getent", "passwd", "dora"), ""); !strings.HasPrefix(out, "dora:x:3001:") {
		t.Fatalf("getent: %q", out)
	}
	d.Must(d.Command("dma-runner", "init"), "")
	d.service = d.Start(d.Command("dma-runner", "run"))
	return d
}

func (d *directory) send(subject string, to ...string) {
	d.t.Helper()
	d.Must(d.CommandAs("jim", "sendmail", append([]string{"-i"}, to...)...), message(subject))
}

// await waits for messages in a mailbox.
func (d *directory) await(user string, want ...string) {
	d.t.Helper()
	ok := func() bool {
		got := strings.Join(subjects(d.mbox("var/mail/"+user)), " ")
		for _, subject := range want {
			if !strings.Contains(" "+got+" ", " "+subject+" ") {
				return false
			}
		}
		return true
	}
	d.Await(fmt.Sprintf("%q in the mailbox of %s", want, user), ok)
}

// TestDirectory: a user whom no file of /etc knows has a mailbox, a .forward, and
// commands with the groups that the source says.
func TestDirectory(t *testing.T) {
	d := newDirectory(t)
	defer func() {
		if t.Failed() {
			t.Log(d.service)
		}
	}()
	d.send("first", "dora")
	d.await("dora", "first")
	d.Await("dora's command", func() bool { _, err := os.Stat(d.Path("home/dora/got")); return err == nil })
	info, err := os.Stat(d.Path("var/mail/dora"))
	d.check(err)
	if st := info.Sys().(*syscall.Stat_t); st.Uid != 3001 || st.Gid != 8 || info.Mode().Perm() != 0o660 {
		t.Errorf("dora's mailbox: %d:%d %o", st.Uid, st.Gid, info.Mode())
	}
	seen := d.Read("home/dora/seen")
	if seen != "Uid: 3001 3001 3001 3001\nGid: 3001 3001 3001 3001\nGroups: 3001 3900 \n" && seen != "Uid: 3001 3001 3001 3001\nGid: 3001 3001 3001 3001\nGroups: 3900 \n" {
		t.Errorf("the command was run with\n%s", seen)
	}

	// While the source does not answer, mail waits, and nobody else's does; in the
	// end who is there gets it, and it is for a source that answers to say who is
	// not.
	whole := d.Read(extraUsers)
	getent := d.Path("usr/bin/getent")
	for _, dead := range []struct {
		name, why string
		die, live func() error
	}{
		{
			"hangs", "deadline exceeded",
			func() error {
				if err := os.Remove(d.Path(extraUsers)); err != nil {
					return err
				}
				return syscall.Mkfifo(d.Path(extraUsers), 0o644)
			},
			func() error { return os.Remove(d.Path(extraUsers)) },
		},
		{
			"fails", "permission denied",
			func() error { return os.Chmod(getent, 0o644) },
			func() error { return os.Chmod(getent, 0o755) },
		},
		{
			"missing", "there is no getent",
			func() error { return os.Rename(getent, getent+".away") },
			func() error { return os.Rename(getent+".away", getent) },
		},
	} {
		d.check(dead.die())
		to := []string{dead.name, "ghost-" + dead.name} // nobody has asked for them yet
		if dead.name == "hangs" {
			to = to[:1] // each costs the whole limit
		}
		d.send(dead.name, to...)
		d.send(dead.name+"-jim", "jim")
		d.await("jim", dead.name+"-jim")
		waits := ""
		d.Await("mail that waits", func() bool {
			waits = d.Must(d.Command("mailq"), "")
			return strings.Count(waits, " tempfail ") == len(to)
		})
		if strings.Count(waits, dead.why) != len(to) || strings.Contains(waits, "no such user") {
			t.Errorf("%s: mailq says\n%s", dead.name, waits)
		}
		d.check(dead.live())
		d.Write(extraUsers, whole)
		d.Must(d.Command("sendmail", "-q"), "")
		d.await(dead.name, dead.name)
		d.wantSubjects("mailbox", d.mbox("var/mail/"+dead.name), dead.name)
		d.Await("end of "+dead.name, func() bool { return strings.Contains(d.Must(d.Command("mailq"), ""), "empty") })
	}
	bounces := 0
	for _, m := range d.mbox("var/mail/jim") {
		if !strings.Contains(m, "Auto-Submitted:") {
			continue
		}
		bounces++
		if !strings.Contains(m, "no such user: ghost-") {
			t.Errorf("a bounce:\n%s", m)
		}
	}
	if bounces != 2 {
		t.Errorf("%d bounces, want one for each that is not there", bounces)
	}
	d.service.Stop()
}
