package passwd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// system is the Source that System returns.
type system struct {
	file     *Table
	nsswitch string
	getent   []string                      // where the program may be
	limit    time.Duration                 // for one run of it
	sockets  func(string) ([]string, bool) // see daemon

	groups *groupFile
	id     []string                   // where id(1) may be
	as     func() *syscall.Credential // who runs programs; nil is who we are
}

// System returns the Source of the system's users: /etc/passwd, and whatever
// else the passwd line of /etc/nsswitch.conf names (LDAP, sssd, NIS, systemd),
// which getent(1) is asked for users that the file does not have. getent runs
// with an environment of its own, for 5 s at most, and for root as nobody.
//
// An answer of getent that there is no such user is final, unless the daemon of
// a source is known and can't be reached: getent says the same of both. Where
// nsswitch.conf names more than files and there is no getent, and on systems
// that keep their users elsewhere (macOS), it can't be told whether a user
// exists that is not in the file.
func System() Grouper {
	s := &system{
		file:     File("/etc/passwd"),
		nsswitch: "/etc/nsswitch.conf",
		getent:   []string{"/usr/bin/getent", "/bin/getent", "/run/current-system/sw/bin/getent"},
		limit:    5 * time.Second,
		sockets:  daemon,
		groups:   &groupFile{path: "/etc/group"},
		id:       []string{"/usr/bin/id", "/bin/id", "/run/current-system/sw/bin/id"},
	}
	if os.Geteuid() == 0 {
		s.as = s.unprivileged
	}
	return s
}

// The ids of nobody where the file does not say, and a group that no process of
// that user has: a process cannot be traced by one with another gid, so nobody
// else's program can change what getent answers to root.
const (
	nobody   = 65534
	untraced = 65533
)

// unprivileged returns who runs programs for root, which reads no answer of a
// directory server itself and lets nobody else do so as root.
func (s *system) unprivileged() *syscall.Credential {
	uid := nobody
	if u, err := s.file.Lookup(context.Background(), "nobody"); err == nil && u.UID != 0 {
		uid = u.UID
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: untraced, Groups: []uint32{}}
}

// Lookup implements Source.
func (s *system) Lookup(ctx context.Context, name string) (User, error) {
	u, err := s.file.Lookup(ctx, name)
	if !errors.Is(err, ErrUnknown) || !ValidName(name) {
		return u, err
	}
	u, err = s.ask(ctx, name)
	switch {
	case err != nil:
		return User{}, fmt.Errorf("user %q: %w", name, err)
	case strings.EqualFold(u.Name, name):
		return u, nil
	case strings.Trim(name, " 0123456789") == "":
		// getent takes a number for a uid.
		return User{}, fmt.Errorf("user %q: %w", name, ErrUnknown)
	}
	return User{}, fmt.Errorf("user %q: getent answers with user %q", name, u.Name)
}

// LookupID implements Source.
func (s *system) LookupID(ctx context.Context, uid int) (User, error) {
	u, err := s.file.LookupID(ctx, uid)
	if !errors.Is(err, ErrUnknown) || uid < 0 {
		return u, err
	}
	if u, err = s.ask(ctx, strconv.Itoa(uid)); err != nil {
		return User{}, fmt.Errorf("uid %d: %w", uid, err)
	}
	if u.UID != uid {
		return User{}, fmt.Errorf("uid %d: getent answers with uid %d", uid, u.UID)
	}
	return u, nil
}

// ask asks the sources besides the file.
func (s *system) ask(ctx context.Context, key string) (User, error) {
	sources, err := s.sources(ctx)
	if err != nil {
		return User{}, err
	}
	if len(sources) == 0 {
		return User{}, ErrUnknown
	}
	program := find(s.getent)
	if program == "" {
		return User{}, fmt.Errorf("%s names %s, and there is no getent to ask", s.nsswitch, strings.Join(sources, " "))
	}
	u, err := s.run(ctx, program, key)
	if errors.Is(err, ErrUnknown) {
		for _, source := range sources {
			if err := s.alive(source); err != nil {
				return User{}, err
			}
		}
	}
	return u, err
}

// sources returns the names on the passwd line of nsswitch.conf other than
// files and compat, and compat where the file makes use of it.
func (s *system) sources(ctx context.Context) ([]string, error) {
	var names []string
	if d, err := s.file.load(ctx); err != nil {
		return nil, err
	} else if d.compat {
		names = append(names, "compat")
	}
	more, err := s.switched("passwd")
	return append(names, more...), err
}

