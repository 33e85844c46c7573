// Package sandbox takes from a running process what it does not need: the
// right to gain privilege, files, the network, the starting of programs,
// signals to others. A process that is taken over by what it reads can then do
// no more than the steps that it is there for.
//
// On Linux it is no_new_privs, Landlock (files, abstract sockets, signals), a
// seccomp filter that lists the allowed system calls, and the end of all
// capabilities, each on all threads. That needs a program built with
// CGO_ENABLED=0. Elsewhere it is the limits of setrlimit(2), and the Report
// names what is missing.
package sandbox

import (
	"fmt"
	"strings"
)

// Rights is what a process may do below a path. Looking at attributes
// (stat(2)) and changing into a directory need no right.
type Rights uint16

// The rights. Move is needed in both directories of a rename(2) or link(2)
// that goes from one to another, besides Remove in the first and Create in the
// second; and the second may not have a right to the file (Read, Write,
// Truncate) that the first lacks.
const (
	Read     Rights = 1 << iota // open files for reading
	List                        // read directories
	Write                       // open files for writing
	Truncate                    // cut files
	Create                      // make names of regular files
	Remove                      // remove names of files
	Move                        // move and link names between directories
	Odd                         // make and remove directories, FIFOs, sockets and symbolic links
)

// Path gives rights to a file, or to a directory and all below it.
type Path struct {
	Path     string
	Rights   Rights
	Optional bool // it need not exist
}

// Network is what a process may do with sockets. None of them lets it bind one
// to an address or listen.
type Network int

// The kinds of Network.
const (
	NoNetwork Network = iota // no new sockets
	Unix                     // unix sockets: connect, and accept where it inherited a listener
	Internet                 // as Unix, and TCP and UDP as a client
)

// Policy is what a process keeps.
type Policy struct {
	Name       string // for errors and the log
	Paths      []Path
	Network    Network
	Attributes bool // modes and times of files that it owns
	Processes  int  // RLIMIT_NPROC; 0: as it is. Threads count, of all processes of the uid
	Files      int  // RLIMIT_NOFILE; 0: as it is
}

// Report says what Apply has reached.
type Report struct {
	NoNewPrivs   bool
	Landlock     int  // the ABI that is in force, 0 if none
	Seccomp      bool // the filter is in force
	Capabilities bool // none is left that could be used
	Threads      int  // how many were looked at
	Missing      []string
}

// String is the report as one line for the log.
func (r Report) String() string {
	landlock := "no"
	if r.Landlock > 0 {
		landlock = fmt.Sprintf("abi%d", r.Landlock)
	}
	s := fmt.Sprintf("no_new_privs=%s landlock=%s seccomp=%s capabilities=%s threads=%d",
		yes(r.NoNewPrivs), landlock, yes(r.Seccomp), map[bool]string{true: "none", false: "kept"}[r.Capabilities], r.Threads)
	if len(r.Missing) > 0 {
		s += " missing: " + strings.Join(r.Missing, "; ")
	}
	return s
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// Apply puts a policy on the whole process, for good: every thread there is and
// will be. It looks afterwards whether each thread has it, and tries something
// that the policy forbids. What the system does not offer is named in the
// Report and is no error; an error says that what it does offer could not be
// had, and that the process should end. The process must not go on to use
// os/exec or signals to others.
func Apply(p Policy) (Report, error) {
	r, err := apply(p)
	if err != nil {
		return r, fmt.Errorf("sandbox of %s: %w", p.Name, err)
	}
	return r, nil
}
