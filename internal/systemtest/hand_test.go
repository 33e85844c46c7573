package systemtest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"dma/internal/crashtest/sysfault"
	"dma/internal/smtptest"
	"dma/spooldir"
)

// draft begins a message from alice and writes its content.
func draft(t testing.TB, sp *spooldir.Spool, e spooldir.Envelope, to ...string) *spooldir.Draft {
	t.Helper()
	e.UID = os.Getuid()
	for _, addr := range to {
		e.Recipients = append(e.Recipients, spooldir.Recipient{Address: addr})
	}
	d, err := sp.Create(&e)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Write([]byte("Subject: by hand\n\nhello\n")); err != nil {
		t.Fatal(err)
	}
	return d
}

// A message that is not committed is no mail, whatever of it there is.
func TestHalfWritten(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	sp := s.open()
	unlinked := draft(t, sp, spooldir.Envelope{Sender: "alice"}, "bob")
	d := draft(t, sp, spooldir.Envelope{Sender: "alice"}, "bob", "carol")
	if err := d.Commit(); err != nil {
		t.Fatal(err)
	}
	linked := s.in(spooldir.New)
	if err := os.Chmod(s.path("spool", "new", linked[0]), 0o600); err != nil {
		t.Fatal(err)
	}
	s.post("whole", "bob")
	s.drain()
	if got := subjects(s.mailbox("bob")); !slices.Equal(got, []string{"whole"}) {
		t.Errorf("bob has %q", got)
	}
	equal(t, "spool", s.spool(), []string{"new/" + linked[0], "new/" + linked[1], "tmp/" + unlinked.ID()})
	if q := s.mailq(); len(q) > 0 {
		t.Errorf("mailq lists %+v", q)
	}
	// Its submitter goes on, by the path of any of its names.
	if err := os.Chmod(s.path("spool", "new", linked[0]), 0o640); err != nil {
		t.Fatal(err)
	}
	s.drain()
	if len(s.mailbox("bob")) != 2 || len(s.mailbox("carol")) != 1 {
		t.Errorf("bob has %d, carol %d", len(s.mailbox("bob")), len(s.mailbox("carol")))
	}
	if err := unlinked.Abort(); err != nil {
		t.Fatal(err)
	}
	s.empty()
}

// A submitter that stands still between its steps, while a cleaner comes that
// takes it for dead, either succeeds and the mail is delivered, or fails and
// nothing is left.
func TestStoppedSubmitter(t *testing.T) {
	t.Parallel()
	sysfault.Need(t)
	for _, tt := range []struct {
		at   string // the system call before which the cleaner comes
		nth  int
		code int
	}{
		{"fsync", 1, 75}, // linked, not committed
		{"chmod", 1, 75},
		{"fsync", 2, 0}, // committed
	} {
		t.Run(fmt.Sprint(tt.at, tt.nth), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			cmd := s.command("dma", "-odq", "bob", "carol")
			cmd.Stdin = strings.NewReader("Subject: stopped\n\nhello\n")
			var stderr strings.Builder
			cmd.Stderr = &stderr
			seen := 0
			res, err := sysfault.Run(t.Context(), cmd, sysfault.Scope{Roots: []string{s.path("spool")}}, func(c sysfault.Call) sysfault.Action {
				if strings.Contains(c.Name, tt.at) {
					if seen++; seen == tt.nth {
						if _, err := s.open().Clean(time.Now().Add(spooldir.UncommittedAge + time.Hour)); err != nil {
							t.Error(err)
						}
					}
				}
				return sysfault.Action{}
			})
			if err != nil {
				t.Fatal(err)
			}
			if seen < tt.nth {
				t.Fatalf("no such call among %v", res.Calls)
			}
			if res.State.ExitStatus() != tt.code {
				t.Errorf("exit %d instead of %d: %s", res.State.ExitStatus(), tt.code, &stderr)
			}
			s.drain()
			want := 0
			if res.State.ExitStatus() == 0 {
				want = 1
			}
			if len(s.mailbox("bob")) != want || len(s.mailbox("carol")) != want {
				t.Errorf("bob has %d, carol %d, and each should have %d", len(s.mailbox("bob")), len(s.mailbox("carol")), want)
			}
			s.empty()
		})
	}
}