// switched returns the sources that nsswitch.conf names for a database besides
// the file.
func (s *system) switched(database string) ([]string, error) {
	_, text, err := read(s.nsswitch, 64<<10)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if runtime.GOOS == "darwin" {
			return nil, errors.New("not in /etc/" + database + ", and opendirectoryd is not asked")
		}
		return nil, nil
	case err != nil:
		return nil, err
	}
	return databaseLine(text, database), nil
}

// find returns the first of paths that is a file, or an empty string.
func find(paths []string) string {
	for _, p := range paths {
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return p
		}
	}
	return ""
}

// databaseLine returns the sources of a database's line of nsswitch.conf that
// are not the file itself.
func databaseLine(text, database string) []string {
	for line := range strings.SplitSeq(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimLeft(line, " \t"), database)
		if rest = strings.TrimLeft(rest, " \t"); !ok || rest == "" || rest[0] != ':' {
			continue
		}
		var names []string
		rest = rest[1:]
		for rest != "" {
			// [NOTFOUND=return] and its like steer the search; they name nothing.
			before, action, has := strings.Cut(rest, "[")
			for _, name := range strings.Fields(before) {
				if name != "files" && name != "compat" {
					names = append(names, clip(name))
				}
			}
			rest = ""
			if has {
				_, rest, _ = strings.Cut(action, "]")
			}
		}
		return names
	}
	return nil
}

// run asks getent for key, which does not begin with a hyphen. There is no "--"
// before it, since the BSDs would look up a user of that name.
func (s *system) run(ctx context.Context, program, key string) (User, error) {
	out, err := s.output(ctx, "getent", program, "passwd", key)
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 2 && out == "" {
		return User{}, ErrUnknown
	}
	if err != nil {
		return User{}, err
	}
	line, rest, _ := strings.Cut(out, "\n")
	if rest != "" {
		return User{}, errors.New("getent: more than one line")
	}
	u, err := parseLine(line)
	if err != nil {
		return User{}, fmt.Errorf("getent: %w", err)
	}
	return u, nil
}

// output runs a program, called name in errors, and returns what it prints.
func (s *system) output(ctx context.Context, name, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, s.limit)
	defer cancel()
	out := &limited{most: 16 << 10}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	cmd.Dir = "/"
	cmd.Stdout = out
	cmd.WaitDelay = time.Second
	// A session of its own: it has not our terminal, into which it could type.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if s.as != nil {
		cmd.SysProcAttr.Credential = s.as()
	}
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("%s: %w", name, ctx.Err())
	case out.over:
		return "", fmt.Errorf("%s: too much output", name)
	case err != nil:
		return string(out.data), fmt.Errorf("%s: %w", name, err)
	}
	return string(out.data), nil
}

// limited is a buffer that refuses to grow beyond its limit.
type limited struct {
	data []byte
	most int
	over bool
}

func (l *limited) Write(p []byte) (int, error) {
	if len(l.data)+len(p) > l.most {
		l.over = true
		return 0, errors.New("the buffer is full")
	}
	l.data = append(l.data, p...)
	return len(p), nil
}

// daemon returns the sockets where the daemon behind a source of nsswitch.conf
// listens. must says that one of them exists wherever the source is in use;
// distributions name sss also where no sssd was ever set up.
func daemon(source string) (sockets []string, must bool) {
	switch source {
	case "sss":
		return []string{"/var/lib/sss/pipes/nss"}, false
	case "ldap":
		return []string{"/run/nslcd/socket", "/var/run/nslcd/socket"}, true
	case "winbind":
		return []string{"/run/samba/winbindd/pipe", "/var/run/samba/winbindd/pipe"}, true
	}
	return nil, false
}

// alive returns an error if the daemon of a source is known and does not answer.
func (s *system) alive(source string) error {
	sockets, must := s.sockets(source)
	for _, path := range sockets {
		err := knock(path)
		if err == nil {
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %s: %w", source, path, err)
		}
	}
	if must && len(sockets) > 0 {
		return fmt.Errorf("%s: its daemon does not run", source)
	}
	return nil
}

// knock connects to a unix socket without waiting and hangs up.
func knock(path string) error {
	syscall.ForkLock.RLock()
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	if err := syscall.SetNonblock(fd, true); err != nil {
		return err
	}
	return syscall.Connect(fd, &syscall.SockaddrUnix{Name: path})
}
