package runner

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dma/agent"
	"dma/internal/config"
	"dma/internal/door"
	"dma/internal/fsid"
	"dma/internal/maillog"
	"dma/internal/notify"
	"dma/internal/passwd"
	"dma/parent"
	"dma/spooldir"
)

// separated returns the accounts of the workers where the service of a spool has
// to be separated, else nil: it is started as root, and the spool is the one that
// all users share. It looks at no more than what root may look at who has given
// up the right to pass closed doors.
func separated(path string) (*spooldir.Identities, error) {
	owner, ok := submittable(path)
	if os.Geteuid() != 0 || !ok {
		return nil, nil
	}
	ids, err := identities()
	if err != nil || ids.QueueUID != owner {
		return nil, err
	}
	if link, err := os.Lstat(path); err != nil || link.Mode()&os.ModeSymlink != 0 {
		return nil, exitf(exitConfig, "spool %s is a symbolic link, which could be turned while it is served; write the directory that it leads to as SPOOLDIR in dma.conf", path)
	}
	return &ids, nil
}

// submittable returns the owner of a spool that a group may enter, as it may one
// that all users share. A spool that cannot be looked at is none: who opens it says
// so.
func submittable(path string) (owner int, ok bool) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid == 0 || info.Mode().Perm()&0o010 == 0 {
		return 0, false
	}
	return int(st.Uid), true
}

// sharedBy returns the accounts of the workers of a spool that all users share, nil
// for any other, also to one who is not root.
func sharedBy(ctx context.Context, path string) (*spooldir.Identities, error) {
	owner, ok := submittable(path)
	if !ok {
		return nil, nil
	}
	u, err := passwd.System().Lookup(ctx, spooldir.QueueUser)
	if errors.Is(err, passwd.ErrUnknown) || err == nil && u.UID != owner {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("whose the spool is: %w", err)
	}
	ids, err := identities()
	if err != nil {
		return nil, err
	}
	return &ids, nil
}

// onDemandIdle is how long a service that was started for what there is to do
// waits for more.
const onDemandIdle = 10 * time.Second

// workerSetup is what a worker gets from the parent at its start.
type workerSetup struct {
	Config  *config.Config
	Purpose string // service or drain: for the locks and the log
	Door    bool   // the queue process serves the second door
}

// runSeparated is the service of a spool that all users share, until a signal
// ends it, or, if until is not negative, until there has been nothing to do for
// that long.
func (c *call) runSeparated(ids *spooldir.Identities, until time.Duration) error {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	if err := beSubmitter(ids); err != nil {
		return err
	}
	lock, err := c.lockParent(ctx, "service")
	if err != nil {
		return err
	}
	if lock == nil {
		return exitf(exitTempfail, "spool %s: another dma-runner serves it; stop that first", c.config.SpoolDir)
	}
	defer lock.Close()
	log := logTo(c.stdio.Err)
	manager, err := notify.Connect(os.Getenv, os.Getpid())
	if err != nil {
		log.ConfigProblem("environment", 0, err.Error())
	}
	setup := workerSetup{Config: c.config, Purpose: "service", Door: true}
	options, err := c.parentOptions(setup, ids, log)
	if err != nil {
		return err
	}
	if options.UntilIdle, options.IdleFor = until >= 0, max(until, 0); options.UntilIdle {
		fresh, err := openNew(c.config.SpoolDir, ids)
		if err != nil {
			return err
		}
		defer fresh.Close()
		options.Stay = func() bool { return holdsAny(fresh) }
	}
	if options.Door, err = listenSocket(c.config); err != nil {
		return err
	}
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	options.Hangup = hangup
	// What the manager is told is for people and for its watchdog: that it can't
	// be told stops nothing.
	options.Ready = func() { _ = manager.Ready() }
	options.Alive = func() { _ = manager.Alive() }
	options.Reload = func() (parent.Options, error) {
		_ = manager.Reloading()
		conf, err := load(c.file, c.stdio)
		if err == nil && conf.SpoolDir != c.config.SpoolDir {
			err = fmt.Errorf("SPOOLDIR is now %s, and another spool needs a restart", conf.SpoolDir)
		}
		if err == nil {
			setup.Config = conf
			var o parent.Options
			if o, err = c.parentOptions(setup, ids, log); err == nil {
				return o, nil
			}
		}
		_ = manager.Ready() // with what there was
		return parent.Options{}, err
	}
	unasked := context.AfterFunc(ctx, func() { _ = manager.Stopping() })
	err = c.runParent(ctx, log, setup.Purpose, options)
	if unasked() { // it ends by itself
		_ = manager.Stopping()
	}
	return err
}

// openNew opens the directory new, which only the queue process can list: root has
// not, or will not have for long, the right to pass closed doors. What that process
// may have put in its place is neither followed nor waited for.
func openNew(spool string, ids *spooldir.Identities) (f *os.File, err error) {
	err = fsid.As(ids.QueueUID, ids.QueueGID, func() (err error) {
		f, err = os.OpenFile(filepath.Join(spool, string(spooldir.New)), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		return err
	})
	return f, err
}

// holdsAny reports whether a directory holds anything: what the queue process
// left in new, a name that its submitter has not committed or something that it
// cannot move, would have a manager that watches new start the service again at
// once and for ever.
func holdsAny(dir *os.File) bool {
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return false
	}
	names, _ := dir.Readdirnames(1)
	return len(names) > 0
}

