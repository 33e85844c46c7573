package sendmail

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"dma/internal/config"
	"dma/internal/door"
	"dma/spooldir"
)

// serve starts the second door of a spool and returns its socket.
func serve(t *testing.T, queue string) (socket string, stop func()) {
	t.Helper()
	s, err := spooldir.Open(queue)
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(filepath.Dir(queue), "door")
	listener, err := door.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	server := door.New(door.Options{Spool: s, HostName: "mail.example"})
	go func() { ended <- server.Serve(ctx, listener) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		listener.Close()
	})
	t.Cleanup(stop)
	return socket, stop
}

// oneDoor is a Machine with a configuration of the test's own.
type oneDoor struct {
	Machine
	config *config.Config
}

func (m oneDoor) Load(string, bool) (*config.Config, []config.Problem, error) {
	return m.config, nil, nil
}
func (oneDoor) DropGroup() error                            { return nil }
func (oneDoor) Start([]string, bool, <-chan struct{}) error { return nil }
func (oneDoor) Account(*config.Config, int, ...string) Account {
	return Account{"alice", "Alice Example"}
}

// TestDoorsAgree: the same call makes the same message by either door, octet by
// octet, but for the id and the time.
func TestDoorsAgree(t *testing.T) {
	var many []string
	for i := range spooldir.MaxRecipients {
		many = append(many, fmt.Sprintf("user%d@x.example", i))
	}
	for _, tc := range []struct {
		name   string
		input  string
		args   []string
		status int
	}{
		{"plain", "To: bob\nSubject: s\n\nbody\n", []string{"bob"}, 0},
		{"no header", "text", []string{"bob"}, 0},
		{"nothing", "", []string{"bob"}, 0},
		{"recipients of the header", "To: bob, carl\nBcc: dave\nCc: e@x.example\n\nbody", []string{"-t"}, 0},
		{"null sender", "A: b\n\n", []string{"-f", "<>", "bob"}, 0},
		{"options", "A: b\n\n", []string{"-N", "success,delay", "-R", "hdrs", "-V", "an id=", "-f", "x@y.example", "bob"}, 0},
		{"8 bit and UTF-8", "Subject: \xc3\xa4\nTo: \xc3\xa4@x.example\n\n\xff\x00\r\n", []string{"-t"}, 0},
		{"CRLF", "A: b\r\n c\r\n\r\nx\r\n", []string{"bob"}, 0},
		{"sent again", "Resent-To: bob\nA: b\n\nx\n", []string{"-t"}, 0},
		{"separator", "From al Mon Jan  1 00:00:00 2026\nA: b\n\nx\n", []string{"bob"}, 0},
		{"odd recipients", "A: b\n\nx\n", []string{"--", "-oops", `"a b"@x.example`, `";id"@x.example`, "$HOME", "`id`", "|cmd", "/file", "../x"}, 0},
		{"a shell's list", "A: b\n\nx\n", []string{"bob;id"}, 65},
		{"long", "A: b\n\n" + strings.Repeat("text\n", 1<<19), []string{"bob"}, 0},
		{"long line", "A: " + strings.Repeat("b", 1<<20) + "\n\n" + strings.Repeat("c", 1<<20), []string{"bob"}, 0},
		{"many recipients", "A: b\n\nx\n", many[:1000], 0},
		{"too many", "A: b\n\nx\n", append(many, "one@more.example"), 65},
		{"newline in a recipient", "A: b\n\nx\n", []string{"a\nb@x.example"}, 65},
		{"NUL in the sender", "A: b\n\nx\n", []string{"-f", "a\x00@x.example", "bob"}, 65},
		{"no recipients", "A: b\n\nx\n", []string{"-t"}, 66},
	} {
		var envelopes, contents, errors [2]string
		for i := range 2 {
			queue := filepath.Join(t.TempDir(), "spool")
			if err := spooldir.Init(queue); err != nil {
				t.Fatal(err)
			}
			c := config.Default()
			c.SpoolDir, c.MailName = queue, "mail.example"
			stop := func() {}
			if i == 1 {
				c.SpoolDir = filepath.Join(queue, "nowhere")
				c.Socket, stop = serve(t, queue)
			}
			var stderr bytes.Buffer
			p := &Process{
				Args: append([]string{"sendmail", "-odq"}, tc.args...), Stdin: strings.NewReader(tc.input),
				Stdout: io.Discard, Stderr: &stderr, UID: os.Getuid(), System: oneDoor{config: c},
			}
			status := p.Run()
			stop()
			errors[i] = stderr.String()
			if status != tc.status {
				t.Fatalf("%s, door %d: status %d: %s", tc.name, i+1, status, &stderr)
			}
			h := &host{spool: queue}
			if status != 0 {
				if left := h.messages(t); len(left) != 0 {
					t.Errorf("%s, door %d: a message", tc.name, i+1)
				}
				continue
			}
			m, content := h.one(t)
			contents[i] = strings.NewReplacer(m.ID, "ID", m.Arrival.Local().Format(dateLayout), "DATE").Replace(content)
			e := *m.Envelope
			envelopes[i] = fmt.Sprintf("%q uid %d 8bit %t utf8 %t %s %s %d octets %+v", e.Sender, e.UID, e.EightBit, e.UTF8, e.Return, e.EnvelopeID, e.ContentLength, e.Recipients)
		}
		if errors[0] != errors[1] {
			t.Errorf("%s: %q by the first door, %q by the second", tc.name, errors[0], errors[1])
		}
		if envelopes[0] != envelopes[1] {
			t.Errorf("%s: envelope\n%.2000s by the first door,\n%.2000s by the second", tc.name, envelopes[0], envelopes[1])
		}
		if contents[0] != contents[1] {
			t.Errorf("%s: content\n%.2000q by the first door,\n%.2000q by the second", tc.name, contents[0], contents[1])
		}
	}
}

