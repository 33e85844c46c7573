package systemtest

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"dma/spooldir"
)

// places lists who has got a message with each subject: the users' mailboxes,
// the other files given by name, and the smarthost, "far".
func (s *site) places(files map[string]string) map[string][]string {
	s.t.Helper()
	got := make(map[string][]string)
	add := func(place string, list []mail) {
		for _, subject := range subjects(list) {
			got[subject] = append(got[subject], place)
		}
	}
	for _, user := range []string{"alice", "bob", "carol", "dave"} {
		add(user, s.mailbox(user))
	}
	for place, path := range files {
		var list []mail
		var err error
		if strings.HasSuffix(path, "/") {
			list, err = readMaildir(path)
		} else {
			list, err = readMbox(path)
		}
		s.check(err)
		add(place, list)
	}
	for _, t := range s.sink.Transactions() {
		text := string(bytes.ReplaceAll(t.Content, []byte("\r\n"), []byte("\n")))
		for _, to := range t.To {
			add(to, []mail{{text: text}})
		}
	}
	return got
}

// expectPlaces compares places, by subject, without regard to order.
func expectPlaces(t *testing.T, got map[string][]string, want map[string]string) {
	t.Helper()
	for subject, places := range want {
		equal(t, "who has "+subject, got[subject], strings.Fields(places))
	}
}

func TestAliases(t *testing.T) {
	t.Parallel()
	s := newSiteWith(t, siteOptions{conf: "ALIASUSER dave\n"})
	s.forward("dave", `"|exit 69"`) // nobody is to ask it
	files := map[string]string{"box": s.path("box"), "md": s.path("Md") + "/"}
	s.write("aliases", strings.NewReplacer("DIR", s.path()).Replace(`# aliases
postmaster: alice
root: alice
team: bob, carol
all: team, alice, far@far.example
carol: carol, bob
kept: \dave
file: DIR/box
maildir: DIR/Md/
command: "|cat >DIR/piped; env >DIR/env"
nowhere: /dev/null
"quoted name": bob
listed: :include:DIR/members
a: b
b: a
broken: "bob
`))
	s.write("members", "bob, # the first\nfar@far.example\n")
	rows := []struct{ to, places string }{
		{"team", "bob carol"}, // carol is an alias: her own box, and bob's once only
		{"all", "alice bob carol far@far.example"},
		{"carol", "carol bob"},
		{"kept", "dave"},
		{"file", "box"},
		{"maildir", "md"},
		{"command", ""},
		{"nowhere", ""},
		{`"quoted name"`, "bob"},
		{"listed", "bob far@far.example"},
		{"Postmaster", "alice"},
		{"MAILER-DAEMON", "alice"},
		{"root@host.example", "alice"},
		{"bob@localhost", "bob"},
		{"BOB", "bob"},
		{"bob+detail", "bob"},
		{"team+detail@HOST.example", "bob carol"},
		{"a", ""},
		{"broken", ""},
	}
	want := make(map[string]string)
	for i, r := range rows {
		subject := fmt.Sprintf("%d to %s", i, r.to)
		want[subject] = r.places
		s.post(subject, "-f", "alice", r.to)
	}
	log := s.drain().stderr
	expectPlaces(t, s.places(files), want)

	got := slurp(t, s.path("piped"))
	if !strings.Contains(got, "\nDelivered-To: command@host.example\n") || !strings.Contains(got, "to command\n") {
		t.Errorf("the command got %q", got)
	}
	if env := slurp(t, s.path("env")); !strings.Contains(env, "USER=dave\n") || !strings.Contains(env, "HOME="+s.home("dave")+"\n") {
		t.Errorf("the environment is %q", env)
	}
	waiting := make(map[string]string)
	for _, q := range s.mailq() {
		waiting[q.Recipient] = q.State + " " + q.Status + " " + q.Reason
	}
	if len(waiting) != 2 || !strings.Contains(waiting["a"], "tempfail 4.3.5 alias loop: a -> b -> a") || !strings.Contains(waiting["broken"], "aliases:16:") {
		t.Errorf("waiting: %q", waiting)
	}
	if p := events(log, "alias-problem"); len(p) != 1 || p[0]["line"] != "16" {
		t.Errorf("problems with aliases: %v", p)
	}

	// The administrator corrects the file, and what waited flows.
	s.write("aliases", "a: b\nb: bob\nbroken: bob\n")
	s.flush()
	expectPlaces(t, s.places(files), map[string]string{"17 to a": "bob", "18 to broken": "bob"})
	s.empty()
}

