package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"dma/agent"
	"dma/forward"
	"dma/internal/config"
	"dma/internal/maillog"
	"dma/internal/metrics"
	"dma/internal/passwd"
	"dma/internal/retry"
	"dma/queue"
	"dma/relay"
	"dma/smarthost"
	"dma/spooldir"
	"dma/states"
)

// The times between scans that nothing rang for.
const (
	rescanWatching = time.Minute
	rescanPolling  = time.Second
)

// service is everything that works on one spool.
type service struct {
	config  *config.Config
	spool   *spooldir.Spool
	log     *maillog.Log
	watcher *spooldir.Watcher
	queue   *queue.Queue
	relay   *relay.Relay
	syncer  *spooldir.Syncer
	metrics *metrics.Metrics
}

// logTo returns the log for a process with the given standard error: a line
// each there, or to syslog where that is thrown away.
func logTo(w io.Writer) *maillog.Log {
	if f, ok := w.(*os.File); ok && isNull(f) {
		return maillog.New(slog.New(maillog.NewSyslogHandler(maillog.SyslogOptions{Fallback: io.Discard})))
	}
	return maillog.New(slog.New(maillog.NewHandler(w, nil)))
}

func isNull(f *os.File) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(os.DevNull)
	return err == nil && os.SameFile(a, b)
}

// users returns where local users are found, and whether they all are served
// as the uid of the spool.
func users(c *config.Config) (passwd.Source, bool) {
	if c.Users != "" {
		return passwd.File(c.Users), true
	}
	return passwd.System(), false
}

// assemble puts a service together on an open spool that this process may
// serve.
func assemble(c *config.Config, s *spooldir.Spool, log *maillog.Log) (*service, error) {
	counts := metrics.New(time.Now)
	log = maillog.Observed(log, counts.Delivery)
	v := &service{config: c, spool: s, log: log, metrics: counts}
	host, err := c.HostName()
	if err != nil {
		log.ConfigProblem(c.File, 0, err.Error())
	}
	for _, w := range s.FileSystem().Warnings {
		log.FileSystem(w)
	}
	watched := append(queue.States(), spooldir.Remote)
	rescan := rescanWatching
	if os.Getenv(noWatch) != "" {
		v.watcher = s.Unwatched(watched...)
		rescan = rescanPolling
		log.WatchUnavailable(noWatch + " is set")
	} else if v.watcher, err = s.Watch(watched...); err != nil {
		rescan = rescanPolling
		log.WatchUnavailable(err.Error())
	}
	v.syncer = s.NewSyncer(func(err error) { log.WorkerTrouble("sync", err) })

	source, any := users(c)
	aliases := forward.NewAliasFile(c.Aliases...)
	aliasUser := c.AliasUser
	if aliasUser == "" {
		// One uid serves everything: its user is the only one there is.
		if u, err := source.LookupID(context.Background(), os.Geteuid()); err == nil {
			aliasUser = u.Name
		}
	}
	own := &agent.Own{
		UID: os.Geteuid(), Any: any, MinUID: c.MinUID, Mailbox: c.Mailbox, Forwards: c.Forward,
		Limit: c.CommandTime, HostName: host, Aliases: aliases, AliasUser: aliasUser,
	}
	schedule := retry.Schedule{Min: c.RetryMin, Max: c.RetryMax, Expire: c.Expire}
	clock := states.SystemClock{}

	hosts, err := smarthost.ParseHosts(c.Smarthost, c.Port)
	if err != nil {
		log.ConfigProblem(c.File, 0, err.Error())
	}
	v.relay = relay.New(relay.Options{
		Spool: s, Watcher: v.watcher, Log: log, Clock: clock, Retry: schedule, Syncer: v.syncer,
		Deliverer: deliverer(c, host, hosts, source, log), Rewriter: rewriter(c, host, log),
		HostName: host, Concurrency: c.Concurrency, Rescan: rescan,
	})
	v.queue = queue.New(queue.Options{
		Config: queue.Config{
			HostName: host, LocalDomains: append([]string{host}, c.LocalDomains...), NullClient: c.NullClient,
			Relay:     func() error { return noRelay(c) },
			AliasUser: aliasUser, FullBounce: c.FullBounce,
			Retry: schedule, DelayNotice: c.DelayNotice,
			MinFree: func() int64 { return floor(c, s) },
		},
		Spool: s, Watcher: v.watcher, Log: log, Clock: clock, Aliases: aliases, Users: source, Agent: own,
		Rescan: rescan, Syncer: v.syncer, OnFlush: v.relay.Flush,
	})
	for _, state := range []spooldir.State{spooldir.Tempfail, spooldir.Permfail, spooldir.Sent} {
		v.relay.Ringing(state, v.watcher.Bell(state))
	}
	v.queue.Ringing(spooldir.Remote, v.watcher.Bell(spooldir.Remote))
	return v, nil
}

