package localwriter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func testCommand(t testing.TB, line string) Command {
	dir := t.TempDir()
	return Command{Line: line, Dir: dir, Env: Environment(Variables{User: "bob", Home: dir}), Limit: time.Minute}
}

// run runs a command with a small message, and returns its error and the file
// "out" in its directory.
func run(t testing.TB, c Command) (string, error) {
	t.Helper()
	err := c.Run(context.Background(), strings.NewReader("Subject: x\n\nbody\n"))
	b, _ := os.ReadFile(filepath.Join(c.Dir, "out"))
	return string(b), err
}

func asError(t testing.TB, err error) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error is %v", err)
	}
	return e
}

func TestCommandGetsMessage(t *testing.T) {
	for _, line := range []string{"tee out", "cat >out", "/usr/bin/env tee out", "IFS=' ' && exec tee out || exit 75 #bob"} {
		if out, err := run(t, testCommand(t, line)); err != nil || out != "Subject: x\n\nbody\n" {
			t.Errorf("%s: %q, %v", line, out, err)
		}
	}
	// More than a pipe holds.
	c := testCommand(t, "tee out")
	big := strings.Repeat("line\n", 1<<20)
	if err := c.Run(context.Background(), strings.NewReader(big)); err != nil {
		t.Fatal(err)
	}
	if got := readFile(t, filepath.Join(c.Dir, "out")); got != big {
		t.Errorf("%d bytes have arrived of %d", len(got), len(big))
	}
}

func TestCommandArgs(t *testing.T) {
	bin := t.TempDir()
	prog := filepath.Join(bin, "prog")
	writeFile(t, prog, "#!/bin/sh\n")
	os.Chmod(prog, 0o700)
	writeFile(t, filepath.Join(bin, "data"), "")
	for line, want := range map[string][]string{
		"prog -a user@host": {prog, "-a", "user@host"},
		" prog\t -x  y ":    {prog, "-x", "y"},
		"./x a=b":           {"./x", "a=b"},
		"/none/x":           {"/none/x"},
		"A=b prog":          nil,
		"data":              nil,
		"exit 67":           nil,
		"prog 'a b'":        nil,
		"prog $HOME":        nil,
		"prog; prog":        nil,
		"prog ~/x":          nil,
		"prog a*":           nil,
		"prog\nprog":        nil,
		"prog #x":           nil,
		"prog \\x":          nil,
		"prog \xc3\xa4":     nil,
		"":                  nil,
		"  ":                nil,
	} {
		c := Command{Line: line, Env: []string{"PATH=relative::" + bin}}
		got, direct := c.args()
		if want == nil {
			want = []string{"/bin/sh", "-c", line}
		}
		if !slices.Equal(got, want) || direct != (want[0] != "/bin/sh") {
			t.Errorf("%q: %q, direct %v", line, got, direct)
		}
	}
}

