package localtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"dma/internal/peertest"
)

// head is a header that needs nothing added.
const head = "From: ann@far.example\nTo: jim@host.example\nDate: Thu, 1 Jan 2026 00:00:00 +0000\nMessage-ID: <1@far.example>\nSubject: %s\n"

// message is a small message.
func message(subject string) string {
	return fmt.Sprintf(head, subject) + "\ntext of " + subject + "\n"
}

// site is dma in a root, on a spool that jim serves alone, or as it is installed
// for all users of a host.
type site struct {
	*peertest.Root
	t       testing.TB
	owner   string // who runs dma-runner
	spool   string
	annBox  string   // where ann's mail goes
	service *service // that runs; nil: a drain is run where one is wanted
}

// service is a dma-runner, with its log in a file.
type service struct {
	*peertest.Service
	read int // of the log, by drain
}

// ways are the two ways in which dma serves users.
func ways() []way { return []way{{"one user", newSite}, {"installed", newHost}} }

type way struct {
	name string
	site func(t testing.TB, conf string) *site
}

// newSite makes a site that jim serves alone. He is in group mail, so that there
// are dotlocks.
func newSite(t testing.TB, conf string) *site {
	t.Helper()
	peertest.Need(t)
	s := &site{Root: peertest.NewRoot(t, peertest.Peers()), t: t, owner: "jim", spool: "/srv/jim/queue", annBox: "home/jim/of-ann"}
	s.User("jim", 2001)
	s.Group("mail", 8, "jim")
	s.InstallDMA()
	s.Write("etc/aliases", "postmaster: root\nroot: jim\nann: /"+s.annBox+"\n")
	s.Write("etc/dma/dma.conf", "SPOOLDIR "+s.spool+"\n"+conf)
	s.check(os.MkdirAll(s.Path("srv/jim"), 0o755))
	s.Own("srv/jim", "jim", 0o755)
	s.Must(s.runner("init"), "")
	return s
}

// newHost makes a site as scripts/install makes it, with the users jim, ann and
// kate, and starts its service.
func newHost(t testing.TB, conf string) *site {
	t.Helper()
	peertest.Need(t)
	s := &site{Root: peertest.NewRoot(t, peertest.Peers()), t: t, owner: "root", spool: "/var/spool/dma", annBox: "var/mail/ann"}
	for i, name := range []string{"jim", "ann", "kate"} {
		s.User(name, 2001+i)
	}
	s.InstallHost()
	s.Write("etc/aliases", "postmaster: root\nroot: jim\n")
	s.Write("etc/dma/dma.conf", conf)
	s.Must(s.runner("init"), "")
	s.serve()
	return s
}

// in is the same site for a subtest.
func (s *site) in(t testing.TB) *site {
	in := *s
	in.Root, in.t = s.In(t), t
	return &in
}

// runner is a dma-runner of who serves the spool.
func (s *site) runner(args ...string) *exec.Cmd {
	s.t.Helper()
	if s.owner == "root" {
		return s.Command("dma-runner", args...)
	}
	return s.CommandAs(s.owner, "dma-runner", args...)
}

func (s *site) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// file writes a file in the home of its owner, with a folder of it.
func (s *site) file(path, text string, mode os.FileMode) {
	s.t.Helper()
	s.Write(path, text)
	user, _, _ := strings.Cut(strings.TrimPrefix(path, "home/"), "/")
	if dir := filepath.Dir(path); dir != "home/"+user {
		s.Own(dir, user, 0o700)
	}
	s.Own(path, user, mode)
}

// submit queues a message from ann@far.example.
func (s *site) submit(message string, to ...string) {
	s.t.Helper()
	s.Must(s.CommandAs("jim", "sendmail", append([]string{"-odq", "-i", "-f", "ann@far.example"}, to...)...), message)
}

// logFile is where the service logs: what is in a file has been written, unlike
// what is on its way through a pipe.
const logFile = "/tmp/dma-runner.log"