// noWatch in the environment turns events off, so that tests and people can
// see that the timer alone is enough.
const noWatch = "DMA_NO_WATCH"

// floor is MINFREE in octets.
func floor(c *config.Config, s *spooldir.Spool) int64 {
	room, err := s.Room()
	if err != nil {
		return c.MinFree.Bytes
	}
	return int64(c.MinFree.Of(uint64(room.TotalBytes)))
}

// run works until ctx ends.
func (v *service) run(ctx context.Context) error {
	defer v.watcher.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// One part without the other would hold the locks and do half of the
	// work: when either ends, both do.
	part := func(name string, run func(context.Context) error) error {
		defer cancel()
		err := run(ctx)
		if err != nil {
			v.log.WorkerTrouble(name, err)
		}
		return err
	}
	var group sync.WaitGroup
	var relayed error
	group.Go(func() { relayed = part("net", v.relay.Run) })
	group.Go(func() { v.writeMetrics(ctx) })
	queued := part("queue", v.queue.Run)
	group.Wait()
	return errors.Join(queued, relayed, v.syncer.Flush())
}

// idle reports whether there is nothing to do now. The bells are counted, so
// that work that one part has just handed to another is not overlooked.
func (v *service) idle() bool {
	before := v.watcher.Rings()
	return v.queue.Idle() && v.relay.Idle() && v.watcher.Rings() == before
}

// locks takes the roles of the queue and the net process.
func locks(s *spooldir.Spool, purpose string) (func(), error) {
	q, err := s.Lock(spooldir.QueueRole, purpose)
	if err != nil {
		return nil, err
	}
	n, err := s.Lock(spooldir.NetRole, purpose)
	if err != nil {
		q.Close()
		return nil, err
	}
	return func() { n.Close(); q.Close() }, nil
}

// stopped returns a context that ends at SIGTERM, SIGINT and SIGHUP.
func stopped() (context.Context, func()) {
	return signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
}

// open opens the spool of a call and becomes its owner.
func (c *call) open() (*spooldir.Spool, error) {
	s, err := spooldir.Open(c.config.SpoolDir)
	if err != nil {
		return nil, err
	}
	if err := become(s); err != nil {
		return nil, err
	}
	syscall.Umask(0o077)
	// Secrets are in memory: none may end up in a core.
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return nil, fmt.Errorf("limit of cores: %w", err)
	}
	return s, nil
}

// runService is the service in the foreground.
func runService(c *call) error {
	if err := c.noArguments("run"); err != nil {
		return err
	}
	s, err := c.open()
	if err != nil {
		return err
	}
	log := logTo(c.stdio.Err)
	ctx, cancel := stopped()
	defer cancel()
	release, err := locks(s, "service")
	for errors.Is(err, spooldir.ErrLocked) && ctx.Err() == nil {
		// A drain ends by itself; another service does not.
		holder, err2 := s.Holder(spooldir.QueueRole)
		if err2 != nil || holder == "service" {
			break
		}
		release, err = locks(s, "service")
	}
	if errors.Is(err, spooldir.ErrLocked) {
		return exitf(exitTempfail, "spool %s: %w; stop the other dma-runner first", s.Path(), err)
	}
	if err != nil {
		return err
	}
	defer release()
	v, err := assemble(c.config, s, log)
	if err != nil {
		return err
	}
	log.Started("service", os.Getpid(), s.Path())
	err = v.run(ctx)
	log.Stopped("service", os.Getpid(), "asked to stop")
	return err
}
