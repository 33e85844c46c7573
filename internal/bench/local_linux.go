package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"dma/internal/peertest"
)

// Figures of the comparison of local delivery.
const (
	localUsers    = 10
	manyUsers     = 50
	localMessages = 2000 // of 4 KiB, in turn to each user
	fewerMessages = 500  // to a single user, to many, or to a .forward with two addresses and a command
)

// compareLocal measures how long dma, Postfix and C dma take for mail to users
// of the host, from the first of parallel submissions to the last delivery, in
// roots with queue, mailboxes and homes on the file system of TMPDIR. It measures
// the loads that have only in their names. It returns the exit code.
func compareLocal(ctx context.Context, rounds int, only string) int {
	return peertest.Run(func() int {
		if os.Geteuid() != 0 {
			fmt.Fprintln(os.Stderr, "bench: -l needs root")
			return 77
		}
		b := &bed{ctx: ctx, rounds: rounds}
		return b.guarded(func() { b.local(only) })
	}, peertest.Peers(), peertest.CDMA())
}

// guarded runs f and returns the exit code.
func (b *bed) guarded(f func()) (code int) {
	defer func() {
		for _, f := range slices.Backward(b.cleanups) {
			f()
		}
		if v := recover(); v != nil {
			text, ok := v.(failure)
			if !ok {
				panic(v)
			}
			fmt.Fprintln(os.Stderr, "bench:", string(text))
			code = 1
		}
	}()
	f()
	return 0
}

// hosted is a mail system that delivers on its host.
type hosted struct {
	*bed
	name     string
	root     *peertest.Root
	sendmail string
	maildir  func(on bool) // where mail is delivered; nil: it has mbox only
	forwards bool          // it reads .forward

	queueTitle string // in the command line of its queue process

	start   func() *peertest.Service // nil: whoever submits delivers
	stop    func()
	service *peertest.Service
}

func (b *bed) local(only string) {
	systems := []*hosted{hostedOurs(b), hostedPostfix(b), hostedCDMA(b)}
	for _, c := range []struct {
		what string
		load
	}{
		{"mbox, 10 users", load{users: localUsers, messages: localMessages, arrives: localMessages}},
		{"Maildir, 10 users", load{users: localUsers, messages: localMessages, arrives: localMessages, maildir: true}},
		{"mbox, 10 users, all queued before the service starts", load{users: localUsers, messages: localMessages, arrives: localMessages, queued: true}},
		{"mbox, 1 user", load{users: 1, messages: fewerMessages, arrives: fewerMessages}},
		{"mbox, 50 users", load{users: manyUsers, messages: fewerMessages, arrives: fewerMessages}},
		{".forward with two addresses and a command", load{users: 3, messages: fewerMessages, arrives: 2 * fewerMessages, forward: true}},
	} {
		if !strings.Contains(c.what, only) {
			continue
		}
		fmt.Printf("%d messages of 4 KiB, %d parallel submitters, until delivered: %s\n", c.messages, parallel, c.what)
		rates, uses := make(map[string][]float64), make(map[string]use)
		for range b.rounds {
			for _, s := range systems {
				if c.maildir && s.maildir == nil || c.forward && !s.forwards || c.queued && s.start == nil {
					continue
				}
				if s.maildir != nil {
					s.maildir(c.maildir)
				}
				took, used := s.measure(c.load)
				rates[s.name] = append(rates[s.name], rate(c.messages, took))
				uses[s.name] = uses[s.name].plus(used)
			}
		}
		for _, s := range systems {
			if list := rates[s.name]; list != nil {
				fmt.Printf("  %-8s %6.0f messages/s (%.0f); dma has %.2f of it; a message: %s\n",
					s.name, middle(list), list, middle(rates[systems[0].name])/middle(list), uses[s.name].each(c.messages*b.rounds))
			}
		}
	}
}

// use is what messages have cost.
type use struct {
	cpu    time.Duration // of all processes
	fsyncs int
	boxes  int // of these not by submitters and the queue process; of dma alone
	why    error
}

func (u use) plus(v use) use {
	return use{u.cpu + v.cpu, u.fsyncs + v.fsyncs, u.boxes + v.boxes, errors.Join(u.why, v.why)}
}

// each tells it for one of n messages.
func (u use) each(n int) string {
	s := fmt.Sprintf("%.1f ms of CPU", u.cpu.Seconds()*1000/float64(n))
	if u.why != nil {
		return s + fmt.Sprintf(", fsyncs not counted: %v", u.why)
	}
	s += fmt.Sprintf(", %.2f fsyncs", float64(u.fsyncs)/float64(n))
	if u.boxes > 0 {
		s += fmt.Sprintf(", %.2f of them in mailboxes", float64(u.boxes)/float64(n))
	}
	return s
}

