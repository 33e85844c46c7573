package runner

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"dma/agent"
	"dma/forward"
	"dma/internal/config"
	"dma/internal/door"
	"dma/internal/maillog"
	"dma/internal/sandbox"
	"dma/parent"
	"dma/queue"
	"dma/spooldir"
)

// Descriptors that the parent gives its workers; see package parent.
const (
	doorFile  = 6 // queue: the socket of the second door, if there is one
	flushFile = 7 // an octet is written by queue and read by net: forget the back-off
	countFile = 8 // net writes, and queue reads, what METRICS counts
)

// worker is a process of a separated service.
type worker struct {
	ctx    context.Context
	client *parent.Client
	setup  workerSetup
	config *config.Config
	spool  *spooldir.Spool
	log    *maillog.Log
	flush  *pipeEnd // see flushFile
	counts *pipeEnd // see countFile
	lock   *spooldir.RoleLock
}

// newWorker prepares a process that the parent has started. Its context ends
// when the parent says so, or is gone.
func newWorker(role spooldir.Role, policy func(*config.Config, *spooldir.Spool) sandbox.Policy) (*worker, func(), error) {
	w := &worker{log: logTo(os.Stderr)}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	signal.Ignore(syscall.SIGHUP)
	w.ctx = ctx
	text, err := parent.ReadSetup()
	if err == nil {
		err = json.Unmarshal(text, &w.setup)
	}
	if err == nil && w.setup.Config == nil {
		err = errors.New("no configuration")
	}
	if err != nil {
		return nil, cancel, fmt.Errorf("what the parent says: %w", err)
	}
	w.config = w.setup.Config
	if w.client, err = parent.Connect(); err != nil {
		return nil, cancel, err
	}
	life := parent.Life()
	go func() {
		defer cancel()
		select {
		case <-w.client.Done():
		case <-life:
		case <-ctx.Done():
		}
	}()
	if w.spool, err = spooldir.Open(w.config.SpoolDir); err != nil {
		return nil, cancel, err
	}
	report, err := sandbox.Apply(policy(w.config, w.spool))
	if err != nil {
		return nil, cancel, err
	}
	w.log.Sandboxed(string(role), report.String())
	if w.flush, err = inherited(flushFile, "flush"); err != nil {
		return nil, cancel, err
	}
	if w.counts, err = inherited(countFile, "counts"); err != nil {
		return nil, cancel, err
	}
	w.lock, err = w.spool.Lock(role, w.setup.Purpose)
	return w, cancel, err
}

// pipeEnd is an end of a pipe that the parent has given. It never blocks.
type pipeEnd struct {
	fd   int
	file *os.File
}

func inherited(fd int, name string) (*pipeEnd, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	return &pipeEnd{fd, os.NewFile(uintptr(fd), name)}, nil
}

// put writes what there is room for; for the rest nobody waits.
func (p *pipeEnd) put(b []byte) { _, _ = unix.Write(p.fd, b) }

// take reads what there is, and reports whether that was anything.
func (p *pipeEnd) take() bool {
	var buf [512]byte
	n, _ := unix.Read(p.fd, buf[:])
	return n > 0
}

// runQueueRole is the queue process of a separated service.
func runQueueRole() error {
	var open folders
	var unseen error
	w, cancel, err := newWorker(spooldir.QueueRole, func(c *config.Config, s *spooldir.Spool) sandbox.Policy {
		if open, unseen = lookApart(c.Aliases, foldersTime); unseen != nil {
			open = make(folders) // nothing that is included can be read
		}
		return sandbox.Queue(sandbox.QueuePaths{Spool: s.Path(), Aliases: c.Aliases, Include: open.there(), Metrics: c.Metrics})
	})
	defer cancel()
	if err != nil {
		return err
	}
	defer w.lock.Close()
	c := w.config
	if unseen != nil {
		w.log.WorkerTrouble("queue", fmt.Errorf("the folders of the aliases cannot be looked at: %w", unseen))
	}
	h := newHalf(c, w.spool, w.log, queue.States()...)
	defer h.watcher.Close()
	remote := remoteOptions(c)
	remote.Kept = h.kept
	remote.Starter, remote.Clock, remote.Most = w.client, h.clock, mostAgents(memory())
	remote.Trouble = func(user string, role agent.Role, err error) {
		w.log.WorkerTrouble("agent", fmt.Errorf("%s of %s: %w", role, user, err))
	}
	agents := agent.NewRemote(remote)
	aliases := forward.NewAliasFile(c.Aliases...)
	q := h.newQueue(w.client, agents, aliases, c.AliasUser, func() { w.flush.put([]byte{0}) })

	ctx, stop := context.WithCancel(w.ctx)
	defer stop()
	var group sync.WaitGroup
	doorIdle := func() bool { return true }
	if w.setup.Door {
		listener, err := door.Inherited(doorFile)
		if err != nil {
			return err
		}
		server := h.newDoor()
		doorIdle = server.Idle
		group.Go(func() {
			if err := server.Serve(ctx, listener); err != nil && ctx.Err() == nil {
				w.log.WorkerTrouble(door.Role, err)
				stop()
			}
		})
	}
	context.AfterFunc(ctx, func() { w.counts.file.Close() })
	group.Go(func() { readCounts(w.counts.file, h.metrics.Delivery) })
	group.Go(func() { h.writeMetrics(ctx) })
	group.Go(func() {
		if err := h.awaitKept(ctx); err != nil {
			w.log.WorkerTrouble("queue", err)
			stop()
		}
	})
	group.Go(func() {
		look := looker{within: foldersTime}
		if look.newFolder(ctx, c.Aliases, open) {
			w.log.WorkerTrouble("queue", errors.New("the aliases, or files that they include, are in another folder than before"))
			stop()
		}
	})
	err = w.client.Ready(parent.Work{
		Idle:     func() bool { return q.Idle() && doorIdle() },
		Activity: h.watcher.Rings,
		Look:     q.Rescan,
	})
	if err == nil {
		w.log.Started("queue", os.Getpid(), w.spool.Path())
		err = q.Run(ctx)
	}
	stop()
	group.Wait()
	agents.Close()
	return errors.Join(err, h.syncer.Flush())
}

