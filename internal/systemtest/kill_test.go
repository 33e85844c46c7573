package systemtest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"dma/internal/crashtest/sysfault"
	"dma/spooldir"
)

// killing are the two ways to die at a call: the process before it, everything
// after it.
func killing() map[string]sysfault.Op {
	return map[string]sysfault.Op{"before": sysfault.KillProcess, "after": sysfault.KillTreeAfter}
}

// stages makes a folder below base for each run, and removes it afterwards.
func stages(base string) func(t *testing.T) string {
	n := 0
	return func(t *testing.T) string {
		t.Helper()
		n++
		dir := filepath.Join(base, fmt.Sprint(n))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
		return dir
	}
}

// inQueue reports whether a call is about the spool.
func inQueue(c sysfault.Call) bool { return strings.Contains(c.Path+c.Path2, "/spool") }

// submission is a run of dma whose end is to be judged.
type submission struct {
	*site
	to     []string
	stderr strings.Builder
}

func newSubmission(t *testing.T, dir string, to []string) (*submission, *exec.Cmd) {
	s := &submission{site: newSiteWith(t, siteOptions{dir: dir}), to: to}
	cmd := s.command("dma", append([]string{"-odq", "-f", "alice"}, to...)...)
	cmd.Stdin = strings.NewReader(message)
	cmd.Stderr = &s.stderr
	return s, cmd
}

// arrived delivers what is there and returns how many of the recipients got the
// message; twice or in part is an error.
func (s *submission) arrived() int {
	s.t.Helper()
	s.settle()
	n := 0
	for _, to := range s.to {
		var texts []string
		if strings.Contains(to, "@") {
			for _, tr := range s.sink.Transactions() {
				texts = append(texts, strings.ReplaceAll(string(tr.Content), "\r\n", "\n"))
			}
		} else {
			for _, m := range s.mailbox(to) {
				texts = append(texts, m.text)
			}
		}
		if len(texts) > 1 {
			s.t.Errorf("%s got it %d times", to, len(texts))
		}
		if len(texts) > 0 {
			n++
			if !strings.HasSuffix(texts[0], "\n"+lastLine+"\n") {
				s.t.Errorf("%s got:\n%s", to, texts[0])
			}
		}
	}
	return n
}

// TestKillSubmitter kills dma at every call. What was reported as queued
// arrives; otherwise all recipients get it or none.
func TestKillSubmitter(t *testing.T) {
	for _, to := range [][]string{{"carol"}, {"carol", "dave", "x@y.example"}} {
		for when, op := range killing() {
			t.Run(fmt.Sprintf("%d/%s", len(to), when), func(t *testing.T) {
				base := t.TempDir()
				dir := stages(base)
				var s *submission
				sysfault.Enumerate(t, sysfault.Plan{
					Scope:  sysfault.Scope{Roots: []string{base}, Classes: sysfault.All},
					Match:  inQueue,
					Action: func(sysfault.Call) sysfault.Action { return sysfault.Action{Op: op} },
					Max:    atMost(1 + len(to)), Seed: uint64(len(to)),
				}, func(t *testing.T) (cmd *exec.Cmd) {
					s, cmd = newSubmission(t, dir(t), to)
					return cmd
				}, func(t *testing.T, n int, call sysfault.Call, res sysfault.Result) {
					reported := res.State.Exited() && res.State.ExitStatus() == 0
					if n == 0 && !reported {
						t.Fatalf("undisturbed: %#x %s", res.State, &s.stderr)
					}
					got := s.arrived()
					if reported && got != len(to) || got != 0 && got != len(to) {
						t.Errorf("%d of %d recipients got it; reported as queued: %v", got, len(to), reported)
					}
					s.clean()
				})
			})
		}
	}
}

// mailboxes are the two kinds of MAILBOX that drains are disturbed with.
func mailboxes() map[string]string {
	return map[string]string{"mbox": "", "maildir": "maildir:~/Maildir"}
}

// TestKillDrain kills a drain at every call, on a message's way from new to its
// end, and lets fresh ones finish.
func TestKillDrain(t *testing.T) {
	classes := sysfault.Durable
	if long() {
		classes |= sysfault.Lock
	}
	for kind, mailbox := range mailboxes() {
		for when, op := range killing() {
			t.Run(kind+"/"+when, func(t *testing.T) {
				base := t.TempDir()
				dir := stages(base)
				var m *mixed
				repeated, most := 0, 4
				if kind == "maildir" {
					most = 2
				}
				sysfault.Enumerate(t, sysfault.Plan{
					Scope:  sysfault.Scope{Roots: []string{base}, Classes: classes},
					Action: func(sysfault.Call) sysfault.Action { return sysfault.Action{Op: op} },
					Max:    atMost(most), Seed: 7,
				}, func(t *testing.T) *exec.Cmd {
					m = newMixed(t, siteOptions{dir: dir(t), mailbox: mailbox})
					return m.command("dma-runner", "drain")
				}, func(t *testing.T, n int, call sysfault.Call, res sysfault.Result) {
					may := m.mayRepeat()
					switch {
					case n == 0:
						may = allowed{}
						if !res.State.Exited() || res.State.ExitStatus() != 0 || !m.quiet() {
							t.Fatalf("undisturbed: %#x %v", res.State, m.spool())
						}
					case op == sysfault.KillProcess && call.Pid != res.Calls[0].Pid:
						may.command = true // it was the command that died
					}
					m.settle()
					m.check(may)
					m.unlocked()
					m.clean()
					if begun, _ := m.runs(); begun > 1 || len(m.relayed()) > 2 {
						repeated++
					}
				})
				t.Logf("what may come twice did so in %d runs", repeated)
			})
		}
	}
}

