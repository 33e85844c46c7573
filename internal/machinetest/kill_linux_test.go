package machinetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dma/parent"
)

// strangers lists the processes that are neither the tests nor dma-runner: what
// the service has started for users.
func (m *machine) strangers() []process {
	m.t.Helper()
	self, err := os.Stat("/proc/self/exe")
	m.do(err)
	runner, err := os.Stat(runnerBin)
	m.do(err)
	dirs, err := filepath.Glob("/proc/[0-9]*")
	m.do(err)
	var out []process
	for _, dir := range dirs {
		exe, err := os.Stat(dir + "/exe")
		if err != nil || os.SameFile(exe, self) || os.SameFile(exe, runner) {
			continue
		}
		status := statusOf(dir + "/status")
		if status["State"] == "" || strings.HasPrefix(status["State"], "Z") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		m.do(err)
		cmdline, _ := os.ReadFile(dir + "/cmdline")
		out = append(out, process{pid: pid, name: strings.ReplaceAll(string(cmdline), "\x00", " "), status: status})
	}
	return out
}

// victims returns the processes of the service that now live, by what they are.
func (m *machine) victims(v *service) map[string][]int {
	m.t.Helper()
	out := map[string][]int{"parent": {v.process.Pid}}
	for _, p := range m.processes() {
		switch {
		case strings.HasSuffix(p.name, " "+parent.RoleQueue):
			out["queue"] = append(out["queue"], p.pid)
		case strings.HasSuffix(p.name, " "+parent.RoleNet):
			out["net"] = append(out["net"], p.pid)
		case strings.HasSuffix(p.name, " "+parent.RoleAgent):
			kind := "mailbox writer"
			if groups := strings.Fields(p.status["Gid"]); groups[0] != strconv.Itoa(groupOf(m.t, "mail")) {
				kind = "user agent"
			}
			out[kind] = append(out[kind], p.pid)
		}
	}
	for _, p := range m.strangers() {
		if uid := strings.Fields(p.status["Uid"])[0]; uid == "2002" && !strings.Contains(p.name, dmaFile) {
			out["command"] = append(out["command"], p.pid)
		}
	}
	return out
}

// works reports whether a process has the lock of a role, whatever file it is on.
func works(pid int, role string) bool {
	dir := fmt.Sprintf("/proc/%d/", pid)
	names, _ := os.ReadDir(dir + "fd")
	for _, name := range names {
		link, _ := os.Readlink(dir + "fd/" + name.Name())
		info, _ := os.ReadFile(dir + "fdinfo/" + name.Name())
		if strings.HasPrefix(link, spoolDir+"/lock/"+role) && strings.Contains(string(info), "FLOCK") {
			return true
		}
	}
	return false
}

// oneOfEach fails if two processes have the lock of a role at a time.
func (m *machine) oneOfEach() {
	m.t.Helper()
	for _, role := range []string{"queue", "net"} {
		var holders []int
		for range 2 { // those that were seen one after the other may have followed each other
			holders = nil
			for _, p := range m.processes() {
				if works(p.pid, role) {
					holders = append(holders, p.pid)
				}
			}
			holders = slices.DeleteFunc(holders, func(pid int) bool { return !works(pid, role) })
			if len(holders) < 2 {
				break
			}
		}
		if len(holders) > 1 {
			m.t.Errorf("the processes %v work as %s", holders, role)
		}
	}
}

