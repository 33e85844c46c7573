package spooldir_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"dma/internal/crashtest"
	. "dma/spooldir"
	"dma/states"

	"golang.org/x/sys/unix"
)

// testIDs are ids that no user of the machine has.
func testIDs() Identities {
	return Identities{QueueUID: 64401, QueueGID: 64401, NetUID: 64402, NetGID: 64402, SubmitGID: 64403}
}

// someone is an actor with its credentials.
type someone struct {
	name     string
	uid, gid int
	groups   []int
}

func actors() []someone {
	ids := testIDs()
	return []someone{
		{"dma", ids.QueueUID, ids.QueueGID, []int{ids.SubmitGID}},
		{"dmanet", ids.NetUID, ids.NetGID, []int{ids.SubmitGID}},
		{"submitters", 64404, ids.SubmitGID, nil},
		{"others", 64405, 64405, nil},
	}
}

func actor(name string) someone {
	all := actors()
	return all[slices.IndexFunc(all, func(a someone) bool { return a.name == name })]
}

// as runs f in a thread with the credentials of a, and no other thread.
func (a someone) as(t *testing.T, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends
		done <- func() error {
			var groups [1]uint32 // room for one is enough
			for i, g := range a.groups {
				groups[i] = uint32(g)
			}
			if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(a.groups)), uintptr(unsafe.Pointer(&groups)), 0); e != 0 {
				return fmt.Errorf("test: setgroups: %w", e)
			}
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(a.gid), uintptr(a.gid), uintptr(a.gid)); e != 0 {
				return fmt.Errorf("test: setresgid: %w", e)
			}
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(a.uid), uintptr(a.uid), uintptr(a.uid)); e != 0 {
				return fmt.Errorf("test: setresuid: %w", e)
			}
			return f()
		}()
	}()
	err := <-done
	if err != nil && strings.HasPrefix(err.Error(), "test: ") {
		t.Fatal(err)
	}
	return err
}

