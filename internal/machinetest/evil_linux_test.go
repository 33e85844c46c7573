package machinetest

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// evil is a worker that has been taken over: see testdata/evil.
type evil struct {
	t    testing.TB
	pid  int
	said string // the report of its sandbox
	conn net.Conn
	in   *bufio.Scanner
}

// evilOrder and evilReport are the lines to and from it.
type evilOrder struct {
	Do   string
	Args []string
	Data []byte
	N    int
	Kind string
}

type evilReport struct {
	Err  string
	Text string
	Data []byte
}

// evilPlace is where the test listens for workers that are taken over.
const evilPlace = libexec + "/evil/"

// installEvil replaces dma-runner by the one whose workers can be taken over.
func (m *machine) installEvil() {
	m.t.Helper()
	text, err := os.ReadFile(m.evilProgram())
	m.do(err)
	m.write(runnerBin, string(text), 0o755)
}

// evilProgram builds the program and returns its path.
func (m *machine) evilProgram() string {
	m.t.Helper()
	program := filepath.Join(os.Getenv(dirEnv), "evil")
	if _, err := os.Stat(program); err != nil {
		build := exec.Command("go", "build", "-trimpath", "-o", program, "./testdata/evil")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			m.t.Fatalf("go build: %v\n%s", err, out)
		}
	}
	return program
}

// installHasty replaces dma-runner by one that finds a stopped agent out sooner,
// and sooner gives its user the next one and tries again what it could not finish.
func (m *machine) installHasty() {
	m.t.Helper()
	program := filepath.Join(os.Getenv(dirEnv), "hasty")
	if _, err := os.Stat(program); err != nil {
		overlay := struct{ Replace map[string]string }{make(map[string]string)}
		for _, change := range []struct{ file, limit, hasty string }{
			{"agent/link.go", "pingEvery = 10 * time.Second", "pingEvery = 200 * time.Millisecond"},
			{"agent/link.go", "pongWithin = 30 * time.Second", "pongWithin = 2 * time.Second"},
			{"agent/remote.go", "refuseFor = time.Minute", "refuseFor = time.Second"},
			{"queue/forwarding.go", "q.ringAfter(30*time.Second,", "q.ringAfter(time.Second,"},
			{"queue/forwarding.go", "slowForward = 5 * time.Second", "slowForward = time.Second"},
			{"forward/include.go", "readTime = 30 * time.Second", "readTime = 2 * time.Second"},
		} {
			source, err := filepath.Abs(filepath.Join("../..", change.file))
			m.do(err)
			if overlay.Replace[source] == "" {
				overlay.Replace[source] = source
			}
			text, err := os.ReadFile(overlay.Replace[source])
			m.do(err)
			limit := regexp.MustCompile(strings.ReplaceAll(regexp.QuoteMeta(change.limit), " ", " +"))
			if n := len(limit.FindAll(text, -1)); n != 1 {
				m.t.Fatalf("%s has %d times %s", change.file, n, change.limit)
			}
			overlay.Replace[source] = program + "-" + filepath.Base(change.file)
			m.write(overlay.Replace[source], limit.ReplaceAllLiteralString(string(text), change.hasty), 0o644)
		}
		text, err := json.Marshal(overlay)
		m.do(err)
		m.write(program+".json", string(text), 0o644)
		build := exec.Command("go", "build", "-trimpath", "-overlay", program+".json", "-o", program, "dma/cmd/dma-runner")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			m.t.Fatalf("go build: %v\n%s", err, out)
		}
	}
	text, err := os.ReadFile(program)
	m.do(err)
	m.write(runnerBin, string(text), 0o755)
}