// serve starts the service.
func (s *site) serve() {
	s.t.Helper()
	cmd := s.runner()
	cmd.Args = append([]string{"sh", "-c", `exec "$0" "$@" 2>>` + logFile, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	s.service = &service{Service: s.Start(cmd), read: len(s.log())}
	s.Await("start of dma-runner", func() bool { return strings.Contains(s.log()[s.service.read:], " started ") })
}

// stop ends the service in good order.
func (s *site) stop() {
	s.t.Helper()
	s.service.Stop()
	s.service = nil
}

// log returns what the service has logged.
func (s *site) log() string {
	data, err := os.ReadFile(s.Path(logFile))
	if err != nil && !os.IsNotExist(err) {
		s.t.Error(err)
	}
	return string(data)
}

// drain has delivered what is due, and returns the log of that.
func (s *site) drain() string {
	s.t.Helper()
	if s.service == nil {
		res := s.Run(s.runner("drain"), "")
		if res.Code != 0 {
			s.t.Fatalf("dma-runner drain: exit %d\n%s", res.Code, res.Stderr)
		}
		return res.Stderr
	}
	s.Await("end of deliveries", s.idle)
	log := s.log()
	defer func() { s.service.read = len(log) }()
	return log[s.service.read:]
}

// idle reports whether all that is queued waits.
func (s *site) idle() bool {
	states := []string{"new", "forwarding", "local", "remote", "sent", "permfail"}
	// Twice: a child may have come where the first look had already been.
	for _, state := range slices.Concat(states, states) {
		entries, err := os.ReadDir(s.Path(s.spool, state))
		s.check(err)
		if slices.ContainsFunc(entries, func(e os.DirEntry) bool { return !strings.HasPrefix(e.Name(), ".") }) {
			return false
		}
	}
	return true
}

// waiting returns how many recipients wait in tempfail.
func (s *site) waiting() int {
	s.t.Helper()
	names, err := filepath.Glob(s.Path(s.spool, "tempfail/[^.]*"))
	s.check(err)
	return len(names)
}

// flush has what waits tried now, and returns the log of that.
func (s *site) flush() string {
	s.t.Helper()
	n := s.waiting()
	res := s.Run(s.runner("flush"), "")
	if res.Code != 0 {
		s.t.Fatalf("dma-runner flush: exit %d\n%s", res.Code, res.Stderr)
	}
	if s.service == nil {
		return res.Stderr
	}
	s.Await("flush", func() bool { return strings.Count(s.log()[s.service.read:], " from=tempfail to=new ") >= n })
	return s.drain()
}

// empty fails the test if anything is in the queue.
func (s *site) empty() {
	s.t.Helper()
	mailq := s.Command("mailq")
	if s.owner != "root" {
		mailq = s.CommandAs(s.owner, "mailq")
	}
	if out := s.Must(mailq, ""); !strings.Contains(out, "empty") {
		s.t.Errorf("in the queue:\n%s", out)
	}
}

// wantStatus compares what the log says about a recipient: "sent 2.0.0", for
// each attempt.
func (s *site) wantStatus(log, to string, want ...string) {
	s.t.Helper()
	if got := statuses(log)[to]; !slices.Equal(got, want) {
		s.t.Errorf("%s: %q, want %q\n%s", to, got, want, log)
	}
}

var field = regexp.MustCompile(` ([a-z_]+)=("(?:[^"\\]|\\.)*"|\S*)`)

// statuses returns the outcomes in a log by recipient.
func statuses(log string) map[string][]string {
	got := make(map[string][]string)
	for line := range strings.Lines(log) {
		values := make(map[string]string)
		for _, m := range field.FindAllStringSubmatch(line, -1) {
			values[m[1]] = strings.Trim(m[2], `"`)
		}
		if values["status"] != "" {
			to := strings.Trim(values["to"], "<>")
			got[to] = append(got[to], values["status"]+" "+values["dsn"])
		}
	}
	return got
}

// wantOwner fails the test unless a file is a user's, with the mode.
func (s *site) wantOwner(path, user string, mode os.FileMode) {
	s.t.Helper()
	info, err := os.Stat(s.Path(path))
	s.check(err)
	uid := info.Sys().(*syscall.Stat_t).Uid
	if want := s.Must(s.CommandAs(user, "id", "-u"), ""); strconv.Itoa(int(uid)) != strings.TrimSpace(want) || info.Mode() != mode {
		s.t.Errorf("%s is of uid %d, %v; want %s's, %v", path, uid, info.Mode(), user, mode)
	}
}

// mbox returns the messages of an mbox file as they stand there, without their
// From_ lines and the empty lines that end them; none if there is no file.
func (s *site) mbox(path string) []string {
	s.t.Helper()
	data, err := os.ReadFile(s.Path(path))
	if os.IsNotExist(err) {
		return nil
	}
	s.check(err)
	list, err := splitMbox(string(data))
	if err != nil {
		s.t.Errorf("%s: %v", path, err)
	}
	return list
}

func splitMbox(text string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	if !strings.HasPrefix(text, "From ") {
		return nil, fmt.Errorf("it does not begin with a From_ line: %.100q", text)
	}
	if !strings.HasSuffix(text, "\n\n") {
		return nil, fmt.Errorf("no empty line at the end: %q", text[max(0, len(text)-100):])
	}
	var list []string
	for m := range strings.SplitSeq("\n\n"+strings.TrimSuffix(text, "\n\n"), "\n\nFrom ") {
		if _, m, ok := strings.Cut(m, "\n"); ok {
			list = append(list, m+"\n")
		}
	}
	return list, nil
}

// maildir returns the files of a Maildir.
func (s *site) maildir(path string) []string {
	s.t.Helper()
	var list []string
	for _, sub := range []string{"new", "cur"} {
		files, err := filepath.Glob(s.Path(path, sub, "*"))
		s.check(err)
		for _, file := range files {
			data, err := os.ReadFile(file)
			s.check(err)
			list = append(list, string(data))
		}
	}
	return list
}

// subjects lists the subjects of messages, sorted.
func subjects(list []string) []string {
	subjects := []string{}
	for _, m := range list {
		header, _, _ := strings.Cut(m, "\n\n")
		_, rest, _ := strings.Cut("\n"+header, "\nSubject: ")
		subject, _, _ := strings.Cut(rest, "\n")
		subjects = append(subjects, subject)
	}
	slices.Sort(subjects)
	return subjects
}

// wantSubjects compares messages by their subjects.
func (s *site) wantSubjects(where string, list []string, want ...string) {
	s.t.Helper()
	slices.Sort(want)
	if got := subjects(list); !slices.Equal(got, want) {
		s.t.Errorf("%s: %q, want %q", where, got, want)
	}
}

// numbered is the subjects from m0 to m(n-1).
func numbered(n int) []string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("m%d", i))
	}
	return list
}

// wantOnce fails the test unless each of the subjects is there once and nothing
// else is.
func (s *site) wantOnce(where string, list, want []string) {
	s.t.Helper()
	count := make(map[string]int)
	for _, subject := range subjects(list) {
		count[subject]++
	}
	var lost, twice []string
	for _, subject := range want {
		switch count[subject] {
		case 0:
			lost = append(lost, subject)
		case 1:
		default:
			twice = append(twice, subject)
		}
		delete(count, subject)
	}
	if len(lost)+len(twice)+len(count) > 0 {
		s.t.Errorf("%s: lost %q, twice %q, strange %v", where, lost, twice, count)
	}
}
