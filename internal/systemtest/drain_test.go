package systemtest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"dma/internal/crashtest/sysfault"
	"dma/internal/smtptest"
	"dma/spooldir"
)

// unserved waits until nobody serves the spool and nothing but what waits is
// left in it.
func (s *site) unserved() {
	s.t.Helper()
	eventually(s.t, "quiet spool", func() bool {
		return s.holder() == "" && len(s.in(spooldir.New))+len(s.in(spooldir.Local))+len(s.in(spooldir.Forwarding))+len(s.in(spooldir.Remote))+len(s.in(spooldir.Sent)) == 0
	})
}

// dma starts a drain in the background by itself; many at once lose nothing
// and deliver nothing twice.
func TestBackgroundDrain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	if r := s.dma("Subject: alone\n\n", "bob"); r.code != 0 || r.stderr != "" {
		t.Fatalf("exit %d, %q", r.code, r.stderr)
	}
	eventually(t, "mail", func() bool { return len(s.mailbox("bob")) == 1 })
	s.unserved()

	const submitters, each = 4, 5
	var group sync.WaitGroup
	for i := range submitters {
		group.Go(func() {
			for k := range each {
				if r := s.dma(fmt.Sprintf("Subject: %d-%d\n\n", i, k), "carol", "far@far.example"); r.code != 0 {
					t.Errorf("exit %d, %q", r.code, r.stderr)
				}
			}
		})
	}
	group.Wait()
	eventually(t, "all the mail", func() bool { return len(s.mailbox("carol")) == submitters*each && len(s.relayed()) == submitters*each })
	s.unserved()
	got := subjects(s.mailbox("carol"))
	slices.Sort(got)
	if len(slices.Compact(got)) != submitters*each {
		t.Errorf("carol has %q", got)
	}
	eventually(t, "empty spool", func() bool { return len(s.spool()) == 0 })
}

// A message that comes while a drain is about to end, and whose submitter
// sees that the drain still holds the spool, is delivered by that drain.
func TestDrainEnding(t *testing.T) {
	t.Parallel()
	sysfault.Need(t)
	s := newSite(t)
	s.post("first", "bob")
	cmd := s.command("dma-runner", "drain")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	submitted := 0
	scope := sysfault.Scope{Roots: []string{s.path("spool", "lock")}, Classes: sysfault.Close}
	res, err := sysfault.Run(t.Context(), cmd, scope, func(c sysfault.Call) sysfault.Action {
		// The last thing that a run does is to give the locks back.
		if filepath.Base(c.Path) != "queue" || submitted >= 2 || len(s.mailbox("bob")) <= submitted {
			return sysfault.Action{}
		}
		submitted++
		if who := s.holder(); who != "drain" {
			t.Errorf("the spool is served by %q", who)
		}
		if r := s.dma("Subject: late\n\n", "bob"); r.code != 0 {
			t.Errorf("exit %d, %q", r.code, r.stderr)
		}
		return sysfault.Action{}
	})
	if err != nil || res.State.ExitStatus() != 0 {
		t.Fatalf("%v, exit %d\n%s", err, res.State.ExitStatus(), &stderr)
	}
	if submitted != 2 {
		t.Fatalf("%d times the locks were given back after a delivery", submitted)
	}
	if n := len(s.mailbox("bob")); n != 3 {
		t.Errorf("bob has %d messages\n%s", n, &stderr)
	}
	s.empty()
}

// A drain ends, though trouble of the machine keeps a recipient back, and the
// others flow.
func TestDrainTrouble(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.write("aliases", "postmaster: alice\nteam: carol, dave\n")
	s.post("stuck", "team", "alice")
	id, _, _ := strings.Cut(s.in(spooldir.New)[0], ".")
	s.post("sound", "bob")
	inTheWay := s.path("spool", "tmp", spooldir.DeriveID(id, 1, spooldir.Child))
	s.check(os.MkdirAll(filepath.Join(inTheWay, "x"), 0o700)) // the child cannot be made
	r := s.drain()
	if n := strings.Count(r.stderr, " started "); n > 3 {
		t.Errorf("it ran %d times\n%s", n, r.stderr)
	}
	if len(s.mailbox("bob")) != 1 || len(events(r.stderr, "worker-trouble")) == 0 {
		t.Errorf("bob has %d\n%s", len(s.mailbox("bob")), r.stderr)
	}
	s.check(os.RemoveAll(inTheWay))
	s.flush()
	expectPlaces(t, s.places(nil), map[string]string{"stuck": "alice carol dave", "sound": "bob"})
	s.empty()
}

