// Package powercut tests what a power cut leaves of a program's files, on the
// real file system code of the running kernel. A file system is made on a loop
// device over a disk that lives in the test process (a regular file served over
// FUSE) and logs every write, every flush and the marks that the test sets.
// From the log it rebuilds the disks that a cut at any moment could have left,
// mounts each and lets the test check it. One image takes about 15 to 50 ms.
//
// It runs on Linux as root with /dev/fuse, /dev/loop-control and CAP_SYS_ADMIN,
// in a package whose TestMain calls crashtest.Main.
//
// It cannot show what other kernels do, nor disks that lie about a flush, nor
// what only hours or large trees bring out. No violation in n images is no proof.
package powercut

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"dma/internal/crashtest"
)

// maker describes how to make a file system.
type maker struct {
	tool, pkg string
	args      []string
	size      int64
	options   string // for mount
}

func makerOf(fstype string) (maker, error) {
	switch fstype {
	case "ext4":
		return maker{"mkfs.ext4", "e2fsprogs", []string{"-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"}, 32 << 20, ""}, nil
	case "xfs": // the smallest that mkfs.xfs makes; images of one disk share a UUID
		return maker{"mkfs.xfs", "xfsprogs", []string{"-q", "-K", "-f"}, 304 << 20, "nouuid"}, nil
	}
	return maker{}, fmt.Errorf("file system %q: only ext4 and xfs are known", fstype)
}

// find returns the path of mkfs, which is often outside an ordinary PATH.
func (m maker) find() (string, error) {
	for _, p := range []string{m.tool, "/usr/sbin/" + m.tool, "/sbin/" + m.tool} {
		if p, err := exec.LookPath(p); err == nil {
			return p, nil
		}
	}
	return "", &crashtest.Missing{What: m.tool, Remedy: "apt-get install " + m.pkg}
}

// Available returns nil if sessions with these file systems can be made, else
// the reason; a *crashtest.Missing if something can be installed.
func Available(fstypes ...string) error {
	if err := crashtest.Private(); err != nil {
		return err
	}
	if err := devices(); err != nil {
		return err
	}
	for _, fs := range fstypes {
		m, err := makerOf(fs)
		if err != nil {
			return err
		}
		if _, err := m.find(); err != nil {
			return err
		}
	}
	return nil
}

// Session is one disk with one file system: New, Prepare, Mount, a workload
// with Marks, Stop, Replay.
type Session struct {
	t      testing.TB
	fstype string
	mk     maker
	dir    string // the mount point
	file   string // where the disk is served
	base   *disk  // before Mount
	disk   *disk  // since Mount, or nil
	vol    *volume
}

// New makes an empty file system of type ext4 or xfs. It skips or fails t where
// that is not possible, see crashtest.Need. All is undone when t ends.
func New(t testing.TB, fstype string) *Session {
	t.Helper()
	crashtest.Need(t, Available(fstype))
	mk, err := makerOf(fstype)
	if err != nil {
		t.Fatal(err)
	}
	tool, err := mk.find()
	if err != nil {
		t.Fatal(err)
	}
	w := t.TempDir()
	s := &Session{t: t, fstype: fstype, mk: mk, dir: filepath.Join(w, "mnt"), file: filepath.Join(w, "disk"), base: newDisk(mk.size)}
	if err := os.Mkdir(s.dir, 0755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.file, nil, 0600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if s.vol != nil {
			if err := s.vol.close(); err != nil {
				t.Errorf("%s: %v", fstype, err)
			}
		}
	})
	s.vol, err = attach(s.base, s.file)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), tool, append(mk.args, s.vol.device())...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", tool, err, out)
	}
	s.detach()
	s.Prepare(func(string) error { return nil })
	return s
}

// Prepare lets f put files on the file system, which is then unmounted: a power
// cut takes nothing of them. It comes before Mount.
func (s *Session) Prepare(f func(dir string) error) {
	s.t.Helper()
	if s.disk != nil {
		s.t.Fatal("powercut: Prepare after Mount")
	}
	s.open(s.base)
	if err := f(s.dir); err != nil {
		s.t.Fatalf("powercut: prepare: %v", err)
	}
	s.detach()
}

// Mount mounts the file system, begins the log, and returns the directory. The
// workload may be the test itself or any number of programs.
//
// The test process serves the disk, so it must not wait for the disk in a way
// that stops the Go scheduler. Between fork and exec it does: let no exec.Cmd
// have its Dir or its program below the directory (use sh -c 'cd ...').
func (s *Session) Mount() string {
	s.t.Helper()
	if s.disk != nil {
		s.t.Fatal("powercut: Mount a second time")
	}
	s.disk = s.base.view()
	s.disk.record(true)
	s.open(s.disk)
	return s.dir
}

// Mark notes an event in the log, between the writes that the disk has seen by
// now: call it as soon as a program has promised something. What others flush
// between the promise and the mark counts in the program's favour.
func (s *Session) Mark(note any) { s.disk.mark(note) }

