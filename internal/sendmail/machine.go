package sendmail

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dma/internal/config"
	"dma/internal/passwd"
)

// Machine is the System of a running process.
type Machine struct{}

// Load implements System.
func (Machine) Load(path string, named bool) (*config.Config, []config.Problem, error) {
	return config.Load(path, named)
}

// Account implements System. It looks into USERS where that is set, then into
// /etc/passwd. A caller who is in neither is known to a directory service, which
// the setgid program does not start a helper to ask; then a name is believed
// that is nobody else's. That gives nothing away: a sender can be chosen with
// -f, and who submitted is known by the uid.
func (Machine) Account(c *config.Config, uid int, names ...string) Account {
	var sources []*passwd.Table
	if c.Users != "" {
		sources = append(sources, passwd.File(c.Users))
	}
	sources = append(sources, passwd.File("/etc/passwd"))
	return account(sources, uid, names)
}

func account(sources []*passwd.Table, uid int, names []string) Account {
	ctx := context.Background()
	for _, s := range sources {
		for _, name := range names {
			if u, err := s.Lookup(ctx, name); err == nil && u.UID == uid {
				return Account{u.Name, u.FullName()}
			}
		}
		if u, err := s.LookupID(ctx, uid); err == nil {
			return Account{u.Name, u.FullName()}
		}
	}
	for _, name := range names {
		if passwd.ValidName(name) && unknown(sources, name) {
			return Account{Name: name}
		}
	}
	return Account{Name: "uid" + strconv.Itoa(uid)}
}

// unknown reports whether no source has a user of that name.
func unknown(sources []*passwd.Table, name string) bool {
	for _, s := range sources {
		if _, err := s.Lookup(context.Background(), name); !errors.Is(err, passwd.ErrUnknown) {
			return false
		}
	}
	return true
}

// Open implements System. The spool comes first, and the socket where this
// process may not write in the spool: the group that the program file lends has
// no effect (no_new_privs, a container), or was given up for -C, or the spool is
// out of sight or read-only.
func (Machine) Open(c *config.Config) (Door, error) {
	d, err := openSpool(c)
	if err == nil {
		return d, nil
	}
	path := c.Door()
	if path == "" {
		return nil, fmt.Errorf("no way into the queue: %w", err)
	}
	s, socketErr := openSocket(path)
	if socketErr != nil {
		return nil, fmt.Errorf("no way into the queue: %w; nor by the socket of the service: %w; start dma-runner, or the unit of its socket", err, socketErr)
	}
	return s, nil
}

// DropGroup implements System. It works for all threads and makes sure that
// the group can't come back.
func (Machine) DropGroup() error {
	gid, lent := os.Getgid(), os.Getegid()
	if gid == lent {
		return nil
	}
	if err := syscall.Setregid(gid, gid); err != nil {
		return fmt.Errorf("giving up group %d: %w", lent, err)
	}
	if os.Getegid() != gid || os.Getuid() != 0 && syscall.Setregid(-1, lent) == nil {
		return fmt.Errorf("giving up group %d: it is still there", lent)
	}
	return nil
}

// runnerName is the program that does what is more than submission.
const runnerName = "dma-runner"

// runner returns the path of dma-runner, which stands beside this program's own
// file. Where that is, only the kernel says: neither PATH nor the name by which
// the caller called.
func runner() (string, error) {
	self, err := executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return "", fmt.Errorf("looking for %s: %w", runnerName, err)
	}
	return filepath.Join(filepath.Dir(self), runnerName), nil
}

// Exec implements System.
func (Machine) Exec(args []string) error {
	file, err := runner()
	if err != nil {
		return err
	}
	closeOnExec()
	err = syscall.Exec(file, append([]string{runnerName}, args...), []string{safePath})
	return fmt.Errorf("%s: %w; %s has to be installed beside dma", file, err, runnerName)
}

// patience bounds how long a submission in the foreground waits for delivery.
// What is not done by then goes on in the background.
const patience = 10 * time.Minute

// Start implements System.
func (Machine) Start(args []string, wait bool, stop <-chan struct{}) error {
	file, err := runner()
	if err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	defer plain()()
	child, err := os.StartProcess(file, append([]string{runnerName}, args...), &os.ProcAttr{
		Dir:   "/",
		Env:   []string{safePath},
		Files: []*os.File{null, null, null},
		Sys:   detached(),
	})
	if err != nil {
		return err
	}
	if !wait {
		return child.Release()
	}
	ended := make(chan error, 1)
	go func() {
		state, err := child.Wait()
		if err == nil && !state.Success() {
			err = errors.New(file + ": " + state.String())
		}
		ended <- err
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case err := <-ended:
		return err
	case <-stop:
	case <-timer.C:
	}
	return nil
}

// plain gives up what the caller has set for its own work, as a job of cron has
// limits and is nice: users' mail is not bound by it. What the process may not
// change stays. Children that are started before the returned function is called
// have the priority too.
func plain() (done func()) {
	runtime.LockOSThread() // a thread has the priority, on Linux
	if os.Geteuid() != 0 {
		return runtime.UnlockOSThread
	}
	for _, resource := range callersLimits() {
		if unix.Setrlimit(resource, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}) == nil {
			continue
		}
		var limit unix.Rlimit
		if unix.Getrlimit(resource, &limit) == nil {
			limit.Cur = limit.Max
			_ = unix.Setrlimit(resource, &limit)
		}
	}
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 0)
	return runtime.UnlockOSThread
}

// detached makes a child the leader of a session of its own, and keeps the
// descriptors from it that the caller left open.
func detached() *syscall.SysProcAttr {
	closeOnExec()
	return &syscall.SysProcAttr{Setsid: true}
}

// maxDescriptors is how far closeOnExec goes where the kernel has no call that
// goes to the end.
const maxDescriptors = 4096

func closeOnExecOneByOne() {
	last := int64(maxDescriptors)
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		if n := int64(limit.Cur); n >= 0 { // below 0: no limit
			last = min(last, n)
		}
	}
	for fd := 3; fd < int(last); fd++ {
		syscall.CloseOnExec(fd)
	}
}
