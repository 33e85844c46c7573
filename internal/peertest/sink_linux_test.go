package peertest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// sink starts smtp-sink on a port with some options and returns it and the
// folder that it writes messages to.
func (s *site) sink(port int, options ...string) (*Service, string) {
	s.t.Helper()
	dir := s.dir + "/dump"
	if err := os.MkdirAll(s.Path(dir), 0o777); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Chmod(s.Path(dir), 0o777); err != nil {
		s.t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	args := append([]string{"-u", "postfix", "-d", dir + "/m."}, options...)
	sink := s.Start(s.Command("smtp-sink", append(args, addr, "100")...))
	sink.AwaitPort(addr)
	return sink, dir
}

// taken returns the recipients of the messages that smtp-sink has written, one
// sorted list for each.
func (s *site) taken(dir string) [][]string {
	s.t.Helper()
	files, err := filepath.Glob(filepath.Join(s.Path(dir), "m.*"))
	if err != nil {
		s.t.Fatal(err)
	}
	var list [][]string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			s.t.Fatal(err)
		}
		var to []string
		for line := range strings.Lines(string(data)) {
			if rest, ok := strings.CutPrefix(line, "X-Rcpt-Args: <"); ok {
				address, _, _ := strings.Cut(rest, ">")
				to = append(to, address)
			}
			if line == "\n" {
				break
			}
		}
		slices.Sort(to)
		list = append(list, to)
	}
	return list
}

// Debian's smtp-sink with each of its faults: what becomes of every recipient.
func TestSinkFaults(t *testing.T) {
	Need(t)
	r := NewRoot(t, Peers())
	r.InstallDMA()
	port := 2500
	for _, c := range []struct {
		name    string
		options []string
		want    string // outcome of each recipient
		bounces int    // 1: all come back in one
		taken   bool   // the sink has seen the message, once, whatever it said of it
	}{
		{"nothing", nil, "sent 2.0.0", 0, true},
		{"no pipelining", []string{"-p"}, "sent 2.0.0", 0, true},
		{"no ESMTP", []string{"-e"}, "sent 2.0.0", 0, true},
		{"no 8BITMIME", []string{"-8"}, "sent 2.0.0", 0, true},
		{"no AUTH", []string{"-a"}, "sent 2.0.0", 0, true},
		{"no DSN", []string{"-N"}, "sent 2.0.0", 0, true},
		{"no ENHANCEDSTATUSCODES", []string{"-E"}, "sent 2.0.0", 0, true},
		{"no XCLIENT", []string{"-C"}, "sent 2.0.0", 0, true},
		{"no XFORWARD", []string{"-F"}, "sent 2.0.0", 0, true},
		{"PIX", []string{"-P"}, "sent 2.0.0", 0, true},
		{"hard CONNECT", []string{"-f", "connect"}, "deferred 4.3.0", 0, false},
		{"hard EHLO", []string{"-f", "ehlo"}, "sent 2.0.0", 0, true},
		{"hard EHLO HELO", []string{"-f", "ehlo helo"}, "deferred 4.3.0", 0, false},
		{"hard MAIL", []string{"-f", "mail"}, "bounced 5.3.0", 1, false},
		{"hard RCPT", []string{"-f", "rcpt"}, "bounced 5.3.0", 1, false},
		{"hard DATA", []string{"-f", "data"}, "bounced 5.3.0", 1, false},
		{"hard dot", []string{"-f", "."}, "bounced 5.3.0", 1, true},
		{"hard QUIT", []string{"-f", "quit"}, "sent 2.0.0", 0, true},
		{"soft CONNECT", []string{"-r", "connect"}, "deferred 4.3.0", 0, false},
		{"soft EHLO", []string{"-r", "ehlo"}, "deferred 4.3.0", 0, false},
		{"soft MAIL", []string{"-r", "mail"}, "deferred 4.3.0", 0, false},
		{"soft RCPT", []string{"-r", "rcpt"}, "deferred 4.3.0", 0, false},
		{"soft DATA", []string{"-r", "data"}, "deferred 4.3.0", 0, false},
		{"soft dot", []string{"-r", "."}, "deferred 4.3.0", 0, true},
		{"soft QUIT", []string{"-r", "quit"}, "sent 2.0.0", 0, true},
		{"close CONNECT", []string{"-q", "connect"}, "deferred 4.4.2", 0, false},
		{"close EHLO", []string{"-q", "ehlo"}, "deferred 4.4.2", 0, false},
		{"close MAIL", []string{"-q", "mail"}, "deferred 4.4.2", 0, false},
		{"close RCPT", []string{"-q", "rcpt"}, "deferred 4.4.2", 0, false},
		{"close DATA", []string{"-q", "data"}, "deferred 4.4.2", 0, false},
		{"close dot", []string{"-q", "."}, "deferred 4.4.2", 0, true},
		{"close QUIT", []string{"-q", "quit"}, "sent 2.0.0", 0, true},
		{"421 CONNECT", []string{"-Q", "connect"}, "deferred 4.0.0", 0, false},
		{"421 EHLO", []string{"-Q", "ehlo"}, "deferred 4.0.0", 0, false},
		{"421 MAIL", []string{"-Q", "mail"}, "deferred 4.0.0", 0, false},
		{"421 RCPT", []string{"-Q", "rcpt"}, "deferred 4.0.0", 0, false},
		{"421 DATA", []string{"-Q", "data"}, "deferred 4.0.0", 0, false},
		{"421 dot", []string{"-Q", "."}, "deferred 4.0.0", 0, true},
		{"421 QUIT", []string{"-Q", "quit"}, "sent 2.0.0", 0, true},
		{"abort in DATA", []string{"-A", "1"}, "bounced 5.0.0", 1, false},
		{"its own soft reply", []string{"-r", "rcpt", "-b", "451 4.7.1 Come back"}, "deferred 4.7.1", 0, false},
		{"its own hard reply", []string{"-f", ".", "-B", "554 5.7.0 Not that"}, "bounced 5.7.0", 1, true},
		{"late answer", []string{"-w", "1"}, "sent 2.0.0", 0, true},
		{"late reader", []string{"-H", "1"}, "sent 2.0.0", 0, true},
	} {
		port++
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, r, fmt.Sprintf("SMARTHOST 127.0.0.1:%d\n", port))
			sink, dir := s.sink(port, c.options...)
			to := people(5)
			s.submit("Subject: x\n\n.\n..\ntext\n", to...)
			got := s.drain()
			s.expect(got, all(to, c.want), c.bounces)
			var want [][]string
			if c.taken {
				want = [][]string{to}
			}
			if have := s.taken(dir); !slices.EqualFunc(have, want, slices.Equal) {
				t.Errorf("the sink has %q, want %q", have, want)
			}
			if !strings.HasPrefix(c.want, "deferred") {
				return
			}
			// Then the peer is well again.
			sink.Kill()
			s.sink(port)
			s.expect(s.flush(), all(to, "sent 2.0.0"), c.bounces)
			want = append(want, to)
			if have := s.taken(dir); !slices.EqualFunc(have, want, slices.Equal) {
				t.Errorf("after the recovery the sink has %q, want %q", have, want)
			}
		})
	}
}