// newShared makes a shared spool in a place that everybody can reach.
func newShared(t *testing.T) *Spool {
	t.Helper()
	var unavailable error
	if os.Geteuid() != 0 {
		unavailable = errors.New("needs root")
	}
	crashtest.Need(t, unavailable)
	base := t.TempDir()
	for dir := base; dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(base, "spool")
	if err := InitShared(path, testIDs()); err != nil {
		t.Fatal(err)
	}
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestLayout compares what each actor can do in each directory with what the
// table says.
func TestLayout(t *testing.T) {
	s := newShared(t)
	for _, d := range Layout() {
		dir := filepath.Join(s.Path(), d.Path)
		var lists, creates, movesOut []string
		for _, a := range actors() {
			victim := filepath.Join(dir, "victim")
			if err := os.WriteFile(victim, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := a.as(t, func() error { _, err := os.ReadDir(dir); return err }); err == nil {
				lists = append(lists, a.name)
			}
			mine := filepath.Join(dir, "mine")
			if err := a.as(t, func() error {
				f, err := os.OpenFile(mine, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
				if err != nil {
					return err
				}
				return f.Close()
			}); err == nil {
				creates = append(creates, a.name)
				if err := a.as(t, func() error { return os.Remove(mine) }); err != nil {
					t.Errorf("%s: %s cannot take back its own name: %v", d.Path, a.name, err)
				}
			}
			if err := a.as(t, func() error { return os.Remove(victim) }); err == nil {
				movesOut = append(movesOut, a.name)
			}
		}
		has := func(what, says string, can []string) {
			says = strings.TrimSuffix(says, "; their owners")
			var names []string
			for name := range strings.SplitSeq(says, ", ") {
				if name != "root" {
					names = append(names, name)
				}
			}
			slices.Sort(names)
			slices.Sort(can)
			if !slices.Equal(names, can) {
				t.Errorf("%s: %s %v, and the table says %v", d.Path, what, can, names)
			}
		}
		has("is listed by", d.Lists, lists)
		has("names are created by", d.Creates, creates)
		has("names are taken out by", d.MovesOut, movesOut)
	}
}

// submit makes a message as an actor.
func submit(t *testing.T, s *Spool, a someone) Name {
	t.Helper()
	var name Name
	if err := a.as(t, func() error {
		e := &Envelope{Sender: "a@host.example", UID: a.uid, Recipients: []Recipient{{Address: "b@host.example"}}}
		d, err := s.Create(e)
		if err != nil {
			return err
		}
		if _, err := d.Write([]byte("Subject: x\n\nx\n")); err != nil {
			return err
		}
		if err := d.Commit(); err != nil {
			return err
		}
		e.ID = d.ID()
		name = e.Name(1)
		return nil
	}); err != nil {
		t.Fatalf("%s cannot submit: %v", a.name, err)
	}
	return name
}

// TestSteps makes every legal step as the process that makes it, with messages
// of a user and of dma itself, and tries those of the queue process as the net
// process.
func TestSteps(t *testing.T) {
	s := newShared(t)
	queue, net := actor("dma"), actor("dmanet")
	for _, from := range []string{"submitters", "dma"} {
		for _, step := range states.Table() {
			for _, by := range step.By {
				a := queue
				switch by {
				case states.Net:
					if a = net; step.From != Remote {
						continue // a row for all waiting states: it has its own alone
					}
				case states.Submitter:
					continue
				}
				name := submit(t, s, actor(from))
				at := func(state State) string { return filepath.Join(s.Path(), string(state), name.String()) }
				if step.From != New {
					if err := os.Rename(at(New), at(step.From)); err != nil {
						t.Fatal(err)
					}
				}
				if step.From != Remote && a.name == "dma" {
					err := net.as(t, func() error {
						if step.To == states.Gone {
							return s.Remove(name, step.From)
						}
						return s.Move(name, step.From, step.To)
					})
					if err == nil {
						t.Errorf("the net process makes the step %s to %s", step.From, step.To)
					}
				}
				err := a.as(t, func() error {
					if step.To == states.Gone {
						return s.Remove(name, step.From)
					}
					m, err := s.Open(step.From, name)
					if step.From != Tmp {
						if err != nil {
							return err
						}
						defer m.Close()
						if err := m.Verify(t.Context()); err != nil {
							return err
						}
					}
					if err := s.Move(name, step.From, step.To); err != nil {
						return err
					}
					if a.name == "dmanet" {
						y := s.NewSyncerFrom(Remote, nil)
						y.Note(name, step.To)
						return y.Flush()
					}
					return s.Sync(step.To, name)
				})
				if err != nil {
					t.Errorf("a message of %s from %s to %q by %s: %v", from, step.From, step.To, by, err)
				}
			}
		}
	}
	name := submit(t, s, actor("submitters"))
	if err := queue.as(t, func() error { return s.Move(name, New, Remote) }); err != nil {
		t.Fatal(err)
	}
	if err := net.as(t, func() error { _, err := s.Quarantine(Remote, name.String()); return err }); err != nil {
		t.Errorf("to corrupt by net: %v", err)
	}
}

// TestSharedFiles tries what the processes do with files beside the names.
func TestSharedFiles(t *testing.T) {
	s := newShared(t)
	queue, net, user := actor("dma"), actor("dmanet"), actor("submitters")
	id := NewID(time.Unix(1e9, 0))
	good := func(what string, a someone, f func() error) {
		t.Helper()
		if err := a.as(t, f); err != nil {
			t.Errorf("%s by %s: %v", what, a.name, err)
		}
	}
	bad := func(what string, a someone, f func() error) {
		t.Helper()
		if err := a.as(t, f); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%s by %s: %v", what, a.name, err)
		}
	}
	line := Entry{Time: time.Unix(1e9, 0), Event: Deferred, Recipients: []int{1}}
	create := func() error { _, err := s.CreateJournal(id); return err }
	add := func() error { return s.AppendJournal(id, true, line) }
	look := func() error { _, err := s.ReadJournal(id); return err }
	bad("creating a journal", net, create)
	good("creating a journal", queue, create)
	for _, a := range []someone{queue, net} {
		good("appending", a, add)
		good("reading", a, look)
	}
	bad("appending", user, add)
	bad("reading", user, look)
	good("setting the time", queue, func() error { return s.SetDue(id, time.Unix(2e9, 0)) })
	bad("removing a journal", net, func() error { return s.RemoveJournal(id) })
	good("removing a journal", queue, func() error { return s.RemoveJournal(id) })

	lock := func(role Role) func() error {
		return func() error {
			l, err := s.Lock(role, "test")
			if err != nil {
				return err
			}
			return l.Close()
		}
	}
	good("the queue's lock", queue, lock(QueueRole))
	good("the net's lock", net, lock(NetRole))
	for _, a := range []someone{net, user} {
		bad("the queue's lock", a, lock(QueueRole))
		bad("asking who serves", a, func() error { _, err := s.ServiceRunning(); return err })
	}
	for _, a := range []someone{queue, user} {
		bad("the net's lock", a, lock(NetRole))
	}

	good("asking for a flush", queue, s.RequestFlush)
	good("asking again", queue, s.RequestFlush)
	bad("asking for a flush", user, s.RequestFlush)
	if err := queue.as(t, func() error {
		if !s.TakeFlush() {
			return errors.New("no request")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	// Root's request, and another of the queue process beside it.
	if err := s.RequestFlush(); err != nil {
		t.Error(err)
	}
	good("asking beside root", queue, s.RequestFlush)
	ballast := func(a someone) error {
		return a.as(t, func() error {
			if !s.ReleaseBallast() {
				return fs.ErrPermission
			}
			return nil
		})
	}
	if ballast(net) == nil || ballast(user) == nil || ballast(queue) != nil {
		t.Error("the ballast is not the queue process's")
	}
	good("making the ballast", queue, func() error { return s.KeepBallast(0) })

	name := submit(t, s, user)
	path := filepath.Join(s.Path(), string(New), name.String())
	stranger := someone{"another user", 64406, testIDs().SubmitGID, nil}
	bad("removing another's mail", stranger, func() error { return os.Remove(path) })
	bad("undoing a commit without the group", someone{"the user", user.uid, user.uid, nil}, func() error { return os.Chmod(path, 0o600) })
	good("recovering", queue, func() error {
		r, err := s.Recover(time.Now())
		return errors.Join(append(r.Trouble, err)...)
	})
	// A submission whose maker died is cleaned by the queue process, and not before.
	var d *Draft
	if err := user.as(t, func() error {
		e := &Envelope{Recipients: []Recipient{{Address: "b@host.example"}}}
		var err error
		if d, err = s.Create(e); err != nil {
			return err
		}
		e.ID = d.ID()
		return os.Link(filepath.Join(s.Path(), "tmp", e.ID), filepath.Join(s.Path(), "new", e.Name(1).String()))
	}); err != nil {
		t.Fatal(err)
	}
	clean := func(now time.Time, want int) func() error {
		return func() error {
			done, err := s.Clean(now)
			if err == nil && len(done) != want {
				err = fmt.Errorf("cleaned %v", done)
			}
			return err
		}
	}
	good("cleaning after one who lives", queue, clean(time.Now(), 0))
	seen, err := d.Die()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if !seen { // only time tells
		now = now.Add(25 * time.Hour)
	}
	good("cleaning", queue, clean(now, 2))
}

// TestInitShared repairs a spool, and is not led astray by its owner.
func TestInitShared(t *testing.T) {
	s := newShared(t)
	at := func(elem ...string) string { return filepath.Join(append([]string{s.Path()}, elem...)...) }
	if wrong := CheckShared(s.Path(), testIDs()); len(wrong) > 0 {
		t.Errorf("a new spool: %v", wrong)
	}
	for _, spoil := range []func() error{
		func() error { return os.Chmod(at("local"), 0o755) },
		func() error { return os.Chown(at("remote"), 0, 0) },
		func() error { return os.Remove(at("hold")) },
		func() error { return os.Chmod(at("lock", "net"), 0o644) },
		func() error { return os.Remove(at("lock", "queue")) },
		func() error { return os.Chmod(s.Path(), 0o777) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if wrong := CheckShared(s.Path(), testIDs()); len(wrong) != 1 {
			t.Errorf("%d things are wrong: %v", len(wrong), wrong)
		}
		if err := InitShared(s.Path(), testIDs()); err != nil {
			t.Fatal(err)
		}
		if wrong := CheckShared(s.Path(), testIDs()); len(wrong) > 0 {
			t.Errorf("repaired: %v", wrong)
		}
	}
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, trick := range map[string]func(string) error{
		"a symbolic link": func(path string) error { return os.Symlink(victim, path) },
		"a hard link":     func(path string) error { return os.Link(victim, path) },
		"a FIFO":          func(path string) error { return unix.Mkfifo(path, 0o600) },
	} {
		for _, path := range []string{at("lock", "net"), at("ballast")} {
			if err := errors.Join(os.Remove(path), trick(path)); err != nil {
				t.Fatal(err)
			}
			if err := InitShared(s.Path(), testIDs()); err == nil {
				t.Errorf("%s is %s, and init says nothing", path, name)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if err := InitShared(s.Path(), testIDs()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Symlink(filepath.Dir(victim), at("x")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(at("sent")), os.Rename(at("x"), at("sent"))); err != nil {
		t.Fatal(err)
	}
	if err := InitShared(s.Path(), testIDs()); err == nil {
		t.Error("sent is a symbolic link, and init says nothing")
	}
	var st unix.Stat_t
	if err := unix.Stat(victim, &st); err != nil || st.Uid != 0 || st.Mode&0o7777 != 0o600 {
		t.Errorf("the victim: %v %o %v", st.Uid, st.Mode, err)
	}
}

func TestIdentities(t *testing.T) {
	for _, spoil := range []func(*Identities){
		func(i *Identities) { i.QueueUID = 0 },
		func(i *Identities) { i.NetUID = i.QueueUID },
		func(i *Identities) { i.NetGID = i.SubmitGID },
	} {
		ids := testIDs()
		spoil(&ids)
		dir := filepath.Join(t.TempDir(), "spool")
		if err := InitShared(dir, ids); err == nil {
			t.Errorf("%+v is taken", ids)
		}
		if _, err := os.Lstat(dir); err == nil {
			t.Error("and something was made")
		}
	}
}

// TestLayoutManual compares the table with that of dma-spool(5).
func TestLayoutManual(t *testing.T) {
	page, err := os.ReadFile("../docs/dma-spool.5")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile(`(?m)^\.It Pa (\S+) Ta (\w+):(\w+) Ta ([0-7]{4}) Ta (.+) Ta (.+) Ta (.+)$`)
	var says, has []string
	for _, m := range row.FindAllStringSubmatch(string(page), -1) {
		says = append(says, strings.TrimPrefix(strings.Join(m[1:], "|"), `\&`))
	}
	for _, d := range Layout() {
		has = append(has, strings.Join([]string{d.Path, d.Owner, d.Group, fmt.Sprintf("%04o", d.Mode), d.Lists, d.Creates, d.MovesOut}, "|"))
	}
	if !slices.Equal(says, has) {
		t.Errorf("dma-spool(5) says\n%s\nand the program has\n%s", strings.Join(says, "\n"), strings.Join(has, "\n"))
	}
}

// TestParentLock: what root opens in the spool is root's own, whatever the queue
// process has put in the place of its directory.
func TestParentLock(t *testing.T) {
	for _, test := range []struct {
		name string
		make func(lock, outside string) error // by the queue process, where lock was
	}{
		{name: "link", make: func(lock, outside string) error { return os.Symlink(outside, lock) }},
		{name: "directory", make: func(lock, _ string) error { return os.Mkdir(lock, 0o755) }},
		{name: "nothing", make: func(string, string) error { return nil }},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newShared(t)
			for range 2 { // made, and found
				f, err := OpenParentLock(s.Path())
				if err != nil {
					t.Fatal(err)
				}
				f.Close()
			}
			lock, outside := filepath.Join(s.Path(), LockDir), t.TempDir()
			if err := actor("dma").as(t, func() error {
				if err := os.Rename(lock, lock+"x"); err != nil {
					return err
				}
				return test.make(lock, outside)
			}); err != nil {
				t.Fatal(err)
			}
			f, err := OpenParentLock(s.Path())
			if err == nil {
				f.Close()
				t.Fatal("it was opened")
			}
			if !strings.Contains(err.Error(), "dma-runner init") {
				t.Errorf("no remedy: %v", err)
			}
			for _, dir := range []string{lock, outside} {
				if left, _ := os.ReadDir(dir); len(left) != 0 {
					t.Errorf("root has made %v in %s", left, dir)
				}
			}
		})
	}
}
