package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"dma/agent"
	"dma/internal/config"
	"dma/internal/door"
	"dma/internal/maillog"
	"dma/internal/notify"
	"dma/internal/passwd"
	"dma/parent"
	"dma/spooldir"
)

// runDir is the folder of the parent's locks and of the second door.
const runDir = "/run/dma"

// separated reports whether the service of a spool has to be separated: it is
// started as root, and the spool is one that all users share. It looks at no more
// than what root may look at who has given up the right to pass closed doors.
func separated(path string) bool {
	info, err := os.Stat(path)
	if err != nil || os.Geteuid() != 0 {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Uid != 0 && info.Mode().Perm()&0o010 != 0
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

// runParent is the parent of separated workers. Until ends it when there has been
// nothing to do for that long; a negative one does not.
func (c *call) runParent(purpose string, until time.Duration) error {
	log := logTo(c.stdio.Err)
	ids, err := identities()
	if err != nil {
		return err
	}
	lock, holder, err := lockParent(purpose)
	if err != nil {
		return err
	}
	if lock == nil {
		if purpose == "drain" {
			return nil // who holds it does the work
		}
		return exitf(exitTempfail, "spool %s: another dma-runner (%s) serves it; stop that first", c.config.SpoolDir, holder)
	}
	defer lock.Close()
	if c.config.Users != "" {
		log.ConfigProblem(c.config.File, 0, "USERS has no effect where users are served under their own uids")
	}
	manager, err := notify.Connect(os.Getenv, os.Getpid())
	if err != nil {
		log.ConfigProblem("environment", 0, err.Error())
	}
	setup := workerSetup{Config: c.config, Purpose: purpose, Door: purpose == "service"}
	options, err := c.parentOptions(setup, ids, log)
	if err != nil {
		return err
	}
	options.UntilIdle, options.IdleFor = until >= 0, max(until, 0)
	if purpose == "service" {
		if options.Door, err = listenSocket(c.config); err != nil {
			return err
		}
		hangup := make(chan os.Signal, 1)
		signal.Notify(hangup, syscall.SIGHUP)
		options.Hangup = hangup
		options.Reload = func() (parent.Options, error) {
			_ = manager.Reloading()
			conf, err := load(c.file, c.stdio)
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
		// What the manager is told is for people and for its watchdog: that it
		// can't be told stops nothing.
		options.Ready = func() { _ = manager.Ready() }
		options.Alive = func() { _ = manager.Alive() }
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	context.AfterFunc(ctx, func() { _ = manager.Stopping() })
	log.Started(purpose, os.Getpid(), c.config.SpoolDir)
	err = parent.Run(ctx, options)
	reason := "nothing more is due"
	if ctx.Err() != nil {
		reason = "asked to stop"
	}
	log.Stopped(purpose, os.Getpid(), reason)
	return err
}

// parentOptions are those that follow from the configuration.
func (c *call) parentOptions(worker workerSetup, ids spooldir.Identities, log *maillog.Log) (parent.Options, error) {
	conf := worker.Config
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
		RunDir: runDir, Users: passwd.System(), Log: log,
		Agent: agent.Setup{
			HostName: host, Mailbox: conf.Mailbox, Forward: conf.Forward, CommandTime: conf.CommandTime,
			MinUID: conf.MinUID, Aliases: conf.Aliases, AliasUser: conf.AliasUser,
		},
		PasswordCmd: conf.PasswordCmd, TokenUser: conf.TokenUser,
	}, nil
}

// lockParent takes the place of the one parent of this machine. Where another has
// it the lock is nil, and holder is what that one does.
func lockParent(purpose string) (lock *os.File, holder string, err error) {
	if err := os.Mkdir(runDir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, "", err
	}
	f, err := os.OpenFile(filepath.Join(runDir, "parent.lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, "", err
	}
	switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
	case errors.Is(err, syscall.EWOULDBLOCK):
		defer f.Close()
		var b [32]byte
		n, _ := f.Read(b[:]) // for people
		return nil, strings.TrimSpace(string(b[:n])), nil
	case err != nil:
		f.Close()
		return nil, "", fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	if f.Truncate(0) == nil {
		fmt.Fprintf(f, "%s %d\n", purpose, os.Getpid())
	}
	return f, "", nil
}

// listenSocket returns the socket of the second door: the one that the service
// manager has opened, or one of our own.
func listenSocket(conf *config.Config) (*os.File, error) {
	sockets, err := notify.Sockets(os.Getenv, os.Getpid())
	if err != nil {
		return nil, err
	}
	if len(sockets) == 0 {
		return door.Listen(conf.Door())
	}
	for _, s := range sockets[1:] {
		s.File.Close()
	}
	return sockets[0].File, nil
}