// The bounces of a list go to its owner, and those of other recipients to the
// sender, whatever leads to the list.
func TestListOwner(t *testing.T) {
	t.Parallel()
	s := newSiteWith(t, siteOptions{rules: []string{"refuse gone*@*"}})
	s.write("aliases", "postmaster: alice\nall: bob, crew, Team\ncrew: bob, gone1@far.example\nowner-crew: dave\n"+
		"team: bob, gone2@far.example\nowner-team: alice\n")
	s.post("list", "-f", "carol", "crew")
	s.post("lists", "-f", "carol", "all")
	s.post("null", "-f", "<>", "all")
	s.drain()
	got := make(map[string][]string)
	for _, m := range s.mailbox("bob") {
		subject := subjects([]mail{m})[0]
		for line := range strings.Lines(m.text) {
			if from, ok := strings.CutPrefix(line, "Return-Path: "); ok {
				got[subject] = append(got[subject], strings.TrimSpace(from))
			}
		}
	}
	for subject, want := range map[string][]string{
		"list":  {"<owner-crew@host.example>"},
		"lists": {"<carol@host.example>", "<owner-crew@host.example>", "<owner-team@host.example>"},
		"null":  {"<>", "<>", "<>"},
	} {
		equal(t, "senders of "+subject, got[subject], want)
	}
	bounced := func(user string) (finals []string) {
		for _, m := range s.mailbox(user) {
			if r := parseReport(t, m.text); r.header.Get("Subject") != "Delivery report that could not be delivered" {
				finals = append(finals, r.finals()...)
			}
		}
		return finals
	}
	equal(t, "reported to crew's owner", bounced("dave"), []string{"gone1@far.example", "gone1@far.example"})
	equal(t, "reported to team's owner", bounced("alice"), []string{"gone2@far.example"})
	if n := len(s.mailbox("carol")); n > 0 {
		t.Errorf("%d messages for the sender", n)
	}
	s.empty()
}

// While somebody rewrites the aliases in place, mail for a name that is not there
// yet waits, and nobody gets a bounce.
func TestAliasesRewritten(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const whole = "postmaster: alice\nroot: alice\nteam: carol, dave\nsales: bob\n"
	s.write("aliases", whole)
	v := s.start()
	const n = 12
	for i := range n {
		text := whole[:len(whole)*(i%4)/4] // nothing, and a quarter more each time
		s.check(os.WriteFile(s.path("aliases"), []byte(text), 0o644))
		s.post(fmt.Sprint(i), "-f", "alice", "sales")
		v.await("decision", func(log string) bool { return strings.Count(log, " to=<sales> ") > i })
		s.check(os.WriteFile(s.path("aliases"), []byte(whole), 0o644))
	}
	s.flush()
	v.await("mail for sales", func(string) bool { return len(s.mailbox("bob")) >= n && len(s.spool()) == 0 })
	v.stop()
	for _, e := range events(v.log(), "delivery") {
		if e["status"] == "bounced" {
			t.Errorf("bounced: %v", e)
		}
	}
	if a, b := len(s.mailbox("alice")), len(s.mailbox("bob")); a != 0 || b != n {
		t.Errorf("the sender has %d messages, bob %d", a, b)
	}
}

// An alias that names a command or a file without anybody to run it as waits
// with the reason, and keeps nobody else's mail.
func TestAliasWithoutUser(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.write("aliases", "prog: \"|cat\"\nbox: "+s.path("box")+"\n")
	s.post("both", "prog", "box", "bob")
	s.drain()
	if len(s.mailbox("bob")) != 1 {
		t.Error("bob has no mail")
	}
	list := s.mailq()
	if len(list) != 2 {
		t.Fatalf("waiting: %+v", list)
	}
	for _, q := range list {
		if q.State != "tempfail" || !strings.Contains(q.Reason, "ALIASUSER") {
			t.Errorf("waits as %+v", q)
		}
	}
}

