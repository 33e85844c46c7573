package spooldir

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// halfSubmission leaves what a submitter leaves that dies, or stops, between
// the links and the commit.
func halfSubmission(t *testing.T, s *Spool, id string, addrs ...string) (*Draft, []Name) {
	t.Helper()
	e := Envelope{ID: id, Recipients: recipients(addrs...)}
	if kind, _ := IDKind(id); id != "" && kind != Submitted {
		e.Parents = []Parent{{NewName(NewID(time.Now()), 1, "p")}}
	}
	d, err := s.Create(&e)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.f.Close() }) // until then it lives
	if err := d.finish(); err != nil {
		t.Fatal(err)
	}
	var names []Name
	for n := range addrs {
		name := d.env.Name(n + 1)
		if err := os.Link(d.tmp, s.file(New, name.String())); err != nil {
			t.Fatal(err)
		}
		d.linked = append(d.linked, s.file(New, name.String()))
		names = append(names, name)
	}
	return d, names
}

func TestClean(t *testing.T) {
	s := newSpool(t)
	submit(t, s, Envelope{Recipients: recipients("kept@example.org")}, "x\n")
	halfSubmission(t, s, "", "a@b", "c@d", "e@f")
	unlinked, err := s.Create(&Envelope{Recipients: recipients("never-linked@example.org")})
	if err != nil {
		t.Fatal(err)
	}
	defer unlinked.f.Close()
	person := s.file(Tmp, "notes.txt")
	if err := os.WriteFile(person, nil, 0o600); err != nil {
		t.Fatal(err)
	}

	done, err := s.Clean(time.Now())
	if err != nil || len(done) != 0 {
		t.Fatalf("a young submission: %v, %v; want nothing done", done, err)
	}
	if _, err := s.Clean(time.Now().Add(UncommittedAge + time.Minute)); err != nil {
		t.Fatal(err)
	}
	if got := files(t, s, New); len(got) != 1 {
		t.Errorf("new holds %q, want the committed message alone", got)
	}
	if got := files(t, s, Tmp); !reflect.DeepEqual(got, []string{"notes.txt"}) {
		t.Errorf("tmp holds %q, want just what a person put there", got)
	}
}

// TestCleanDead: what a submitter leaves that died goes at once, at whatever point
// that was. One that lives keeps its names, and so does one that does not say that
// it holds a lock, or says so no more since it is about to commit.
func TestCleanDead(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(d *Draft) error
		dead bool
	}{
		{"dies", func(d *Draft) error { return d.f.Close() }, true},
		{"dies before the links are complete", func(d *Draft) error { return errors.Join(os.Remove(d.linked[0]), d.f.Close()) }, true},
		{"lives", func(d *Draft) error { return nil }, false},
		{"of an older version", func(d *Draft) error { return errors.Join(d.f.Chmod(modeUncommitted), d.f.Close()) }, false},
		{"about to commit", func(d *Draft) error { return d.unlock() }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSpool(t)
			d, names := halfSubmission(t, s, "", "a@b", "c@d", "e@f")
			if !d.locked {
				t.Log("the locks of this file system are not relied on")
				return
			}
			kept := submit(t, s, Envelope{Recipients: recipients("kept@example.org")}, "x\n")
			before := files(t, s, New)
			if err := tt.do(d); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Clean(time.Now()); err != nil {
				t.Fatal(err)
			}
			if tt.dead {
				if got := files(t, s, New); !reflect.DeepEqual(got, []string{kept[0].String()}) {
					t.Errorf("new holds %q, want the committed message alone", got)
				}
				if got := files(t, s, Tmp); len(got) != 0 {
					t.Errorf("tmp holds %q", got)
				}
				return
			}
			if got := files(t, s, New); !reflect.DeepEqual(got, before) {
				t.Errorf("new holds %q, want %q", got, before)
			}
			if err := os.Chmod(d.linked[0], modeCommitted); err != nil {
				t.Fatal(err)
			}
			for _, n := range names {
				if m, err := s.Open(New, n); err != nil {
					t.Error(err)
				} else {
					m.Close()
				}
			}
		})
	}
}

