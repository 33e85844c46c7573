package localtest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"dma/internal/peertest"
)

// head is a header that needs nothing added.
const head = "From: ann@far.example\nTo: jim@host.example\nDate: Thu, 1 Jan 2026 00:00:00 +0000\nMessage-ID: <1@far.example>\nSubject: %s\n"

// message is a small message.
func message(subject string) string {
	return fmt.Sprintf(head, subject) + "\ntext of " + subject + "\n"
}

// site is dma in a root, on a spool that jim serves alone. He is in group mail,
// so that there are dotlocks.
type site struct {
	*peertest.Root
	t testing.TB
}

func newSite(t testing.TB, conf string) *site {
	t.Helper()
	peertest.Need(t)
	s := &site{peertest.NewRoot(t, peertest.Peers()), t}
	s.User("jim", 2001)
	s.Group("mail", 8, "jim")
	s.InstallDMA()
	s.Write("etc/aliases", "postmaster: root\nroot: jim\n")
	s.Write("etc/dma/dma.conf", "SPOOLDIR /srv/jim/queue\n"+conf)
	s.check(os.MkdirAll(s.Path("srv/jim"), 0o755))
	s.Own("srv/jim", "jim", 0o755)
	s.Must(s.CommandAs("jim", "dma-runner", "init"), "")
	return s
}

func (s *site) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// file writes a file of jim's, with a folder of it.
func (s *site) file(path, text string, mode os.FileMode) {
	s.t.Helper()
	s.Write(path, text)
	if dir := filepath.Dir(path); dir != "home/jim" {
		s.Own(dir, "jim", 0o700)
	}
	s.Own(path, "jim", mode)
}

// submit queues a message from ann@far.example.
func (s *site) submit(message string, to ...string) {
	s.t.Helper()
	s.Must(s.CommandAs("jim", "sendmail", append([]string{"-odq", "-i", "-f", "ann@far.example"}, to...)...), message)
}

// drain delivers what is due and returns the log.
func (s *site) drain() string {
	s.t.Helper()
	res := s.Run(s.CommandAs("jim", "dma-runner", "drain"), "")
	if res.Code != 0 {
		s.t.Fatalf("dma-runner drain: exit %d\n%s", res.Code, res.Stderr)
	}
	return res.Stderr
}

// serve starts the service.
func (s *site) serve() *peertest.Service {
	s.t.Helper()
	return s.Start(s.CommandAs("jim", "dma-runner"))
}

// empty fails the test if anything is in the queue.
func (s *site) empty() {
	s.t.Helper()
	if out := s.Must(s.CommandAs("jim", "mailq"), ""); !strings.Contains(out, "empty") {
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