func TestForwardFiles(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.forward("alice", "# off to the others\nbob\nfar@far.example\n")
	s.forward("bob", "\\bob, ~/box, \"~/Mail dir/\"\n\"|cat >$HOME/piped; env >$HOME/env; exit 0\"\n")
	s.forward("dave", "dave, far2@far.example\n") // oneself is a kept copy
	files := map[string]string{"box": s.home("bob", "box"), "md": s.home("bob", "Mail dir") + "/"}
	s.post("1", "-f", "carol", "alice")
	s.post("2", "-f", "carol@host.example", "dave+ext")
	s.post("3", "carol")
	s.drain()
	expectPlaces(t, s.places(files), map[string]string{
		"1": "bob box md far@far.example", "2": "dave far2@far.example", "3": "carol",
	})
	s.empty()

	// Every copy says whose mail it was, on its way.
	m := only(t, "mail for bob", s.mailbox("bob"))
	for _, line := range []string{"Return-Path: <carol@host.example>", "Delivered-To: bob@host.example", "Delivered-To: alice@host.example"} {
		if strings.Count("\n"+m.text, "\n"+line+"\n") != 1 {
			t.Errorf("not once %q in\n%s", line, m.text)
		}
	}
	if m := only(t, "mail for carol", s.mailbox("carol")); !m.hasLine("Delivered-To: carol@host.example") {
		t.Errorf("carol got\n%s", m.text)
	}
	got := slurp(t, s.home("bob", "piped"))
	if !strings.HasPrefix(got, "From carol@host.example ") || !strings.HasSuffix(got, "\n\nhello\n") || strings.Contains(got, "X-Dma-Delivery") {
		t.Errorf("the command got %q", got)
	}
	env := make(map[string]string)
	for line := range strings.Lines(slurp(t, s.home("bob", "env"))) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		switch name {
		case "PWD", "OLDPWD", "SHLVL", "_": // the shell's own
		default:
			env[name] = value
		}
	}
	want := map[string]string{
		"USER": "bob", "LOGNAME": "bob", "HOME": s.home("bob"), "SHELL": "/bin/sh", "PATH": "/usr/local/bin:/usr/bin:/bin",
		"SENDER": "carol@host.example", "RECIPIENT": "bob@host.example", "ORIGINAL_RECIPIENT": "alice@host.example",
		"LOCAL": "bob", "EXTENSION": "", "DOMAIN": "host.example",
	}
	for name, value := range want {
		if got, ok := env[name]; !ok || got != value {
			t.Errorf("%s is %q (%v), not %q", name, got, ok, value)
		}
		delete(env, name)
	}
	if len(env) > 0 {
		t.Errorf("the command has %v too", env)
	}

	// One user, however spelled, gets one copy.
	s.forward("carol", "bob, bob@host.example\n<BOB@localhost>\n")
	s.post("4", "carol")
	s.drain()
	expectPlaces(t, s.places(files), map[string]string{"4": "bob box md"})
	s.empty()
}

// Two users who forward to each other: the loop ends with a bounce that says
// why.
func TestForwardLoop(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.forward("alice", "bob\n")
	s.forward("bob", "alice@host.example\n")
	s.post("round", "-f", "carol", "bob")
	s.drain()
	r := parseReport(t, only(t, "a bounce", s.mailbox("carol")).text)
	h := only(t, "a recipient", r.recipients)
	if h.Get("Status") != "5.4.6" || !strings.Contains(h.Get("Diagnostic-Code"), "mail loop") {
		t.Errorf("reported as %v", h)
	}
	if len(s.mailbox("alice"))+len(s.mailbox("bob")) != 0 {
		t.Error("it was delivered")
	}
	s.empty()
}

// A command, once expanded, is run only as long as its owner lists it.
func TestUnlisted(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.forward("bob", `"|echo x >>$HOME/ran; exit 75"`)
	s.post("changed", "bob+box")
	s.drain()
	if q := only(t, "a name", s.mailq()); q.State != "tempfail" || !strings.Contains(q.Reason, "75") {
		t.Errorf("waits as %+v", q)
	}
	s.forward("bob", "\\bob\n~/box\n")
	log := s.flush().stderr
	if !strings.Contains(log, "no longer lists") {
		t.Errorf("no word of it in\n%s", log)
	}
	files := map[string]string{"box": s.home("bob", "box")}
	expectPlaces(t, s.places(files), map[string]string{"changed": "bob box"})
	if n := strings.Count(slurp(t, s.home("bob", "ran")), "x"); n != 1 {
		t.Errorf("the old command ran %d times", n)
	}
	m := only(t, "mail for bob", s.mailbox("bob"))
	if strings.Count(m.text, "Delivered-To: bob+box@host.example\n") != 1 {
		t.Errorf("bob got\n%s", m.text)
	}
	s.empty()
}