func TestCommandResults(t *testing.T) {
	for _, test := range []struct {
		line, status, output string
	}{
		{"true", "", ""},
		{"exit 0", "", ""},
		{"echo hello; exit 0", "", ""},
		{"echo 5.1.1 hello; exit 0", "", ""},
		{"exit 75", "4.3.0", ""},
		{"exit 71", "4.3.0", ""},
		{"exit 73", "4.2.0", ""},
		{"exit 126", "4.3.0", ""},
		{"exit 127", "4.3.0", ""},
		{"exit 1", "4.3.0", ""},
		{"exit 99", "4.3.0", ""},
		{"exit 255", "4.3.0", ""},
		{"kill -TERM $$", "4.3.0", ""},
		{"exit 64", "5.5.4", ""}, {"exit 65", "5.6.0", ""}, {"exit 66", "5.3.0", ""}, {"exit 67", "5.1.1", ""},
		{"exit 68", "5.1.2", ""}, {"exit 69", "5.3.0", ""}, {"exit 70", "5.3.0", ""}, {"exit 72", "5.3.0", ""},
		{"exit 74", "5.3.0", ""}, {"exit 76", "5.5.0", ""}, {"exit 77", "5.7.0", ""}, {"exit 78", "5.3.5", ""},
		{"echo no such thing >&2; echo second; exit 69", "5.3.0", "no such thing"},
		{"echo; echo '  text  '; exit 69", "5.3.0", "text"},
		{"printf 'a\\tb\\033[1m\\303\\244\\000'; exit 69", "5.3.0", "a b?[1m???"},
		{"echo 5.2.1 mailbox is closed; exit 1", "5.2.1", "mailbox is closed"},
		{"echo 4.2.2 full; exit 67", "4.2.2", "full"},
		{"echo 5.7.1; exit 75", "5.7.1", ""},
		{"echo 2.0.0 ok; exit 67", "5.1.1", "2.0.0 ok"},
		{"echo 5.1 x; exit 75", "4.3.0", "5.1 x"},
		{"echo 5.1.1.1 x; exit 75", "4.3.0", "5.1.1.1 x"},
		{"echo 5.1.x; exit 75", "4.3.0", "5.1.x"},
		{"echo 5.1.1 x; kill -KILL $$", "4.3.0", "5.1.1 x"},
		{"/none/such", "4.3.0", ""},
		{"no-such-program", "4.3.0", "?"},
		{"/etc/passwd", "4.3.0", ""},
	} {
		_, err := run(t, testCommand(t, test.line))
		if test.status == "" {
			if err != nil {
				t.Errorf("%s: %v", test.line, err)
			}
			continue
		}
		e := asError(t, err)
		if e.Status != test.status || e.Permanent != (test.status[0] == '5') || test.output != "?" && e.Output != test.output {
			t.Errorf("%s: status %s, permanent %v, output %q", test.line, e.Status, e.Permanent, e.Output)
		}
		if s := e.Error(); strings.ContainsAny(s, "\n\x1b") {
			t.Errorf("%s: error has control characters: %q", test.line, s)
		}
	}
}

func TestCommandDirectory(t *testing.T) {
	c := testCommand(t, "pwd >out; umask >>out")
	out, err := run(t, c)
	want, _ := filepath.EvalSymlinks(c.Dir)
	if err != nil || out != want+"\n0077\n" {
		t.Errorf("%q, %v", out, err)
	}
	for _, dir := range []string{"/none/such", "/etc/passwd", ""} {
		c.Dir = dir
		if e := asError(t, c.Run(context.Background(), strings.NewReader(""))); e.Permanent {
			t.Errorf("%v is permanent", e)
		}
	}
}

