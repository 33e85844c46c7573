package spooldir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// The users and the group of a shared spool: one that every user may submit to,
// and that two processes without privilege serve.
const (
	QueueUser   = "dma"       // the queue process; owns the spool
	NetUser     = "dmanet"    // the net process
	SubmitGroup = "dmasubmit" // the setgid program, and both users
)

// Directory is how one directory of a shared spool has to be: who owns it, and
// by that who can do what in it. Path is relative to the spool.
type Directory struct {
	Path         string
	Owner, Group string // QueueUser, NetUser, SubmitGroup or root; a user's name as group is its own group
	Mode         uint32 // with setuid, setgid and sticky bits as chmod(2) has them
	Lists        string // who can see the names in it
	Creates      string // who can make names in it
	MovesOut     string // who can take names out of it
}

// Layout returns the directories of a shared spool. The sticky bit lets those
// who create names in a directory take back none but their own; the setgid bit
// gives each file the group of its directory, on systems where that does not
// happen anyway: a message is readable for both processes by the group of the
// directory that it was made in.
func Layout() []Directory {
	const (
		dma, net, both    = "dma", "dmanet", "dma, dmanet"
		submitters, owner = "submitters, dma, dmanet", "dma; their owners"
	)
	return []Directory{
		{".", QueueUser, SubmitGroup, 0o710, dma, dma, dma},
		{string(Tmp), QueueUser, SubmitGroup, 0o3730, dma, submitters, owner},
		{string(New), QueueUser, SubmitGroup, 0o3730, dma, submitters, owner},
		{string(Forwarding), QueueUser, QueueUser, 0o700, dma, dma, dma},
		{string(Local), QueueUser, QueueUser, 0o700, dma, dma, dma},
		{string(Remote), QueueUser, NetUser, 0o770, both, both, both},
		{string(Tempfail), QueueUser, NetUser, 0o1730, dma, both, dma},
		{string(Hold), QueueUser, QueueUser, 0o700, dma, dma, dma},
		{string(Permfail), QueueUser, NetUser, 0o1730, dma, both, dma},
		{string(Sent), QueueUser, NetUser, 0o1730, dma, both, dma},
		{string(Corrupt), QueueUser, NetUser, 0o1730, dma, both, dma},
		{LogDir, QueueUser, NetUser, 0o2710, dma, dma, dma},
		{LockDir, "root", "root", 0o711, "root", "root", "root"},
	}
}

// The modes of files in a shared spool.
const (
	modeLock    = 0o600 // each belongs to the user who plays the role
	modeJournal = 0o660 // the net process may append to what the queue process has made
)

// Identities are the ids behind the names of a Layout.
type Identities struct {
	QueueUID, QueueGID int // user dma and its own group
	NetUID, NetGID     int // user dmanet and its own group
	SubmitGID          int // group dmasubmit
}

// check reports ids that would undo the separation.
func (i Identities) check() error {
	ids := map[string]int{"user dma": i.QueueUID, "group of dma": i.QueueGID, "user dmanet": i.NetUID, "group of dmanet": i.NetGID, "group dmasubmit": i.SubmitGID}
	for what, id := range ids {
		if id <= 0 {
			return fmt.Errorf("the %s has the id %d", what, id)
		}
	}
	if i.QueueUID == i.NetUID {
		return errors.New("the users dma and dmanet have the same uid")
	}
	if i.QueueGID == i.NetGID || i.QueueGID == i.SubmitGID || i.NetGID == i.SubmitGID {
		return errors.New("the groups dma, dmanet and dmasubmit are not three different ones")
	}
	return nil
}

func (i Identities) uid(name string) int {
	return map[string]int{QueueUser: i.QueueUID, NetUser: i.NetUID}[name] // root is 0
}

// gid returns the id of a group: the system's first group is root or wheel, 0
// in either case.
func (i Identities) gid(name string) int {
	return map[string]int{QueueUser: i.QueueGID, NetUser: i.NetGID, SubmitGroup: i.SubmitGID}[name]
}

// LoginsFile, in LockDir, is where the net process remembers logins that were
// refused: beside the locks, since it may not make or replace a file anywhere.
const LoginsFile = "logins"

// lockFiles are the files in LockDir and who writes them: one for each role, and
// LoginsFile.
func lockFiles() map[string]string {
	return map[string]string{string(QueueRole): QueueUser, string(NetRole): NetUser, LoginsFile: NetUser}
}

// Shared reports whether the spool is one that a group may submit to.
func (s *Spool) Shared() bool { return s.shared }

// CheckShared compares a shared spool with its Layout and returns what is
// wrong, a line each; "dma-runner init" as root repairs it. It looks and
// changes nothing, and has to run as root or as the owner.
func CheckShared(path string, ids Identities) []error {
	var wrong []error
	if err := ids.check(); err != nil {
		return []error{err}
	}
	compare := func(rel string, dir bool, owner, group string, mode uint32) {
		p := path
		if rel != "." {
			p += "/" + rel
		}
		info, err := os.Lstat(p)
		if err != nil {
			wrong = append(wrong, err)
			return
		}
		have := stateOf(info)
		want := attributes{dir, ids.uid(owner), ids.gid(group), mode}
		switch {
		case info.Mode()&fs.ModeSymlink != 0 || have.dir != dir:
			wrong = append(wrong, fmt.Errorf("%s is no %s", p, kindName(dir)))
		case have != want:
			wrong = append(wrong, fmt.Errorf("%s is %v, and has to be %v (%s:%s)", p, have, want, owner, group))
		}
	}
	for _, d := range Layout() {
		compare(d.Path, true, d.Owner, d.Group, d.Mode)
	}
	for file, owner := range lockFiles() {
		compare(LockDir+"/"+file, false, owner, owner, modeLock)
	}
	return wrong
}

// attributes are what a Layout says about one path.
type attributes struct {
	dir      bool
	uid, gid int
	mode     uint32
}

func (a attributes) String() string { return fmt.Sprintf("%d:%d %04o", a.uid, a.gid, a.mode) }

func kindName(dir bool) string {
	if dir {
		return "directory"
	}
	return "regular file"
}