// The same for a command of the aliases.
func TestUnlistedAlias(t *testing.T) {
	t.Parallel()
	s := newSiteWith(t, siteOptions{conf: "ALIASUSER dave\n"})
	s.write("aliases", `prog: "|echo x >>$HOME/ran; exit 75"`+"\n")
	s.post("changed", "prog")
	s.drain()
	s.write("aliases", "prog: carol, bob\n")
	s.flush()
	expectPlaces(t, s.places(nil), map[string]string{"changed": "carol bob"})
	if n := s.count("dave", "ran"); n != 1 {
		t.Errorf("the old command ran %d times", n)
	}
	s.empty()
}

// A .forward of a detail is asked at delivery, too.
func TestForwardOfDetail(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.write(s.home("bob", ".forward+lists"), `"|echo $EXTENSION $RECIPIENT >>$HOME/ran; [ -e $HOME/ok ] || exit 75", ~/box`)
	s.post("detail", "bob+lists")
	s.post("capitals", "bob+LISTS")
	s.post("plain", "bob+other")
	s.drain()
	s.write(s.home("bob", "ok"), "")
	s.flush()
	equal(t, "what the command noted", strings.Split(slurp(t, s.home("bob", "ran")), "\n"), []string{
		"LISTS bob+LISTS@host.example", "LISTS bob+LISTS@host.example", "lists bob+lists@host.example", "lists bob+lists@host.example", "",
	})
	expectPlaces(t, s.places(map[string]string{"box": s.home("bob", "box")}), map[string]string{"detail": "box", "capitals": "box", "plain": "bob"})
	s.empty()
}

// A .forward that cannot be used makes the mail wait, with a line that says
// why, until somebody has mended it.
func TestUnusableForward(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		break_ func(s *site, path string)
		reason string
		mend   func(s *site, path string)
	}{
		{"world-writable", func(s *site, path string) { s.check(os.Chmod(path, 0o666)) }, "anybody may write",
			func(s *site, path string) { s.check(os.Chmod(path, 0o600)) }},
		{"unreadable", func(s *site, path string) {
			if os.Geteuid() == 0 {
				s.t.Skip("root reads everything")
			}
			s.check(os.Chmod(path, 0))
		}, "permission denied", func(s *site, path string) { s.check(os.Chmod(path, 0o600)) }},
		{"directory", func(s *site, path string) { s.check(os.Remove(path)); s.check(os.Mkdir(path, 0o700)) }, "is a directory",
			func(s *site, path string) { s.check(os.Remove(path)); s.forward("bob", "carol\n") }},
		{"mistake", func(s *site, path string) { s.forward("bob", "carol\n\"never closed\n") }, ".forward:2:",
			func(s *site, path string) { s.forward("bob", "carol\n") }},
		{"owner", func(s *site, path string) {
			if os.Geteuid() != 0 {
				s.t.Skip("needs root")
			}
			s.check(os.Chown(path, 12345, 12345))
		}, "belongs to uid 12345", func(s *site, path string) { s.check(os.Chown(path, 0, 0)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.forward("bob", "carol\n")
			path := s.home("bob", ".forward")
			tt.break_(s, path)
			s.post("waits", "bob", "dave")
			log := s.drain().stderr
			if q := only(t, "a waiting name", s.mailq()); q.State != "tempfail" || !strings.HasPrefix(q.Status, "4.") || !strings.Contains(q.Reason, tt.reason) {
				t.Errorf("waits as %+v", q)
			}
			if e := only(t, "a line in the log", events(log, "forward-trouble")); e["user"] != "bob" || !strings.Contains(e["reason"], tt.reason) {
				t.Errorf("logged as %v", e)
			}
			if len(s.mailbox("bob")) > 0 || len(s.mailbox("carol")) > 0 || len(s.mailbox("dave")) != 1 {
				t.Error("the mail went astray")
			}
			tt.mend(s, path)
			s.flush()
			expectPlaces(t, s.places(nil), map[string]string{"waits": "carol dave"})
			s.empty()
		})
	}
}

