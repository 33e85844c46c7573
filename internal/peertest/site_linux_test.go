package peertest

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"dma/spooldir"
)

// site is dma in a root: a configuration, a spool of one uid, mailboxes for
// what comes back. The sender is alice@host.example.
type site struct {
	*Root
	t   testing.TB
	dir string // inside the root
}

// newSite makes a site. In the configuration @ is its folder.
func newSite(t testing.TB, r *Root, conf string) *site {
	t.Helper()
	if err := os.MkdirAll(r.Path("srv"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(r.Path("srv"), "site-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &site{Root: r.In(t), t: t, dir: strings.TrimPrefix(dir, r.Dir)}
	for _, name := range []string{"mail", "home"} {
		if err := os.Mkdir(s.path(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.Write(s.dir+"/passwd", "alice:x:2001:2001:Alice Example:"+s.dir+"/home:/bin/sh\n")
	s.Write(s.dir+"/aliases", "postmaster: alice\nroot: alice\n")
	s.Write(s.dir+"/dma.conf", strings.ReplaceAll("SPOOLDIR @/spool\nMAILNAME host.example\nALIASES @/aliases\nUSERS @/passwd\nMAILBOX mbox:@/mail/%u\n"+conf, "@", s.dir))
	s.Must(s.runner("init", "--one-uid"), "")
	return s
}

// path is where a file of the site is for this process.
func (s *site) path(name string) string { return s.Path(s.dir, name) }

// file writes a file of the site that only its owner can read.
func (s *site) file(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) runner(args ...string) *exec.Cmd {
	s.t.Helper()
	return s.Command("dma-runner", append([]string{"-C", s.dir + "/dma.conf"}, args...)...)
}

// submit queues a message from alice; args are options and recipients.
func (s *site) submit(message string, args ...string) {
	s.t.Helper()
	cmd := s.Command("dma", append([]string{"-C", s.dir + "/dma.conf", "-odq", "-i", "-f", "alice@host.example"}, args...)...)
	s.Must(cmd, message)
}

// outcome is the log's line about one attempt for one recipient.
type outcome struct {
	status, dsn string
	line        string
}

var field = regexp.MustCompile(` ([a-z_]+)=("(?:[^"\\]|\\.)*"|\S*)`)

// drain delivers what is due and returns the outcome for each recipient; two
// for one recipient is a mistake.
func (s *site) drain() map[string]outcome { s.t.Helper(); return s.pass("drain") }

// flush is drain with what waits, too.
func (s *site) flush() map[string]outcome { s.t.Helper(); return s.pass("flush") }

func (s *site) pass(what string) map[string]outcome {
	s.t.Helper()
	res := s.Run(s.runner(what), "")
	if res.Code != 0 {
		s.t.Fatalf("dma-runner %s: exit %d\n%s", what, res.Code, res.Stderr)
	}
	got := make(map[string]outcome)
	for line := range strings.Lines(res.Stderr) {
		values := make(map[string]string)
		for _, m := range field.FindAllStringSubmatch(line, -1) {
			values[m[1]] = strings.Trim(m[2], `"`)
		}
		if values["status"] == "" || values["relay"] == "local" {
			continue
		}
		to := strings.Trim(values["to"], "<>")
		if _, twice := got[to]; twice {
			s.t.Errorf("two outcomes for %s:\n%s", to, res.Stderr)
		}
		got[to] = outcome{values["status"], values["dsn"], strings.TrimSpace(line)}
	}
	return got
}

// states returns where the recipients stand, as "tempfail friend@far.example",
// sorted.
func (s *site) states() []string {
	s.t.Helper()
	spool, err := spooldir.Open(s.path("spool"))
	if err != nil {
		s.t.Fatal(err)
	}
	list := []string{}
	for _, state := range spooldir.States() {
		err := spool.Scan(state, func(n spooldir.Name) bool {
			list = append(list, string(state)+" "+n.Label())
			return true
		}, func(file string) { s.t.Errorf("foreign file %s in %s", file, state) })
		if err != nil {
			s.t.Fatal(err)
		}
	}
	slices.Sort(list)
	return list
}

// bounces returns the reports in alice's mailbox.
func (s *site) bounces() []string {
	s.t.Helper()
	data, err := os.ReadFile(s.path("mail/alice"))
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Split("\n"+string(data), "\nFrom ")[1:]
}

// expect compares the outcomes ("sent 2.0.0"), the states that remain and the
// number of bounces.
func (s *site) expect(got map[string]outcome, want map[string]string, bounces int) {
	s.t.Helper()
	var left []string
	for to, w := range want {
		o, ok := got[to]
		if have := o.status + " " + o.dsn; !ok || have != w {
			s.t.Errorf("%s: %q, want %q\n%s", to, have, w, o.line)
		}
		if strings.HasPrefix(w, "deferred") {
			left = append(left, "tempfail "+to)
		}
	}
	for to, o := range got {
		if _, ok := want[to]; !ok {
			s.t.Errorf("an attempt for %s: %s", to, o.line)
		}
	}
	slices.Sort(left)
	if have := s.states(); !slices.Equal(have, left) {
		s.t.Errorf("in the spool: %q, want %q", have, left)
	}
	if have := s.bounces(); len(have) != bounces {
		s.t.Errorf("%d bounces, want %d:\n%s", len(have), bounces, strings.Join(have, "\n"))
	}
}

// people makes n addresses at peer.example.
func people(n int) []string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("p%d@peer.example", i))
	}
	return list
}

// all is the same outcome for each.
func all(to []string, outcome string) map[string]string {
	m := make(map[string]string)
	for _, a := range to {
		m[a] = outcome
	}
	return m
}