// load is what a mail system is given to do.
type load struct {
	users             int
	messages, arrives int
	maildir           bool
	forward           bool // all to user 0, whose .forward names two others
	queued            bool // the time and the processors are measured from the start of the service
}

// middle is the median.
func middle(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	return list[(len(list)-1)/2]
}

// users makes the accounts, with mailboxes and homes on the file system of TMPDIR.
func (s *hosted) users() {
	s.queue(s.root, "/var/mail")
	s.check(os.Chown(s.root.Path("var/mail"), 0, 8)) // mail
	s.check(os.Chmod(s.root.Path("var/mail"), 0o775|os.ModeSetgid))
	s.queue(s.root, "/home")
	for i := range manyUsers {
		s.root.User(user(i), 2001+i)
	}
}

func user(i int) string { return "user" + strconv.Itoa(i) }

// measure submits messages and waits for them in the mailboxes. It returns how
// long that took and what it has cost.
func (s *hosted) measure(l load) (took time.Duration, used use) {
	for i := range l.users {
		s.check(os.RemoveAll(s.root.Path("home", user(i), "Maildir")))
		s.check(os.RemoveAll(s.root.Path("home", user(i), "ran")))
		s.check(os.RemoveAll(s.root.Path("home", user(i), ".forward")))
		s.root.Write("var/mail/"+user(i), "")
		s.root.Own("var/mail/"+user(i), user(i), 0o600)
		s.check(os.Chown(s.root.Path("var/mail", user(i)), 2001+i, 8))
	}
	if l.forward {
		s.root.Write("home/user0/.forward", "user1, user2\n\"|cat >/dev/null; echo x >>$HOME/ran\"\n")
		s.root.Own("home/user0/.forward", "user0", 0o644)
	}
	message := "Subject: a message\n\n" + strings.Repeat(strings.Repeat("x", 71)+"\n", 56)
	file := filepath.Join(s.TempDir(), "message")
	s.check(os.WriteFile(file, []byte(message), 0o644))
	if l.queued {
		s.stop()
	}
	all := countFsyncs(-1)
	var queue *fsyncs
	if !l.queued {
		queue = s.countQueue()
	}
	before, start := s.cpu(), time.Now()
	_, err := each(l.messages, func(i int) error {
		to := user(i % l.users)
		if l.forward {
			to = user(0)
		}
		// Files, and no pipes that this process would have to serve meanwhile.
		input, err := os.Open(file)
		if err != nil {
			return err
		}
		defer input.Close()
		cmd := s.root.Command(s.sendmail, "-i", "-f", "user9@host.example", to)
		if l.queued {
			cmd.Args = slices.Insert(cmd.Args, 1, "-odq") // Postfix leaves it to the service anyway
		}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = input, os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		return s.ctx.Err()
	})
	s.check(err)
	if l.queued {
		if s.arrived(load{users: l.users, arrives: 1}, 1) {
			panic(failure(s.name + " delivers while its service is stopped"))
		}
		all.end()
		all = countFsyncs(-1)
		before, start = s.cpu(), time.Now()
		s.service = s.start()
	}
	s.await(s.name+" to deliver all", func() bool { return s.arrived(l, len(message)) })
	if l.forward {
		s.await(s.name+" to run all commands", func() bool {
			info, err := os.Stat(s.root.Path("home/user0/ran"))
			return err == nil && info.Size() >= int64(2*l.messages)
		})
	}
	took = time.Since(start)
	used = use{cpu: s.cpu() - before, fsyncs: all.end(), why: all.why}
	if queue != nil {
		used.boxes = used.fsyncs - queue.end() - 2*l.messages // a submission has two
		used.why = errors.Join(used.why, queue.why)
	}
	return took, used
}

// countQueue begins to count the fsyncs of the queue process, where there is one.
func (s *hosted) countQueue() *fsyncs {
	if s.queueTitle == "" || s.service == nil {
		return nil
	}
	pid := 0
	s.await("the queue process", func() bool {
		files, err := filepath.Glob("/proc/[0-9]*/cmdline")
		s.check(err)
		for _, file := range files {
			if line, _ := os.ReadFile(file); bytes.Contains(line, []byte(s.queueTitle)) {
				pid, err = strconv.Atoi(filepath.Base(filepath.Dir(file)))
				s.check(err)
			}
		}
		return pid > 0
	})
	return countFsyncs(pid)
}

