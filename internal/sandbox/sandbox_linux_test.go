//go:build amd64 || arm64

package sandbox_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"dma/internal/sandbox"
	"dma/internal/smtptest"
	"dma/spooldir"
	"dma/states"
)

// helper builds the program that goes into the sandbox, as what is installed
// is built.
func helper(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "helper")
	cmd := exec.Command("go", "build", "-o", path, "./testdata/helper")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

type setup struct {
	Queue        *sandbox.QueuePaths
	Net          *sandbox.NetPaths
	Spool        string
	Outside      string
	TCP, DNS     string
	TLS          string
	Unix         string
	Metrics      string
	KeepThreads  int
	Capabilities bool
}

// newSetup makes a spool and servers on loopback, and returns them with the
// listener that the helper inherits.
func newSetup(t *testing.T) (setup, *os.File) {
	t.Helper()
	s := setup{Spool: filepath.Join(t.TempDir(), "spool"), Outside: t.TempDir(), KeepThreads: 5}
	if err := spooldir.Init(s.Spool); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"local/r", "local/l", "sent/r", "sent/s", "remote/b", "remote/c", "remote/d", "remote/e", "remote/f", "remote/g", "log/a", "log/b", "lock/net", "lock/queue", "mine"} {
		if err := os.WriteFile(filepath.Join(s.Spool, file), []byte("x\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(s.Outside, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(s.Spool, "remote", "link")); err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tcp.Close() })
	s.TCP = tcp.Addr().String()
	web := httptest.NewUnstartedServer(nil)
	web.TLS = &tls.Config{}
	web.StartTLS()
	t.Cleanup(web.Close)
	s.TLS = web.Listener.Addr().String()
	s.DNS = dnsServer(t)
	s.Unix = filepath.Join(s.Outside, "sock")
	ul, err := net.Listen("unix", s.Unix)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ul.Close() })
	inherited, err := net.Listen("unix", filepath.Join(s.Outside, "door"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inherited.Close() })
	caller, err := net.Dial("unix", filepath.Join(s.Outside, "door"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { caller.Close() })
	f, err := inherited.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return s, f
}

func run(t *testing.T, program string, s setup, listener *os.File) map[string]string {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, string(text))
	cmd.ExtraFiles = []*os.File{listener}
	if os.Geteuid() == 0 {
		// As it is meant: by a user without privilege.
		const uid = 64410
		if s.Metrics != "" {
			share(t, filepath.Dir(s.Metrics), uid)
		}
		share(t, s.Spool, uid)
		share(t, s.Outside, uid)
		share(t, filepath.Dir(program), 0)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("helper: %v\n%s", err, stderr.Bytes())
	}
	var got map[string]string
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	t.Log(got["report"])
	if !strings.Contains(got["report"], "no_new_privs=yes") || !strings.Contains(got["report"], "capabilities=none") {
		t.Errorf("report %s", got["report"])
	}
	if strings.Contains(got["report"], "landlock=no") || strings.Contains(got["report"], "seccomp=no") {
		t.Skip("this kernel lacks what is tested: " + got["report"])
	}
	return got
}

// share gives a folder and all in it to a user, who can reach it.
func share(t *testing.T, dir string, uid int) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, uid)
	}); err != nil {
		t.Fatal(err)
	}
	for ; dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// The answers to what is forbidden: by Landlock and by the filter.
const (
	ok     = "ok"
	denied = "permission denied"
	filter = "operation not permitted"
)

func compare(t *testing.T, got, want map[string]string) {
	t.Helper()
	for name, answer := range got {
		switch w, known := want[name]; {
		case name == "report":
		case !known:
			t.Errorf("%s: %s, and nothing is expected", name, answer)
		case w == ok && answer != ok, w != ok && !strings.HasSuffix(answer, w):
			t.Errorf("%s: %s; want %s", name, answer, w)
		}
	}
	for name := range want {
		if _, tried := got[name]; !tried {
			t.Errorf("%s was not tried", name)
		}
	}
}

// everywhere is what every policy allows and forbids.
func everywhere(more map[string]string) map[string]string {
	want := map[string]string{
		"read outside": denied, "write outside": denied, "truncate outside": denied, "read through link": denied,
		"read remote": ok, "list remote": ok, "sync remote": ok, "remove from remote": ok,
		"move to sent": ok, "move to corrupt": ok, "append to log": ok, "own lock": ok, "null": ok, "mounts": ok, "environment of parent": denied, "collect garbage": ok, "fsnotify": ok,
		"exec": filter, "execve": filter, "fork": filter, "signal parent": filter, "signal self": ok, "ptrace": filter, "read memory": filter,
		"map code": filter, "setuid": filter, "bpf": filter, "io_uring": filter, "later call": "function not implemented",
		"raise a limit": filter, "see a limit": ok, "own descriptor signals": filter,
		"unix dial": ok, "tcp listen": filter, "unix listen": filter, "raw socket": filter, "replace a file": ok,
		"chmod setuid": filter, "chmod setgid": filter, "fchmod setuid": filter, "fchmodat2 setuid": filter,
		"create setuid": filter, "create setgid": filter, "unnamed setuid": filter, "openat2": "function not implemented",
	}
	for k, v := range more {
		want[k] = v
	}
	return want
}

