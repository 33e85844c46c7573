package machinetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"dma/internal/crashtest"
)

// confinement is what a service manager puts around the service by
// systemd/dma-runner.service, of that what takes no more than system calls.
type confinement struct {
	Bounding []int    // the capabilities that the service may have
	Umask    int      // and no core
	HidePID  string   // how /proc is mounted for it; "": as for the tests
	Calls    []uint32 // the numbers of the system calls that it may make; nil: all
	Refused  []uint32 // system calls that do not exist
}

// unitFile returns the settings of the unit of the service.
func unitFile(t testing.TB) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../../systemd/dma-runner.service")
	if err != nil {
		t.Fatal(err)
	}
	settings := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			settings[key] = value
		}
	}
	return settings
}

// unitConfinement is what every service of these tests has: the capabilities, the
// umask and the limit of the unit.
func unitConfinement(t testing.TB) confinement {
	t.Helper()
	unit := unitFile(t)
	numbers := map[string]int{
		"CAP_CHOWN": unix.CAP_CHOWN, "CAP_DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "CAP_DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH,
		"CAP_FOWNER": unix.CAP_FOWNER, "CAP_KILL": unix.CAP_KILL, "CAP_SETGID": unix.CAP_SETGID, "CAP_SETUID": unix.CAP_SETUID,
	}
	var c confinement
	for _, name := range strings.Fields(unit["CapabilityBoundingSet"]) {
		number, ok := numbers[name]
		if !ok {
			t.Fatalf("the unit has the capability %s", name)
		}
		c.Bounding = append(c.Bounding, number)
	}
	umask, err := strconv.ParseUint(unit["UMask"], 8, 32)
	if err != nil || unit["LimitCORE"] != "0" || len(c.Bounding) == 0 {
		t.Fatalf("the unit is not understood: %v", unit)
	}
	c.Umask = int(umask)
	return c
}

// confined returns the command line that starts a program in the confinement. The
// process stays the same.
func (m *machine) confined(c confinement, args ...string) []string {
	m.t.Helper()
	text, err := json.Marshal(c)
	m.do(err)
	return append([]string{m.actor(), "confine", string(text)}, args...)
}

// actConfine gives up what a confinement does not leave, and becomes the program
// that its arguments name.
func actConfine(args []string) error {
	var c confinement
	if err := json.Unmarshal([]byte(args[0]), &c); err != nil {
		return err
	}
	runtime.LockOSThread() // which executes the program
	if c.HidePID != "" {
		if err := hideProcesses(c.HidePID); err != nil {
			return err
		}
	}
	syscall.Umask(c.Umask)
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return err
	}
	if filter := c.filter(); filter != nil {
		prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0); err != nil {
			return fmt.Errorf("filter: %w", err)
		}
	}
	for number := range 64 {
		if slices.Contains(c.Bounding, number) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(number), 0, 0, 0); errors.Is(err, unix.EINVAL) {
			break // beyond the last one
		} else if err != nil {
			return fmt.Errorf("capability %d: %w", number, err)
		}
	}
	return fmt.Errorf("%s: %w", args[1], syscall.Exec(args[1], args[1:], os.Environ()))
}

// hideProcesses gives this process, and those that it starts, a /proc without the
// processes of other users.
func hideProcesses(how string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "hidepid="+how); err != nil {
		return fmt.Errorf("/proc: %w", err)
	}
	return nil
}

// filter is the program for the kernel that allows the calls, nil if it has none.
func (c confinement) filter() []unix.SockFilter {
	if c.Calls == nil && c.Refused == nil {
		return nil
	}
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	unless := func(value uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value, Jf: 1}
	}
	ret := func(what uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: what} }
	out := []unix.SockFilter{load(0)} // the number; nothing here uses another architecture
	for _, n := range c.Refused {
		out = append(out, unless(n), ret(unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS)))
	}
	if c.Calls == nil {
		return append(out, ret(unix.SECCOMP_RET_ALLOW))
	}
	for _, n := range c.Calls {
		out = append(out, unless(n), ret(unix.SECCOMP_RET_ALLOW))
	}
	return append(out, ret(unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM)))
}

