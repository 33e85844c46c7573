package machinetest

import (
	"encoding/binary"
	"encoding/gob"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dma/spooldir"
)

// executions records the programs that are executed on the machine.
type executions struct {
	t     testing.TB
	group *os.File
	done  chan struct{}

	mu   sync.Mutex
	seen map[string]int
}

// watchExecutions begins to record them, until the test ends or stop.
func (m *machine) watchExecutions() *executions {
	m.t.Helper()
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_UNLIMITED_QUEUE, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_LARGEFILE)
	m.do(err)
	for _, at := range []string{"/", "/home", "/var/mail", "/var/spool", "/run", "/opt", "/etc", "/dev/shm"} {
		// Of this namespace's mounts alone: the rest of the world is not ours.
		if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_MOUNT, unix.FAN_OPEN_EXEC, unix.AT_FDCWD, at); err != nil {
			m.t.Fatalf("fanotify_mark %s: %v", at, err)
		}
	}
	x := &executions{t: m.t, group: os.NewFile(uintptr(fd), "fanotify"), done: make(chan struct{}), seen: make(map[string]int)}
	go x.read()
	m.t.Cleanup(func() { x.stop() })
	return x
}

func (x *executions) read() {
	defer close(x.done)
	buf := make([]byte, 64<<10)
	for {
		n, err := x.group.Read(buf)
		if err != nil {
			return
		}
		for b := buf[:n]; len(b) >= int(unix.FAN_EVENT_METADATA_LEN); {
			size := binary.NativeEndian.Uint32(b)
			fd := int32(binary.NativeEndian.Uint32(b[16:]))
			if fd >= 0 {
				path, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
				unix.Close(int(fd))
				x.mu.Lock()
				x.seen[path]++
				x.mu.Unlock()
			}
			b = b[size:]
		}
	}
}

// stop ends the recording and returns what was executed.
func (x *executions) stop() []string {
	x.group.SetReadDeadline(time.Now()) // what is there has been read by now
	<-x.done
	x.group.Close()
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Sorted(maps.Keys(x.seen))
}

// files describes everything in homes, mail directories and /etc, and names
// what stands in / and /root.
func (m *machine) files() map[string]string {
	m.t.Helper()
	out := make(map[string]string)
	for _, top := range []string{"/home", "/var/mail", "/etc", "/opt"} {
		m.do(filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // it went meanwhile
			}
			var st unix.Stat_t
			if unix.Lstat(path, &st) == nil {
				out[path] = fmt.Sprintf("%d:%d %o %d %d.%09d", st.Uid, st.Gid, st.Mode, st.Size, st.Mtim.Sec, st.Mtim.Nsec)
			}
			return nil
		}))
	}
	for _, top := range []string{"/", "/root"} {
		entries, err := os.ReadDir(top)
		m.do(err)
		for _, e := range entries {
			out[filepath.Join(top, e.Name())] = "there"
		}
	}
	return out
}

// changes lists the paths that are not as they were.
func (m *machine) changes(before map[string]string) []string {
	m.t.Helper()
	after := m.files()
	var out []string
	for path, was := range before {
		if after[path] != was {
			out = append(out, path)
		}
	}
	for path := range after {
		if _, ok := before[path]; !ok {
			out = append(out, path)
		}
	}
	slices.Sort(out)
	return out
}

// hostile are values that mean something to a shell, to a file system, to a
// line, to options or to a template. Each would make or change the canary.
func hostile(canary string) []string {
	return []string{
		";id>>" + canary, ";id>>" + canary + ";", "$(id>>" + canary + ")", "`id>>" + canary + "`", "|id>>" + canary, `"|id>>` + canary + `"`,
		`"; id >> ` + canary + `"`, `"|/bin/touch ` + canary + `"`, "|/bin/touch " + canary, "&touch$IFS" + canary, "() { :;}; touch " + canary,
		"-oQ" + canary, "-f", "--", "-bs", "-C" + canary, "-X" + canary, "--help",
		canary, "/etc/passwd", "/home/bob/.forward", "../../../home/bob/canary", "..", ".", "/", "~bob/x", "bob/../../x",
		"alice\n/home/bob/canary", "alice\r\nbcc: root", "alice\rx", "alice\n|touch " + canary, "alice\n\nFrom x", "\n", "\r", "\t", "\x01", "\x7f", "\xff\xfe", "\u202e",
		`\root`, `\bob`, ":include:/etc/shadow", ":include:/home/bob/list", "${run{/bin/touch " + canary + "}}", "%{user.username}", "{{.}}", "%s%s%n%n", "%u",
		"<>", "<", ">", "<<alice>>", "@", "@@", "a@", "@b", "alice@localhost@host.example", "alice,root", "alice root", "alice(root)",
		"alice+;id>>" + canary, "alice+../../x", "alice+|touch " + canary, "alice@$(touch${IFS}" + canary + ")", "alice@;id>>" + canary,
		strings.Repeat("x", 10_000), strings.Repeat("a@", 5_000), "alice+" + strings.Repeat("../", 3_000), strings.Repeat("x", 10_000) + "@local.example", strings.Repeat("\n", 10_000),
	}
}