// TestKill kills every process of the service again and again while users send
// mail through both doors. Nothing is lost, a mailbox has nothing twice, and in
// the end all is delivered and nobody is left.
func TestKill(t *testing.T) {
	const kills = 36
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("DMA_KILL_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("DMA_KILL_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	m := newMachine(t, "RETRY_MIN 1s", "RETRY_MAX 2s")
	m.own("bob", ".forward", `\bob, "|sleep 0.05; grep ^Subject: >> /home/bob/commands"`+"\n", 0o644)
	m.own("carol", ".forward", "/home/carol/Maildir/\n", 0o644)
	v := m.start()
	var logs strings.Builder

	// Users send while processes die.
	stop := make(chan struct{})
	var group sync.WaitGroup
	var mu sync.Mutex
	taken, unsure := make(map[string]bool), make(map[string]bool)
	for i, from := range []string{"alice", "mallory", "carol"} {
		group.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				case <-time.After(60 * time.Millisecond):
				}
				subject := fmt.Sprintf("%s %d", from, n)
				args := []string{dmaFile, "alice", "bob", "carol", "friend@example.org"}
				if i == 0 {
					args = append([]string{"setpriv", "--no-new-privs"}, args...)
				}
				r := m.as(from, "Subject: "+subject+"\n\nbody\n", args...)
				mu.Lock()
				switch {
				case r.code == 0:
					taken[subject] = true
				case i == 0 && r.code == 75:
					unsure[subject] = true
				default:
					t.Errorf("%s: exit %d: %s", subject, r.code, r.stderr)
				}
				mu.Unlock()
			}
		})
	}
	killed := make(map[string]int)
	var order []string
	for total := 0; total < kills; {
		time.Sleep(time.Duration(50+random.IntN(300)) * time.Millisecond)
		if len(order) == 0 {
			order = []string{"parent", "queue", "net", "mailbox writer", "user agent", "command"}
			random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		}
		kind := order[0]
		var all map[string][]int
		for range 200 { // some are there for a moment only
			m.oneOfEach()
			if all = m.victims(v); len(all[kind]) > 0 {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		order = order[1:]
		if len(all[kind]) == 0 {
			continue
		}
		pid := all[kind][random.IntN(len(all[kind]))]
		if err := syscall.Kill(pid, syscall.SIGKILL); errors.Is(err, syscall.ESRCH) {
			continue
		}
		total++
		killed[kind]++
		m.oneOfEach()
		if kind == "parent" {
			<-v.ended
			logs.WriteString(v.log())
			v = m.start()
			if now := m.victims(v); len(now["queue"]) != 1 || len(now["net"]) != 1 {
				t.Errorf("after a new start there are %v", now)
			}
		}
	}
	close(stop)
	group.Wait()
	v.empties(m)
	logs.WriteString(v.log())
	t.Logf("killed %v; %d messages, %d refused by the door", killed, len(taken), len(unsure))

	boxes := map[string]map[string]int{
		"alice":   subjects(m.mailbox("alice")),
		"bob":     subjects(m.mailbox("bob")),
		"carol":   make(map[string]int),
		"command": make(map[string]int),
		"sink":    make(map[string]int),
	}
	files, err := filepath.Glob("/home/carol/Maildir/new/*")
	m.do(err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		m.do(err)
		for subject, n := range subjects("\n" + string(text)) {
			boxes["carol"][subject] += n
		}
	}
	commands, err := os.ReadFile("/home/bob/commands")
	m.do(err)
	boxes["command"] = subjects("\n" + string(commands))
	for _, transaction := range m.sink.Transactions() {
		for subject := range subjects("\n" + strings.ReplaceAll(string(transaction.Content), "\r\n", "\n")) {
			boxes["sink"][subject]++
		}
	}
	for place, got := range boxes {
		twice := 0
		for subject := range taken {
			if got[subject] == 0 {
				t.Errorf("%s: %q is lost", place, subject)
			}
		}
		for subject, n := range got {
			if !taken[subject] && !unsure[subject] {
				t.Errorf("%s: %q was never sent", place, subject)
			}
			if n > 1 {
				twice += n - 1
				if place != "command" && place != "sink" {
					t.Errorf("%s: %q is there %d times", place, subject, n)
				}
			}
		}
		t.Logf("%s: %d messages, %d more than once", place, len(got), twice)
		// A command may run again where it was cut off, or its end was not yet on
		// disk: that is one message of one agent, or one group of outcomes. A
		// transaction may be repeated for each session of a killed net process.
		most := map[string]int{
			"command": killed["command"] + killed["user agent"] + 64*(killed["queue"]+killed["parent"]),
			"sink":    10 * (killed["net"] + killed["parent"]),
		}[place]
		if twice > most {
			t.Errorf("%s: %d messages more than once, and there were only %v kills", place, twice, killed)
		}
	}
	for line := range strings.Lines(logs.String()) {
		if strings.Contains(line, " corrupt ") || strings.Contains(line, "panic") || strings.Contains(line, "bounced") {
			t.Error(line)
		}
	}
	v.stop()
	m.nobodyLeft()
	for _, p := range m.strangers() {
		if uid := strings.Fields(p.status["Uid"])[0]; uid != "0" {
			t.Errorf("left behind: %d %s", p.pid, p.name)
		}
	}
}

// subjects counts the subjects of the messages of a mailbox.
func subjects(text string) map[string]int {
	out := make(map[string]int)
	for line := range strings.Lines(text) {
		if subject, ok := strings.CutPrefix(line, "Subject: "); ok {
			out[strings.TrimSpace(subject)]++
		}
	}
	return out
}