// -odq leaves a message to the next drain and starts none, nor does DEFER; a
// drain that dma starts has ended when this returns.
func TestQueueOnly(t *testing.T) {
	t.Parallel()
	sysfault.Need(t)
	for _, tt := range []struct {
		name, conf string
		args       []string
		left       int
	}{
		{"-odq", "", []string{"-odq"}, 1},
		{"-odd", "", []string{"-odd"}, 1},
		{"-O", "", []string{"-O", "DeliveryMode=q"}, 1},
		{"DEFER", "DEFER\n", nil, 1},
		{"-odb", "", []string{"-odb"}, 0},
		{"none", "", nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSiteWith(t, siteOptions{conf: tt.conf})
			cmd := s.command("dma", append(tt.args, "bob")...)
			cmd.Stdin = strings.NewReader("Subject: left\n\n")
			res, err := sysfault.Run(t.Context(), cmd, sysfault.Scope{Roots: []string{s.path("spool")}}, nil)
			if err != nil || res.State.ExitStatus() != 0 {
				t.Fatalf("%v, exit %d", err, res.State.ExitStatus())
			}
			if len(s.in(spooldir.New)) != tt.left || len(s.mailbox("bob")) != 1-tt.left {
				t.Errorf("in new: %q, for bob: %d", s.in(spooldir.New), len(s.mailbox("bob")))
			}
		})
	}
}

// -odi has delivered when it returns.
func TestForeground(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.forward("carol", `\carol, dave, far@far.example`)
	for i, args := range [][]string{{"-odi"}, {"-D"}, {"-O", "DeliveryMode=interactive"}} {
		if r := s.dma("Subject: now\n\n", append(args, "-f", "alice", "bob", "carol", "nosuch")...); r.code != 0 {
			t.Fatalf("exit %d, %q", r.code, r.stderr)
		}
		for _, user := range []string{"alice", "bob", "carol", "dave"} { // alice has the bounce
			if n := len(s.mailbox(user)); n != i+1 {
				t.Errorf("%v: %s has %d messages, not %d", args, user, n, i+1)
			}
		}
		if n := len(s.relayed()); n != i+1 {
			t.Errorf("%v: the smarthost has %d", args, n)
		}
		s.empty()
	}
}

// While a service runs dma starts no drain. What stands beside it in place of
// dma-runner would tell.
func TestServiceNeedsNoDrain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	dir := t.TempDir()
	placeProgram(t, filepath.Join(dir, "dma"), "dma")
	place(t, filepath.Join(dir, "dma-runner"), []byte("#!/bin/sh\necho \"$@\" >>"+dir+"/ran\n"))
	submit := func() {
		t.Helper()
		cmd := exec.Command(filepath.Join(dir, "dma"), "-C", s.path("dma.conf"), "-odi", "bob") // it waits for what it starts
		cmd.Stdin = strings.NewReader("Subject: x\n\n")
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Fatalf("%v, %q", err, out)
		}
	}
	submit()
	want := "-C " + s.path("dma.conf") + " drain\n"
	if got := slurp(t, dir, "ran"); got != want {
		t.Errorf("without a service dma started %q, not %q", got, want)
	}
	v := s.start()
	submit()
	v.await("mail", func(string) bool { return len(s.mailbox("bob")) == 2 })
	v.stop()
	if got := slurp(t, dir, "ran"); got != want {
		t.Errorf("with a service dma started %q", got)
	}
}

// A second service, and a drain beside a service, know what to do.
func TestServiceRunning(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	v := s.start()
	if r := s.dmaRunner("run"); r.code != 75 || !strings.Contains(r.stderr, "stop the other dma-runner first") {
		t.Errorf("a second service: exit %d, %q", r.code, r.stderr)
	}
	s.drain() // the service does it
	v.stop()
}

