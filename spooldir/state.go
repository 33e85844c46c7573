package spooldir

// State is the directory that a recipient's name stands in. It is all that
// says how far the recipient has come.
type State string

// The directories of a spool that hold names of messages. Their meaning and
// the steps between them stand in the package comment and in package states.
const (
	Tmp        State = "tmp"        // a submitter writes here; nothing in it is mail yet
	New        State = "new"        // committed, not looked at
	Forwarding State = "forwarding" // a local user whose .forward has to be read
	Local      State = "local"      // to be written into a mailbox or file, or given to a command
	Remote     State = "remote"     // to be handed to another host
	Tempfail   State = "tempfail"   // waits for its next attempt
	Hold       State = "hold"       // parked by the administrator
	Permfail   State = "permfail"   // failed for good, its bounce is not committed yet
	Sent       State = "sent"       // done, its final line is not logged yet
	Corrupt    State = "corrupt"    // cannot be parsed; kept for a person
)

// LogDir is the directory of the journals, LockDir that of the role locks.
const (
	LogDir  = "log"
	LockDir = "lock"
)

// States lists the directories in which a recipient may stand, in the order
// in which it passes through them. A reader that lists them in this order
// misses a name only if it moves backwards meanwhile.
func States() []State {
	return []State{New, Forwarding, Local, Remote, Tempfail, Hold, Permfail, Sent}
}

// Waiting reports whether a recipient in s still waits for an outcome.
func (s State) Waiting() bool {
	switch s {
	case New, Forwarding, Local, Remote, Tempfail, Hold:
		return true
	}
	return false
}

// Rank orders the states for the case that one name stands in two
// directories: the further one stays. Local and Remote are equally far. Tmp
// and Corrupt, which are no states of a recipient, have no rank (-1).
func (s State) Rank() int {
	switch s {
	case New:
		return 0
	case Forwarding:
		return 1
	case Local, Remote:
		return 2
	case Tempfail:
		return 3
	case Hold:
		return 4
	case Permfail:
		return 5
	case Sent:
		return 6
	}
	return -1
}

// directories lists every directory of a spool.
func directories() []string {
	return []string{
		string(Tmp), string(New), string(Forwarding), string(Local), string(Remote), string(Tempfail),
		string(Hold), string(Permfail), string(Sent), string(Corrupt), LogDir, LockDir,
	}
}