// drainSeparated delivers what is due in a spool that all users share, and ends.
// It waits for another drain, and looks once more after it has let go: a submitter
// that saw the lock held starts no drain of its own.
func (c *call) drainSeparated(ids *spooldir.Identities) error {
	ctx, cancel := stopped()
	defer cancel()
	if err := beSubmitter(ids); err != nil {
		return err
	}
	fresh, err := openNew(c.config.SpoolDir, ids)
	if err != nil {
		return err
	}
	defer fresh.Close()
	log := logTo(c.stdio.Err)
	setup := workerSetup{Config: c.config, Purpose: "drain"}
	stuck := make(map[string]bool) // ids that a whole run has left in new
	for {
		lock, err := c.lockParent(ctx, setup.Purpose)
		if lock == nil {
			return err
		}
		options, err := c.parentOptions(setup, ids, log)
		if err == nil {
			options.UntilIdle = true
			err = c.runParent(ctx, log, setup.Purpose, options)
		}
		lock.Close()
		if err != nil || ctx.Err() != nil {
			return err
		}
		left, err := spooldir.CommittedIn(fresh)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(slices.Collect(maps.Keys(left)), func(id string) bool { return !stuck[id] }) {
			return nil
		}
		stuck = left
	}
}

// runParent is the parent of separated workers, until they are idle or ctx ends.
func (c *call) runParent(ctx context.Context, log *maillog.Log, purpose string, options parent.Options) error {
	log.Started(purpose, os.Getpid(), c.config.SpoolDir)
	err := parent.Run(ctx, options)
	reason := "nothing more is due"
	if ctx.Err() != nil {
		reason = "asked to stop"
	}
	log.Stopped(purpose, os.Getpid(), reason)
	return err
}

// beSubmitter gives this process the one group that passes the door of the spool:
// it has not, or will not have for long, root's right to pass closed ones.
func beSubmitter(ids *spooldir.Identities) error {
	if err := syscall.Setgroups([]int{ids.SubmitGID}); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	return nil
}

// parentOptions are those that follow from the configuration.
func (c *call) parentOptions(worker workerSetup, ids *spooldir.Identities, log *maillog.Log) (parent.Options, error) {
	conf := worker.Config
	if conf.Users != "" {
		log.ConfigProblem(conf.File, 0, "USERS has no effect where users are served under their own uids")
	}
	setup, err := json.Marshal(worker)
	if err != nil {
		return parent.Options{}, err
	}
	var env []string
	if v, ok := os.LookupEnv(noWatch); ok {
		env = append(env, noWatch+"="+v)
	}
	host, err := conf.HostName()
	if err != nil {
		log.ConfigProblem(conf.File, 0, err.Error())
	}
	account := func(uid, gid int) parent.Account {
		return parent.Account{UID: uid, GID: gid, Groups: []int{ids.SubmitGID}}
	}
	return parent.Options{
		Queue: account(ids.QueueUID, ids.QueueGID), Net: account(ids.NetUID, ids.NetGID),
		QueueSetup: setup, NetSetup: setup, Env: env,
		RunDir: config.RunDir, Users: passwd.System(), Log: log,
		Agent: agent.Setup{
			HostName: host, Mailbox: conf.Mailbox, Flock: conf.MboxFlock(), Forward: conf.Forward, CommandTime: conf.CommandTime,
			MinUID: conf.MinUID, Listed: listed(conf), Aliases: conf.Aliases, AliasUser: conf.AliasUser,
		},
		PasswordCmd: conf.PasswordCmd, TokenUser: conf.TokenUser,
	}, nil
}

// lockParent takes the place of the one parent of the spool. It waits for a drain,
// which ends by itself. Where a service has the place, or ctx ends, the lock is
// nil; that is no error.
func (c *call) lockParent(ctx context.Context, purpose string) (*os.File, error) {
	f, err := spooldir.OpenParentLock(c.config.SpoolDir)
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			if f.Truncate(0) == nil { // for those who wait, and for people
				_, _ = f.WriteAt([]byte(fmt.Sprintf("%s %d\n", purpose, os.Getpid())), 0)
			}
			return f, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		var b [32]byte
		n, _ := f.ReadAt(b[:], 0)
		holder, _, _ := strings.Cut(string(b[:n]), " ")
		// A service may be about to end.
		if holder == "service" && time.Since(begun) >= serviceEnding {
			f.Close()
			return nil, nil
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, nil
		case <-time.After(lockPoll):
		}
	}
}

// listenSocket returns the socket of the second door: the one that the service
// manager has opened, or one of our own.
func listenSocket(conf *config.Config) (*os.File, error) {
	sockets, err := notify.Sockets(os.Getenv, os.Getpid())
	if err != nil {
		return nil, err
	}
	if len(sockets) == 0 {
		// It serves every user of the host, whatever file it is configured by.
		return door.Listen(cmp.Or(conf.Door(), config.DefaultSocket))
	}
	for _, s := range sockets[1:] {
		s.File.Close()
	}
	return sockets[0].File, nil
}
