package queue

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"dma/forward"
	"dma/internal/maillog"
	"dma/internal/passwd"
	"dma/spooldir"
)

// TestForwardNotice: postmaster hears once of each user whose .forward keeps mail
// waiting for four hours, also when the process is another one meanwhile, and
// again when it was mended and is broken again.
func TestForwardNotice(t *testing.T) {
	f := newFixture(t, memory(t))
	f.config.DelayNotice = time.Hour
	f.start()
	broken := map[string]bool{"alice": true, "bob": true}
	const reason = "/home/USER/.forward is not used: anybody may write to it; chmod go-w it"
	f.agent.forward = func(u passwd.User, detail string) (forward.Result, error) {
		if broken[u.Name] && detail != "fine" {
			return forward.Result{}, errors.New(strings.ReplaceAll(reason, "USER", u.Name))
		}
		return forward.Result{}, nil
	}
	var waiting []spooldir.Name
	post := func(to string) spooldir.Name {
		t.Helper()
		n := f.submit(spooldir.Envelope{Sender: "s@remote.test", Recipients: []spooldir.Recipient{{Address: to, Notify: "DELAY"}}}, "Subject: x\n\nbody\n")[0]
		f.step(spooldir.New, n)
		f.step(spooldir.Forwarding, n)
		return n
	}
	// try gives what waits another try, and returns what came of it: notices to
	// postmaster, which leave the spool.
	try := func() (notices []string) {
		t.Helper()
		f.clock.advance(3*time.Hour + 50*time.Minute)
		for _, n := range waiting {
			f.step(spooldir.Tempfail, n)
			f.step(spooldir.New, n)
			f.step(spooldir.Forwarding, n)
		}
		for _, n := range f.names(spooldir.New) {
			m := f.open(spooldir.New, n)
			if m.Recipients[0].Address == "postmaster" {
				notices = append(notices, content(t, m))
				if m.Sender != "" || m.Kind() != spooldir.Submitted {
					t.Errorf("notice %+v", m.Envelope)
				}
			}
			f.spool.Remove(n, spooldir.New)
		}
		return notices
	}
	expect := func(when string, got []string, users ...string) {
		t.Helper()
		if len(got) != len(users) {
			t.Fatalf("%s: %d notices, want those of %v", when, len(got), users)
		}
		for i, u := range users {
			if !strings.Contains(got[i], strings.ReplaceAll(reason, "USER", u)) || !strings.Contains(got[i], "Subject: Mail for "+u+" waits") {
				t.Errorf("%s, %s:\n%s", when, u, got[i])
			}
		}
	}
	waiting = append(waiting, post("alice"))
	expect("before four hours", try())
	waiting = append(waiting, post("alice+list"), post("Alice@host.test"))
	got := try()
	expect("after them", got, "alice")
	if !strings.Contains(got[0], "3 messages wait for the user alice on host.test") || !strings.Contains(got[0], "dma-runner flush") || !strings.Contains(got[0], "To: postmaster@host.test\n") {
		t.Errorf("the notice says\n%s", got[0])
	}
	expect("later, for the others too", try())
	if j := f.journal(waiting[0].ID); !noticed(j, 1, postmaster) || !noticed(j, 1, "") {
		t.Error("the journal has not both notices, to the sender and to postmaster")
	}
	f.start()
	expect("after a restart", try())
	waiting = append(waiting, post("bob"), post("alice+more"))
	try()
	expect("another user", try(), "bob")

	// A .forward of another detail that can be read mends nothing.
	post("alice+fine")
	waiting = append(waiting, post("alice"))
	try()
	expect("another detail is fine", try())

	broken["alice"] = false
	expect("mended", try())
	for _, n := range waiting {
		m, err := f.spool.OpenAny(spooldir.Tempfail, n)
		if err != nil {
			continue
		}
		if r := m.Recipients[0].Address; r != "bob" {
			t.Errorf("mail for %s still waits", r)
		}
		m.Close()
	}
	broken["alice"] = true
	waiting = append(waiting, post("alice"))
	try()
	expect("broken again", try(), "alice")
}