func TestSandbox(t *testing.T) {
	program := helper(t)
	t.Run("queue", func(t *testing.T) { testQueue(t, program) })
	t.Run("net", func(t *testing.T) { testNet(t, program) })
	t.Run("capabilities", func(t *testing.T) { testKeepCapabilities(t, program) })
}

func testQueue(t *testing.T, program string) {
	s, listener := newSetup(t)
	aliases := filepath.Join(t.TempDir(), "aliases")
	s.Metrics = filepath.Join(t.TempDir(), "dma.prom")
	s.Queue = &sandbox.QueuePaths{Spool: s.Spool, Aliases: []string{aliases}, Metrics: s.Metrics}
	compare(t, run(t, program, s, listener), everywhere(map[string]string{
		"create in remote": ok, "read local": ok, "list local": ok, "list new": ok, "create in new": ok, "list sent": ok, "read sent": ok,
		"move out of sent": ok, "move to new": ok, "move out of local": ok, "create in log": ok, "remove from log": ok, "remove ballast": ok,
		"other lock": ok, "chmod": ok, "accept": ok,
		"read /etc": denied, "tcp dial": filter, "dns": filter, "tls": filter,
		"hosts": filter, "root certificates": denied,
	}))
}

func testNet(t *testing.T, program string) {
	for name, sync := range map[string]bool{"ordered": false, "sync files": true} {
		t.Run(name, func(t *testing.T) {
			s, listener := newSetup(t)
			s.Metrics = filepath.Join(t.TempDir(), "net.prom")
			s.Net = &sandbox.NetPaths{Spool: s.Spool, SyncFiles: sync, Metrics: s.Metrics}
			readSent := denied
			if sync {
				readSent = ok
			}
			compare(t, run(t, program, s, listener), everywhere(map[string]string{
				"create in remote": denied, "read local": denied, "list local": denied, "list new": denied, "create in new": denied,
				"list sent": denied, "read sent": readSent, "move out of sent": denied, "move to new": denied, "move out of local": denied,
				"create in log": denied, "remove from log": denied, "remove ballast": denied, "other lock": denied,
				"chmod": ok, "accept": filter,
				"read /etc": ok, "tcp dial": ok, "dns": ok, "tls": ok, "hosts": ok, "root certificates": ok,
			}))
		})
	}
}

// Every legal step of the net process is allowed by the rights of its policy:
// those of the two directories, and that the second has none to the file that
// the first lacks.
func TestNetSteps(t *testing.T) {
	rights := make(map[string]sandbox.Rights)
	for _, p := range sandbox.Net(sandbox.NetPaths{Spool: "/s", SyncFiles: true}).Paths {
		rights[strings.TrimPrefix(p.Path, "/s/")] = p.Rights
	}
	const file = sandbox.Read | sandbox.Write | sandbox.Truncate
	for _, step := range append(states.Table(), states.Step{From: spooldir.Remote, To: spooldir.Corrupt, By: []states.Actor{states.Net}}) {
		if step.From != spooldir.Remote || !slices.Contains(step.By, states.Net) {
			continue
		}
		from, to := rights[string(step.From)], rights[string(step.To)]
		if from&sandbox.Remove == 0 {
			t.Errorf("no name can leave %s", step.From)
		}
		if step.To != states.Gone && (from&to&sandbox.Move == 0 || to&sandbox.Create == 0 || to&file&^from != 0) {
			t.Errorf("the step from %s to %s is not possible", step.From, step.To)
		}
	}
}

// A parent keeps what it needs and gives its children no more.
func testKeepCapabilities(t *testing.T, program string) {
	text, err := json.Marshal(setup{Capabilities: true})
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(program, string(text)).Output()
	if err != nil {
		t.Fatal(err)
	}
	want := "0000000000000020"
	if os.Geteuid() != 0 {
		want = "0000000000000000"
	}
	for _, set := range []string{"CapPrm", "CapEff"} {
		if !strings.Contains(string(out), set+":\t"+want+"\n") {
			t.Errorf("%s is not %s in\n%s", set, want, out)
		}
	}
	if os.Geteuid() == 0 && !strings.Contains(string(out), "CapBnd:\t"+want) {
		t.Errorf("the bounding set is not %s in\n%s", want, out)
	}
}

func dnsServer(t *testing.T) string {
	t.Helper()
	d, err := smtptest.NewDNS(map[string][]string{"relay.example": {"A 192.0.2.1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d.Addr()
}