// callNumbers copies what says the numbers of the system calls to the folder of
// the machine, where the tests do not see the cache of modules.
func callNumbers(dir string) error {
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", "golang.org/x/sys/unix").Output()
	if err != nil {
		return fmt.Errorf("go list: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "zsysnum_linux_"+runtime.GOARCH+".go"))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "calls"), text, 0o644)
}

// allowedCalls returns the numbers of the system calls that the unit allows.
func allowedCalls(t *testing.T) []uint32 {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(os.Getenv(dirEnv), "calls"))
	if err != nil {
		t.Fatal(err)
	}
	numbers := make(map[string]uint32)
	for _, match := range regexp.MustCompile(`(?m)^\s*SYS_(\w+)\s*=\s*(\d+)$`).FindAllStringSubmatch(string(text), -1) {
		n, err := strconv.ParseUint(match[2], 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		numbers[strings.ToLower(match[1])] = uint32(n)
	}
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		crashtest.Need(t, &crashtest.Missing{What: "systemd-analyze", Remedy: "install the package systemd"})
	}
	seen := make(map[string]bool)
	var out []uint32
	var add func(word string)
	add = func(word string) {
		if seen[word] {
			return
		}
		seen[word] = true
		if n, ok := numbers[word]; ok {
			out = append(out, n)
		}
		if !strings.HasPrefix(word, "@") {
			return
		}
		list, err := exec.Command("systemd-analyze", "--no-pager", "syscall-filter", word).Output()
		if err != nil {
			t.Fatalf("system calls of %s: %v", word, err)
		}
		for line := range strings.Lines(string(list)) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				add(line)
			}
		}
	}
	for _, word := range strings.Fields(unitFile(t)["SystemCallFilter"]) {
		add(word)
	}
	if len(out) < 200 {
		t.Fatalf("the unit allows %d system calls", len(out))
	}
	return out
}