func TestMailboxKinds(t *testing.T) {
	t.Parallel()
	t.Run("maildir", func(t *testing.T) {
		t.Parallel()
		s := newSiteWith(t, siteOptions{mailbox: "maildir:~/Maildir"})
		for _, sub := range []string{"", ".lists", ".lists/cur", ".lists/new", ".lists/tmp"} {
			s.check(os.MkdirAll(s.home("bob", "Maildir", sub), 0o700))
		}
		s.post("1", "bob", "bob+lists", "bob+Lists", "bob+none", "carol")
		s.drain()
		for path, n := range map[string]int{
			s.home("bob", "Maildir"): 2, s.home("bob", "Maildir", ".lists"): 2, s.home("carol", "Maildir"): 1,
		} {
			list, err := readMaildir(path)
			if err != nil || len(list) != n {
				t.Errorf("%s has %d messages instead of %d, %v", path, len(list), n, err)
			}
		}
		s.empty()
	})
	t.Run("mbox with flock", func(t *testing.T) {
		t.Parallel()
		if runtime.GOOS != "linux" {
			t.Skip("fcntl locks keep flock away")
		}
		s := newSiteWith(t, siteOptions{conf: "MBOXLOCK flock\n"})
		f, err := os.OpenFile(s.path("mail", "bob"), os.O_RDWR|os.O_CREATE, 0o600)
		s.check(err)
		defer f.Close()
		s.check(syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &syscall.Flock_t{Type: syscall.F_WRLCK}))
		s.post("1", "bob")
		s.drain()
		s.empty()
		if n := len(s.mailbox("bob")); n != 1 {
			t.Errorf("%d messages", n)
		}
	})
	t.Run("pipe", func(t *testing.T) {
		t.Parallel()
		s := newSiteWith(t, siteOptions{mailbox: "pipe:echo $USER $EXTENSION: $(grep -c ^Subject:) >>$HOME/got"})
		s.post("1", "bob+x", "carol")
		s.drain()
		if b, c := slurp(t, s.home("bob", "got")), slurp(t, s.home("carol", "got")); b != "bob x: 1\n" || c != "carol : 1\n" {
			t.Errorf("bob's pipe noted %q, carol's %q", b, c)
		}
		s.empty()
	})
	t.Run("pipe that refuses", func(t *testing.T) {
		t.Parallel()
		s := newSiteWith(t, siteOptions{mailbox: `pipe:[ $USER = alice ] && exec cat >>$HOME/got; echo No room for $USER; exit 65`})
		s.post("1", "-f", "alice", "bob")
		s.drain()
		got := slurp(t, s.home("alice", "got"))
		if !strings.Contains(got, "No room for bob") || !strings.Contains(got, "Status: 5.6.0") {
			t.Errorf("alice got %q", got)
		}
		s.empty()
	})
}

func TestForwardPattern(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := newSiteWith(t, siteOptions{dir: dir, conf: "FORWARD " + dir + "/forwards/%u.list\n"})
	s.check(os.Mkdir(s.path("forwards"), 0o755))
	s.write("forwards/bob.list", "carol, ~/box\n")
	s.forward("bob", "far@far.example\n") // not asked
	s.post("1", "bob")
	s.drain()
	expectPlaces(t, s.places(map[string]string{"box": s.home("bob", "box")}), map[string]string{"1": "carol box"})
	s.empty()
}

func TestLocalDomains(t *testing.T) {
	t.Parallel()
	s := newSiteWith(t, siteOptions{conf: "LOCALDOMAINS one.example, Two.example\n"})
	s.post("1", "alice@one.example", "bob@TWO.example", "carol@three.example", "dave@sub.one.example")
	s.drain()
	expectPlaces(t, s.places(nil), map[string]string{"1": "alice bob carol@three.example dave@sub.one.example"})
	s.empty()
}

func TestNullClient(t *testing.T) {
	t.Parallel()
	s := newSiteWith(t, siteOptions{conf: "NULLCLIENT\n", rules: []string{"refuse bob@*"}})
	s.forward("alice", "bob\n") // not asked
	s.post("1", "-f", "carol", "alice", "bob@host.example", "root@localhost")
	s.drain()
	got := s.relayed()
	if !slices.Equal(got, []string{"alice@host.example", "carol@host.example", "root@localhost"}) {
		t.Errorf("the smarthost took %q", got) // and carol's is the bounce
	}
	if n := len(s.in(spooldir.Tempfail)); n > 0 || len(s.places(nil)["1"]) != 2 {
		t.Errorf("places: %v, and %d wait", s.places(nil), n)
	}
	s.empty()
}