// remoteOptions are those that follow from the configuration.
func remoteOptions(c *config.Config) agent.RemoteOptions {
	return agent.RemoteOptions{Mailbox: c.Mailbox, MinUID: c.MinUID, Listed: listed(c), CommandTime: c.CommandTime}
}

// runNetRole is the net process of a separated service.
func runNetRole() error {
	w, cancel, err := newWorker(spooldir.NetRole, func(c *config.Config, s *spooldir.Spool) sandbox.Policy {
		return sandbox.Net(sandbox.NetPaths{
			Spool: s.Path(), SyncFiles: !s.FileSystem().Ordered,
			Files: []string{c.AuthPath, c.CertFile, c.TLSPolicy, c.Rewrite, c.SenderRelay},
		})
	})
	defer cancel()
	if err != nil {
		return err
	}
	defer w.lock.Close()
	h := newHalf(w.config, w.spool, maillog.Observed(w.log, func(d maillog.Delivery) { writeCount(w.counts, d) }), spooldir.Remote)
	defer h.watcher.Close()
	// It may not open the directories that it moves names to.
	h.syncer = w.spool.NewSyncerFrom(spooldir.Remote, func(err error) { h.log.WorkerTrouble("sync", err) })
	var password askFunc
	if w.config.PasswordCmd != "" {
		password = w.client.Password
	}
	r := h.newRelay(password, w.flush.take)
	err = w.client.Ready(parent.Work{
		Idle:     r.Idle,
		Activity: h.watcher.Rings,
		Look:     func() { h.watcher.Bell(spooldir.Remote).RingAll() },
	})
	if err == nil {
		w.log.Started("net", os.Getpid(), w.spool.Path())
		err = r.Run(w.ctx)
	}
	return errors.Join(err, h.syncer.Flush())
}

// attempt is what the net process tells the queue process of an attempt.
type attempt struct {
	Status maillog.Status
	Relay  string
}

// maxCount bounds a line of counts; up to it a write to a pipe is whole or not
// at all.
const maxCount = 512

// writeCount tells of an attempt. What finds no room is not counted.
func writeCount(p *pipeEnd, d maillog.Delivery) {
	line, err := json.Marshal(attempt{d.Status, d.Relay})
	if err == nil && len(line) < maxCount {
		p.put(append(line, '\n'))
	}
}

// readCounts passes on what the net process tells, until it ends.
func readCounts(r io.Reader, observe func(maillog.Delivery)) {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, maxCount), maxCount)
	for lines.Scan() {
		var c attempt
		decoder := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		if decoder.Decode(&c) != nil {
			continue
		}
		switch c.Status {
		case maillog.Sent, maillog.Deferred, maillog.Bounced:
			observe(maillog.Delivery{Status: c.Status, Relay: c.Relay})
		}
	}
}

// role returns what a process does that the parent has started, nil for any other.
func role(args []string) func() int {
	if len(args) != 1 {
		return nil
	}
	worker := func(run func() error) func() int {
		return func() int {
			if err := run(); err != nil {
				fmt.Fprintf(os.Stderr, "dma-runner: %v\n", err)
				return exitTempfail
			}
			return exitOK
		}
	}
	switch args[0] {
	case parent.RoleQueue:
		return worker(runQueueRole)
	case parent.RoleNet:
		return worker(runNetRole)
	case parent.RoleAgent:
		return runAgentRole
	case parent.RoleInspect:
		return runInspectRole
	case roleFolders:
		return runFoldersRole
	}
	return nil
}