// What cannot be a message goes to corrupt, is logged once, and costs nobody
// else anything.
func TestCorrupt(t *testing.T) {
	t.Parallel()
	id := func(n int) string { return fmt.Sprintf("20260102T030405-%016x", n) }
	kinds := []struct {
		name string
		make func(s *site, sound []byte, soundID string) string // returns its name in new
	}{
		{"nothing in it", func(s *site, _ []byte, _ string) string { return s.plant(id(1)+".1-bob", nil) }},
		{"some text", func(s *site, _ []byte, _ string) string { return s.plant(id(2)+".1-bob", []byte("Subject: no\n\n")) }},
		{"binary", func(s *site, _ []byte, _ string) string {
			return s.plant(id(3)+".1-bob", []byte(strings.Repeat("\x00\xff", 3000)))
		}},
		{"content cut", func(s *site, sound []byte, id string) string { return s.plant(id+".1-bob", sound[:len(sound)-1]) }},
		{"content longer", func(s *site, sound []byte, id string) string {
			return s.plant(id+".1-bob", append(slices.Clone(sound), '\n'))
		}},
		{"content changed", func(s *site, sound []byte, id string) string {
			bad := slices.Clone(sound)
			bad[len(bad)-3] ^= 1
			return s.plant(id+".1-bob", bad)
		}},
		{"envelope changed", func(s *site, sound []byte, id string) string {
			return s.plant(id+".1-bob", []byte(strings.Replace(string(sound), "address=bob", "address=bov", 1)))
		}},
		{"envelope cut", func(s *site, sound []byte, id string) string { return s.plant(id+".1-bob", sound[:100]) }},
		{"the id of another", func(s *site, sound []byte, _ string) string { return s.plant(id(4)+".1-bob", sound) }},
		{"a number too high", func(s *site, sound []byte, id string) string { return s.plant(id+".2-bob", sound) }},
		{"another address", func(s *site, sound []byte, id string) string { return s.plant(id+".1-carol", sound) }},
		{"a child's id", func(s *site, sound []byte, _ string) string { return s.plant(id(5)+"c.1-bob", sound) }},
		{"a strange mode", func(s *site, sound []byte, id string) string {
			name := s.plant(id+".1-bob", sound)
			s.chmod(name, 0o644)
			return name
		}},
		{"a symbolic link", func(s *site, sound []byte, id string) string {
			s.write("elsewhere", string(sound))
			s.chmod("../elsewhere", 0o640)
			name := "new/" + id + ".1-bob"
			s.check(os.Symlink(s.path("elsewhere"), s.path("spool", name)))
			return name
		}},
		{"a directory", func(s *site, _ []byte, id string) string {
			name := "new/" + id + ".1-bob"
			s.check(os.Mkdir(s.path("spool", name), 0o750))
			return name
		}},
		{"a FIFO", func(s *site, _ []byte, id string) string {
			name := "new/" + id + ".1-bob"
			s.check(syscall.Mkfifo(s.path("spool", name), 0o640))
			s.chmod(name, 0o640)
			return name
		}},
		{"no recipient's name", func(s *site, sound []byte, _ string) string { return s.plant("README", sound) }},
		{"a name almost right", func(s *site, sound []byte, id string) string { return s.plant(id+".01-bob", sound) }},
	}
	s := newSite(t)
	var want []string
	for _, k := range kinds {
		d := draft(t, s.open(), spooldir.Envelope{Sender: "alice"}, "bob")
		s.check(d.Commit())
		file := s.path("spool", "new", d.ID()+".1-bob")
		sound, err := os.ReadFile(file)
		s.check(err)
		s.check(os.Remove(file))
		want = append(want, "corrupt/"+filepath.Base(k.make(s, sound, d.ID())))
	}
	s.post("sound", "bob", "far@far.example")
	log := s.drain().stderr
	equal(t, "spool", s.spool(), want)
	lines := make(map[string]int)
	for _, e := range events(log, "corrupt") {
		lines["corrupt/"+filepath.Base(e["kept"])]++
		if e["reason"] == "" || strings.HasPrefix(e["path"], "/") {
			t.Errorf("logged as %v", e)
		}
	}
	for i, file := range want {
		if lines[file] != 1 {
			t.Errorf("%s: logged %d times", kinds[i].name, lines[file])
		}
	}
	if got := subjects(s.mailbox("bob")); !slices.Equal(got, []string{"sound"}) || len(s.relayed()) != 1 {
		t.Errorf("bob has %q, the smarthost %q", got, s.relayed())
	}
	if again := events(s.drain().stderr, "corrupt"); len(again) > 0 {
		t.Errorf("logged again: %v", again)
	}
	equal(t, "spool after another drain", s.spool(), want)
}

// plant makes a committed file in new and returns its name in the spool.
func (s *site) plant(file string, data []byte) string {
	s.t.Helper()
	s.check(os.WriteFile(s.path("spool", "new", file), data, 0o640))
	s.chmod("new/"+file, 0o640) // whatever the umask
	return "new/" + file
}

func (s *site) chmod(name string, mode os.FileMode) {
	s.t.Helper()
	s.check(os.Chmod(s.path("spool", name), mode))
}

func (s *site) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// A foreign file in any directory stops nothing; where mail passes through, it
// is put aside.
func TestForeignFiles(t *testing.T) {
	t.Parallel()
	rules := parseRules(t, "defer later@*")
	rules[0].Times = 1
	s := newSiteWith(t, siteOptions{sink: smtptest.NewSink(smtptest.SinkOptions{Rules: rules})})
	want := []string{"hold/notes", "tmp/notes", "log/notes", "corrupt/notes"}
	for i, dir := range []string{"new", "forwarding", "local", "remote", "tempfail", "permfail", "sent", "hold", "tmp", "log", "corrupt", "lock"} {
		s.check(os.WriteFile(s.path("spool", dir, "notes"), []byte(dir), 0o600))
		if i < 7 {
			want = append(want, fmt.Sprintf("corrupt/notes.%d", i+1))
		}
	}
	s.post("foreign", "bob", "far@far.example", "later@far.example", "nosuch")
	v := s.start()
	v.await("the mail", func(string) bool {
		return len(s.mailbox("bob")) == 1 && len(s.relayed()) == 1 && len(s.mailbox("alice")) == 1 && len(s.in(spooldir.Tempfail)) == 1
	})
	s.check(os.WriteFile(s.path("spool", "remote", "notes"), nil, 0o600)) // while it runs
	want = append(want, "corrupt/notes.8")
	s.flush()
	v.await("the rest", func(string) bool { return len(s.relayed()) == 2 })
	eventually(t, "quiet spool", func() bool { return slices.Equal(s.spool(), sorted(want)) })
	v.stop()
	kept := make(map[string]bool)
	for i := range 7 {
		kept[slurp(t, s.path("spool", "corrupt", fmt.Sprintf("notes.%d", i+1)))] = true
	}
	if len(kept) != 7 {
		t.Errorf("in corrupt are the files of %v", kept)
	}
}

func sorted(list []string) []string {
	list = slices.Clone(list)
	slices.Sort(list)
	return list
}
