package parent

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"dma/agent"
)

func TestRun(t *testing.T) {
	f := newFixture(t)
	stop := f.run(t)
	queue, net := f.both(t)
	for _, tt := range []struct {
		c           *fakeChild
		role, setup string
		uid         int
	}{{queue, RoleQueue, "for the queue", queueUID}, {net, RoleNet, "for the net", netUID}} {
		s := tt.c.spec
		if s.role != tt.role || s.account.UID != tt.uid || !s.worker || s.env[len(s.env)-1] != "X=1" || len(s.files) != 6 || s.files[3] != nil {
			t.Errorf("%+v", s)
		}
		if setup, err := io.ReadAll(tt.c.conns[1]); err != nil || string(setup) != tt.setup {
			t.Errorf("%q, %v", setup, err)
		}
	}
	q, n := NewClient(queue.conn()), NewClient(net.conn())
	q.Ready(Work{})
	if n.Ready(Work{}); true {
		receive(t, f.ready, "Ready")
	}
	// A flush goes from the queue process to the net process.
	if _, err := queue.conns[4].Write([]byte{0}); err != nil {
		t.Error(err)
	}
	if n, err := net.conns[4].Read(make([]byte, 10)); n != 1 || err != nil {
		t.Errorf("%d %v", n, err)
	}
	// Pings are answered by the Clients.
	receive(t, f.alive, "Alive")
	f.clock.until(t, 10*time.Second)
	f.clock.until(t, 10*time.Second)
	f.clock.advance(10 * time.Second)
	receive(t, f.alive, "second Alive")
	stop()
	receive(t, q.Done(), "end of the queue's connection")
	receive(t, n.Done(), "end of the net's connection")
}

// TestRestart: a worker that ends is started again after a pause that grows, and
// the other one stays.
func TestRestart(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	queue, net := f.both(t)
	n := NewClient(net.conn())
	n.Ready(Work{})
	pause := time.Second
	for range 8 {
		queue.end(errors.New("exit status 1"))
		f.clock.until(t, pause)
		f.clock.advance(pause)
		queue = f.child(t)
		if queue.spec.role != RoleQueue {
			t.Fatalf("%+v", queue.spec)
		}
		pause = min(2*pause, time.Minute)
	}
	select {
	case <-net.gone:
		t.Error("the net process was ended")
	case <-f.ready:
		t.Error("ready without a queue process")
	default:
	}
	q := NewClient(queue.conn())
	q.Ready(Work{})
	receive(t, f.ready, "Ready")
	if log := f.log.String(); !strings.Contains(log, "worker-trouble role=queue") || !strings.Contains(log, `; started again in 4s"`) {
		t.Error(log)
	}
	// One that has lived for a while begins anew.
	f.clock.advance(time.Minute)
	queue.end(errors.New("exit status 1"))
	f.clock.until(t, time.Second)
}

// TestInOrder: a worker that ends in good order after a while is started again at
// once. One that does so over and over is not.
func TestInOrder(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "exit 0")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t)
	f.run(t)
	queue, _ := f.both(t)
	for range 3 {
		f.clock.advance(time.Minute)
		queue.end(exited{cmd.ProcessState})
		queue = f.child(t)
		if queue.spec.role != RoleQueue {
			t.Fatalf("%+v", queue.spec)
		}
	}
	if log := f.log.String(); strings.Contains(log, "worker-trouble") {
		t.Error(log)
	}
	queue.end(exited{cmd.ProcessState})
	f.clock.until(t, time.Second)
}

// TestSilence: a worker that does not answer pings is killed.
func TestSilence(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	queue, net := f.both(t)
	conn := queue.conn()
	expect := func(kind byte) {
		t.Helper()
		if frame, _, err := conn.Receive(maxAnswer, 0); err != nil || frame[4] != kind {
			t.Fatalf("%q, %v", frame, err)
		}
	}
	for range maxSilent {
		expect(kindPing)
		conn.Send(message{kind: kindPong, fields: []string{stateBusy, "0", "0"}}.encode())
		conn.Send(message{kind: kindLookupID, fields: []string{"0"}}.encode())
		expect(kindAnswer) // so the other one has arrived too
		f.clock.until(t, 10*time.Second)
		f.clock.until(t, 10*time.Second)
		f.clock.advance(10 * time.Second)
	}
	receive(t, net.gone, "end of the silent one")
	f.clock.until(t, time.Second)
	if log := f.log.String(); !strings.Contains(log, "role=net error=\"no answer to a ping; started again in 1s\"") || strings.Contains(log, "role=queue") {
		t.Error(log)
	}
}

