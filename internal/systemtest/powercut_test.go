package systemtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dma/internal/crashtest/powercut"
	"dma/internal/crashtest/sysfault"
	"dma/internal/smtptest"
	"dma/spooldir"
)

// submitted is the mark of a submission that was reported as queued.
type submitted struct {
	id string
	n  int // recipients
}

// whole checks the spool of an image before anybody worked on it: every
// message that was reported is there, with all its recipients, and what is
// committed is complete.
func whole(img powercut.Image) error {
	sp, err := spooldir.Open(img.Dir + "/spool")
	if err != nil {
		return err
	}
	committed := make(map[string]int)
	var errs []error
	if err := sp.Scan(spooldir.New, func(name spooldir.Name) bool {
		m, err := sp.Open(spooldir.New, name)
		if errors.Is(err, spooldir.ErrUncommitted) {
			return true
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("committed: %w", err))
			return true
		}
		defer m.Close()
		standing, err := sp.Standing(m, spooldir.New)
		if err == nil && len(standing) != len(m.Recipients) {
			err = fmt.Errorf("committed: %s has %d of %d recipients", m.ID, len(standing), len(m.Recipients))
		}
		errs = append(errs, err, m.Verify(context.Background()))
		committed[m.ID] = len(standing)
		return true
	}, nil); err != nil {
		return err
	}
	total := 0
	for _, n := range committed {
		total += n
	}
	for _, note := range img.Marks {
		if s := note.(submitted); committed[s.id] != s.n {
			errs = append(errs, fmt.Errorf("reported as queued: %s has %d of %d recipients", s.id, committed[s.id], s.n))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// A day later nothing else is left.
	if _, err := sp.Clean(time.Now().Add(25 * time.Hour)); err != nil {
		return err
	}
	var left []string
	for _, dir := range []string{"tmp", "new", "corrupt"} {
		entries, err := os.ReadDir(filepath.Join(sp.Path(), dir))
		if err != nil {
			return err
		}
		for _, e := range entries {
			left = append(left, dir+"/"+e.Name())
		}
	}
	if len(left) != total {
		return fmt.Errorf("%d recipients are committed, and after the cleaning there are %v", total, left)
	}
	return nil
}

// syncOther makes another file durable, so that the file system writes out what
// is half done.
func syncOther(dir string) error {
	f, err := os.OpenFile(dir+"/other", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.WriteString("x"); err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

var disks = []string{"ext4", "xfs"}

// TestPowerCutSubmitter cuts the power at every point of submissions, with
// somebody else syncing before each step.
func TestPowerCutSubmitter(t *testing.T) {
	sysfault.Need(t)
	for _, fs := range disks {
		t.Run(fs, func(t *testing.T) {
			p := powercut.New(t, fs)
			var s *site
			p.Prepare(func(dir string) error {
				s = newSiteWith(t, siteOptions{spool: dir + "/spool"})
				return nil
			})
			dir := p.Mount()
			large := "Subject: large\n\n" + strings.Repeat("a line of some length, of which there are many\n", 8000)
			for i, text := range []string{message, message, large, message} {
				to := []string{"carol", "dave", "x@y.example"}[:1+2*(i%2)]
				cmd := s.command("dma", append([]string{"-odq", "-v"}, to...)...)
				cmd.Stdin = strings.NewReader(text)
				var stderr strings.Builder
				cmd.Stderr = &stderr
				res, err := sysfault.Run(t.Context(), cmd, sysfault.Scope{Roots: []string{dir}}, func(sysfault.Call) sysfault.Action {
					if i == 3 {
						return sysfault.Action{} // one with nobody's help
					}
					if err := syncOther(dir); err != nil {
						t.Error(err)
					}
					return sysfault.Action{}
				})
				_, id, ok := strings.Cut(strings.TrimSpace(stderr.String()), "queued as ")
				if err != nil || !ok || !res.State.Exited() || res.State.ExitStatus() != 0 {
					t.Fatalf("%v %#x %s", err, res.State, &stderr)
				}
				p.Mark(submitted{id, len(to)})
			}
			p.Replay(powercut.Plan{Max: atMost(150), Seed: 1, Timeout: 10 * time.Minute}, whole)
		})
	}
}

// TestPowerCutPlanted shows that whole finds what it looks for: it makes a
// message the right way and with steps left out or in the wrong order.
func TestPowerCutPlanted(t *testing.T) {
	protocols := map[string]struct {
		steps string
		right bool
	}{
		"right":              {"write link sync other commit other sync", true},
		"no first fsync":     {"write link commit other sync", false},
		"no last fsync":      {"write link sync commit", false},
		"commit before data": {"commit link other write sync", false},
		"link after fsync":   {"write sync commit other link", false},
	}
	for _, fs := range disks {
		for _, name := range slices.Sorted(maps.Keys(protocols)) {
			t.Run(fs+"/"+name, func(t *testing.T) {
				tc := protocols[name]
				p := powercut.New(t, fs)
				p.Prepare(func(dir string) error { return spooldir.Init(dir + "/spool") })
				// What a message has to look like, dma itself shows.
				s := newSite(t)
				var ids []string
				for range 3 {
					r := s.dma(message, "-odq", "-v", "carol", "dave")
					_, id, _ := strings.Cut(strings.TrimSpace(r.stderr), "queued as ")
					ids = append(ids, id)
				}
				dir := p.Mount()
				for _, id := range ids {
					if err := enqueue(s, dir+"/spool", id, tc.steps); err != nil {
						t.Fatal(err)
					}
					p.Mark(submitted{id, 2})
				}
				rep := p.Explore(powercut.Plan{Max: atMost(80), Seed: 1, Timeout: 10 * time.Minute, Stop: 1}, whole)
				t.Logf("%d records, %d images, %v", rep.Records, rep.Images, rep.Violations)
				if found := len(rep.Violations) > 0; found == tc.right {
					t.Errorf("violations: %v, want some: %v", rep.Violations, !tc.right)
				}
			})
		}
	}
}

// enqueue copies a message from the spool of s into another one, with the given
// steps.
func enqueue(s *site, spool, id, steps string) error {
	names, err := filepath.Glob(s.queue + "/new/" + id + ".*")
	if err != nil {
		return err
	}
	data, err := os.ReadFile(names[0])
	if err != nil {
		return err
	}
	tmp := filepath.Join(spool, "tmp", id)
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	for step := range strings.FieldsSeq(steps) {
		switch step {
		case "write":
			_, err = f.Write(data)
		case "link":
			for _, name := range names {
				err = errors.Join(err, os.Link(tmp, filepath.Join(spool, "new", filepath.Base(name))))
			}
			err = errors.Join(err, os.Remove(tmp))
		case "sync":
			err = f.Sync()
		case "commit":
			err = f.Chmod(0o640)
		case "other":
			err = syncOther(filepath.Dir(spool))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", step, err)
		}
	}
	return nil
}

// The marks of a drain.
const (
	ranCommand = "the command ran"
	tookHost   = "the smarthost took it for x@y.example"
	tookChild  = "the smarthost took it for bob@else.example"
	drained    = "the drain ended"
)

// gate is a command that tells when it runs, and waits for an answer.
type gate struct {
	ask, answer *os.File
	count       atomic.Int32
}

// newGate makes a gate whose command tells before its exit that it ran.
func newGate(t *testing.T, dir string, ran func()) (*gate, string) {
	t.Helper()
	g := &gate{}
	for _, f := range []struct {
		f    **os.File
		name string
	}{{&g.ask, "ask"}, {&g.answer, "answer"}} {
		path := filepath.Join(dir, f.name)
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		var err error
		if *f.f, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*f.f).Close() })
	}
	go func() {
		lines := bufio.NewScanner(g.ask)
		for lines.Scan() {
			g.count.Add(1)
			ran()
			_, _ = g.answer.WriteString("go on\n")
		}
	}()
	return g, "cat >/dev/null; echo ran >" + filepath.Join(dir, "ask") + "; read x <" + filepath.Join(dir, "answer")
}