// TestKillService kills the service again and again while programs submit
// mail, and then accounts for every delivery.
func TestKillService(t *testing.T) {
	messages, kills := 40, 8 // about 5 deliveries a message
	if long() {
		messages, kills = 200, 60
	}
	const perDestination = 10 // CONCURRENCY
	s := newSiteWith(t, siteOptions{rules: []string{"refuse nobody@*"}})
	runs := s.path("runs")
	s.forward("bob", "\\bob, bob@else.example\n\"|grep -e '^token ' -e '^"+lastLine+"$' >>"+runs+"\"\n")
	random := rand.New(rand.NewPCG(1, uint64(messages)))

	var submitters sync.WaitGroup
	next := make(chan int)
	for range 3 {
		submitters.Go(func() {
			for i := range next {
				to := []string{"carol", "bob", "x@y.example"}
				if i%3 == 0 {
					to = append(to, "nobody@y.example", "nosuch")
				}
				cmd := s.command("dma", append([]string{"-odq", "-f", "alice"}, to...)...)
				cmd.Stdin = strings.NewReader(fmt.Sprintf("Subject: about token %d\n\nFrom here\ntoken %d\n%s\n", i, i, lastLine))
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("dma: %v: %s", err, out)
				}
			}
		})
	}
	go func() {
		for i := range messages {
			next <- i
		}
		close(next)
	}()
	for range kills {
		v := s.start()
		lines := 1 + random.IntN(60)
		v.await("work", func(log string) bool { return strings.Count(log, "\n") >= lines || s.idle() })
		v.kill()
	}
	submitters.Wait()
	s.settle()

	// per counts texts by their token.
	per := func(texts []string) map[int]int {
		counts := make(map[int]int)
		for _, text := range texts {
			n := -1
			if _, rest, ok := strings.Cut(text, "token "); ok {
				fmt.Sscanf(rest, "%d", &n)
			}
			counts[n]++
		}
		return counts
	}
	texts := func(list []mail) (texts []string) {
		for _, m := range list {
			if m.id()[len(m.id())-1] != 'b' && !m.hasLine(lastLine) {
				t.Errorf("not whole: %s", m.text)
			}
			texts = append(texts, m.text)
		}
		return texts
	}
	relayed := func(to string) (texts []string) {
		for _, tr := range s.sink.Transactions() {
			if tr.Accepted && slices.Contains(tr.To, to) {
				texts = append(texts, string(tr.Content))
			}
		}
		return texts
	}
	ran, err := os.ReadFile(runs)
	if err != nil {
		t.Fatal(err)
	}
	var whole []string // of the command's runs
	for _, text := range strings.SplitAfter(string(ran), lastLine+"\n") {
		if strings.HasSuffix(text, lastLine+"\n") {
			// A run that was cut off may have left a line before it.
			whole = append(whole, text[strings.LastIndex(text, "token "):])
		}
	}
	for _, x := range []struct {
		what   string
		counts map[int]int
		every  int // one for each so many messages
		extra  int // so many more in all
	}{
		{"carol's mailbox", per(texts(s.mailbox("carol"))), 1, 0},
		{"bob's mailbox", per(texts(s.mailbox("bob"))), 1, 0},
		{"the bounces", per(texts(s.mailbox("alice"))), 3, 0},
		{"the command", per(whole), 1, kills}, // one at a time for each user
		{"x@y.example", per(relayed("x@y.example")), 1, kills * perDestination},
		{"bob@else.example", per(relayed("bob@else.example")), 1, kills * perDestination},
	} {
		extra := 0
		for i := range messages {
			n := x.counts[i]
			delete(x.counts, i)
			switch {
			case i%x.every != 0:
				extra += n
			case n == 0:
				t.Errorf("%s: message %d is lost", x.what, i)
			default:
				extra += n - 1
			}
		}
		if extra > x.extra || len(x.counts) > 0 {
			t.Errorf("%s: %d more than there should be, of which %d are allowed; unknown: %v", x.what, extra, x.extra, x.counts)
		}
		t.Logf("%s: %d came twice", x.what, extra)
	}
	s.unlocked()
	s.clean()
}

// idle reports whether nobody waits for the service now.
func (s *site) idle() bool {
	for _, state := range spooldir.States() {
		entries, err := os.ReadDir(filepath.Join(s.queue, string(state)))
		if err != nil || len(entries) > 0 && state != spooldir.Tempfail {
			return false
		}
	}
	return true
}