// TestCommitIsFree: nobody who takes a message up has to wait for the one who
// committed it, stopped or not, but for a child that is held.
func TestCommitIsFree(t *testing.T) {
	for _, held := range []bool{false, true} {
		s := newSpool(t)
		d, err := s.Create(&Envelope{Recipients: recipients("a@b")})
		if err != nil {
			t.Fatal(err)
		}
		defer d.f.Close()
		if held {
			if err := d.Hold(); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.commit(); err != nil { // without the close
			t.Fatal(err)
		}
		m, err := s.Open(New, d.env.Name(1))
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		err = unix.Flock(int(m.f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if held != errors.Is(err, unix.EWOULDBLOCK) || !held && err != nil {
			t.Errorf("held %v: %v", held, err)
		}
	}
}

// TestCleanMany: more old messages than the cleaner keeps in mind, each with more
// than one name, go in one run, which tells no more than it has to.
func TestCleanMany(t *testing.T) {
	s := newSpool(t)
	const messages = maxNoted/2 + 10
	for range messages {
		id := NewID(time.Now())
		first := s.file(New, NewName(id, 1, "a@b").String())
		if err := os.WriteFile(first, nil, modeUncommitted); err != nil {
			t.Fatal(err)
		}
		if err := os.Link(first, s.file(New, NewName(id, 2, "c@d").String())); err != nil {
			t.Fatal(err)
		}
	}
	// What a cleaner that died has left of one.
	if err := os.WriteFile(s.file(New, NewName(NewID(time.Now()), 2, "c@d").String()), nil, modeUncommitted); err != nil {
		t.Fatal(err)
	}
	c := newCleaner(s, time.Now().Add(UncommittedAge+time.Minute))
	c.round = 100
	c.new()
	done, err := c.result()
	if err != nil {
		t.Fatal(err)
	}
	if got := append(files(t, s, New), files(t, s, Tmp)...); len(got) != 0 {
		t.Errorf("%d files are left", len(got))
	}
	if want := (Cleaned{"spool", fmt.Sprintf("%d more files as those before", 2*messages+1-maxNoted)}); len(done) != maxNoted+1 || done[maxNoted] != want {
		t.Errorf("%d told, the last is %v; want %v", len(done), done[len(done)-1], want)
	}
}

// TestCleanMeetsSubmitter stops a submitter at every point between its links
// and its commit, lets the cleaner run as if a day had passed, and lets the
// submitter go on: it either commits the whole message, or fails and leaves
// nothing.
func TestCleanMeetsSubmitter(t *testing.T) {
	later := func() time.Time { return time.Now().Add(UncommittedAge + time.Minute) }
	for _, commitFirst := range []bool{false, true} {
		s := newSpool(t)
		d, names := halfSubmission(t, s, "", "a@b", "c@d")
		if err := unix.Unlink(d.tmp); err != nil {
			t.Fatal(err)
		}
		d.tmp = ""
		if commitFirst {
			// The cleaner has decided by the mode, then the submitter commits.
			c := newCleaner(s, later())
			if err := os.Chmod(d.linked[0], modeCommitted); err != nil {
				t.Fatal(err)
			}
			var before unix.Stat_t
			if err := unix.Lstat(d.linked[0], &before); err != nil {
				t.Fatal(err)
			}
			if c.take(names[0], &before) || len(c.errs) > 0 {
				t.Errorf("a committed name was taken: %v", c.errs)
			}
			for _, n := range names {
				m, err := s.Open(New, n)
				if err != nil {
					t.Errorf("%s: %v, want it committed", n, err)
					continue
				}
				m.Close()
			}
			continue
		}
		if _, err := s.Clean(later()); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(d.linked[0], modeCommitted); err == nil {
			t.Error("the submitter could commit what the cleaner took away")
		}
		if got := append(files(t, s, New), files(t, s, Tmp)...); len(got) != 0 {
			t.Errorf("%q is left", got)
		}
	}
}

// TestCleanFirstNameStays: where the first name cannot be taken away, the others
// stay too, however many such messages there are. The submitter, which was only
// stopped, then commits all of it.
func TestCleanFirstNameStays(t *testing.T) {
	for _, round := range []int{cleanRound, 2, 1} {
		s := newSpool(t)
		var firsts []string
		var all []Name
		for range 2 {
			d, names := halfSubmission(t, s, "", "a@b", "c@d", "e@f")
			if err := os.Mkdir(s.file(Tmp, names[0].String()), 0o700); err != nil {
				t.Fatal(err)
			}
			firsts, all = append(firsts, d.linked[0]), append(all, names...)
		}
		c := newCleaner(s, time.Now().Add(UncommittedAge+time.Minute))
		c.round = round
		c.new()
		if _, err := c.result(); !errors.Is(err, unix.EEXIST) {
			t.Errorf("at most %d: %v", round, err)
		}
		for _, first := range firsts {
			if err := os.Chmod(first, modeCommitted); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range all {
			m, err := s.Open(New, n)
			if err != nil {
				t.Errorf("at most %d: %v", round, err)
				continue
			}
			m.Close()
		}
	}
}

func TestCommittedNameInTmpGoesBack(t *testing.T) {
	s := newSpool(t)
	name := submit(t, s, Envelope{Recipients: recipients("a@b")}, "x\n")[0]
	if err := os.Rename(s.file(New, name.String()), s.file(Tmp, name.String())); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Clean(time.Now()); err != nil {
		t.Fatal(err)
	}
	if at, _ := s.Find(name); !reflect.DeepEqual(at, []State{New}) {
		t.Errorf("it stands in %v, want new", at)
	}
}

func TestRecover(t *testing.T) {
	s := newSpool(t)
	parent := NewID(time.Now())

	// A child that was not committed, one that was, and one never linked.
	_, dead := halfSubmission(t, s, DeriveID(parent, 1, Child), "a@b", "c@d")
	alive := submit(t, s, Envelope{
		ID: DeriveID(parent, 2, Bounce), Parents: []Parent{{NewName(parent, 2, "x")}}, Recipients: recipients("e@f"),
	}, "x\n")
	if _, err := s.Create(&Envelope{ID: DeriveID(parent, 3, Delay), Parents: []Parent{{NewName(parent, 3, "x")}}, Recipients: recipients("g@h")}); err != nil {
		t.Fatal(err)
	}
	// A user's submission under way stays as it is.
	_, going := halfSubmission(t, s, "", "u@v")
	// A name in two states, and one with another file under its name.
	twice := submit(t, s, Envelope{Recipients: recipients("twice@example.org")}, "x\n")[0]
	if err := os.Link(s.file(New, twice.String()), s.file(Tempfail, twice.String())); err != nil {
		t.Fatal(err)
	}
	other := submit(t, s, Envelope{Recipients: recipients("other@example.org")}, "x\n")[0]
	if err := os.WriteFile(s.file(Remote, other.String()), []byte("other"), 0o640); err != nil {
		t.Fatal(err)
	}
	// A journal without a message.
	orphan := NewID(time.Now())
	if _, err := s.CreateJournal(orphan); err != nil {
		t.Fatal(err)
	}

	r, err := s.Recover(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(r.Children, alive) {
		t.Errorf("committed children: %v, want %v", r.Children, alive)
	}
	for what, tt := range map[string]struct {
		name Name
		want []State
	}{
		"uncommitted child": {dead[0], nil}, "its other name": {dead[1], nil}, "committed report": {alive[0], []State{New}},
		"submission under way": {going[0], []State{New}}, "twice": {twice, []State{Tempfail}}, "other": {other, []State{New}},
	} {
		if at, _ := s.Find(tt.name); !reflect.DeepEqual(at, tt.want) {
			t.Errorf("%s stands in %v, want %v", what, at, tt.want)
		}
	}
	if got := files(t, s, Corrupt); len(got) != 1 {
		t.Errorf("corrupt holds %q, want the other file", got)
	}
	if _, err := s.ReadJournal(orphan); !os.IsNotExist(err) {
		t.Errorf("the orphan's journal: %v, want it gone", err)
	}
	if _, err := s.ReadJournal(twice.ID); err != nil {
		t.Errorf("a message without journal: %v, want one made", err)
	}
	if got := files(t, s, Tmp); len(got) != 1 {
		t.Errorf("tmp holds %q, want the submission under way alone", got)
	}
	// A second recovery finds nothing to do.
	r, err = s.Recover(time.Now())
	if err != nil || len(r.Done) != 0 {
		t.Errorf("again: %v, %v; want nothing done", r.Done, err)
	}
}

func TestListSeesEachOnce(t *testing.T) {
	s := newSpool(t)
	var names []Name
	for range 300 {
		names = append(names, submit(t, s, Envelope{Recipients: recipients("a@b")}, "x\n")...)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { // moves names forward and back while they are listed
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			n := names[i%len(names)]
			if err := s.Move(n, New, Remote); err != nil && !errors.Is(err, ErrGone) {
				t.Error(err)
				return
			}
			if i%3 == 0 {
				if err := s.Move(n, Remote, Tempfail); err != nil && !errors.Is(err, ErrGone) {
					t.Error(err)
					return
				}
			}
		}
	}()
	for range 20 {
		list, err := s.List()
		if err != nil {
			t.Fatal(err)
		}
		seen := make(map[string]bool)
		for _, p := range list {
			if seen[p.Name.String()] {
				t.Fatalf("%s is listed twice", p.Name)
			}
			seen[p.Name.String()] = true
		}
		if len(seen) != len(names) {
			t.Fatalf("%d of %d names are listed", len(seen), len(names))
		}
	}
	close(stop)
	<-done
}

func TestFlushRequest(t *testing.T) {
	s := newSpool(t)
	if s.TakeFlush() {
		t.Error("a flush that nobody asked for")
	}
	if err := s.RequestFlush(); err != nil {
		t.Fatal(err)
	}
	if !s.TakeFlush() || s.TakeFlush() {
		t.Error("a request is to be taken once")
	}
}

func TestRoleLock(t *testing.T) {
	s := newSpool(t)
	if running, err := s.ServiceRunning(); running || err != nil {
		t.Fatal(running, err)
	}
	l, err := s.Lock(QueueRole, "drain")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Lock(QueueRole, "service"); !errors.Is(err, ErrLocked) {
		t.Errorf("a second lock: %v, want ErrLocked", err)
	}
	if holder, err := s.Holder(QueueRole); holder != "drain" || err != nil {
		t.Errorf("held by %q, %v", holder, err)
	}
	if n, err := s.Lock(NetRole, "service"); err != nil {
		t.Errorf("another role: %v", err)
	} else {
		n.Close()
	}
	l.Close()
	if running, err := s.ServiceRunning(); running || err != nil {
		t.Error(running, err)
	}
}

func TestFree(t *testing.T) {
	s := newSpool(t)
	if err := s.Free(0); err != nil {
		t.Error(err)
	}
	room, err := s.Room()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Free(room.TotalBytes + 1); err == nil {
		t.Error("more than there is was free")
	}
	if !s.ReleaseBallast() || s.ReleaseBallast() {
		t.Error("the ballast is to be released once")
	}
	if err := s.KeepBallast(0); err != nil {
		t.Fatal(err)
	}
	if !s.ReleaseBallast() {
		t.Error("the ballast was not made again")
	}
}