// TestForwardTroubleLogged: why a .forward cannot be used is logged once: not for
// each message, nor for each try, also when the process is another one meanwhile.
func TestForwardTroubleLogged(t *testing.T) {
	f := newFixture(t, memory(t))
	reason := "/home/alice/.forward is not used: anybody may write to it; chmod go-w it"
	f.agent.forward = func(passwd.User, string) (forward.Result, error) {
		if reason == "" {
			return forward.Result{}, nil
		}
		return forward.Result{Path: "/home/alice/.forward"}, errors.New(reason)
	}
	logged := 0
	expect := func(what string, lines int) {
		t.Helper()
		events := f.log.of(maillog.EventForwardTrouble)
		if len(events)-logged != lines {
			t.Errorf("%s: %d lines, want %d", what, len(events)-logged, lines)
		}
		logged = len(events)
		for _, e := range events[logged-lines:] {
			if e.attrs["user"] != "alice" || e.attrs["path"] != "/home/alice/.forward" || e.attrs["reason"] != reason {
				t.Errorf("%s: logged as %v", what, e.attrs)
			}
		}
	}
	var waiting []spooldir.Name
	post := func(n int, to string) {
		for range n {
			name := f.send("s@remote.test", to)[0]
			f.step(spooldir.New, name)
			f.step(spooldir.Forwarding, name)
			waiting = append(waiting, name)
		}
	}
	try := func() {
		f.clock.advance(4 * time.Hour)
		for _, n := range waiting {
			for _, state := range []spooldir.State{spooldir.Tempfail, spooldir.New, spooldir.Forwarding} {
				f.step(state, n)
			}
		}
	}
	post(100, "alice")
	expect("100 messages", 1)
	for range 3 {
		try()
	}
	expect("three tries", 0)
	f.start()
	try()
	expect("after a restart", 0)
	post(1, "alice")
	expect("the first message after a restart", 1)
	post(2, "alice+x")
	expect("a detail", 1)

	waiting, first := waiting[:2], reason
	reason = "/home/alice/.forward:1: a quote is never closed; put a \" at the end of the entry"
	try()
	expect("another reason", 1)
	reason = first
	try()
	expect("the first reason again", 1)
	broken := reason
	reason = ""
	try()
	waiting = nil
	reason = broken
	post(3, "alice")
	expect("broken again", 1)
}

// TestIncludeTroubleLogged: a mistake in an included file is logged once for each
// change of the file.
func TestIncludeTroubleLogged(t *testing.T) {
	f := newFixture(t, memory(t))
	list := filepath.Join(f.dir, "list")
	f.writeAliases("list: :include:"+list, "crew: bob, list", "fine: alice")
	logged := 0
	expect := func(what string, lines ...string) {
		t.Helper()
		events := f.log.of(maillog.EventAliasProblem)
		var got []string
		for _, e := range events[logged:] {
			got = append(got, strings.TrimPrefix(e.attrs["file"], f.dir+"/")+":"+e.attrs["line"]+": "+strings.ReplaceAll(e.attrs["problem"], f.dir, "DIR"))
		}
		logged = len(events)
		if !slices.EqualFunc(got, lines, strings.HasPrefix) {
			t.Errorf("%s: %q, want %q", what, got, lines)
		}
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(list, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var waiting []spooldir.Name
	post := func(n int) {
		for range n {
			name := f.send("s@remote.test", "list", "fine", "crew")[0]
			f.step(spooldir.New, name)
			waiting = append(waiting, name)
		}
	}
	write("alice\nx y\n")
	post(100)
	expect("100 messages", "list:2: `x y` has a blank in it")
	for range 3 {
		f.clock.advance(4 * time.Hour)
		for _, n := range waiting {
			f.step(spooldir.Tempfail, n)
			f.step(spooldir.New, n)
		}
	}
	expect("three tries")
	write("alice\n\nx y\n")
	post(3)
	expect("another line", "list:3: ")
	write("alice\n")
	post(1)
	expect("mended")
	write("alice\n\nx y\n")
	post(3)
	expect("broken again", "list:3: ")
	if err := os.Remove(list); err != nil {
		t.Fatal(err)
	}
	post(3)
	expect("gone", "aliases:1: :include: DIR/list does not exist")
}

func TestReasons(t *testing.T) {
	r := make(reasons)
	for i := range 3 * maxReasons {
		if !r.note(userDetail{"alice", strconv.Itoa(i)}, "x") || r.note(userDetail{"alice", strconv.Itoa(i)}, "x") {
			t.Fatalf("%d is not noted once", i)
		}
		if len(r) > maxReasons {
			t.Fatalf("%d reasons", len(r))
		}
	}
}