// A thousand recipients are one transaction, with pipelining and without.
func TestSinkRecipients(t *testing.T) {
	Need(t)
	r := NewRoot(t, Peers())
	r.InstallDMA()
	for i, options := range [][]string{nil, {"-p"}} {
		s := newSite(t, r, fmt.Sprintf("SMARTHOST 127.0.0.1:%d\n", 2500+i))
		_, dir := s.sink(2500+i, options...)
		to := people(1000)
		s.submit("Subject: many\n\ntext\n", to...)
		s.expect(s.drain(), all(to, "sent 2.0.0"), 0)
		slices.Sort(to)
		if have := s.taken(dir); len(have) != 1 || !slices.Equal(have[0], to) {
			t.Errorf("smtp-sink %v has %d messages, want one with all recipients", options, len(have))
		}
	}
}

// A peer that serves one connection at a time, and leaves the others waiting
// for a greeting, gets all messages, each once.
func TestSinkOneConnection(t *testing.T) {
	Need(t)
	r := NewRoot(t, Peers())
	r.InstallDMA()
	s := newSite(t, r, "SMARTHOST 127.0.0.1:2500\nCONCURRENCY 2\n")
	_, dir := s.sink(2500, "-m", "1")
	to := people(20)
	for _, a := range to {
		s.submit("Subject: one of many\n\ntext\n", a)
	}
	s.expect(s.drain(), all(to, "sent 2.0.0"), 0)
	have := slices.Sorted(slices.Values(slices.Concat(s.taken(dir)...)))
	slices.Sort(to)
	if !slices.Equal(have, to) {
		t.Errorf("the sink has %q, want each of %q once", have, to)
	}
}