// TestPowerCutDrain cuts the power while a drain takes a message with all kinds
// of recipients from new to its end, mailboxes on the same disk. A drain after
// the cut finishes: what was taken before its record was synced may come twice,
// and nothing else.
func TestPowerCutDrain(t *testing.T) {
	for _, fs := range disks {
		for kind, mailbox := range mailboxes() {
			t.Run(fs+"/"+kind, func(t *testing.T) { powerCutDrain(t, fs, mailbox) })
		}
	}
}

func powerCutDrain(t *testing.T, fs, mailbox string) {
	p := powercut.New(t, fs)
	var working atomic.Bool
	mark := func(note string) {
		if working.Load() {
			p.Mark(note)
		}
	}
	took := func(tr *smtptest.Transaction) error {
		if slices.Contains(tr.To, "x@y.example") {
			mark(tookHost)
		} else {
			mark(tookChild)
		}
		return nil
	}
	rules := parseRules(t, "refuse nobody@*")
	base := t.TempDir()
	g, command := newGate(t, base, func() { mark(ranCommand) })
	m := &mixed{}
	p.Prepare(func(dir string) error {
		m.site = newSiteWith(t, siteOptions{
			dir: base, boxes: dir, spool: dir + "/spool", mailbox: mailbox,
			sink: smtptest.NewSink(smtptest.SinkOptions{Rules: rules, Data: took}),
		})
		m.forward("bob", "\\bob, bob@else.example\n\"|"+command+"\"\n")
		m.id = m.queueMixed(t)
		return nil
	})
	p.Mount()
	working.Store(true)
	m.drain()
	working.Store(false)
	p.Mark(drained)
	repeated := make(map[string]int)
	p.Replay(powercut.Plan{Max: atMost(40), Seed: 5, Timeout: 20 * time.Minute, Stop: 1}, func(img powercut.Image) error {
		m.restart(t, rules)
		g.count.Store(0)
		m.settle()
		before := t.Failed()
		m.checkBoxes(false)
		m.unlocked()
		got := m.relayed()
		for _, x := range []struct {
			note string
			n    int
		}{
			{ranCommand, int(g.count.Load())},
			{tookHost, count(got, "x@y.example")},
			{tookChild, count(got, "bob@else.example")},
		} {
			marked, done := slices.Contains(img.Marks, any(x.note)), slices.Contains(img.Marks, any(drained))
			switch {
			case done && x.n != 0, marked && x.n > 1, !marked && x.n != 1:
				t.Errorf("after the cut %d times: %s; before it: %v; its record synced: %v", x.n, x.note, marked, done)
			case marked && x.n == 1:
				repeated[x.note]++
			}
		}
		m.clean()
		if t.Failed() && !before {
			return errors.New("see above")
		}
		return nil
	})
	t.Logf("came twice: %v", repeated)
}

func count(list []string, s string) int {
	n := 0
	for _, x := range list {
		if x == s {
			n++
		}
	}
	return n
}

// restart is the power coming back after ten minutes: a lock file whose content
// was lost can be anybody's, and is left over after five. The smarthost is
// another one, which has taken nothing yet.
func (s *site) restart(t *testing.T, rules []smtptest.Rule) {
	t.Helper()
	for _, name := range s.locksLeft() {
		past := time.Now().Add(-10 * time.Minute)
		if err := os.Chtimes(filepath.Join(s.boxes, "mail", name), past, past); err != nil {
			t.Fatal(err)
		}
	}
	s.sink.Close()
	s.sink = smtptest.NewSink(smtptest.SinkOptions{Rules: rules})
	addr, err := s.sink.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(s.path("dma.conf"))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "SMARTHOST ") {
			line = "SMARTHOST " + addr.String() + "\n"
		}
		lines = append(lines, line)
	}
	s.write("dma.conf", strings.Join(lines, ""))
}
