package sandbox

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// QueuePaths are what the queue process works on.
type QueuePaths struct {
	Spool   string
	Aliases []string // aliases files; their folders are opened, since a file is replaced as a whole
	Include []string // files and directories of :include: lines
	Metrics string   // the METRICS file, empty if there is none; its folder is written to
	More    []Path
}

// Queue is the policy of the queue process: all of the spool, the aliases for
// reading, unix sockets (the control socket, an inherited listener, syslog).
func Queue(q QueuePaths) Policy {
	p := Policy{
		Name: "queue", Network: Unix, Attributes: true, Processes: processes,
		Paths: []Path{{Path: q.Spool, Rights: Read | List | Write | Truncate | Create | Remove | Move | Odd}},
	}
	for _, file := range q.Aliases {
		p.readFolder(file)
	}
	for _, file := range q.Include {
		p.read(file)
	}
	p.metrics(q.Metrics)
	p.system()
	p.Paths = append(p.Paths, q.More...)
	return p
}

// NetPaths are what the net process works on.
type NetPaths struct {
	Spool string
	// SyncFiles says that outcomes are synced by their files, and not by the
	// directory remote alone: the file system is not ordered.
	SyncFiles bool
	Files     []string // AUTHPATH, CERTFILE, TLSPOLICY, REWRITE, SENDERRELAY: their folders are opened for reading
	Metrics   string   // see QueuePaths
	More      []Path
}

// Net is the policy of the net process: it reads remote and moves names out of
// it, appends to journals it can name, plays its role, is a client of the
// network, and reads what the resolver, TLS and its configuration need.
func Net(n NetPaths) Policy {
	dir := func(name string, r Rights) Path { return Path{Path: filepath.Join(n.Spool, name), Rights: r} }
	target := Create | Move
	if n.SyncFiles {
		target |= Read // no more than remote has
	}
	p := Policy{
		Name: "net", Network: Internet, Processes: processes,
		Paths: []Path{
			dir("remote", Read|List|Remove|Move),
			dir("sent", target), dir("tempfail", target), dir("permfail", target), dir("corrupt", target),
			dir("log", Read|Write),
			dir("lock/net", Read|Write|Truncate),
			{Path: filepath.Join(n.Spool, "lock/logins"), Rights: Read | Write | Truncate, Optional: true},
		},
	}
	for _, file := range n.Files {
		p.readFolder(file)
	}
	p.metrics(n.Metrics)
	p.system()
	for _, path := range []string{
		"/etc", // resolv.conf, hosts, nsswitch.conf, services, certificates: all of them get replaced
		"/usr/share/ca-certificates", "/usr/local/share", "/usr/share/pki", "/etc/pki",
	} {
		p.read(path)
	}
	// Where these lead elsewhere by a symbolic link.
	for _, file := range []string{
		"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/services",
		"/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem", "/etc/pki/tls/certs/ca-bundle.crt",
	} {
		if real, err := filepath.EvalSymlinks(file); err == nil && !strings.HasPrefix(real, "/etc/") {
			p.read(filepath.Dir(real))
		}
	}
	p.Paths = append(p.Paths, n.More...)
	return p
}

// processes bounds the threads of all processes of one uid: far above what the
// runtime makes, far below what would hurt the machine.
const processes = 2048

// system adds what any Go program may want later.
func (p *Policy) system() {
	p.Paths = append(p.Paths,
		Path{Path: os.DevNull, Rights: Read | Write, Optional: true},
		Path{Path: "/proc/self/mountinfo", Rights: Read, Optional: true},
		Path{Path: "/proc/fs/ext4", Rights: Read | List, Optional: true},
		Path{Path: "/usr/share/zoneinfo", Rights: Read | List, Optional: true},
		Path{Path: "/etc/localtime", Rights: Read, Optional: true})
}

// read adds a file or folder that is read where it exists.
func (p *Policy) read(path string) {
	if path == "" || slices.ContainsFunc(p.Paths, func(have Path) bool { return have.Path == path }) {
		return
	}
	p.Paths = append(p.Paths, Path{Path: path, Rights: Read | List, Optional: true})
}

// readFolder adds the folder of a file, and the folder that the file really
// is in.
func (p *Policy) readFolder(file string) {
	if file == "" {
		return
	}
	p.read(folder(file))
	if real, err := filepath.EvalSymlinks(file); err == nil {
		p.read(folder(real))
	}
}

// folder is what is opened for a file that gets replaced: where it lies, but
// never the whole system.
func folder(file string) string {
	if dir := filepath.Dir(file); dir != "/" {
		return dir
	}
	return file
}

// metrics adds the folder of a file that is replaced as a whole.
func (p *Policy) metrics(file string) {
	if file == "" {
		return
	}
	p.Attributes = true
	p.Paths = append(p.Paths, Path{Path: filepath.Dir(file), Rights: Read | List | Write | Truncate | Create | Remove | Move, Optional: true})
}