// A script without "#!" is run by the shell, as execvp(3) does.
func TestCommandScript(t *testing.T) {
	c := testCommand(t, "./script")
	writeFile(t, filepath.Join(c.Dir, "script"), "cat >out\n")
	os.Chmod(filepath.Join(c.Dir, "script"), 0o700)
	if out, err := run(t, c); err != nil || out == "" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestCommandDescriptors(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc/self/fd")
	}
	// One that this process was started with, so to say: not closed on exec.
	fd, err := unix.Open("/dev/null", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	// The shell lists its own descriptors: ls has one more for the directory.
	out, err := run(t, testCommand(t, "for f in /proc/$$/fd/*; do echo ${f##*/}; done | sort -n | tr '\\n' ' ' >out; grep -E '^Sig(Ign|Blk)' /proc/$$/status >>out; echo pgid $(cut -d' ' -f5 /proc/$$/stat) >>out; echo pid $$ >>out"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out, "\n")
	if fields := strings.Fields(lines[0]); !slices.Equal(fields[:3], []string{"0", "1", "2"}) || slices.Contains(fields, fmt.Sprint(fd)) {
		t.Errorf("descriptors are %q", lines[0])
	}
	var pgid, pid string
	for _, l := range lines[1:] {
		if name, value, _ := strings.Cut(l, ":"); strings.HasPrefix(name, "Sig") && strings.Trim(value, "\t0") != "" {
			t.Errorf("signals: %s", l)
		}
		if v, ok := strings.CutPrefix(l, "pgid "); ok {
			pgid = v
		}
		if v, ok := strings.CutPrefix(l, "pid "); ok {
			pid = v
		}
	}
	if pgid == "" || pgid != pid {
		t.Errorf("process group %q of process %q", pgid, pid)
	}
	if out, err = run(t, testCommand(t, "ls -1 /proc/self/fd")); err != nil {
		t.Fatal(out, err)
	}
	c := testCommand(t, "ls -1 /proc/self/fd >&2; exit 69")
	buf := &firstOutput{}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	cmd, err := c.start(ctx, cancel, c.shell(), strings.NewReader(""), buf)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if got := strings.Fields(string(buf.b)); len(got) != 4 { // 0, 1, 2 and the directory
		t.Errorf("descriptors are %q", got)
	}
}

// Commands that do not play along, none of which may hang or be believed.
func TestUnrulyCommands(t *testing.T) {
	for _, test := range []struct {
		name, line string
		limit      time.Duration
		wait       time.Duration
		status     string
	}{
		{"exits before reading", "exit 0", 0, 0, ""},
		{"exits before reading, fails", "exit 67", 0, 0, "5.1.1"},
		{"closes stdin", "exec <&-; exit 0", 0, 0, ""},
		{"closes everything", "exec <&- >&- 2>&-; exit 0", 0, 0, ""},
		{"prints a lot", "cat >/dev/null; yes | head -c 3000000; exit 0", 0, 0, ""},
		{"prints a lot without newline, fails", "head -c 3000000 /dev/zero | tr '\\0' x; exit 70", 0, 0, "5.3.0"},
		{"prints before it reads", "yes | head -c 1000000; cat >/dev/null", 0, 0, ""},
		{"stops itself", "kill -STOP $$", 200 * time.Millisecond, 0, "4.3.0"},
		{"ignores SIGTERM", "trap '' TERM HUP INT; while :; do sleep 1000; done", 200 * time.Millisecond, 0, "4.3.0"},
		{"prints for ever", "yes", 200 * time.Millisecond, 0, "4.3.0"},
		{"a child keeps the output open", "sleep 1000 & exit 0", 0, 50 * time.Millisecond, ""},
		{"a child keeps the output open, fails", "sleep 1000 & exit 65", 0, 50 * time.Millisecond, "5.6.0"},
		{"a child keeps the output open beyond the limit", "sleep 1000 & sleep 1000", 200 * time.Millisecond, 50 * time.Millisecond, "4.3.0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := testCommand(t, "echo $$ >pid; "+test.line)
			if test.limit > 0 {
				c.Limit = test.limit
			}
			c.OutputWait = test.wait
			err := c.Run(context.Background(), strings.NewReader(strings.Repeat("x", 300000)))
			if test.status == "" {
				if err != nil {
					t.Error(err)
				}
			} else if e := asError(t, err); e.Status != test.status || len(e.Output) > 512 {
				t.Errorf("status %s, output of %d bytes", e.Status, len(e.Output))
			}
			if test.limit > 0 && !errors.Is(err, errTimeLimit) {
				t.Errorf("error is %v", err)
			}
			var pid int
			fmt.Sscan(readFile(t, filepath.Join(c.Dir, "pid")), &pid)
			if test.limit > 0 && !groupEnded(pid) {
				t.Errorf("process group %d still runs", pid)
			}
			unix.Kill(-pid, unix.SIGKILL)
		})
	}
}

// groupEnded reports whether no process of the group runs. They have been
// killed, but the kernel may take a moment, and they stay as zombies until their
// new parent waits for them.
func groupEnded(pid int) bool {
	for range 5000 {
		stats, _ := filepath.Glob("/proc/[0-9]*/stat")
		running := len(stats) == 0 && unix.Kill(-pid, 0) == nil
		for _, file := range stats {
			b, _ := os.ReadFile(file)
			_, rest, _ := bytes.Cut(b, []byte(") "))
			var state string
			var parent, group int
			if n, _ := fmt.Sscan(string(rest), &state, &parent, &group); n == 3 && group == pid && state != "Z" && state != "X" {
				running = true
			}
		}
		if !running {
			return true
		}
		time.Sleep(time.Millisecond)
	}
	return false
}

func TestCommandCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	c := testCommand(t, "cat >/dev/null; sleep 1000")
	r, w := io.Pipe()
	go func() { io.WriteString(w, "x"); cancel(); w.Close() }()
	if e := asError(t, c.Run(ctx, r)); e.Permanent || !errors.Is(e, context.Canceled) {
		t.Errorf("error is %v", e)
	}
}

