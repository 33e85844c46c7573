package systemtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dma/internal/crashtest/sysfault"
	"dma/internal/smtptest"
	"dma/spooldir"

	"github.com/emersion/go-smtp"
)

// newLMTP makes a site whose mailboxes are behind a server at a unix socket, which
// is not there yet.
func newLMTP(t *testing.T, conf string) (s *site, socket string) {
	t.Helper()
	dir := t.TempDir()
	socket = dir + "/lmtp"
	return newSiteWith(t, siteOptions{dir: dir, mailbox: "lmtp:" + socket, conf: conf}), socket
}

// mailboxServer starts the server of a site.
func mailboxServer(t *testing.T, socket string, each func(*smtptest.Transaction, string) error) *smtptest.Sink {
	t.Helper()
	sink := smtptest.NewSink(smtptest.SinkOptions{LMTP: true, Each: each})
	t.Cleanup(func() { sink.Close() })
	if err := sink.ListenUnix(socket); err != nil {
		t.Fatal(err)
	}
	return sink
}

// stored lists what servers have taken, as "subject to address".
func stored(sinks ...*smtptest.Sink) []string {
	var list []string
	for _, sink := range sinks {
		for _, tr := range sink.Transactions() {
			_, rest, _ := strings.Cut("\r\n"+string(tr.Content), "\r\nSubject: ")
			subject, _, _ := strings.Cut(rest, "\r\n")
			for _, to := range tr.To {
				list = append(list, subject+" to "+to)
			}
		}
	}
	return list
}

// TestLMTP: thirty messages for several users go through one session; whom the
// server refuses is bounced, and nobody else; a user whom only the server could
// know is none.
func TestLMTP(t *testing.T) {
	t.Parallel()
	s, socket := newLMTP(t, "CONCURRENCY 1\n")
	s.forward("carol", "\\carol, friend@far.example\n")
	s.write("aliases", "postmaster: alice\nroot: alice\nteam: alice, dave\n")
	sink := mailboxServer(t, socket, func(_ *smtptest.Transaction, to string) error {
		if to == "dave@host.example" {
			return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 2, 1}, Message: "Mailbox disabled"}
		}
		return nil
	})
	var want, bounced, relayed []string
	for i := range 30 {
		subject := fmt.Sprint("message ", i)
		s.post(subject, "-f", "sender@far.example", "alice", "BOB+lists", "carol@host.example", "dave", "ghost")
		for _, to := range []string{"alice", "bob+lists", "carol"} {
			want = append(want, subject+" to "+to+"@host.example")
		}
		bounced = append(bounced, "dave@host.example", "ghost@host.example")
		relayed = append(relayed, "friend@far.example")
	}
	s.post("for all", "-f", "sender@far.example", "team")
	want = append(want, "for all to alice@host.example")
	bounced = append(bounced, "dave@host.example")
	log := s.drain().stderr
	equal(t, "stored", stored(sink), want)
	if c := sink.Counts(); c.Connections != 1 || c.Hellos != 1 {
		t.Errorf("%d connections, %d times LHLO", c.Connections, c.Hellos)
	}
	if left := s.spool(); len(left) != 0 {
		t.Errorf("the spool holds %q", left)
	}
	var finals, forwarded []string
	for _, tr := range s.sink.Transactions() {
		if tr.From != "" {
			forwarded = append(forwarded, tr.To...)
			continue
		}
		r := parseReport(t, strings.ReplaceAll(string(tr.Content), "\r\n", "\n"))
		finals = append(finals, r.finals()...)
		for _, h := range r.recipients {
			status := map[bool]string{true: "5.2.1", false: "5.1.1"}[strings.Contains(h.Get("Final-Recipient"), "dave") || strings.Contains(h.Get("Final-Recipient"), "team")]
			if h.Get("Status") != status || h.Get("Remote-MTA") != "" {
				t.Errorf("reported as %v", h)
			}
		}
	}
	for i := range finals {
		finals[i] = strings.Replace(finals[i], "team@", "dave@", 1) // as the sender knows it
	}
	equal(t, "bounced", finals, bounced)
	equal(t, "forwarded", forwarded, relayed)
	if !strings.Contains(log, "relay=lmtp:"+socket) {
		t.Errorf("the log does not name the server:\n%.2000s", log)
	}
}

// TestLMTPDown: while the server is not there, mail waits, and mailq says for
// what.
func TestLMTPDown(t *testing.T) {
	t.Parallel()
	s, socket := newLMTP(t, "")
	s.post("patience", "alice", "bob+x")
	s.drain()
	q := s.mailq()
	if len(q) != 2 {
		t.Fatalf("mailq says %+v", q)
	}
	for _, e := range q {
		if e.State != "tempfail" || e.Status != "4.4.1" || !strings.Contains(e.Reason, "no such file") {
			t.Errorf("listed as %+v", e)
		}
	}
	sink := mailboxServer(t, socket, nil)
	s.flush()
	equal(t, "stored", stored(sink), []string{"patience to alice@host.example", "patience to bob+x@host.example"})
	s.empty()
}

