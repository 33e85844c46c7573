package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"dma/agent"
	"dma/forward"
	"dma/internal/config"
	"dma/internal/door"
	"dma/internal/fsid"
	"dma/internal/maillog"
	"dma/internal/metrics"
	"dma/internal/passwd"
	"dma/internal/retry"
	"dma/internal/wire"
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

// half is what each part of the service needs on its spool: the queue process
// and the net process, or both in one.
type half struct {
	config  *config.Config
	spool   *spooldir.Spool
	log     *maillog.Log
	host    string // the name of this machine
	watcher *spooldir.Watcher
	rescan  time.Duration
	syncer  *spooldir.Syncer
	retry   retry.Schedule
	clock   states.Clock
	metrics *metrics.Metrics
	kept    *wire.Kept
}

// service is everything that works on one spool, in one process.
type service struct {
	*half
	queue *queue.Queue
	relay *relay.Relay
	door  *os.File // the listening socket of the second door, or nil
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

// newHalf prepares work on the given states of an open spool that this process
// may serve.
func newHalf(c *config.Config, s *spooldir.Spool, log *maillog.Log, watched ...spooldir.State) *half {
	h := &half{config: c, spool: s, clock: states.SystemClock{}, rescan: rescanWatching, metrics: metrics.New(time.Now), kept: wire.NewKept()}
	h.log = maillog.Observed(log, h.metrics.Delivery)
	var err error
	if h.host, err = c.HostName(); err != nil {
		h.log.ConfigProblem(c.File, 0, err.Error())
	}
	for _, w := range s.FileSystem().Warnings {
		h.log.FileSystem(w)
	}
	if os.Getenv(noWatch) != "" {
		h.watcher = s.Unwatched(watched...)
		h.rescan = rescanPolling
		h.log.WatchUnavailable(noWatch + " is set")
	} else if h.watcher, err = s.Watch(watched...); err != nil {
		h.rescan = rescanPolling
		h.log.WatchUnavailable(err.Error())
	}
	h.syncer = s.NewSyncer(func(err error) { h.log.WorkerTrouble("sync", err) })
	h.retry = retry.Schedule{Min: c.RetryMin, Max: c.RetryMax, Expire: c.Expire}
	return h
}

// newDoor makes the server of the second door.
func (h *half) newDoor() *door.Server {
	return door.New(door.Options{
		Spool: h.spool, HostName: h.host, MinFree: func() int64 { return floor(h.config, h.spool) },
		List: submittedBy(h.spool), Kept: h.kept, Log: h.log,
	})
}

// awaitKept waits until the process keeps so many sockets for others that it has to
// end, which is an error, or until ctx ends.
func (h *half) awaitKept(ctx context.Context) error {
	select {
	case <-h.kept.Full():
		return wire.ErrKept
	case <-ctx.Done():
		return nil
	}
}

// newQueue makes the queue process's part. onFlush is called when everything is
// to be tried now.
func (h *half) newQueue(source passwd.Source, a agent.Agent, aliases *forward.AliasFile, aliasUser string, onFlush func()) *queue.Queue {
	c := h.config
	mail := localMail(c, h.host)
	mail.Relay = func() error { return noRelay(c) }
	mail.AliasUser, mail.FullBounce = aliasUser, c.FullBounce
	mail.Retry, mail.DelayNotice = h.retry, c.DelayNotice
	mail.MinFree = func() int64 { return floor(c, h.spool) }
	return queue.New(queue.Options{
		Config: mail, Spool: h.spool, Watcher: h.watcher, Log: h.log, Clock: h.clock, Aliases: aliases, Users: source, Agent: a,
		Rescan: h.rescan, Syncer: h.syncer, OnFlush: onFlush,
	})
}

// localMail says which mail stays on this host, and how its mailboxes are served.
func localMail(c *config.Config, host string) queue.Config {
	return queue.Config{
		HostName: host, LocalDomains: append([]string{host}, c.LocalDomains...), NullClient: c.NullClient,
		LMTP: strings.HasPrefix(c.Mailbox, lmtpScheme),
	}
}

const lmtpScheme = "lmtp:"

// mailboxes is the way to the server that MAILBOX names, nil if it names none.
func (h *half) mailboxes() relay.Deliverer {
	address, ok := strings.CutPrefix(h.config.Mailbox, lmtpScheme)
	if !ok {
		return nil
	}
	r, err := smarthost.NewLMTP(address, smarthost.Config{Name: h.host, Concurrency: h.config.Concurrency})
	if err != nil {
		// The configuration has been read, and lets nothing else pass.
		h.log.ConfigProblem(h.config.File, 0, "MAILBOX: "+err.Error())
		return nil
	}
	return r
}

// assemble puts a service together that is one process and serves as one uid.
func assemble(c *config.Config, s *spooldir.Spool, log *maillog.Log) (*service, error) {
	v := &service{half: newHalf(c, s, log, append(queue.States(), spooldir.Remote)...)}
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
		UID: os.Geteuid(), Any: any, MinUID: c.MinUID, Listed: listed(c), Mailbox: c.Mailbox, Flock: c.MboxFlock(),
		Forwards: c.Forward, Limit: c.CommandTime, HostName: v.host, Aliases: aliases, AliasUser: aliasUser,
	}
	v.relay = v.newRelay(passwordCommand(c, source), nil)
	v.queue = v.newQueue(source, own, aliases, aliasUser, v.relay.Flush)
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
	if v.door != nil {
		group.Go(func() { _ = part(door.Role, func(ctx context.Context) error { return v.newDoor().Serve(ctx, v.door) }) })
		group.Go(func() { _ = part(door.Role, v.awaitKept) })
	}
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
	s, err := c.look()
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

// look opens the spool of a call for a look at what it is: as its owner, where root
// asks, who has not everywhere the right to pass closed doors.
func (c *call) look() (s *spooldir.Spool, err error) {
	open := func() (err error) {
		s, err = spooldir.Open(c.config.SpoolDir)
		return err
	}
	if info, err := os.Lstat(c.config.SpoolDir); err == nil && os.Geteuid() == 0 {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			err = fsid.As(int(st.Uid), int(st.Gid), open)
			return s, err
		}
	}
	err = open()
	return s, err
}

// runService is the service in the foreground.
func runService(c *call) error {
	onDemand := false
	for _, a := range c.args {
		if a != "--on-demand" {
			return exitf(exitUsage, "run knows --on-demand and no %q", a)
		}
		onDemand = true
	}
	ids, err := separated(c.config.SpoolDir)
	if err != nil {
		return err
	}
	if ids != nil {
		until := time.Duration(-1)
		if onDemand {
			until = onDemandIdle
		}
		return c.runSeparated(ids, until)
	}
	if onDemand {
		return exitf(exitUsage, "run --on-demand is for a spool that all users share; for one that a single uid serves, use: dma-runner drain")
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
	if c.config.Socket != "" {
		if v.door, err = door.Listen(c.config.Socket); err != nil {
			return err
		}
		defer v.door.Close()
	}
	log.Started("service", os.Getpid(), s.Path())
	err = v.run(ctx)
	log.Stopped("service", os.Getpid(), "asked to stop")
	return err
}