// TestGarbageKills: the worker that sends it is killed, and its agents are told
// to end; another one is started.
func TestGarbageKills(t *testing.T) {
	f := newFixture(t)
	f.run(t)
	queue, _ := f.both(t)
	conn := queue.conn()
	conn.AcceptFiles()
	start := message{number: 1, kind: kindStart, fields: []string{"ann", "user"}}
	if err := conn.Send(start.encode()); err != nil {
		t.Fatal(err)
	}
	a := f.child(t)
	for {
		frame, files, err := conn.Receive(maxAnswer, 1)
		if err != nil {
			t.Fatal(err)
		}
		if m, _ := decode(frame); m.kind == kindAnswer {
			if len(files) != 1 {
				t.Errorf("%d connections", len(files))
			}
			break
		}
	}
	if err := conn.Send([]byte("garbage")); err != nil {
		t.Fatal(err)
	}
	receive(t, queue.gone, "end of the queue process")
	// The agent sees the end of its life.
	if _, err := a.conns[2].Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("life: %v", err)
	}
	// It does not heed it: it is killed.
	f.clock.until(t, time.Second)
	f.clock.advance(time.Second)
	if next := f.child(t); next.spec.role != RoleQueue {
		t.Errorf("%+v", next.spec)
	}
	f.advanceUntil(t, a.gone, "end of the agent")
	if log := f.log.String(); !strings.Contains(log, "not a message of the protocol") {
		t.Error(log)
	}
}

func TestReload(t *testing.T) {
	f := newFixture(t)
	configs := make(chan Options, 2)
	var fail error
	f.o.Reload = func() (Options, error) { return <-configs, fail }
	f.run(t)
	queue, net := f.both(t)
	bad := f.options()
	bad.Net.UID = 0
	configs <- bad
	f.hangup <- syscall.SIGHUP
	good := f.options()
	good.NetSetup, good.Agent.MinUID, good.Clock = []byte("new"), 7, nil
	configs <- good
	f.hangup <- syscall.SIGHUP
	for _, c := range []*fakeChild{queue, net} {
		if _, err := c.conns[2].Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("life: %v", err)
		}
		c.end(errors.New("asked to"))
	}
	_, net = f.both(t)
	if setup, err := io.ReadAll(net.conns[1]); string(setup) != "new" || err != nil {
		t.Errorf("%q, %v", setup, err)
	}
	if o := f.options(); o.Agent.MinUID != 7 || o.Clock == nil || o.RunDir == "" || o.Ready == nil {
		t.Errorf("%+v", o)
	}
	if log := f.log.String(); strings.Count(log, "\n") != 1 || !strings.Contains(log, "may not have uid 0") {
		t.Error(log)
	}
}

func TestCheck(t *testing.T) {
	good := newFixture(t).options()
	if err := good.check(); err != nil {
		t.Fatal(err)
	}
	for about, spoil := range map[string]func(*Options){
		"root":      func(o *Options) { o.Queue.UID = 0 },
		"gid":       func(o *Options) { o.Net.GID = 0 },
		"groups":    func(o *Options) { o.Net.Groups = []int{5, 0} },
		"same":      func(o *Options) { o.Net.UID = o.Queue.UID },
		"negative":  func(o *Options) { o.Net.UID = -1 },
		"run dir":   func(o *Options) { o.RunDir = "run" },
		"no users":  func(o *Options) { o.Users = nil },
		"no net":    func(o *Options) { o.Net = Account{} },
		"wheel uid": func(o *Options) { o.Queue = Account{UID: 5, GID: 0} },
	} {
		o := good
		if spoil(&o); o.check() == nil {
			t.Errorf("%s: taken", about)
		}
	}
}

// TestLocks: the folder has to be root's alone, here the caller's.
func TestLocks(t *testing.T) {
	dir := t.TempDir()
	l, err := openLocks(dir + "/run")
	if err != nil {
		t.Fatal(err)
	}
	defer l.dir.Close()
	f, err := l.take(5, agent.UserRole)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.take(5, agent.UserRole); !errors.Is(err, agent.ErrBusy) {
		t.Errorf("twice: %v", err)
	}
	g, err := l.take(5, agent.MailboxRole)
	if err != nil {
		t.Errorf("the other role: %v", err)
	}
	g.Close()
	f.Close()
	if err := os.Chmod(dir+"/run/agents", 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := openLocks(dir + "/run"); err == nil {
		t.Error("an open folder is taken")
	}
	if err := os.Remove(dir + "/run/agents/5.user"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/nonexistent/x", dir+"/run/agents/6.user"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.take(6, agent.UserRole); err == nil {
		t.Error("a link is followed")
	}
}
