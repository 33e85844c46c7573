package systemtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dma/internal/crashtest"
	"dma/spooldir"
)

// doorSite is a site whose service has a socket. Its clients have a
// configuration that names the socket, and a spool that does not exist.
func doorSite(t *testing.T, o siteOptions) *site {
	t.Helper()
	o.dir = t.TempDir()
	socket := filepath.Join(o.dir, "run", "door")
	o.conf += "SOCKET " + socket + "\n"
	s := newSiteWith(t, o)
	s.write("client.conf", "SPOOLDIR "+s.path("nowhere")+"\nMAILNAME host.example\nSOCKET "+socket+"\n")
	return s
}

// client is a program that has the client's configuration.
func (s *site) client(name string, args ...string) *exec.Cmd {
	cmd := s.command(name, args...)
	cmd.Args[2] = s.path("client.conf")
	return cmd
}

// TestDoor: where the spool is out of sight mail goes through the socket, and so
// do mailq and flush; without a service there is one clear line.
func TestDoor(t *testing.T) {
	t.Parallel()
	s := doorSite(t, siteOptions{rules: []string{"defer later@*"}})
	r := s.run(s.client("dma", "far@far.example"), "Subject: too early\n\n")
	want := fmt.Sprintf("dma: no way into the queue: spool %s: no such file or directory; create it with \"dma-runner init\"; "+
		"nor by the socket of the service: connect %s: no such file or directory; start dma-runner, or the unit of its socket\n",
		s.path("nowhere"), s.path("run", "door"))
	if r.code != 75 || r.stderr != want {
		t.Errorf("without a service: exit %d\n got %s\nwant %s", r.code, r.stderr, want)
	}
	if r := s.run(s.client("dma-runner", "mailq"), ""); r.code != 75 || strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, "nor by the socket") {
		t.Errorf("mailq without a service: exit %d, %s", r.code, r.stderr)
	}

	v := s.start()
	long := strings.Repeat("a line\n", 300000)
	if r := s.run(s.client("dma", "far@far.example", "alice"), "Subject: s\n\n"+long); r.code != 0 || r.stderr != "" {
		t.Fatalf("exit %d, %s", r.code, r.stderr)
	}
	eventually(t, "mail", func() bool { return len(s.relayed()) == 1 && len(s.spool()) == 0 })
	list := s.mailbox("alice") // not before nobody writes there
	if len(list) != 1 {
		t.Fatalf("alice has %d messages", len(list))
	}
	box := list[0]
	if !box.hasLine(fmt.Sprintf("Received: by host.example (dma, from userid %d)", os.Getuid())) {
		t.Errorf("trace field in\n%.500s", box.text)
	}
	submitted := fmt.Sprintf(" uid=%d ", os.Getuid())
	v.await("line of the submission", func(log string) bool {
		for line := range strings.Lines(log) {
			if strings.Contains(line, " submitted ") && strings.Contains(line, submitted) {
				return true
			}
		}
		return false
	})

	if r := s.run(s.client("dma", "later@far.example"), "Subject: later\n\n"); r.code != 0 {
		t.Fatalf("exit %d, %s", r.code, r.stderr)
	}
	eventually(t, "a deferral", func() bool { return len(s.in(spooldir.Tempfail)) == 1 })
	direct, byDoor := s.must("mailq", "--json"), s.run(s.client("dma", "-bp", "--json"), "")
	if byDoor.code != 0 || byDoor.stdout == "" || byDoor.stdout != direct.stdout {
		t.Errorf("mailq by the socket: exit %d, %s\n%s\ninstead of\n%s", byDoor.code, byDoor.stderr, byDoor.stdout, direct.stdout)
	}
	if direct, byDoor := s.must("mailq"), s.run(s.client("dma", "-bp"), ""); byDoor.stdout != direct.stdout || !strings.Contains(direct.stdout, "later@far.example") {
		t.Errorf("mailq by the socket\n%s\ninstead of\n%s", byDoor.stdout, direct.stdout)
	}
	tries := strings.Count(v.log(), " delivery ")
	if r := s.run(s.client("dma", "-q"), ""); r.code != 0 {
		t.Errorf("-q: exit %d, %s", r.code, r.stderr)
	}
	v.await("another attempt", func(log string) bool { return strings.Count(log, " delivery ") > tries })

	// A second service does not take the socket away.
	other := s.command("dma-runner")
	s.write("other.conf", "SPOOLDIR "+s.path("spool2")+"\nSOCKET "+s.path("run", "door")+"\n")
	other.Args[2] = s.path("other.conf")
	init := s.command("dma-runner", "init")
	init.Args[2] = s.path("other.conf")
	if os.Geteuid() == 0 {
		init.Args = append(init.Args, "--one-uid")
	}
	s.run(init, "")
	if r := s.run(other, ""); r.code == 0 || !strings.Contains(r.stderr, "somebody listens there already") {
		t.Errorf("a second service: exit %d, %s", r.code, r.stderr)
	}
	// A killed one leaves a socket that the next one replaces.
	v.kill()
	if r := s.run(s.client("dma", "far@far.example"), "\n"); r.code != 75 || !strings.Contains(r.stderr, "connection refused") {
		t.Errorf("after a kill: exit %d, %s", r.code, r.stderr)
	}
	v = s.start()
	if r := s.run(s.client("dma", "far@far.example"), "\n"); r.code != 0 {
		t.Errorf("after a restart: exit %d, %s", r.code, r.stderr)
	}
	v.stop()
}

