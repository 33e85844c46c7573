package systemtest

import (
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"dma/internal/smtptest"
	"dma/spooldir"
)

// gate makes a command of a user that takes a message and then waits until the
// test lets it end; it notes each run in the file ran.
func (s *site) gate(user string) {
	s.t.Helper()
	s.check(syscall.Mkfifo(s.home(user, "gate"), 0o600))
	s.forward(user, `"|cat >/dev/null; echo x >>$HOME/began; read x <$HOME/gate; echo x >>$HOME/ran"`)
}

// pass lets a command that waits end.
func (s *site) pass(user string) {
	s.t.Helper()
	f, err := os.OpenFile(s.home(user, "gate"), os.O_WRONLY, 0)
	s.check(err)
	_, err = f.WriteString("go\n")
	s.check(err)
	s.check(f.Close())
}

// count returns how many lines the file of a user has.
func (s *site) count(user, file string) int {
	s.t.Helper()
	return strings.Count(slurp(s.t, s.home(user, file)), "\n")
}

func TestMoveBackToNew(t *testing.T) {
	t.Parallel()
	rules := parseRules(t, "defer later@*")
	rules[0].Times = 1
	s := newSiteWith(t, siteOptions{sink: smtptest.NewSink(smtptest.SinkOptions{Rules: rules})})
	v := s.start()
	s.post("again", "later@far.example")
	v.await("a name in tempfail", func(string) bool { return len(s.in(spooldir.Tempfail)) == 1 })
	name := s.in(spooldir.Tempfail)[0]
	s.move("tempfail/"+name, "new/"+name)
	v.await("the second attempt", func(string) bool { return len(s.relayed()) == 1 })
	eventually(t, "empty spool", func() bool { return len(s.spool()) == 0 })
	v.stop()
}

// A recipient is parked in the middle of DATA: the outcome is in the journal,
// and is applied when it comes back.
func TestHoldDuringData(t *testing.T) {
	t.Parallel()
	inData, goOn := make(chan bool), make(chan bool)
	var once sync.Once
	s := newSiteWith(t, siteOptions{sink: smtptest.NewSink(smtptest.SinkOptions{Data: func(*smtptest.Transaction) error {
		once.Do(func() {
			inData <- true
			<-goOn
		})
		return nil
	}})})
	v := s.start()
	s.post("parked", "x@far.example", "y@far.example")
	<-inData
	names := s.in(spooldir.Remote)
	if len(names) != 2 {
		t.Fatalf("in remote: %q", names)
	}
	s.move("remote/"+names[0], "hold/"+names[0])
	close(goOn)
	v.await("the end of the other", func(string) bool { return len(s.in(spooldir.Remote)) == 0 && len(s.in(spooldir.Sent)) == 0 })
	equal(t, "hold", s.in(spooldir.Hold), names[:1])
	s.flush()
	r := s.must("release", names[0])
	if !strings.Contains(r.stdout, names[0]+": hold -> new") {
		t.Errorf("release says %q", r.stdout)
	}
	eventually(t, "empty spool", func() bool { return len(s.spool()) == 0 })
	if got := s.relayed(); !slices.Equal(got, []string{"x@far.example", "y@far.example"}) || s.sink.Counts().Transactions != 1 {
		t.Errorf("the smarthost took %q in %d transactions", got, s.sink.Counts().Transactions)
	}
	v.stop()
}

// What is removed from local is not delivered, what is moved from there to
// tempfail is delivered once.
func TestMovesOutOfLocal(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.gate("bob")
	v := s.start()
	s.post("first", "bob")
	v.await("a command", func(string) bool { return s.count("bob", "began") == 1 })
	first := only(t, "a name in local", s.in(spooldir.Local))
	s.post("second", "bob")
	v.await("a second name in local", func(string) bool { return len(s.in(spooldir.Local)) == 2 })
	for _, name := range s.in(spooldir.Local) {
		if name != first {
			s.check(os.Remove(s.path("spool", "local", name)))
		}
	}
	s.post("third", "bob")
	v.await("a third name in local", func(string) bool { return len(s.in(spooldir.Local)) == 2 })
	for _, name := range s.in(spooldir.Local) {
		if name != first {
			s.move("local/"+name, "tempfail/"+name)
		}
	}
	s.pass("bob")
	v.await("another command", func(string) bool { return s.count("bob", "began") == 2 })
	s.pass("bob")
	v.await("two runs", func(string) bool { return s.count("bob", "ran") == 2 })
	v.await("no name left", func(string) bool { return len(s.spool()) == len(s.in(spooldir.LogDir)) })
	v.stop()
	s.drain() // what lost its last name by hand loses its journal at the next start
	s.empty()
	if n := s.count("bob", "began"); n != 2 {
		t.Errorf("the command ran %d times", n)
	}
}