// SetFaults lets writes and flushes fail from now on: each function is called
// before, and an errno other than 0 fails the request (use EIO) without effect.
// nil means no fault. They run while the file system waits: they must not touch it.
func (s *Session) SetFaults(onWrite func(off int64, n int) syscall.Errno, onFlush func() syscall.Errno) {
	d := s.disk
	if d == nil {
		d = s.base
	}
	d.setFaults(onWrite, onFlush)
}

// Stop ends the log: the power is cut. It then unmounts. The processes of the
// workload must have ended, else t fails. Replay calls it if the test did not.
func (s *Session) Stop() {
	s.t.Helper()
	if s.disk == nil {
		s.t.Fatal("powercut: Stop before Mount")
	}
	s.disk.record(false)
	s.disk.setFaults(nil, nil)
	if s.vol != nil {
		s.detach()
	}
}

// Plan says which crash images are checked.
type Plan struct {
	Modes   []Mode        // nil means AllModes
	Max     int           // at most so many images, drawn by Seed; 0 means all
	Seed    uint64        // also decides what is lost in the random modes
	Timeout time.Duration // looked at before each image; 0 means 2 minutes
	Stop    int           // end after so many violations; 0 means 5
}

// Image is a file system as a power cut may have left it, mounted. The check may
// change it.
type Image struct {
	Dir   string
	Point int // the number of log records before the cut
	Mode  Mode
	Marks []any // those set before the cut, in order; not to be changed
}

// Violation is a check that failed, or an image that could not be mounted.
type Violation struct {
	Point   int
	Mode    Mode
	Mounted bool // Err is from the check
	Err     error
}

func (v Violation) String() string { return fmt.Sprintf("cut at %d, %v: %v", v.Point, v.Mode, v.Err) }

// Report is the outcome of Explore.
type Report struct {
	Records    int // in the log
	Images     int // checked
	Violations []Violation
}

// Explore mounts crash images in the order of the log and calls check for each.
// It fails t only if time runs out or if the machinery itself fails; a failed check is a Violation.
// It may be called again with another plan or check.
func (s *Session) Explore(p Plan, check func(Image) error) Report {
	s.t.Helper()
	s.Stop()
	if p.Modes == nil {
		p.Modes = AllModes()
	}
	if p.Timeout == 0 {
		p.Timeout = 2 * time.Minute
	}
	if p.Stop == 0 {
		p.Stop = 5
	}
	deadline := time.Now().Add(p.Timeout)
	log := s.disk.log
	rep := Report{Records: len(log)}
	replay := newReplayer(s.base, log)
	all := points(log, p.Modes, p.Max, p.Seed)
	for _, at := range all {
		if time.Now().After(deadline) {
			s.t.Fatalf("powercut: %d of %d images in %v: lower Max", rep.Images, len(all), p.Timeout)
		}
		replay.seek(at.pos)
		mounted, err := s.one(replay.image(at.mode, p.Seed), Image{s.dir, at.pos, at.mode, replay.marks}, check)
		rep.Images++
		if err != nil {
			rep.Violations = append(rep.Violations, Violation{at.pos, at.mode, mounted, err})
			if len(rep.Violations) >= p.Stop {
				break
			}
		}
	}
	return rep
}

// Replay is Explore, and each violation fails t.
func (s *Session) Replay(p Plan, check func(Image) error) {
	s.t.Helper()
	rep := s.Explore(p, check)
	s.t.Logf("%s: %d records, %d images", s.fstype, rep.Records, rep.Images)
	for _, v := range rep.Violations {
		s.t.Errorf("%s: %v", s.fstype, v)
	}
	if rep.Images == 0 {
		s.t.Errorf("%s: no image: the workload wrote nothing", s.fstype)
	}
}

func (s *Session) one(d *disk, img Image, check func(Image) error) (mounted bool, err error) {
	s.t.Helper()
	vol, err := attach(d, s.file)
	if err != nil {
		s.t.Fatal(err)
	}
	s.vol = vol // for the clean-up, if check ends the test
	if err := vol.mount(s.dir, s.fstype, s.mk.options); err != nil {
		s.detach()
		return false, err
	}
	err = check(img)
	s.detach()
	return true, err
}

func (s *Session) open(d *disk) {
	s.t.Helper()
	var err error
	if s.vol, err = attach(d, s.file); err != nil {
		s.t.Fatal(err)
	}
	if err := s.vol.mount(s.dir, s.fstype, s.mk.options); err != nil {
		s.t.Fatal(err)
	}
}

// detach unmounts and takes the disk away.
func (s *Session) detach() {
	s.t.Helper()
	v := s.vol
	s.vol = nil
	if err := v.close(); err != nil {
		s.t.Fatalf("%s: %v", s.fstype, err)
	}
}
