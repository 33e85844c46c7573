package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"dma/internal/smtptest"
)

// limit is how long the demo may take.
const limit = 15 * time.Second

// recipients are those of the message; what comes of each is the story.
func recipients() []string {
	return []string{
		"alice",                 // a mailbox
		"team",                  // an alias: bob and carol, who have a .forward each
		"friend@example.org",    // another host
		"colleague@example.org", // the same one: one transaction
		"later@example.org",     // it says 451
		"nobody@example.org",    // it says 550
		"no-such-user",          // nor is there one here
	}
}

func rules() ([]smtptest.Rule, error) {
	var rules []smtptest.Rule
	for _, text := range []string{
		"defer later@* 451 4.2.1 Mailbox busy, come back later",
		"refuse nobody@* 550 5.1.1 No such user here",
	} {
		r, err := smtptest.ParseRule(text)
		if err != nil {
			return nil, err
		}
		rules = append(rules, r)
	}
	return rules, nil
}

func run(ctx context.Context, out io.Writer) error {
	signalled := ctx
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it did not end within %v; see demo/log", limit))
	defer cancel()
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	answers, err := rules()
	if err != nil {
		return err
	}
	sink := smtptest.NewSink(smtptest.SinkOptions{Rules: answers, Dir: filepath.Join(root, "demo", "smarthost")})
	defer sink.Close()
	addr, err := sink.Listen("127.0.0.1:0")
	if err != nil {
		return err
	}
	s, err := setUp(root, addr.String())
	if err != nil {
		return err
	}
	defer func() {
		if signalled.Err() != nil { // Ctrl-C: nothing is left behind
			os.RemoveAll(s.dir)
		}
	}()
	if err := os.Mkdir(s.path("smarthost"), 0o755); err != nil {
		return err
	}
	if err := s.init(); err != nil {
		return err
	}

	w := newWatcher()
	stop, err := s.start(ctx, w)
	if err != nil {
		return err
	}
	defer stop()

	say := func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }
	say("\n== one message, seven recipients\n")
	say("$ dma -C demo/dma.conf -f alice@demo.example %s < testdata/welcome.eml", strings.Join(recipients(), " "))
	if err := s.submit(ctx); err != nil {
		return err
	}
	// Besides: the children of team (2), bob (2) and carol (1), and the bounce.
	if err := settled(ctx, w, len(recipients())+6); err != nil {
		return err
	}
	say("\n== what the log says: each recipient's way through the directories\n")
	w.print(out)
	say("\n== what arrived\n")
	if err := s.arrived(out); err != nil {
		return err
	}
	say("\n== the bounce, in alice's mailbox\n")
	if err := s.bounce(out); err != nil {
		return err
	}
	say("\n== what is left in the spool\n")
	if err := s.left(out); err != nil {
		return err
	}
	stop()
	if err := s.show(ctx, out, "dma-runner", "mailq"); err != nil {
		return err
	}
	say("\n== go on\n")
	say("The runner has been stopped; everything is in demo/. For instance:")
	say("  echo Hello | bin/dma -C $PWD/demo/dma.conf bob     submit; a drain starts by itself")
	say("  ls demo/spool/*/ ; cat demo/spool/log/*            the queue, and its history")
	say("  bin/dma-runner -C demo/dma.conf mailq              what waits, and why")
	say("  mv demo/spool/tempfail/* demo/spool/hold/          park what waits; mv .../new/ tries it")
	say("  bin/dma-runner -C demo/dma.conf                    run the service again (Ctrl-C ends it)")
	return nil
}