// TestHostileEnvelope puts hostile values into every field of the envelope and
// of the header, at both doors. None of them leads to a program or to a file.
func TestHostileEnvelope(t *testing.T) {
	m := newMachine(t)
	actor := m.actor()
	canary := fmt.Sprintf("/tmp/dma-canary-%d", os.Getpid())
	t.Cleanup(func() { os.Remove(canary) })
	m.own("bob", "private", "bob's own\n", 0o600)
	m.write("/root/.forward", "|touch "+canary+"\n", 0o644)
	t.Cleanup(func() { os.Remove("/root/.forward") })
	v := m.start()
	before := m.files()
	x := m.watchExecutions()

	taken := make(map[string]int)
	tobob := 0 // of what was taken, what had bob among its recipients
	submit := func(what, content string, args ...string) {
		t.Helper()
		r := m.as("alice", content, append([]string{dmaFile}, args...)...)
		switch r.code {
		case 0:
			taken[what]++
			// A backslash before a letter is nothing in an address.
			if to := args[len(args)-1]; to == "bob" || to == `\bob@`+hostName || strings.HasPrefix(content, "Cc: bob\n") {
				tobob++
			}
		case 64, 65, 66, 75:
			if r.stderr == "" || strings.Count(r.stderr, "\n") != 1 {
				t.Errorf("%s: exit %d and %q", r.what, r.code, r.stderr)
			}
		default:
			t.Errorf("%s: %.200s: exit %d: %.300s", what, r.what, r.code, r.stderr)
		}
	}
	const text = "Subject: hostile\n\ntext\n"
	for _, value := range hostile(canary) {
		submit("recipient", text, "--", value)
		submit("recipient here", text, "--", value+"@"+hostName)
		submit("sender", text, "-f", value, "bob")
		submit("name", text, "-F", value, "bob")
		submit("notify", text, "-N", value, "bob")
		submit("return", text, "-R", value, "bob")
		submit("envelope id", text, "-V", value, "bob")
		submit("To", "Cc: bob\nTo: "+value+"\n"+text, "-t")
		submit("Bcc", "Cc: bob\nBcc: "+value+"\n"+text, "-r", value, "-t")
		var header, zeros strings.Builder
		for _, field := range []string{"From", "Sender", "Message-ID", "Return-Path", "Delivered-To", "Reply-To", "X-Dma-Delivery", "Received"} {
			fmt.Fprintf(&header, "%s: %s\n", field, value)
			fmt.Fprintf(&zeros, "%s: %s\x00%[2]s\n", field, value)
		}
		submit("header", header.String()+text, "bob")
		submit("header with NUL", zeros.String()+text, "bob")
		submit("To with NUL", "To: bob\x00"+value+"\n"+text, "-t")
		cmd := m.command("alice", dmaFile, "bob")
		cmd.Env = nil
		for _, name := range []string{"EMAIL", "NAME", "USER", "LOGNAME", "HOME", "SHELL", "TZ", "TMPDIR", "IFS", "BASH_ENV", "ENV", "PATH", "MAIL", "LANG"} {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
		if r := m.run(cmd, text); r.code == 0 {
			taken["environment"]++
			tobob++
		}
	}

	// The second door takes the same and NUL, which no argument can hold.
	values := append(hostile(canary), "alice\x00bob", "\x00", "bob\x00|touch "+canary)
	var requests strings.Builder
	encoder := gob.NewEncoder(&requests)
	var fields []string
	for _, value := range values {
		to := func(r spooldir.Recipient) []spooldir.Recipient { return []spooldir.Recipient{r} }
		bob := to(spooldir.Recipient{Address: "bob"})
		for field, e := range map[string]spooldir.Envelope{
			"recipient":   {Recipients: to(spooldir.Recipient{Address: value})},
			"sender":      {Sender: value, Recipients: bob},
			"envelope id": {EnvelopeID: value, Recipients: bob},
			"return":      {Return: value, Recipients: bob},
			"notify":      {Recipients: to(spooldir.Recipient{Address: "bob", Notify: value})},
			"orcpt":       {Recipients: to(spooldir.Recipient{Address: "bob", ORCPT: value})},
			"command":     {Recipients: to(spooldir.Recipient{Kind: spooldir.Command, Address: "bob", User: "bob", Target: value, Source: "forward"})},
			"file":        {Recipients: to(spooldir.Recipient{Kind: spooldir.File, Address: "bob", User: "bob", Target: value, Source: "forward"})},
			"mailbox":     {Recipients: to(spooldir.Recipient{Kind: spooldir.Mailbox, Address: "bob", User: value})},
			"id":          {ID: value, Recipients: bob},
			"parents":     {Parents: []spooldir.Parent{{Name: spooldir.Name{ID: value, N: 1}}}, Recipients: bob},
		} {
			m.do(encoder.Encode(e))
			fields = append(fields, field)
		}
	}
	r := m.as("alice", requests.String(), actor, "door").want(t, 0)
	answers := strings.Fields(r.stdout)
	if len(answers) != len(fields) {
		t.Fatalf("%d answers to %d requests: %s", len(answers), len(fields), r.stderr)
	}
	for i, answer := range answers {
		taken["door: "+fields[i]+": "+answer]++
		if answer == "taken" && fields[i] != "recipient" {
			tobob++
		}
	}
	for _, what := range []string{"door: command", "door: file", "door: mailbox"} {
		if n := taken[what+": taken"]; n > 0 {
			t.Errorf("%s: %d were taken", what, n)
		}
	}
	if taken["recipient"] == 0 || taken["To"] == 0 || taken["environment"] == 0 || taken["door: recipient: taken"] == 0 {
		t.Errorf("taken: %v", taken)
	}
	v.await("all delivered or waiting", func() bool {
		return len(m.in("new"))+len(m.in("forwarding"))+len(m.in("local"))+len(m.in("remote"))+len(m.in("sent"))+len(m.in("permfail")) == 0
	})
	if c := m.in("corrupt"); len(c) > 0 {
		t.Errorf("corrupt: %q", c)
	}

	ran := x.stop()
	for _, path := range ran {
		if path == "/usr/bin/getent" || path == "/usr/bin/id" {
			continue // asked, as nobody, for users that /etc/passwd does not have
		}
		if path != dmaFile && path != runnerBin && path != actor && !strings.HasPrefix(path, "/usr/lib") && !strings.HasPrefix(path, "/lib") {
			t.Errorf("%s was executed", path)
		}
	}
	if !slices.Contains(ran, runnerBin) {
		t.Errorf("executed: %q", ran) // or the check sees nothing
	}
	for _, path := range m.changes(before) {
		if path == "/var/mail" || path == "/var/mail/alice" || path == "/var/mail/bob" {
			continue
		}
		t.Errorf("%s was changed", path)
	}
	if _, err := os.Lstat(canary); err == nil {
		t.Errorf("the canary is there: %s", m.owner(canary))
	}
	// Each value stayed within its line: a mailbox has as many messages as were
	// delivered to it, and each of them begins with the mark of its delivery.
	delivered := make(map[string]int)
	for line := range strings.Lines(v.log()) {
		if !strings.Contains(line, " delivery ") || !strings.Contains(line, " status=sent ") {
			continue
		}
		for _, user := range []string{"alice", "bob"} {
			if strings.HasSuffix(strings.TrimSpace(line), " reply=/var/mail/"+user) {
				delivered[user]++
			}
		}
	}
	mark := regexp.MustCompile(`(?m)^From .*\nX-Dma-Delivery: ([0-9]{8}T[0-9]{6}-[0-9a-f]{16}[cbs]?\.[0-9]+)\nReturn-Path: <.*>\n(?:Delivered-To: .*\n)+(?:Received|From): `)
	for _, user := range []string{"alice", "bob"} {
		text, marks := m.mailbox(user), make(map[string]bool)
		for _, found := range mark.FindAllStringSubmatch(text, -1) {
			marks[found[1]] = true
		}
		if froms := strings.Count("\n"+text, "\nFrom "); froms != delivered[user] || len(marks) != delivered[user] {
			t.Errorf("%s: %d messages were delivered; %d From_ lines, %d marks", user, delivered[user], froms, len(marks))
		}
	}
	if delivered["bob"] != tobob || tobob == 0 || delivered["alice"] == 0 {
		t.Errorf("delivered: %v; bob was sent %d", delivered, tobob)
	}
	t.Logf("taken: %v; waiting: %d; executed: %q", taken, len(m.queued()), ran)
	v.stop()
}

// TestOnlyListedCommands shows that the .forward of the user is the only way to
// a command: neither a message nor its address brings one.
func TestOnlyListedCommands(t *testing.T) {
	m := newMachine(t)
	m.own("bob", ".forward", "|/home/bob/run\n", 0o644)
	m.own("bob", "run", "#!/bin/sh\nid -un >> /home/bob/ran\ncat > /dev/null\n", 0o755)
	m.own("alice", "run", "#!/bin/sh\ntouch /home/alice/ran\n", 0o755)
	v := m.start()
	for _, to := range []string{"alice", "bob", `"|/home/alice/run"`, "|/home/alice/run", "/home/alice/run", "alice+|/home/alice/run"} {
		m.as("mallory", "Subject: x\n\n|/home/alice/run\n", dmaFile, "-f", "", "--", to)
	}
	v.empties(m)
	if got, _ := os.ReadFile("/home/bob/ran"); string(got) != "bob\n" {
		t.Errorf("bob's command ran as %q\n%s", got, v.log())
	}
	if _, err := os.Stat("/home/alice/ran"); err == nil {
		t.Error("alice's file was executed")
	}
	v.stop()
}
