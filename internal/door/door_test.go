package door

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dma/internal/crashtest"
	"dma/internal/crashtest/tinyfs"
	"dma/internal/wire"
	"dma/spooldir"
)

// TestMain makes the test's own program a server that can be killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv(serverEnv); dir != "" {
		os.Exit(serverMain(dir))
	}
	crashtest.Main(m)
}

// bench is a server on a spool and a socket of its own.
type bench struct {
	t      *testing.T
	spool  *spooldir.Spool
	client Client
	server *Server
	log    logged
	stop   func() // and wait until it has ended
}

// logged keeps what a server says.
type logged struct {
	mu    sync.Mutex
	lines []string
}

func (l *logged) add(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

func (l *logged) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

func (l *logged) Submitted(id, from string, uid int, size int64, recipients int) {
	l.add("submitted %s from=%s uid=%d size=%d recipients=%d", id, from, uid, size, recipients)
}

func (l *logged) WorkerTrouble(role string, err error) { l.add("trouble %s %v", role, err) }

// newBench starts a server; change may change it before.
func newBench(t *testing.T, change func(*Server)) *bench {
	t.Helper()
	return newBenchOn(t, filepath.Join(t.TempDir(), "q"), change)
}

// newBenchOn is newBench with a spool of a given path.
func newBenchOn(t *testing.T, queue string, change func(*Server)) *bench {
	t.Helper()
	dir := t.TempDir()
	if err := spooldir.Init(queue); err != nil {
		t.Fatal(err)
	}
	s, err := spooldir.Open(queue)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, spool: s, client: Client{Path: filepath.Join(dir, "s")}}
	b.server = New(Options{Spool: s, HostName: "Mail.Example.", Kept: wire.NewKept(), Log: &b.log})
	if change != nil {
		change(b.server)
	}
	listener, err := Listen(b.client.Path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.server.Serve(ctx, listener) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		listener.Close()
	})
	t.Cleanup(b.stop)
	return b
}

// as lets the kernel say that every client has a uid.
func as(uid int) func(*Server) {
	return func(s *Server) { s.peer = func(int) (int, error) { return uid, nil } }
}

// connect returns a connection for a client that does as it likes.
func (b *bench) connect() *wire.Conn {
	b.t.Helper()
	conn, err := connect(b.client.Path, time.Now().Add(time.Minute))
	if err != nil {
		b.t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { conn.Close() })
	return conn
}

// send sends a frame that has to get through.
func (b *bench) send(conn *wire.Conn, frame string) {
	b.t.Helper()
	if err := conn.Send([]byte(frame)); err != nil {
		b.t.Fatal(err)
	}
}

// hear returns the next answer.
func (b *bench) hear(conn *wire.Conn) string {
	b.t.Helper()
	frame, _, err := conn.Receive(maxFrame, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	return string(frame)
}

// idle waits until the server has noticed that all clients have gone.
func (b *bench) idle() {
	b.t.Helper()
	for end := time.Now().Add(time.Minute); !b.server.Idle(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatal("a client is still there after a minute")
		}
	}
}

// names lists what is in tmp and new.
func (b *bench) names() []string {
	b.t.Helper()
	return names(b.t, b.spool.Path())
}