// -q tries everything now, with a service and without, and forgets that a
// destination was down.
func TestFlush(t *testing.T) {
	t.Parallel()
	for _, running := range []bool{false, true} {
		t.Run(fmt.Sprint("service ", running), func(t *testing.T) {
			t.Parallel()
			rules := parseRules(t, "defer later@*")
			rules[0].Times = 1
			s := newSiteWith(t, siteOptions{sink: smtptest.NewSink(smtptest.SinkOptions{Rules: rules})})
			s.forward("bob", `"|[ -e $HOME/ok ] && cat >>$HOME/got || exit 75"`)
			s.write("aliases", "a: b\nb: a\n")
			var v *service
			if running {
				v = s.start()
			}
			s.post("all", "later@far.example", "bob", "a")
			if !running {
				s.drain()
			}
			eventually(t, "three names in tempfail", func() bool { return len(s.in(spooldir.Tempfail)) == 3 })
			s.write("aliases", "a: carol\n")
			s.write(s.home("bob", "ok"), "")
			if r := s.dma("", "-q"); r.code != 0 {
				t.Fatalf("-q: exit %d, %q", r.code, r.stderr)
			}
			done := func() bool {
				return len(s.relayed()) == 1 && slurp(t, s.home("bob", "got")) != "" && len(s.mailbox("carol")) == 1 && len(s.spool()) == 0
			}
			if running {
				v.await("all the mail", func(string) bool { return done() })
				v.stop()
			} else if !done() {
				t.Errorf("-q came back, and left %q", s.spool())
			}
		})
	}
}

// Everybody stands in mailq once, at every moment of a drain.
func TestMailqDuringDrain(t *testing.T) {
	t.Parallel()
	s := newSiteWith(t, siteOptions{rules: []string{"defer later*"}})
	s.write("aliases", "loop: loop2\nloop2: loop\n")
	for range 40 {
		s.post("busy", "later1@far.example", "later2@far.example", "later3@far.example", "loop")
	}
	s.post("parked", "bob")
	want := s.in(spooldir.New)
	s.must("hold", want[slices.IndexFunc(want, func(n string) bool { return strings.HasSuffix(n, "-bob") })])

	done := make(chan result, 1)
	cmd := s.command("dma-runner", "drain")
	go func() { done <- s.run(cmd, "") }()
	listings := 0
	for ended := false; !ended; listings++ {
		select {
		case r := <-done:
			if r.code != 0 {
				t.Errorf("exit %d\n%s", r.code, r.stderr)
			}
			ended = true
		default:
		}
		var got []string
		for _, q := range s.mailq() {
			got = append(got, q.Name)
		}
		equal(t, "mailq", got, want)
		if t.Failed() {
			break
		}
	}
	t.Logf("%d listings", listings)
	if n := len(s.in(spooldir.Tempfail)); n != 160 {
		t.Errorf("%d names in tempfail", n)
	}
}

// What a sender or a smarthost wrote stays one printable line, and JSON.
func TestMailqHostileText(t *testing.T) {
	t.Parallel()
	const reply = " 451 4.7.1 \x1b]0;x\a\"q\\\" {\"id\":1} <b> \u202e\xff"
	s := newSiteWith(t, siteOptions{rules: []string{"defer *" + reply, "defer */*/*/*" + reply}})
	if r := s.dmaRunner("mailq"); r.code != 0 || r.stdout != "Mail queue is empty\n" {
		t.Errorf("an empty queue: exit %d, %q", r.code, r.stdout)
	}
	if r := s.dmaRunner("mailq", "--json"); r.code != 0 || r.stdout != "" {
		t.Errorf("an empty queue as JSON: exit %d, %q", r.code, r.stdout)
	}
	hostile := []string{
		`"a \"b\" c"@far.example`, `"{\"id\":\"x\"}"@far.example`, `a%0a@far.example`, `"$(id)"@far.example`, `'x'@far.example`,
		`"../../etc/passwd"@far.example`, `%s%n@far.example`, `"\\\\"@far.example`, `&amp@far.example`,
	}
	s.post("hostile", append([]string{"-f", `"<s>\" {}"@far.example`, "--"}, hostile...)...)
	s.drain()
	var got []string
	for _, q := range s.mailq() {
		got = append(got, q.Recipient)
		if q.Sender == "" || strings.ContainsAny(q.Reason, "\x1b\a\n") || !strings.Contains(q.Reason, `{"id":1} <b>`) {
			t.Errorf("listed as %+v", q)
		}
	}
	if len(got) != len(hostile) {
		t.Errorf("%d recipients are listed: %q", len(got), got)
	}
	text := s.must("mailq").stdout
	for _, c := range text {
		if c != '\n' && (c < ' ' || c == 0x7f || c == '\u202e' || c == '\ufffd') {
			t.Fatalf("mailq printed %q in\n%q", c, text)
		}
	}
	if n := strings.Count(text, "\n"); n != 2+2*len(hostile) {
		t.Errorf("%d lines:\n%s", n, text)
	}
	for _, file := range s.in(spooldir.Tempfail) {
		if strings.Trim(file, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ@._+=-%") != "" {
			t.Errorf("a name in the spool is %q", file)
		}
	}
}