// TestLMTPKilledBetweenReplies: what the server has answered for is decided, also
// when it dies before it has answered for the others, and nobody gets it twice.
func TestLMTPKilledBetweenReplies(t *testing.T) {
	t.Parallel()
	s, socket := newLMTP(t, "CONCURRENCY 1\n")
	var first *smtptest.Sink
	var mu sync.Mutex
	served := 0
	each := func(*smtptest.Transaction, string) error {
		mu.Lock()
		defer mu.Unlock()
		if served++; served == 1 {
			return nil
		}
		// The first answer has been heard when its recipient has left remote.
		for range 3000 {
			if len(s.in(spooldir.Remote)) < 3 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		first.Close()
		return &smtp.SMTPError{Code: 451, Message: "nobody hears this"}
	}
	first = mailboxServer(t, socket, each)
	s.post("once", "alice", "bob", "carol")
	s.drain()
	if n := len(s.in(spooldir.Tempfail)); n != 2 {
		t.Errorf("%d recipients wait: %q", n, s.spool())
	}
	_ = os.Remove(socket)
	second := mailboxServer(t, socket, nil)
	s.flush()
	equal(t, "stored", stored(first, second), []string{"once to alice@host.example", "once to bob@host.example", "once to carol@host.example"})
	s.empty()
}

// TestLMTPKilledRunner: after a kill -9 everything arrives, and twice only what
// the server had not answered for, or what nobody had recorded.
func TestLMTPKilledRunner(t *testing.T) {
	t.Parallel()
	s, socket := newLMTP(t, "CONCURRENCY 1\n")
	var calls atomic.Int32
	reached, killed := make(chan struct{}), make(chan struct{})
	sink := mailboxServer(t, socket, func(*smtptest.Transaction, string) error {
		if calls.Add(1) == 8 {
			close(reached)
			<-killed
		}
		return nil
	})
	var want []string
	for i := range 10 {
		s.post(fmt.Sprint(i), "alice", "bob", "carol")
		for _, to := range []string{"alice", "bob", "carol"} {
			want = append(want, fmt.Sprintf("%d to %s@host.example", i, to))
		}
	}
	v := s.start()
	select {
	case <-reached:
	case <-time.After(time.Minute):
		close(killed)
		t.Fatalf("the server is not asked\n%s", v.log())
	}
	v.kill()
	close(killed)
	s.flush()
	got := make(map[string]int)
	for _, what := range stored(sink) {
		got[what]++
	}
	twice := 0
	for _, what := range want {
		switch got[what] {
		case 1:
		case 2:
			twice++
		default:
			t.Errorf("%s was stored %d times", what, got[what])
		}
	}
	if twice > 3 || len(got) != len(want) {
		t.Errorf("%d of %d were stored twice: %v", twice, len(got), got)
	}
	s.empty()
}

// TestLineBeforeSteps: where one reply decides several recipients, the line in the
// journal is written and synced before the first of them moves.
func TestLineBeforeSteps(t *testing.T) {
	sysfault.Need(t)
	t.Parallel()
	s := newSite(t)
	s.post("together", "-f", "alice", "a@far.example", "b@far.example", "c@far.example")
	res, err := sysfault.Run(t.Context(), s.command("dma-runner", "drain"), sysfault.Scope{Roots: []string{s.queue}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !res.State.Exited() || res.State.ExitStatus() != 0 {
		t.Fatalf("drain: %#x", res.State)
	}
	remote, sent := filepath.Join(s.queue, string(spooldir.Remote))+"/", filepath.Join(s.queue, string(spooldir.Sent))+"/"
	journal := filepath.Join(s.queue, spooldir.LogDir) + "/"
	written, synced, moved := 0, 0, 0 // the numbers of the last write, its sync, and the first step
	steps := 0
	for _, c := range res.Calls {
		switch {
		case strings.HasPrefix(c.Path, remote) && strings.HasPrefix(c.Path2, sent):
			if steps++; steps == 1 {
				moved = c.N
			}
		case steps > 0 || !strings.HasPrefix(c.Path, journal):
		case c.Class&sysfault.Sync != 0:
			synced = c.N
		case c.Name == "write":
			written = c.N
		}
	}
	if steps != 3 || written == 0 || written > synced || synced > moved {
		t.Errorf("%d steps, the first is call %d, the write %d, the sync %d", steps, moved, written, synced)
	}
}