func names(t *testing.T, queue string) []string {
	t.Helper()
	var list []string
	for _, dir := range []string{"tmp", "new"} {
		entries, err := os.ReadDir(filepath.Join(queue, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			list = append(list, dir+"/"+e.Name())
		}
	}
	return list
}

// message returns the message with an id and its content.
func (b *bench) message(id string) (*spooldir.Message, string) {
	b.t.Helper()
	for _, file := range b.names() {
		name, err := spooldir.ParseName(strings.TrimPrefix(file, "new/"))
		if err != nil || name.ID != id {
			continue
		}
		m, err := b.spool.Open(spooldir.New, name)
		if err != nil {
			b.t.Fatal(err)
		}
		defer m.Close()
		content, err := io.ReadAll(m.Content())
		if err = errors.Join(err, m.Verify(b.t.Context())); err != nil {
			b.t.Fatal(err)
		}
		return m, string(content)
	}
	b.t.Fatalf("no message %s in %q", id, b.names())
	return nil, ""
}

// recipients returns an envelope for n recipients.
func recipients(n int) *spooldir.Envelope {
	e := &spooldir.Envelope{Sender: "al@mail.example"}
	for i := range n {
		e.Recipients = append(e.Recipients, spooldir.Recipient{Address: fmt.Sprintf("user%d@x.example", i)})
	}
	return e
}

const text = "Subject: s\n\nbody\n"

// submit hands a message in.
func submit(c Client, e *spooldir.Envelope, content string) (string, error) {
	d, err := c.Create(e)
	if err != nil {
		return "", err
	}
	if _, err := d.Write([]byte(content)); err != nil {
		return "", errors.Join(err, d.Abort())
	}
	return d.ID(), d.Commit()
}

func TestSubmission(t *testing.T) {
	b := newBench(t, as(1234))
	e := &spooldir.Envelope{
		Sender: `"a b"@mail.example`, EightBit: true, UTF8: true, Return: "HDRS", EnvelopeID: "x+2B", UID: 0,
		Recipients: []spooldir.Recipient{
			{Address: "bob", Notify: "SUCCESS,DELAY"},
			{Address: "bücher@x.example", ORCPT: "rfc822;b+2B@x"},
		},
	}
	if err := b.client.Free(); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("ä long line\n", 100000)
	id, err := submit(b.client, e, "Subject: s\n\n"+long)
	if err != nil {
		t.Fatal(err)
	}
	m, content := b.message(id)
	received := Received("mail.example", 1234, id, m.Arrival.Local())
	if content != received+"Subject: s\n\n"+long {
		t.Errorf("content of %d octets: %.200q", len(content), content)
	}
	if m.UID != 1234 || m.Submitter != os.Geteuid() {
		t.Errorf("uid %d in a file of %d", m.UID, m.Submitter)
	}
	got := fmt.Sprintf("%q %t %t %s %s %+v", m.Sender, m.EightBit, m.UTF8, m.Return, m.EnvelopeID, m.Recipients)
	if want := fmt.Sprintf("%q %t %t %s %s %+v", e.Sender, e.EightBit, e.UTF8, e.Return, e.EnvelopeID, e.Recipients); got != want {
		t.Errorf("envelope\n got %s\nwant %s", got, want)
	}
	b.stop()
	want := fmt.Sprintf("submitted %s from=%s uid=1234 size=%d recipients=2", id, e.Sender, len("Subject: s\n\n"+long))
	if log := b.log.all(); len(log) != 1 || log[0] != want {
		t.Errorf("log %q, want %q", log, want)
	}
}

// TestPeer: without another's word the uid is that of this process.
func TestPeer(t *testing.T) {
	b := newBench(t, nil)
	id, err := submit(b.client, recipients(1), text)
	if err != nil {
		t.Fatal(err)
	}
	if m, _ := b.message(id); m.UID != os.Geteuid() {
		t.Errorf("uid %d", m.UID)
	}
	unknown := newBench(t, func(s *Server) { s.peer = func(int) (int, error) { return -1, errors.New("no idea") } })
	_, err = submit(unknown.client, recipients(1), text)
	var r *Refusal
	if !errors.As(err, &r) || r.Kind != Denied || r.Text != "nobody can say who you are: no idea" {
		t.Errorf("of nobody: %v", err)
	}
}

func TestManyRecipients(t *testing.T) {
	b := newBench(t, as(7))
	e := recipients(spooldir.MaxRecipients)
	for i := range e.Recipients {
		e.Recipients[i].Address = fmt.Sprintf("%s%d@x.example", strings.Repeat("r", 600), i)
	}
	id, err := submit(b.client, e, text)
	if err != nil {
		t.Fatal(err)
	}
	m, _ := b.message(id)
	if len(m.Recipients) != spooldir.MaxRecipients || m.Recipients[9999] != e.Recipients[9999] {
		t.Errorf("%d recipients", len(m.Recipients))
	}
	_, err = submit(b.client, recipients(spooldir.MaxRecipients+1), text)
	if err == nil || !strings.Contains(err.Error(), "10001 recipients") {
		t.Errorf("one more: %v", err)
	}
}

// TestFloor: too little space before the envelope, and in the middle.
func TestFloor(t *testing.T) {
	floor := int64(1 << 62)
	var calls, allowed int
	b := newBench(t, func(s *Server) {
		s.o.MinFree = func() int64 {
			if calls++; calls <= allowed {
				return 0
			}
			return floor
		}
	})
	full := func(what string, err error) {
		t.Helper()
		var r *Refusal
		if !errors.As(err, &r) || r.Kind != Tempfail || !strings.Contains(r.Text, "is full") {
			t.Errorf("%s: %v", what, err)
		}
	}
	full("asked", b.client.Free())
	_, err := submit(b.client, recipients(1), text)
	full("at the beginning", err)
	allowed = calls + 3
	_, err = submit(b.client, recipients(1), "Subject: s\n\n"+strings.Repeat("x\n", 10<<20))
	full("in the middle", err)
	b.idle()
	if left := b.names(); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

// TestTrouble: a spool that can't be written to is trouble for now, and nothing
// is left.
func TestTrouble(t *testing.T) {
	b := newBench(t, nil)
	dir := filepath.Join(b.spool.Path(), "new")
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	_, err := submit(b.client, recipients(3), text)
	var r *Refusal
	if !errors.As(err, &r) || r.Kind != Tempfail {
		t.Errorf("at the commit: %v", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if left := b.names(); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
	if err := os.Remove(filepath.Join(b.spool.Path(), "tmp")); err != nil {
		t.Fatal(err)
	}
	_, err = submit(b.client, recipients(3), text)
	if r = nil; !errors.As(err, &r) || r.Kind != Tempfail {
		t.Errorf("at the beginning: %v", err)
	}
	b.stop()
	if log := b.log.all(); len(log) != 2 || !strings.HasPrefix(log[0], "trouble door commit message") {
		t.Errorf("log %q", log)
	}
}

// TestFullDisk: a disk that fills up while a message comes, the floor being none
// at all. Nothing is left, and a message that fits is taken.
func TestFullDisk(t *testing.T) {
	b := newBenchOn(t, filepath.Join(tinyfs.New(t, tinyfs.Limits{Bytes: 4 << 20}), "q"), nil)
	_, err := submit(b.client, recipients(2), "Subject: s\n\n"+strings.Repeat("x\n", 4<<20))
	var r *Refusal
	if !errors.As(err, &r) || r.Kind != Tempfail || !strings.Contains(r.Text, "no space left") {
		t.Errorf("got %v", err)
	}
	b.idle()
	if left := b.names(); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
	id, err := submit(b.client, recipients(2), text)
	if err != nil {
		t.Fatal(err)
	}
	b.message(id)
}

// TestList: a user sees his own entries, root and the owner of the spool all.
func TestList(t *testing.T) {
	for _, tc := range []struct {
		uid  int
		want string
	}{{1234, "1234 false"}, {0, "0 true"}, {os.Geteuid(), fmt.Sprint(os.Geteuid(), " true")}} {
		b := newBench(t, func(s *Server) {
			as(tc.uid)(s)
			s.o.List = func(uid int, all bool) (iter.Seq[[]byte], error) {
				return slices.Values([][]byte{[]byte(fmt.Sprint(uid, all)), make([]byte, maxPayload+1), []byte("end")}), nil
			}
		})
		var got []string
		err := b.client.List(func(entry []byte) error { got = append(got, string(entry)); return nil })
		if err != nil || !slices.Equal(got, []string{tc.want, "end"}) {
			t.Errorf("uid %d: %q %v", tc.uid, got, err)
		}
	}
	b := newBench(t, nil)
	var r *Refusal
	if err := b.client.List(func([]byte) error { return nil }); !errors.As(err, &r) || r.Kind != Denied {
		t.Errorf("without a list: %v", err)
	}
}

func TestFlush(t *testing.T) {
	b := newBench(t, as(1234))
	if err := b.client.Flush(); err != nil {
		t.Fatal(err)
	}
	if !b.spool.TakeFlush() {
		t.Error("no request in the spool")
	}
	// The next one within a minute is made at the end at the latest.
	if err := b.client.Flush(); err != nil {
		t.Fatal(err)
	}
	if b.spool.TakeFlush() {
		t.Error("a request too early")
	}
	b.stop()
	if !b.spool.TakeFlush() {
		t.Error("a promised request is lost")
	}
}

// TestShut: where nobody listens the error is no Refusal.
func TestShut(t *testing.T) {
	dir := t.TempDir()
	listener, err := Listen(filepath.Join(dir, "dead"))
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"none", "dead", "file", strings.Repeat("x", 200)} {
		err := Client{filepath.Join(dir, name)}.Free()
		var r *Refusal
		if err == nil || errors.As(err, &r) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestHangUp: a service that ends as it takes a connection, or has it waiting at
// its socket, has the client come again, which submits once.
func TestHangUp(t *testing.T) {
	b := newBench(t, func(s *Server) {
		s.o.List = func(int, bool) (iter.Seq[[]byte], error) { return slices.Values([][]byte{[]byte("entry")}), nil }
	})
	b.stop()
	listener, err := Listen(b.client.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	const clients = 3 // of each kind
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		raw, err := listener.SyscallConn()
		for range 4 * clients {
			err = errors.Join(err, raw.Read(func(s uintptr) bool {
				fd, _, err := unix.Accept(int(s))
				if err == nil {
					unix.Close(fd)
				}
				return err == nil
			}))
		}
		if err != nil {
			t.Error(err)
		}
		ended <- b.server.Serve(ctx, listener)
	}()
	var group sync.WaitGroup
	var mu sync.Mutex
	var ids []string
	for range clients {
		group.Go(func() {
			id, err := submit(b.client, recipients(1), "Subject: s\n\ntext\n")
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			ids = append(ids, id)
			mu.Unlock()
		})
		for _, ask := range []func() error{b.client.Free, b.client.Flush, func() error { return b.client.List(func([]byte) error { return nil }) }} {
			group.Go(func() {
				if err := ask(); err != nil {
					t.Error(err)
				}
			})
		}
	}
	group.Wait()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := b.names(); len(got) != clients || len(ids) != clients {
		t.Errorf("%d messages are queued for %d submissions", len(got), len(ids))
	}
}

// TestListBreaks: an error of the caller's over the first entry is no end of the
// service, even if it looks like one.
func TestListBreaks(t *testing.T) {
	lists := 0
	b := newBench(t, func(s *Server) {
		s.o.List = func(int, bool) (iter.Seq[[]byte], error) {
			lists++
			return slices.Values([][]byte{[]byte("entry")}), nil
		}
	})
	if err := b.client.List(func([]byte) error { return unix.EPIPE }); !errors.Is(err, unix.EPIPE) {
		t.Error(err)
	}
	b.stop()
	if lists != 1 {
		t.Errorf("asked %d times", lists)
	}
}
