package main

import (
	"context"
	"fmt"
	"io/fs"
	"net/smtp"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"dma/internal/peertest"
	"dma/internal/smtptest"
	"dma/spooldir"
)

// Figures of the comparison.
const (
	compared = 1000 // messages of 4 KiB for the rates
	manyTo   = 500  // recipients of one message for the distance
)

// compare measures how long dma, Postfix and C dma take for a queue that was
// filled with delivery off, each in a root of its own with its queue on the file
// system of TMPDIR and the same smtp-sink as the smarthost. It returns the exit
// code.
func compare(ctx context.Context, rounds int) int {
	return peertest.Run(func() int {
		if os.Geteuid() != 0 {
			fmt.Fprintln(os.Stderr, "bench: -p needs root")
			return 77
		}
		b := &bed{ctx: ctx, rounds: rounds}
		return b.run()
	}, peertest.Peers(), peertest.CDMA())
}

// bed is what peertest asks of a test.
type bed struct {
	ctx      context.Context
	rounds   int // of which the median counts
	cleanups []func()
}

type failure string

func (b *bed) Helper() {}

// Fatalf ends the comparison.
func (b *bed) Fatalf(format string, args ...any) { panic(failure(fmt.Sprintf(format, args...))) }

// Cleanup has f called at the end, the last one first.
func (b *bed) Cleanup(f func()) { b.cleanups = append(b.cleanups, f) }