// TestUnit runs the service as its unit has it run, as far as that goes without
// systemd: all of its mail is delivered, and who was started for a user is
// found, though no process of another user is to be seen.
func TestUnit(t *testing.T) {
	m := newMachine(t)
	c := unitConfinement(t)
	c.HidePID, c.Calls = unitFile(t)["ProtectProc"], allowedCalls(t)
	m.confine = &c
	m.own("bob", ".forward", "\"|cat >> /home/bob/got; "+dmaFile+" alice < /home/bob/got\"\n", 0o644)
	m.own("carol", ".forward", "\"|trap '' HUP TERM; echo > /home/carol/began; sleep 600\"\n", 0o644)
	v := m.start()
	m.submit("alice", "first", "alice", "bob", "friend@example.org")
	m.as("mallory", "Subject: door 2\n\n", barred(dmaFile, "alice")...).want(t, 0)
	v.await("all mail", func() bool {
		return len(m.queued()) == 0 && m.subjects("alice", "first") == 2 && m.subjects("alice", "door 2") == 1 && len(m.sink.Transactions()) == 1
	})
	m.submit("root", "for root", "root@"+hostName)
	m.configure("MAILBOX maildir:~/Maildir")
	v.hangup()
	m.submit("alice", "second", "mallory")
	v.await("mail after a reload", func() bool {
		files, _ := filepath.Glob("/home/mallory/Maildir/new/*")
		return len(files) == 1
	})
	if log := v.log(); strings.Contains(log, "worker-trouble") || strings.Contains(log, "missing:") {
		t.Errorf("trouble\n%s", log)
	}
	v.stop()
	m.nobodyLeft()
	m.configure()
	// Where an administrator shows even less: an agent ends by force, and its
	// command, which has a process group of its own, with it.
	c.HidePID = "ptraceable"
	v = m.start()
	m.submit("mallory", "third", "carol")
	v.await("carol's command", func() bool { _, err := os.Stat("/home/carol/began"); return err == nil })
	agent, ok := m.findAgent("carol")
	if !ok {
		t.Fatalf("no agent of carol\n%s", v.log())
	}
	m.do(syscall.Kill(agent.pid, syscall.SIGKILL))
	v.await("end of carol's command", func() bool { return len(m.mine("carol")) == 0 })
	v.stop()
	m.own("carol", ".forward", "\\carol\n", 0o644)
	// A drain makes do with it, too, and so do the commands that ask for one.
	m.submit("alice", "fourth", "alice", "friend@example.org")
	for _, name := range []string{"drain", "flush"} {
		m.root("", m.confined(c, runnerBin, name)...).want(t, 0)
		if m.subjects("alice", "fourth") != 1 || len(m.sink.Transactions()) != 2 {
			t.Fatalf("%s leaves %q", name, m.queued())
		}
	}
	if _, err := os.Lstat(filepath.Join(spoolDir, "tempfail/.flush")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the request of flush: %v", err)
	}
	// Nor have those less that look at the queue and change it.
	m.submit("alice", "fifth", "alice")
	if r := m.root("", m.confined(c, runnerBin, "mailq")...).want(t, 0); !strings.Contains(r.stdout, "<alice@"+hostName+">") {
		t.Errorf("mailq: %s%s", r.stdout, r.stderr)
	}
	id, _, _ := strings.Cut(strings.TrimPrefix(m.in("new")[0], "new/"), ".")
	for _, name := range []string{"hold", "release"} {
		m.root("", m.confined(c, runnerBin, name, id)...).want(t, 0)
	}
	if r := m.root("", m.confined(c, runnerBin, "check")...); strings.Contains(r.stderr, "denied") {
		t.Errorf("check: %s%s", r.stdout, r.stderr)
	}
	m.root("Subject: sixth\n\n", m.confined(c, dmaFile, "-odi", "alice")...).want(t, 0)
	if m.subjects("alice", "fifth") != 1 || m.subjects("alice", "sixth") != 1 {
		t.Errorf("left: %q", m.queued())
	}
	// What somebody who has become the queue process puts in the place of new, root
	// neither opens nor waits for.
	m.do(os.Rename(spoolDir+"/new", spoolDir+"/was"))
	for name, put := range map[string]func(path string) error{
		"a FIFO":        func(path string) error { return unix.Mkfifo(path, 0o666) },
		"a link":        func(path string) error { return os.Symlink("was", path) },
		"a device":      func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))) },
		"a closed file": func(path string) error { return os.WriteFile(path, nil, 0) },
	} {
		m.do(put(spoolDir + "/new"))
		for _, args := range [][]string{{"drain"}, {"run", "--on-demand"}} {
			r := m.root("", append([]string{"timeout", "-s", "KILL", "20", runnerBin}, args...)...)
			if r.code == 0 || r.code == -1 || r.code == 137 || strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, "open "+spoolDir+"/new: ") {
				t.Errorf("%s, with %s for new: exit %d\n%s", args[0], name, r.code, r.stderr)
			}
		}
		m.do(os.Remove(spoolDir + "/new"))
	}
	m.do(os.Rename(spoolDir+"/was", spoolDir+"/new"))
}

// TestNoLandlock: on a kernel without Landlock each worker says so, once, and the
// mail is delivered.
func TestNoLandlock(t *testing.T) {
	m := newMachine(t)
	c := unitConfinement(t)
	c.Refused = []uint32{unix.SYS_LANDLOCK_CREATE_RULESET}
	m.confine = &c
	v := m.start()
	m.submit("alice", "first", "bob", "friend@example.org")
	v.empties(m)
	m.submit("alice", "second", "bob", "friend@example.org")
	v.empties(m)
	if m.subjects("bob", "first") != 1 || m.subjects("bob", "second") != 1 || len(m.sink.Transactions()) != 2 {
		t.Errorf("not delivered\n%s", v.log())
	}
	for _, role := range []string{"queue", "net"} {
		said := 0
		for line := range strings.Lines(v.log()) {
			if strings.Contains(line, "missing: ") && strings.Contains(line, "role="+role+" ") {
				said++
				if !strings.Contains(line, "landlock=no") || !strings.Contains(line, "seccomp=yes") || !strings.Contains(strings.ToLower(line), "missing: landlock") {
					t.Errorf("%s", line)
				}
			}
		}
		if said != 1 {
			t.Errorf("%s says %d times what is missing\n%s", role, said, v.log())
		}
	}
	v.stop()
}
