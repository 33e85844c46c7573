package door

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"dma/internal/wire"
	"dma/spooldir"
)

// raw writes octets that are no frame.
func raw(t *testing.T, conn *wire.Conn, p []byte) {
	t.Helper()
	err := conn.Raw(func(fd int) {
		if _, err := unix.Write(fd, p); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// descriptors counts those of this process.
func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/dev/fd")
	if err != nil {
		t.Skip(err)
	}
	return len(list)
}

const (
	envelope1 = "msender al@x.example\nrecipients 1\n"
	to1       = "rbob@x.example\n"
	begin     = "dA: b\n\n"
)

// TestHostileClients: each is refused or given up, nothing is left of it, and
// the next client is served.
func TestHostileClients(t *testing.T) {
	header := func(size uint32, files byte) []byte {
		return append(binary.BigEndian.AppendUint32(nil, size), files)
	}
	many := strings.Repeat("a@b\n", spooldir.MaxRecipients)
	for _, tc := range []struct {
		name   string
		frames []string // the last one is answered
		raw    []byte   // after them
		files  int      // with a frame after them
		want   string   // the answer's kind and a part of its text; empty: the connection just ends
	}{
		{"nothing", nil, nil, 0, ""},
		{"garbage", nil, []byte("GET / HTTP/1.1\r\n\r\n"), 0, "d too long"},
		{"half a header", nil, header(4, 0)[:3], 0, ""},
		{"half a frame", nil, append(header(9, 0), "msender"...), 0, ""},
		{"huge", nil, header(0xffffffff, 0), 0, "d too long"},
		{"an octet too long", nil, header(maxFrame+1, 0), 0, "d too long"},
		{"empty frame", nil, header(0, 0), 0, "d empty"},
		{"says a file", nil, append(header(1, 1), 'f'), 0, "d files"},
		{"a file", nil, nil, 1, "d files"},
		{"many files", nil, nil, wire.MaxFiles, "d files"},
		{"a file with the content", []string{envelope1, to1}, nil, 1, "i"},
		{"unknown request", []string{"Z"}, nil, 0, "d not known"},
		{"request with more", []string{"qnow"}, nil, 0, "d longer"},
		{"content first", []string{begin}, nil, 0, "d longer"},
		{"commit first", []string{"c"}, nil, 0, "d not known"},
		{"no recipients", []string{"msender \n"}, nil, 0, "d missing"},
		{"no sender", []string{"mrecipients 1\n"}, nil, 0, "d missing"},
		{"line without an end", []string{"msender \nrecipients 1"}, nil, 0, "d without an end"},
		{"forged uid", []string{"msender \nuid 0\nrecipients 1\n"}, nil, 0, "d unknown"},
		{"forged id", []string{"mid 20260304T050607-0123456789abcdefc\nsender \nrecipients 1\n"}, nil, 0, "d unknown"},
		{"forged parent", []string{"msender \nparent 20260304T050607-0123456789abcdef.1-x\nrecipients 1\n"}, nil, 0, "d unknown"},
		{"forged depth", []string{"msender \ndepth 0\nrecipients 1\n"}, nil, 0, "d unknown"},
		{"sender twice", []string{"msender a@b\nsender \nrecipients 1\n"}, nil, 0, "d twice"},
		{"newline in the sender", []string{"msender a%0A@b\nrecipients 1\n", to1}, nil, 0, "d line break"},
		{"NUL in the sender", []string{"msender a%00@b\nrecipients 1\n", to1}, nil, 0, "d control"},
		{"no recipient", []string{"msender \nrecipients 0\n"}, nil, 0, "d no number"},
		{"less than none", []string{"msender \nrecipients -1\n"}, nil, 0, "d no number"},
		{"10^5 recipients", []string{"msender \nrecipients 100000\n"}, nil, 0, "d 100000 recipients"},
		{"one more than said", []string{"msender \nrecipients 1\n", "ra@b\nc@d\n"}, nil, 0, "d more than"},
		{"10^4 and one", []string{"msender \nrecipients 10000\n", "r" + many, "ra@b\n"}, nil, 0, "i"},
		{"no more recipients", []string{"msender \nrecipients 2\n", to1, begin}, nil, 0, "d recipients are missing"},
		{"recipients without any", []string{envelope1, "r"}, nil, 0, "d recipients are missing"},
		{"CR in a recipient", []string{envelope1, "ra%0D@b\n"}, nil, 0, "d line break"},
		{"a blank in a recipient", []string{envelope1, "ra b@c\n"}, nil, 0, "d unknown"},
		{"half an escape", []string{envelope1, "ra%0\n"}, nil, 0, "d line"},
		{"a user", []string{envelope1, "ra user=root\n"}, nil, 0, "d unknown"},
		{"a command", []string{envelope1, "ra target=id\n"}, nil, 0, "d unknown"},
		{"a kind", []string{envelope1, "r1 command a\n"}, nil, 0, "d unknown"},
		{"NOTIFY with a newline", []string{envelope1, "ra notify=NEVER%0A\n"}, nil, 0, "d NOTIFY"},
		{"NOTIFY twice", []string{envelope1, "ra notify=NEVER notify=NEVER\n"}, nil, 0, "d twice"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := descriptors(t)
			b := newBench(t, as(1234))
			conn := b.connect()
			refused := false
			for _, f := range tc.frames {
				b.send(conn, f)
			}
			if tc.raw != nil {
				raw(t, conn, tc.raw)
			}
			if tc.files > 0 {
				null, err := os.Open(os.DevNull)
				if err != nil {
					t.Fatal(err)
				}
				// What the server makes of it decides, and it may have gone already.
				err = conn.Send([]byte{'f'}, slices.Repeat([]*os.File{null}, tc.files)...)
				null.Close()
				refused = errors.Is(err, unix.EPERM) // by the kernel
			}
			if tc.want != "" && !refused {
				got := b.hear(conn)
				kind, part, refused := strings.Cut(tc.want, " ")
				if refused {
					kind = "x" + kind + " "
				}
				if !strings.HasPrefix(got, kind) || !strings.Contains(got, part) {
					t.Errorf("answer %q, want %q", got, tc.want)
				}
			}
			conn.Close()
			b.idle()
			if left := b.names(); len(left) != 0 {
				t.Errorf("left: %q", left)
			}
			if _, err := submit(b.client, recipients(1), text); err != nil {
				t.Errorf("the next client: %v", err)
			}
			b.stop()
			if after := descriptors(t); after != before+b.server.o.Kept.Count() {
				t.Errorf("%d descriptors before, %d after", before, after)
			}
		})
	}
}

// TestHostileContent: what follows the id.
func TestHostileContent(t *testing.T) {
	for _, tc := range []struct {
		name   string
		frames []string
		want   string
	}{
		{"more of the Received field", []string{"d (from userid 0)\nA: b\n\n"}, "d header"},
		{"the same in parts", []string{"d ", "d x\n"}, "d header"},
		{"empty content", []string{"c"}, "d within its header"},
		{"half a header", []string{"dA: b\n", "c"}, "d within its header"},
		{"8 bit", []string{begin, "d\xff", "c"}, "d above 127"},
		{"empty frame of content", []string{"d"}, "d missing"},
		{"commit with more", []string{begin, "cx"}, "d missing"},
		{"another envelope", []string{begin, envelope1}, "d missing"},
		{"another request", []string{begin, "q"}, "d missing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t, as(1234))
			conn := b.connect()
			b.send(conn, envelope1)
			b.send(conn, to1)
			b.hear(conn)
			for _, f := range tc.frames {
				if err := conn.Send([]byte(f)); err != nil {
					break // refused already
				}
			}
			got := b.hear(conn)
			kind, part, _ := strings.Cut(tc.want, " ")
			if !strings.HasPrefix(got, "x"+kind+" ") || !strings.Contains(got, part) {
				t.Errorf("answer %q, want %q", got, tc.want)
			}
			b.idle()
			if left := b.names(); len(left) != 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// TestCrowd: 200 connections of one user. Who is beyond the bound is sent away,
// others and root are served at once, and again when the crowd has gone.
func TestCrowd(t *testing.T) {
	before := descriptors(t)
	uids := make(chan int, 1000)
	b := newBench(t, func(s *Server) { s.peer = func(int) (int, error) { return <-uids, nil } })
	crowd := func(uid, n int) []*wire.Conn {
		var conns []*wire.Conn
		for range n {
			uids <- uid
			conns = append(conns, b.connect())
		}
		return conns
	}
	once := func(uid int) error {
		uids <- uid
		conn, err := b.client.askOnce(time.Now().Add(time.Minute), []byte{askFree}, sayOK, nil)
		if err == nil {
			conn.Close()
		}
		return err
	}
	sentAway := func(what string, err error) {
		t.Helper()
		var r *Refusal
		if !errors.As(err, &r) || r.Kind != Busy {
			t.Errorf("%s: %v", what, err)
		}
	}
	first := crowd(1000, 200)
	for _, conn := range first[maxUserConns:] {
		if got := b.hear(conn); !strings.HasPrefix(got, "xb ") {
			t.Fatalf("answer %q", got)
		}
		conn.Close()
	}
	first = first[:maxUserConns]
	if err := once(1001); err != nil {
		t.Errorf("another user: %v", err)
	}
	b.gone(1001, 0)
	var others []*wire.Conn
	for uid := 2000; len(others) < maxConns-maxUserConns; uid++ {
		others = append(others, crowd(uid, maxUserConns)...)
	}
	sentAway("when all places are taken", once(3000))
	roots := crowd(0, maxRootConns-1)
	if err := once(0); err != nil {
		t.Errorf("root: %v", err)
	}
	b.gone(0, maxRootConns-1)
	roots = append(roots, crowd(0, 1)...)
	sentAway("root, too often", once(0))
	for _, conn := range slices.Concat(first, others, roots) {
		b.send(conn, "f")
		if got := b.hear(conn); got != "o" {
			t.Fatalf("answer %q to who was there", got)
		}
		conn.Close()
	}
	b.idle()
	if err := once(1000); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	b.stop()
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// TestManyUids: one who holds all places, from as many uids as he likes, gives one
// back for who comes next; who has just come keeps his.
func TestManyUids(t *testing.T) {
	uids := make(chan int, 1000)
	b := newBench(t, func(s *Server) {
		s.peer = func(int) (int, error) {
			select {
			case uid := <-uids:
				return uid, nil
			default:
				return 1000, nil
			}
		}
		s.sure = 0
	})
	var conns []*wire.Conn
	for i := range maxConns {
		uids <- 100000 + i/maxUserConns
		conns = append(conns, b.connect())
	}
	if _, err := submit(b.client, recipients(1), text); err != nil {
		t.Fatal(err)
	}
	gave := 0
	for _, conn := range conns {
		if err := conn.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if frame, _, err := conn.Receive(maxFrame, 0); err == nil {
			gave++
			if string(frame) != "xb others wait for the place" {
				t.Errorf("answer %q", frame)
			}
		}
	}
	if gave != 1 {
		t.Errorf("%d gave their place", gave)
	}
	b.server.mu.Lock()
	defer b.server.mu.Unlock()
	b.server.sure = time.Hour
	for c := range b.server.open {
		c.gives = time.Time{}
	}
	b.server.mu.Unlock()
	b.server.makeRoom()
	b.server.mu.Lock()
	for c := range b.server.open {
		if !c.gives.IsZero() {
			t.Error("a fresh one is to go")
		}
	}
}

// TestManyLists: who has asked for a list and does not take it, or takes it slowly,
// gives the place back as soon as anybody; where one does not, the next one does.
func TestManyLists(t *testing.T) {
	for _, slowly := range []bool{false, true} {
		uids := make(chan int, 2*maxConns)
		b := newBench(t, func(s *Server) {
			s.peer = func(int) (int, error) {
				select {
				case uid := <-uids:
					return uid, nil
				default:
					return 1000, nil
				}
			}
			s.sure, s.hurry = 0, 20*time.Millisecond
			s.idle = time.Hour
			s.o.List = func(int, bool) (iter.Seq[[]byte], error) {
				return func(yield func([]byte) bool) {
					for yield(make([]byte, maxPayload/2)) {
					}
				}, nil
			}
		})
		for i := range maxConns {
			uids <- 100000 + i
			conn := b.connect()
			b.send(conn, "l")
			if got := b.hear(conn); !strings.HasPrefix(got, "e") {
				t.Fatalf("answer %.20q", got)
			}
			if !slowly {
				continue
			}
			go func() {
				for ; ; time.Sleep(10 * time.Millisecond) {
					if _, _, err := conn.Receive(maxFrame, 0); err != nil {
						return
					}
				}
			}()
		}
		if _, err := submit(b.client, recipients(1), text); err != nil {
			t.Fatalf("slowly %v: %v", slowly, err)
		}
	}
}

// gone waits until no more than n connections of a user are left.
func (b *bench) gone(uid, n int) {
	b.t.Helper()
	l := &b.server.limits
	left := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		if u := l.users[uid]; u != nil {
			return u.conns
		}
		return 0
	}
	for end := time.Now().Add(time.Minute); left() > n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("uid %d still has %d connections after a minute", uid, left())
		}
	}
}

// TestBusyClient: a client that is sent away comes again.
func TestBusyClient(t *testing.T) {
	came := make(chan bool, 1000)
	b := newBench(t, func(s *Server) {
		s.peer = func(int) (int, error) { came <- true; return 1000, nil }
	})
	var conns []*wire.Conn
	for range maxUserConns {
		conns = append(conns, b.connect())
		<-came
	}
	var id string
	done := make(chan error, 1)
	go func() {
		var err error
		id, err = submit(b.client, recipients(1), text)
		done <- err
	}()
	<-came
	<-came // it has been sent away, and is here again
	conns[0].Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b.message(id)
}

// TestSilence: who says nothing, or takes nothing, loses the place.
func TestSilence(t *testing.T) {
	b := newBench(t, func(s *Server) {
		as(1234)(s)
		s.idle = 20 * time.Millisecond
		s.o.List = func(int, bool) (iter.Seq[[]byte], error) {
			return func(yield func([]byte) bool) {
				for yield(make([]byte, maxPayload)) {
				}
			}, nil
		}
	})
	for _, frames := range [][]string{nil, {envelope1}, {envelope1, to1}, {envelope1, to1, begin}} {
		conn := b.connect()
		for _, f := range frames {
			_ = conn.Send([]byte(f)) // on a slow machine the place is lost before
		}
		got := b.hear(conn)
		if got[0] == sayID {
			got = b.hear(conn)
		}
		if got != "xt you were silent for too long" {
			t.Errorf("after %q: %q", frames, got)
		}
	}
	b.send(b.connect(), "l") // and the answer is never read
	b.idle()
	if left := b.names(); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

// TestTrickle: who always says a little loses the place when his time is over.
func TestTrickle(t *testing.T) {
	b := newBench(t, func(s *Server) { s.time = 50 * time.Millisecond })
	conn := b.connect()
	for _, f := range []string{envelope1, to1, begin} {
		_ = conn.Send([]byte(f)) // on a slow machine the time is over before
	}
	for conn.Send([]byte("dx")) == nil {
	}
	got := b.hear(conn)
	if got[0] == sayID {
		got = b.hear(conn)
	}
	if got != "xt you were silent for too long" {
		t.Errorf("answer %q", got)
	}
	b.idle()
	if left := b.names(); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

// TestEndlessList: who takes a listing slowly, but takes it, loses the place too.
func TestEndlessList(t *testing.T) {
	b := newBench(t, func(s *Server) {
		as(1234)(s)
		s.idle = 20 * time.Millisecond
		s.o.List = func(int, bool) (iter.Seq[[]byte], error) {
			return func(yield func([]byte) bool) {
				for yield([]byte("entry")) {
				}
			}, nil
		}
	})
	conn := b.connect()
	b.send(conn, "l")
	for {
		if _, _, err := conn.Receive(maxFrame, 0); err != nil {
			break
		}
	}
	b.idle()
}

// TestLists: a user who lists in a loop waits a multiple of what it costs, and
// nobody else does.
func TestLists(t *testing.T) {
	var l limits
	now := time.Unix(1e9, 0)
	if l.enter(7) != nil || l.enter(8) != nil || l.list(7, now) != nil {
		t.Fatal("no place")
	}
	if r := l.list(7, now); r == nil || r.Kind != Busy {
		t.Errorf("twice at a time: %v", r)
	}
	l.unlist(7, now, time.Second)
	l.leave(7, 0)
	if l.enter(7) != nil {
		t.Fatal("no place")
	}
	if r := l.list(7, now.Add(listRest*time.Second-1)); r == nil || r.Kind != Busy {
		t.Errorf("at once: %v", r)
	}
	if r := l.list(8, now); r != nil {
		t.Errorf("another: %v", r)
	}
	l.unlist(8, now, 0)
	if r := l.list(8, now); r != nil {
		t.Errorf("one who may: %v", r)
	}
	if r := l.list(7, now.Add(listRest*time.Second)); r != nil {
		t.Errorf("later: %v", r)
	}
	now = now.Add(time.Minute)
	l.unlist(7, now, time.Hour)
	if r := l.list(7, now.Add(longestRest)); r != nil {
		t.Errorf("after a long one: %v", r)
	}
	l.unlist(7, now.Add(2*longestRest), 0)
	if len(l.rests) != 0 {
		t.Errorf("kept: %v", l.rests)
	}
}

// TestHeld: one user's envelopes can't fill the memory.
func TestHeld(t *testing.T) {
	var l limits
	if l.enter(7) != nil || l.enter(8) != nil {
		t.Fatal("no place")
	}
	const step = maxUserHeld / 4
	for i := range 4 {
		if r := l.hold(7, step); r != nil {
			t.Fatalf("step %d: %v", i, r)
		}
	}
	if r := l.hold(7, 1); r == nil || r.Kind != Busy {
		t.Errorf("one octet more: %v", r)
	}
	if r := l.hold(8, step); r != nil {
		t.Errorf("another user: %v", r)
	}
	l.leave(7, 4*step)
	l.leave(8, step)
	if !l.idle() || l.total != (use{}) {
		t.Errorf("left: %+v %+v", l.total, l.users)
	}
}

// TestFlushes: at once for root; for users once a minute, and no request is
// lost.
func TestFlushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		f := flusher{do: func() error { n++; return nil }}
		at := func(what string, want int) {
			t.Helper()
			synctest.Wait()
			f.mu.Lock()
			defer f.mu.Unlock()
			if n != want {
				t.Errorf("%s: %d runs, want %d", what, n, want)
			}
		}
		for range 100 {
			f.soon()
		}
		at("a hundred requests", 1)
		time.Sleep(flushEvery - time.Second)
		at("within the minute", 1)
		time.Sleep(time.Second)
		at("after it", 2)
		f.soon()
		f.now()
		at("the owner", 3)
		time.Sleep(flushEvery)
		at("a minute later", 4)
		time.Sleep(flushEvery)
		f.soon()
		at("after a quiet minute", 5)
		f.soon()
		f.promised()
		at("at the end", 6)
		time.Sleep(2 * flushEvery)
		at("long after", 6)
	})
}

// The steps of a submission, by the frames that have been sent.
var steps = []string{envelope1, to1, begin, "dmore\n", "dand more\n"}

// TestClientDies: at each step before the commit nothing is left, after it the
// message is there although nobody has heard the answer.
func TestClientDies(t *testing.T) {
	for n := range len(steps) + 2 {
		b := newBench(t, as(1234))
		conn := b.connect()
		for i, f := range steps[:min(n, len(steps))] {
			b.send(conn, f)
			if i == 1 {
				b.hear(conn)
			}
		}
		if n > len(steps) {
			b.send(conn, "c")
		}
		conn.Close()
		b.idle()
		b.stop()
		left := b.names()
		if n <= len(steps) && len(left) != 0 {
			t.Errorf("after %d frames: %q", n, left)
		}
		if n > len(steps) && (len(left) != 1 || !strings.HasPrefix(left[0], "new/")) {
			t.Errorf("after the commit: %q", left)
		}
	}
}

// TestStop: a server that stops gives up who has not committed, tells him so,
// and waits for nobody.
func TestStop(t *testing.T) {
	for n := range len(steps) + 1 {
		b := newBench(t, as(1234))
		conn := b.connect()
		for i, f := range steps[:n] {
			b.send(conn, f)
			if i == 1 {
				b.hear(conn)
			}
		}
		if n < 2 { // so that it is certain that it is in
			b.connect()
			if err := b.client.Free(); err != nil {
				t.Fatal(err)
			}
		}
		b.stop()
		if got := b.hear(conn); got != "xb the service is stopping" {
			t.Errorf("after %d frames: %q", n, got)
		}
		if left := b.names(); len(left) != 0 {
			t.Errorf("after %d frames: %q", n, left)
		}
	}
}

// serverEnv makes the test's own program a server: the folder of its spool and
// socket.
const serverEnv = "DMA_TEST_DOOR"

func serverMain(dir string) int {
	s, err := spooldir.Open(filepath.Join(dir, "q"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	lock, err := s.Lock(spooldir.QueueRole, "test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer lock.Close()
	listener, err := Inherited(3)
	if err == nil {
		err = New(Options{Spool: s, HostName: "mail.example"}).Serve(context.Background(), listener)
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// TestServerDies: killed at each step before the commit, the server leaves no
// mail and the client hears of it; after an answer to the commit the message is
// there.
func TestServerDies(t *testing.T) {
	for n := 2; n < len(steps)+2; n++ {
		dir := t.TempDir()
		queue := filepath.Join(dir, "q")
		if err := spooldir.Init(queue); err != nil {
			t.Fatal(err)
		}
		c := Client{filepath.Join(dir, "s")}
		listener, err := Listen(c.Path)
		if err != nil {
			t.Fatal(err)
		}
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), serverEnv+"="+dir)
		cmd.ExtraFiles = []*os.File{listener}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		listener.Close()
		d, err := c.Create(recipients(1))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range steps[2:min(n, len(steps))] {
			if _, err := d.Write([]byte(f[1:])); err != nil {
				t.Fatal(err)
			}
		}
		var committed error
		if n > len(steps) {
			committed = d.Commit()
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		s, err := spooldir.Open(queue)
		if err != nil {
			t.Fatal(err)
		}
		mail := 0
		for _, file := range names(t, queue) {
			name, err := spooldir.ParseName(strings.TrimPrefix(file, "new/"))
			if err != nil {
				continue // in tmp, for the cleaner
			}
			if m, err := s.Open(spooldir.New, name); err == nil {
				mail++
				m.Close()
			}
		}
		if n > len(steps) {
			if committed != nil || mail != 1 {
				t.Errorf("after the commit: %v, %d messages", committed, mail)
			}
			continue
		}
		err = d.Commit()
		var r *Refusal
		if err == nil || errors.As(err, &r) || mail != 0 {
			t.Errorf("after %d frames: %v, %d messages", n, err, mail)
		}
	}
}

// TestUnknownOutcome: a server that dies between the commit and its answer.
func TestUnknownOutcome(t *testing.T) {
	ours, theirs, err := wire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	server := wire.New(theirs)
	d := &Draft{conn: wire.New(ours)}
	go func() {
		_, _, _ = server.Receive(maxFrame, 0)
		server.Close()
	}()
	if err := d.Commit(); !errors.Is(err, ErrUnknown) {
		t.Errorf("got %v", err)
	}
}

// TestLyingServer: what is no answer is an error, not a success.
func TestLyingServer(t *testing.T) {
	for _, answer := range []string{"", "i", "iid 5", "o", "Z", "e", "x", "xq text"} {
		ours, theirs, err := wire.Pair()
		if err != nil {
			t.Fatal(err)
		}
		server, d := wire.New(theirs), &Draft{conn: wire.New(ours)}
		if err := server.Send([]byte(answer)); err != nil {
			t.Fatal(err)
		}
		server.Close()
		if err := d.begun(); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%q: %v", answer, err)
		}
		d.Abort()
	}
}