// settled waits until all recipients have come to rest.
func settled(ctx context.Context, w *watcher, n int) error {
	for {
		rest, changed := w.atRest(n)
		if rest {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
	}
}

func (s *stage) init() error {
	args := []string{"-C", s.path("dma.conf"), "init"}
	if os.Geteuid() == 0 {
		args = append(args, "--one-uid")
	}
	out, err := exec.Command(s.bin("dma-runner"), args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("dma-runner init: %w\n%s", err, out)
	}
	return nil
}

// start starts the runner; the returned function stops it, once.
func (s *stage) start(ctx context.Context, w *watcher) (func(), error) {
	log, err := os.Create(s.path("log"))
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(s.bin("dma-runner"), "-C", s.path("dma.conf"))
	pipe, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	// A Ctrl-C is for the demo, which then stops the runner in good order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	read := make(chan struct{})
	go func() {
		w.read(pipe, log)
		close(read)
	}()
	stopped := false
	return func() {
		if stopped {
			return
		}
		stopped = true
		cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(5*time.Second, func() { cmd.Process.Kill() })
		<-read
		cmd.Wait()
		timer.Stop()
		log.Close()
	}, nil
}

func (s *stage) submit(ctx context.Context) error {
	message, err := os.Open(filepath.Join(s.root, "testdata", "welcome.eml"))
	if err != nil {
		return err
	}
	defer message.Close()
	// The runner takes it up as soon as it serves the spool: -odq, so that no
	// drain is started while it does not yet.
	args := append([]string{"-C", s.path("dma.conf"), "-odq", "-f", "alice@demo.example"}, recipients()...)
	cmd := exec.CommandContext(ctx, s.bin("dma"), args...)
	cmd.Stdin = message
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("dma: %w\n%s", err, out)
	}
	return nil
}

// print shows the way of each recipient, children below their parents' time.
func (w *watcher) print(out io.Writer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range w.order {
		steps := w.moves[name]
		path := steps[0].from
		for _, m := range steps {
			path += " > " + m.to
		}
		id, n, _ := strings.Cut(name, ".")
		who := steps[0].who
		if len(who) > 34 {
			who = who[:31] + "..."
		}
		fmt.Fprintf(out, "  %s.%s %-34s %s\n", kind(id), n, who, path)
	}
}

// kind names a message by the last letter of its id.
func kind(id string) string {
	switch id[len(id)-1] {
	case 'b':
		if len(id) > 32 {
			return "bounce "
		}
	case 'c':
		if len(id) > 32 {
			return "child  "
		}
	}
	return "message"
}

// arrived lists the mailboxes and files that got something.
func (s *stage) arrived(out io.Writer) error {
	for _, file := range []string{"mail/alice", "mail/bob", "home/carol/filtered", "home/carol/lines"} {
		data, err := os.ReadFile(s.path(file))
		if err != nil {
			return err
		}
		what := fmt.Sprintf("%d octets", len(data))
		if strings.HasPrefix(file, "mail/") {
			what = fmt.Sprintf("an mbox with %d messages", bytes.Count(data, []byte("\nX-Dma-Delivery: ")))
		}
		fmt.Fprintf(out, "  demo/%-22s %s\n", file, what)
	}
	got, err := filepath.Glob(s.path("smarthost", "*"))
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "  demo/%-22s the smarthost took %d messages\n", "smarthost/", len(got))
	return nil
}

// bounce shows the part of the bounce that is for people.
func (s *stage) bounce(out io.Writer) error {
	data, err := os.ReadFile(s.path("mail/alice"))
	if err != nil {
		return err
	}
	_, text, ok := bytes.Cut(data, []byte("This is the mail system"))
	if !ok {
		return errors.New("alice's mailbox has no bounce")
	}
	text, _, _ = bytes.Cut(text, []byte("\n--"))
	for _, line := range strings.Split(strings.TrimSpace("This is the mail system"+string(text)), "\n") {
		fmt.Fprintf(out, "  | %s\n", line)
	}
	return nil
}

// left lists the names in the spool.
func (s *stage) left(out io.Writer) error {
	names, err := filepath.Glob(s.path("spool", "*", "2*"))
	if err != nil {
		return err
	}
	sort.Strings(names)
	fmt.Fprintln(out, "$ ls demo/spool/*/2*")
	for _, n := range names {
		fmt.Fprintf(out, "  %s\n", s.short(n))
	}
	return nil
}

// show runs a program and shows what it prints.
func (s *stage) show(ctx context.Context, out io.Writer, program string, args ...string) error {
	fmt.Fprintf(out, "\n$ %s -C demo/dma.conf %s\n", program, strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, s.bin(program), append([]string{"-C", s.path("dma.conf")}, args...)...)
	text, err := cmd.CombinedOutput()
	for _, line := range strings.Split(strings.TrimRight(string(text), "\n"), "\n") {
		fmt.Fprintf(out, "  %s\n", line)
	}
	return err
}