// Half a message is no message: the command dies before it sees the end.
func TestCommandMessageUnreadable(t *testing.T) {
	c := testCommand(t, "cat >/dev/null; touch out")
	m := testMessage("m", 1, "")
	m.Content, m.Size = failingReaderAt{strings.Repeat("x", 100000), unix.EIO}, 200000
	e := asError(t, c.Run(context.Background(), m.Reader(true)))
	if e.Permanent || !errors.Is(e, unix.EIO) {
		t.Errorf("error is %v", e)
	}
	if _, err := os.Stat(filepath.Join(c.Dir, "out")); err == nil {
		t.Error("the command saw an end of file")
	}
}

func TestEnvironment(t *testing.T) {
	c := testCommand(t, "env >out")
	c.Env = Environment(Variables{
		User: "bob", Home: c.Dir, Sender: "() { :;}; id", Recipient: "bob+x y\n$IFS@h", OriginalRecipient: "ä@h",
		Local: "bob+`id`", Extension: "", Domain: "h",
	})
	out, err := run(t, c)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"USER=bob", "LOGNAME=bob", "HOME=" + c.Dir, "SHELL=/bin/sh", "PATH=" + defaultPath,
		"SENDER=_____:____id", "RECIPIENT=bob+x_y__IFS@h", "ORIGINAL_RECIPIENT=__@h", "LOCAL=bob+_id_", "EXTENSION=", "DOMAIN=h"} {
		if !slices.Contains(strings.Split(out, "\n"), want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	if strings.Contains(out, "TZ=") || strings.Contains(out, "LANG=") {
		t.Errorf("TZ or LANG in\n%s", out)
	}
	for _, tt := range []struct{ tz, lang, want string }{
		{"Europe/Oslo", "de_DE.UTF-8", "TZ=Europe/Oslo LANG=de_DE.UTF-8"},
		{":/etc/localtime", "", "TZ=:/etc/localtime"},
		{"<+01>-1\nX=y", "C", "LANG=C"},
		{strings.Repeat("x", 256), "\xff", ""},
	} {
		env := Environment(Variables{User: "bob", TZ: tt.tz, Lang: tt.lang})
		if got := strings.Join(env[len(Environment(Variables{})):], " "); got != tt.want {
			t.Errorf("TZ %q, LANG %q: %q, want %q", tt.tz, tt.lang, got, tt.want)
		}
	}
	t.Setenv("LOCALWRITER_TEST_SECRET", "1")
	c.Env = nil
	if out, err := run(t, c); err != nil || strings.Contains(out, "SECRET") {
		t.Errorf("%q, %v", out, err)
	}
}

func FuzzSplitLine(f *testing.F) {
	f.Add("procmail -a x")
	f.Add("a=b c")
	f.Fuzz(func(t *testing.T, line string) {
		args := splitLine(line)
		if args == nil {
			return
		}
		if strings.ContainsAny(line, "\n\x00'\"\\$`;&|<>()*?[]{}#~!") || slices.Contains(args, "") {
			t.Errorf("%q is split into %q", line, args)
		}
	})
}