// The recipient itself that is in hand is moved away: its delivery counts.
func TestMoveInHand(t *testing.T) {
	t.Parallel()
	for _, to := range []string{"tempfail", "hold", "gone"} {
		t.Run(to, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.gate("bob")
			v := s.start()
			s.post("in hand", "bob")
			v.await("a command", func(string) bool { return s.count("bob", "began") == 1 })
			name := only(t, "a name in local", s.in(spooldir.Local))
			switch to {
			case "gone":
				s.check(os.Remove(s.path("spool", "local", name)))
			default:
				s.move("local/"+name, to+"/"+name)
			}
			if to == "tempfail" { // it has no time to wait for there
				v.await("its return", func(string) bool { return len(s.in(spooldir.Local)) == 1 })
			}
			s.pass("bob")
			v.await("the end", func(log string) bool {
				return s.count("bob", "ran") == 1 && (to != "tempfail" || len(s.in(spooldir.Local)) == 0) && strings.Contains(log, "status=sent")
			})
			if to == "hold" {
				equal(t, "hold", s.in(spooldir.Hold), []string{name})
				s.must("release", name)
			}
			if to != "gone" {
				v.await("empty spool", func(string) bool { return len(s.spool()) == 0 })
			}
			v.stop()
			if n := s.count("bob", "began"); n != 1 {
				t.Errorf("the command ran %d times", n)
			}
			s.drain() // what lost its last name by hand loses its journal at the next start
			s.empty()
		})
	}
}

func TestHoldAndRelease(t *testing.T) {
	t.Parallel()
	rules := parseRules(t, "defer *")
	rules[0].Times = 2
	s := newSiteWith(t, siteOptions{sink: smtptest.NewSink(smtptest.SinkOptions{Rules: rules})})
	s.post("held", "x@far.example", "y@far.example")
	s.drain()
	names := s.in(spooldir.Tempfail)
	id, _, _ := strings.Cut(names[0], ".")

	r := s.must("hold", id)
	if strings.Count(r.stdout, ": tempfail -> hold\n") != 2 {
		t.Errorf("hold says %q", r.stdout)
	}
	s.flush()
	equal(t, "hold", s.in(spooldir.Hold), names)
	for _, q := range s.mailq() {
		if q.State != "hold" || !strings.HasPrefix(q.Status, "4.") || q.Next != nil {
			t.Errorf("listed as %+v", q)
		}
	}
	s.must("release", id+".2")
	equal(t, "hold", s.in(spooldir.Hold), names[:1])
	s.drain()
	equal(t, "taken", s.relayed(), []string{"y@far.example"})
	s.must("release", names[0])
	s.drain()
	equal(t, "taken", s.relayed(), []string{"x@far.example", "y@far.example"})
	s.empty()

	r = s.dmaRunner("release", names[0])
	if r.code != 69 || !strings.Contains(r.stderr, "no such recipient") {
		t.Errorf("release of what is not there: exit %d, %q", r.code, r.stderr)
	}
	if r = s.dmaRunner("hold"); r.code != 64 {
		t.Errorf("hold of nothing: exit %d, %q", r.code, r.stderr)
	}
}

// A name stands in two directories.
func TestSameNameTwice(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		running bool
		make    func(s *site, file string) // the name stands in hold
		release bool
		corrupt int
	}{
		{"link in new, stopped", false, func(s *site, file string) {
			s.check(os.Link(s.path("spool", "hold", file), s.path("spool", "new", file)))
		}, true, 0},
		{"link in new, running", true, func(s *site, file string) {
			s.check(os.Link(s.path("spool", "hold", file), s.path("spool", "new", file)))
		}, true, 0},
		{"link in sent, stopped", false, func(s *site, file string) { // sent is further: it counts
			s.check(os.Link(s.path("spool", "hold", file), s.path("spool", "sent", file)))
			s.deliverByHand(file)
		}, false, 0},
		{"copy in new, stopped", false, func(s *site, file string) {
			data, err := os.ReadFile(s.path("spool", "hold", file))
			s.check(err)
			s.plant(file, data)
		}, true, 1}, // the one in hold is further, and stays
		{"copy in corrupt, running", true, func(s *site, file string) {
			s.check(os.WriteFile(s.path("spool", "corrupt", file), nil, 0o600))
		}, true, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.post("twice", "bob")
			file := only(t, "a name", s.in(spooldir.New))
			s.must("hold", file)
			if !tt.running {
				tt.make(s, file)
			}
			var v *service
			if !tt.running {
				v = s.start()
			} else {
				v = s.startWorking("carol")
				tt.make(s, file)
				if len(s.in(spooldir.New)) > 0 {
					v.await("the copy's end", func(string) bool { return len(s.mailbox("bob")) == 1 })
				}
			}
			if tt.release {
				s.must("release", file)
			}
			v.await("mail", func(string) bool { return len(s.mailbox("bob")) == 1 })
			v.await("the end", func(string) bool { return len(s.spool()) == tt.corrupt })
			v.stop()
			s.drain()
			if n := len(s.mailbox("bob")); n != 1 {
				t.Errorf("delivered %d times", n)
			}
			if n := len(s.in(spooldir.Corrupt)); n != tt.corrupt {
				t.Errorf("%d files in corrupt", n)
			}
		})
	}
}

// deliverByHand puts into bob's mailbox what a name in sent stands for.
func (s *site) deliverByHand(file string) {
	key, _, _ := strings.Cut(file, "-bob")
	s.write("mail/bob", "From alice@host.example Fri Jan  2 03:04:05 2026\nX-Dma-Delivery: "+key+"\n\nhello\n\n")
}