// otherUser lets an ordinary user run a program of the site: as DynamicUser= and
// NoNewPrivileges= do it, without a name and without the setgid bit.
func (s *site) otherUser(uid int, cmd *exec.Cmd) *exec.Cmd {
	words := []string{"setpriv", "--no-new-privs", "--reuid", fmt.Sprint(uid), "--regid", fmt.Sprint(uid), "--clear-groups"}
	setpriv, err := exec.LookPath(words[0])
	if err != nil {
		s.t.Fatal(err)
	}
	other := exec.Command(setpriv, append(words[1:], append([]string{s.path("bin", filepath.Base(cmd.Path))}, cmd.Args[1:]...)...)...)
	other.Dir, other.Env = "/", []string{"PATH=/usr/bin:/bin"}
	return other
}

// openDoorSite is a doorSite whose programs, configuration and socket ordinary
// users reach, but not its spool.
func openDoorSite(t *testing.T, o siteOptions) *site {
	t.Helper()
	var lacking error
	if os.Geteuid() != 0 {
		lacking = errors.New("not root")
	} else if _, err := exec.LookPath("setpriv"); err != nil {
		lacking = &crashtest.Missing{What: "setpriv", Remedy: "apt-get install util-linux"}
	}
	crashtest.Need(t, lacking)
	s := doorSite(t, o)
	for dir := s.dir; dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(s.path("bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"dma", "dma-runner"} {
		placeProgram(t, s.path("bin", name), name)
	}
	return s
}

// TestDoorUsers: users who have no right in the spool submit through the socket,
// each in his own name, and see their own mail only.
func TestDoorUsers(t *testing.T) {
	t.Parallel()
	const al, bo = 64341, 64342
	s := openDoorSite(t, siteOptions{rules: []string{"defer *"}})
	v := s.start()
	as := func(uid int, stdin, name string, args ...string) result {
		t.Helper()
		return s.run(s.otherUser(uid, s.command(name, args...)), stdin)
	}
	for uid, to := range map[int]string{al: "al@far.example", bo: "bo@far.example"} {
		// A trace field and an address of his own making change nothing.
		forged := "Received: by host.example (dma, from userid 0)\nFrom: root@host.example\nSubject: s\n\n"
		if r := as(uid, forged, "dma", "-f", "root@host.example", to); r.code != 0 || r.stderr != "" {
			t.Fatalf("uid %d: exit %d, %s", uid, r.code, r.stderr)
		}
	}
	// The alias makes a child, which is not Al's to see.
	s.write("aliases", "team: secret@far.example\n")
	if r := as(al, "\n", "dma", "team"); r.code != 0 {
		t.Fatalf("exit %d, %s", r.code, r.stderr)
	}
	eventually(t, "deferrals", func() bool { return len(s.in(spooldir.Tempfail)) == 3 })
	uids := make(map[string]int)
	sp := s.open()
	for _, file := range s.in(spooldir.Tempfail) {
		name, err := spooldir.ParseName(file)
		if err != nil {
			t.Fatal(err)
		}
		m, err := sp.Open(spooldir.Tempfail, name)
		if err != nil {
			t.Fatal(err)
		}
		uids[m.Recipients[0].Address] = m.UID
		var head [80]byte
		_, _ = m.ReadAt(head[:], 0)
		if want := fmt.Sprintf("Received: by host.example (dma, from userid %d)\n", m.UID); name.String()[32] == '.' && !strings.HasPrefix(string(head[:]), want) {
			t.Errorf("content begins with %q, want %q", head, want)
		}
		m.Close()
	}
	if uids["al@far.example"] != al || uids["bo@far.example"] != bo || uids["secret@far.example"] != al {
		t.Errorf("submitters %v", uids)
	}
	for uid, want := range map[int]string{al: "al@far.example", bo: "bo@far.example", 64343: ""} {
		r := as(uid, "", "dma", "-bp", "--json")
		var got []string
		for line := range strings.Lines(r.stdout) {
			var e struct{ Recipient string }
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatal(err)
			}
			got = append(got, e.Recipient)
		}
		if r.code != 0 || strings.Join(got, " ") != want {
			t.Errorf("mailq of %d: exit %d, %q, %s", uid, r.code, got, r.stderr)
		}
	}
	if r := as(64343, "", "dma", "-bp"); r.code != 0 || r.stdout != "Mail queue is empty\n" {
		t.Errorf("mailq of a stranger: exit %d, %s%s", r.code, r.stdout, r.stderr)
	}
	for _, command := range []string{"hold", "release"} {
		if r := as(al, "", "dma-runner", command, s.in(spooldir.Tempfail)[0]); r.code != 77 {
			t.Errorf("%s: exit %d, %s", command, r.code, r.stderr)
		}
	}
	tries := strings.Count(v.log(), " delivery ")
	if r := as(bo, "", "dma", "-q"); r.code != 0 {
		t.Errorf("-q: exit %d, %s", r.code, r.stderr)
	}
	v.await("another attempt", func(log string) bool { return strings.Count(log, " delivery ") > tries })
	v.stop()
}

// TestDoorReadOnly: root in a view of the file system in which the spool can't
// be written to.
func TestDoorReadOnly(t *testing.T) {
	t.Parallel()
	s := openDoorSite(t, siteOptions{})
	s.start()
	dma := s.command("dma", "far@far.example")
	const script = `mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"`
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Skip(err)
	}
	cmd := exec.Command(unshare, append([]string{"--mount", "--propagation", "private", "/bin/sh", "-c", script, "sh", s.queue}, dma.Args...)...)
	cmd.Env = dma.Env
	if r := s.run(cmd, "Subject: s\n\n"); r.code != 0 || r.stderr != "" {
		t.Fatalf("exit %d, %s", r.code, r.stderr)
	}
	eventually(t, "mail", func() bool { return len(s.relayed()) == 1 })
}