// TestOpen: the first door if it is open, else the second, else both reasons and
// a remedy.
func TestOpen(t *testing.T) {
	queue := filepath.Join(t.TempDir(), "spool")
	if err := spooldir.Init(queue); err != nil {
		t.Fatal(err)
	}
	socket, stop := serve(t, queue)
	open := func(spool, socket string) (string, error) {
		c := config.Default()
		c.File, c.SpoolDir, c.Socket = "/some/dma.conf", spool, socket
		d, err := Machine{}.Open(c)
		return fmt.Sprintf("%T", d), err
	}
	for _, tc := range []struct{ spool, socket, want string }{
		{queue, socket, "*sendmail.spoolDoor"},
		{queue, "", "*sendmail.spoolDoor"},
		{queue + "/none", socket, "*sendmail.socketDoor"},
	} {
		if got, err := open(tc.spool, tc.socket); err != nil || got != tc.want {
			t.Errorf("%+v: %s, %v", tc, got, err)
		}
	}
	const spoolReason = `no way into the queue: spool /nowhere: no such file or directory; create it with "dma-runner init"`
	_, err := open("/nowhere", "")
	if err == nil || err.Error() != spoolReason {
		t.Errorf("without a second door: %v", err)
	}
	stop()
	_, err = open("/nowhere", socket)
	if want := spoolReason + "; nor by the socket of the service: connect " + socket + ": connection refused; start dma-runner, or the unit of its socket"; err == nil || err.Error() != want || status(err) != exitTempFail {
		t.Errorf("both shut:\n got %v\nwant %s", err, want)
	}
}

// TestRefusals: what the server says decides the exit status.
func TestRefusals(t *testing.T) {
	for kind, want := range map[door.Kind]int{door.BadData: 65, door.Denied: 77, door.Tempfail: 75, door.Busy: 75} {
		r := start(someMail, "bob")
		r.system.commitErr = &door.Refusal{Kind: kind, Text: "no"}
		r.run()
		equal(t, "status", r.status, want)
		equal(t, "stderr", r.stderr, "dma: nothing was queued: no\n")
	}
	r := start(someMail, "bob")
	r.system.commitErr = fmt.Errorf("socket /s: %w", door.ErrUnknown)
	r.run()
	equal(t, "status", r.status, 75)
	equal(t, "stderr", r.stderr, "dma: socket /s: the service has ended before it answered; the message may be queued all the same\n")
}

// TestInterruptedDoor: a signal ends the wait for a service that takes
// connections and does not answer.
func TestInterruptedDoor(t *testing.T) {
	dir := t.TempDir()
	listener, err := door.Listen(filepath.Join(dir, "door"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	c := config.Default()
	c.SpoolDir, c.Socket = filepath.Join(dir, "nowhere"), filepath.Join(dir, "door")
	interrupt := make(chan os.Signal, 1)
	interrupt <- os.Interrupt
	var stderr bytes.Buffer
	p := &Process{
		Args: []string{"sendmail", "bob"}, Stdin: strings.NewReader("\n"), Stdout: io.Discard, Stderr: &stderr,
		UID: os.Getuid(), Interrupt: interrupt, System: oneDoor{config: c},
	}
	equal(t, "status", p.Run(), exitTempFail)
	equal(t, "stderr", stderr.String(), "dma: interrupt: nothing was queued\n")
}