// TempDir is a folder that goes at the end.
func (b *bed) TempDir() string {
	dir, err := os.MkdirTemp("", "dma-bench-")
	if err != nil {
		b.Fatalf("%v", err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		b.Fatalf("%v", err)
	}
	return dir
}

func (b *bed) check(err error) {
	if err != nil {
		b.Fatalf("%v", err)
	}
}

func (b *bed) run() (code int) {
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
	sinks := peertest.NewRoot(b, peertest.Peers())
	systems := []system{newOurs(b), newPostfix(b), newCDMA(b)}
	fmt.Printf("queue to smtp-sink, %d messages of 4 KiB, each to one recipient, with the defaults of each\n", compared)
	rates := make(map[string][]float64)
	for range b.rounds {
		for _, s := range systems {
			rates[s.name()] = append(rates[s.name()], b.rate(sinks, s))
		}
	}
	median := func(name string) float64 {
		list := slices.Sorted(slices.Values(rates[name]))
		return list[(len(list)-1)/2]
	}
	ours := median(systems[0].name())
	for _, s := range systems {
		fmt.Printf("  %-8s %6.0f messages/s (%.0f); dma has %.2f of it\n", s.name(), median(s.name()), rates[s.name()], ours/median(s.name()))
	}
	fmt.Printf("one message to %d recipients at a round trip of 40 ms, from the start of delivery to the last recipient taken\n", manyTo)
	for _, s := range systems {
		took, c := b.distance(s)
		fmt.Printf("  %-8s %8v; %d transactions, %d connections\n", s.name(), took.Round(time.Millisecond), c.Transactions, c.Connections)
	}
	return 0
}

// system is a mail system in a root.
type system interface {
	name() string
	use(port int)                        // it as the smarthost, delivery off
	submit(message string, to ...string) // queue one message
	ready()                              // nothing of it is on its way into the queue, and delivery is on
	deliver()                            // begin with all that is queued
	settled() bool                       // the queue is empty and what deliver started has ended
}

// rate queues the messages and returns how many of them a second reach the sink.
func (b *bed) rate(sinks *peertest.Root, s system) float64 {
	const port = 2500
	s.use(port)
	message := "Subject: a message\n\n" + strings.Repeat(strings.Repeat("x", 71)+"\n", 56)
	_, err := each(compared, func(i int) error {
		s.submit(message, fmt.Sprintf("user%d@peer.example", i))
		return b.ctx.Err()
	})
	b.check(err)
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	sink := sinks.Start(sinks.Command("smtp-sink", "-u", "postfix", "-c", addr, "2000"))
	sink.AwaitPort(addr)
	s.ready()
	start := time.Now()
	s.deliver()
	b.await(s.name()+" to deliver all", func() bool { return counted(sink) >= compared })
	took := time.Since(start)
	b.await(s.name()+" to end", s.settled)
	sink.Kill()
	return rate(compared, took)
}

// counted is how many messages smtp-sink says it has taken.
func counted(sink *peertest.Service) int {
	text := sink.String()
	_, text, _ = strings.Cut(text[max(0, strings.LastIndex(text, "mesg=")):], "=")
	n, _ := strconv.Atoi(strings.TrimSpace(text[:min(len(text), strings.IndexAny(text+"\r", "\r\n"))]))
	return n
}

// await waits until ok holds, five minutes at most.
func (b *bed) await(what string, ok func() bool) {
	for end := time.Now().Add(5 * time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		b.check(b.ctx.Err())
		if time.Now().After(end) {
			b.Fatalf("waited five minutes for %s", what)
		}
	}
}

// distance sends one message to many recipients.
func (b *bed) distance(s system) (time.Duration, smtptest.Counts) {
	sink := smtptest.NewSink(smtptest.SinkOptions{})
	addr, err := sink.Listen("127.0.0.1:0")
	b.check(err)
	defer sink.Close()
	far, err := newDistant(addr.String(), 40*time.Millisecond)
	b.check(err)
	defer far.Close()
	s.use(far.port())
	var to []string
	for i := range manyTo {
		to = append(to, fmt.Sprintf("user%d@peer.example", i))
	}
	s.submit("Subject: to many\n\ntext\n", to...)
	s.ready()
	start := time.Now()
	s.deliver()
	b.await(s.name()+" to reach all", func() bool { return sink.Counts().Recipients >= manyTo })
	took := time.Since(start)
	b.await(s.name()+" to end", s.settled)
	return took, sink.Counts()
}

// queue puts a folder of the file system of TMPDIR in place of one of the root.
func (b *bed) queue(r *peertest.Root, inside string) {
	b.check(os.MkdirAll(r.Path(inside), 0o755))
	r.Bind(b.TempDir(), inside)
}

// ours is dma, with a spool of one uid.
type ours struct {
	*bed
	root    *peertest.Root
	service *peertest.Service
}

func newOurs(b *bed) *ours {
	o := &ours{bed: b, root: peertest.NewRoot(b, peertest.Peers())}
	o.root.InstallDMA()
	b.queue(o.root, "/var/spool/dma")
	o.use(1)
	o.root.Must(o.root.Command("dma-runner", "init", "--one-uid"), "")
	return o
}

func (o *ours) name() string { return "dma" }

func (o *ours) use(port int) {
	o.root.Write("etc/dma/dma.conf", fmt.Sprintf("SMARTHOST 127.0.0.1\nPORT %d\n", port))
}

func (o *ours) submit(message string, to ...string) {
	spool, err := spooldir.Open(o.root.Path("var/spool/dma"))
	o.check(err)
	e := &spooldir.Envelope{Sender: "alice@host.example"}
	for _, a := range to {
		e.Recipients = append(e.Recipients, spooldir.Recipient{Address: a})
	}
	d, err := spool.Create(e)
	o.check(err)
	_, err = d.Write([]byte(message))
	o.check(err)
	o.check(d.Commit())
}

func (o *ours) ready() {}

func (o *ours) deliver() { o.service = o.root.Start(o.root.Command("dma-runner", "drain")) }

func (o *ours) settled() bool {
	return ended(o.service) && empty(o.root, "var/spool/dma", "new", "remote", "tempfail")
}

// ended reports whether a program has.
func ended(s *peertest.Service) bool {
	select {
	case <-s.Ended():
		return true
	default:
		return false
	}
}

// empty reports whether there is no file below the folders.
func empty(r *peertest.Root, dir string, names ...string) bool {
	for _, name := range names {
		none := true
		_ = filepath.WalkDir(r.Path(dir, name), func(_ string, e fs.DirEntry, err error) error {
			none = none && (err != nil || e.IsDir()) // a file may go while it is looked at
			return nil
		})
		if !none {
			return false
		}
	}
	return true
}

// postfix is Postfix as Debian configures it. Messages wait in its deferred queue.
type postfix struct {
	*bed
	root    *peertest.Root
	service *peertest.Service
}

func newPostfix(b *bed) *postfix {
	p := &postfix{bed: b, root: peertest.NewRoot(b, peertest.Peers())}
	b.queue(p.root, "/var/spool/postfix")
	p.service = p.root.StartPostfix("mydestination =\ndefer_transports = smtp\n", "127.0.0.1:25 inet n - n - - smtpd\n")
	p.service.AwaitPort("127.0.0.1:25")
	return p
}

func (p *postfix) name() string { return "Postfix" }

func (p *postfix) set(values ...string) {
	p.root.Must(p.root.Command("postconf", append([]string{"-e"}, values...)...), "")
	p.root.Must(p.root.Command("postfix", "reload"), "")
}

func (p *postfix) use(port int) {
	p.set(fmt.Sprintf("relayhost = [127.0.0.1]:%d", port), "defer_transports = smtp")
}

func (p *postfix) submit(message string, to ...string) {
	p.check(smtp.SendMail("127.0.0.1:25", nil, "alice@host.example", to, []byte(strings.ReplaceAll(message, "\n", "\r\n"))))
}

func (p *postfix) ready() {
	p.await("the deferred queue of Postfix", func() bool { return empty(p.root, "var/spool/postfix", "maildrop", "incoming", "active") })
	reloads := func() int { return strings.Count(p.service.String(), "reload -- version") }
	before := reloads()
	p.set("defer_transports =")
	p.await("Postfix to reload", func() bool { return reloads() > before })
	time.Sleep(2 * time.Second) // the old qmgr may still take a request to flush, and forget it
}

func (p *postfix) deliver() { p.root.Must(p.root.Command("postqueue", "-f"), "") }

func (p *postfix) settled() bool {
	return empty(p.root, "var/spool/postfix", "maildrop", "incoming", "active", "deferred")
}

// cdma is the DragonFly Mail Agent of Debian.
type cdma struct {
	*bed
	root *peertest.Root
}

func newCDMA(b *bed) *cdma {
	c := &cdma{b, peertest.NewRoot(b, peertest.CDMA())}
	b.queue(c.root, "/var/spool/dma")
	c.root.Own("var/spool/dma", "root", 0o2770)
	b.check(os.Chown(c.root.Path("var/spool/dma"), 0, 8)) // mail
	b.check(os.Chmod(c.root.Path("var/spool/dma"), 0o770|os.ModeSetgid))
	return c
}

func (c *cdma) name() string { return "C dma" }

func (c *cdma) use(port int) {
	c.root.Write("etc/dma/dma.conf", fmt.Sprintf("SMARTHOST 127.0.0.1\nPORT %d\nDEFER\nMAILNAME host.example\n", port))
	c.root.Write("etc/dma/auth.conf", "")
}

func (c *cdma) submit(message string, to ...string) {
	c.root.Must(c.root.Command("dma", append([]string{"-i", "-f", "alice@host.example"}, to...)...), message)
}

func (c *cdma) ready() {}

func (c *cdma) deliver() { c.root.Must(c.root.Command("dma", "-q"), "") }

func (c *cdma) settled() bool {
	files, err := filepath.Glob(c.root.Path("var/spool/dma/[MQ]*"))
	return err == nil && len(files) == 0
}