// arrived reports whether so many messages are in the mailboxes. It reads them
// only when they are large enough.
func (s *hosted) arrived(l load, size int) bool {
	n, bytesThere := 0, int64(0)
	for i := range l.users {
		if l.maildir {
			names, err := os.ReadDir(s.root.Path("home", user(i), "Maildir/new"))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				s.check(err)
			}
			n += len(names)
		} else if info, err := os.Stat(s.root.Path("var/mail", user(i))); err == nil {
			bytesThere += info.Size()
		}
	}
	if l.maildir {
		return n >= l.arrives
	}
	if bytesThere < int64(l.arrives)*int64(size) {
		return false
	}
	for i := range l.users {
		data, err := os.ReadFile(s.root.Path("var/mail", user(i)))
		s.check(err)
		n += bytes.Count(append([]byte("\n"), data...), []byte("\nFrom "))
	}
	return n >= l.arrives
}

// cpu is the time that all processes of the namespace have used, this one
// excepted: the living ones with those that they have waited for.
func (s *hosted) cpu() time.Duration {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	s.check(err)
	ticks := 0
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended meanwhile
		}
		_, rest, _ := strings.Cut(string(data), ") ")
		fields := strings.Fields(rest)
		first := 11 // utime, stime, cutime, cstime: 14 to 17 of proc_pid_stat(5)
		if filepath.Base(filepath.Dir(file)) == strconv.Itoa(os.Getpid()) {
			first = 13
		}
		for _, f := range fields[first:15] {
			n, err := strconv.Atoi(f)
			s.check(err)
			ticks += n
		}
	}
	return time.Duration(ticks) * time.Second / 100
}

// hostedOurs is dma as scripts/install makes it: each user's mail is delivered
// as the user.
func hostedOurs(b *bed) *hosted {
	s := &hosted{bed: b, name: "dma", root: peertest.NewRoot(b, peertest.Peers()), sendmail: "/usr/sbin/dma", forwards: true, queueTitle: "role-queue"}
	s.users()
	s.root.InstallHost()
	b.queue(s.root, "/var/spool/dma")
	s.root.Write("etc/dma/dma.conf", "")
	s.root.Must(s.root.Command("dma-runner", "init"), "")
	s.start = func() *peertest.Service { return s.root.Start(s.root.Command("dma-runner")) }
	s.stop = func() { s.service.Stop() }
	s.maildir = func(on bool) {
		if s.service != nil {
			s.stop()
		}
		s.root.Write("etc/dma/dma.conf", map[bool]string{true: "MAILBOX maildir:~/Maildir\n", false: ""}[on])
		s.service = s.start()
		s.await("dma to start", func() bool { return strings.Contains(s.service.String(), "started") })
	}
	return s
}

// hostedPostfix is Postfix as Debian configures it.
func hostedPostfix(b *bed) *hosted {
	s := &hosted{bed: b, name: "Postfix", root: peertest.NewRoot(b, peertest.Peers()), sendmail: "/usr/sbin/sendmail", forwards: true}
	s.users()
	b.queue(s.root, "/var/spool/postfix")
	s.start = func() *peertest.Service { return s.root.Start(s.root.Command("postfix", "start-fg")) }
	s.stop = func() { s.root.Must(s.root.Command("postfix", "stop"), "") }
	s.service = s.root.StartPostfix("mydestination = host.example\nmyorigin = host.example\nhome_mailbox =\nmailbox_delivery_lock = fcntl, dotlock\n", "127.0.0.1:25 inet n - n - - smtpd\n")
	s.service.AwaitPort("127.0.0.1:25")
	s.maildir = func(on bool) {
		s.root.Must(s.root.Command("postconf", "-e", "home_mailbox = "+map[bool]string{true: "Maildir/", false: ""}[on]), "")
		s.root.Must(s.root.Command("postfix", "reload"), "")
	}
	return s
}

// hostedCDMA is the DragonFly Mail Agent of Debian.
func hostedCDMA(b *bed) *hosted {
	s := &hosted{bed: b, name: "C dma", root: peertest.NewRoot(b, peertest.CDMA()), sendmail: "/usr/sbin/dma"}
	s.users()
	b.queue(s.root, "/var/spool/dma")
	s.check(os.Chown(s.root.Path("var/spool/dma"), 0, 8)) // mail
	s.check(os.Chmod(s.root.Path("var/spool/dma"), 0o770|os.ModeSetgid))
	s.root.Write("etc/dma/dma.conf", "MAILNAME host.example\n")
	s.root.Write("etc/dma/auth.conf", "")
	return s
}