// takeOver makes the next process of a role a worker of ours. The next function
// returns each of them; release makes those that follow real ones.
func (m *machine) takeOver(role string) (next func() *evil, release func()) {
	m.t.Helper()
	m.do(os.MkdirAll(evilPlace, 0o755))
	l, err := net.Listen("unix", evilPlace+role)
	m.do(err)
	m.do(os.Chmod(evilPlace+role, 0o666))
	m.t.Cleanup(func() { l.Close() })
	next = func() *evil {
		m.t.Helper()
		m.do(l.(*net.UnixListener).SetDeadline(time.Now().Add(time.Minute)))
		conn, err := l.Accept()
		if err != nil {
			m.t.Fatalf("no process of %s: %v", role, err)
		}
		m.t.Cleanup(func() { conn.Close() })
		e := &evil{t: m.t, conn: conn, in: bufio.NewScanner(conn)}
		e.in.Buffer(nil, 16<<20)
		if !e.in.Scan() {
			m.t.Fatalf("the process of %s has ended: %v", role, e.in.Err())
		}
		var r evilReport
		m.do(json.Unmarshal(e.in.Bytes(), &r))
		if n, err := fmt.Sscan(r.Text, &e.pid); n != 1 {
			m.t.Fatalf("%+v: %v", r, err)
		}
		e.said = r.Text
		return e
	}
	return next, func() { l.Close() }
}

func (e *evil) answer() evilReport {
	e.t.Helper()
	var r evilReport
	if !e.in.Scan() {
		e.t.Fatalf("the process has ended: %v", e.in.Err())
	}
	if err := json.Unmarshal(e.in.Bytes(), &r); err != nil {
		e.t.Fatal(err)
	}
	return r
}

// order has the process do something, a minute long at most.
func (e *evil) order(o evilOrder) evilReport {
	e.t.Helper()
	if err := e.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		e.t.Fatal(err)
	}
	if err := json.NewEncoder(e.conn).Encode(o); err != nil {
		e.t.Fatalf("%s: %v", o.Do, err)
	}
	return e.answer()
}

// last has the process do what it is killed for, and reports whether it was.
func (e *evil) last(o evilOrder) bool {
	e.t.Helper()
	if err := json.NewEncoder(e.conn).Encode(o); err != nil {
		e.t.Fatalf("%s: %v", o.Do, err)
	}
	_ = e.conn.SetDeadline(time.Now().Add(time.Minute))
	if e.in.Scan() { // the answer, if it came to one
		var r evilReport
		if err := json.Unmarshal(e.in.Bytes(), &r); err != nil || r.Err != "" {
			e.t.Fatalf("%s: %s, %v", o.Do, r.Err, err)
		}
	}
	return e.ended()
}

// ended waits for the end of the process, a minute at most.
func (e *evil) ended() bool {
	_ = e.conn.SetDeadline(time.Now().Add(time.Minute))
	return !e.in.Scan() && e.in.Err() == nil
}

// frame is a request of the control socket, with its header.
func frame(number uint32, files int, kind byte, fields ...string) []byte {
	body := binary.BigEndian.AppendUint32(nil, number)
	body = append(append(body, kind), strings.Join(fields, "\x00")...)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), append([]byte{byte(files)}, body...)...)
}

// ask sends a request, and returns the answer to it.
func (e *evil) ask(number uint32, kind byte, fields ...string) string {
	e.t.Helper()
	if r := e.order(evilOrder{Do: "send", Data: frame(number, 0, kind, fields...)}); r.Err != "" {
		e.t.Fatalf("send: %s", r.Err)
	}
	for {
		r := e.order(evilOrder{Do: "receive"})
		if r.Err != "" {
			e.t.Fatalf("%c %q: no answer: %s", kind, fields, r.Err)
		}
		if len(r.Data) > 5 && r.Data[4] == '=' && binary.BigEndian.Uint32(r.Data) == number {
			return strings.ReplaceAll(string(r.Data[5:]), "\x00", " ")
		}
	}
}

// attempt is something that a worker tries in its sandbox, and the error that
// it has to meet; several are separated by blanks, and "ok" is none.
type attempt struct {
	order evilOrder
	want  string
}

// tries has the process try things.
func (e *evil) tries(list []attempt) {
	e.t.Helper()
	for _, a := range list {
		r := e.order(a.order)
		got := r.Err
		if got == "" {
			got = "ok"
		}
		found := false
		for want := range strings.FieldsSeq(a.want) {
			found = found || got == want
		}
		if !found {
			e.t.Errorf("%s %q %#o: %s %q, want %s", a.order.Do, a.order.Args, a.order.N, got, r.Data, a.want)
		}
	}
}
