package systemtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"dma/internal/crashtest/powercut"
	"dma/internal/crashtest/sysfault"
	"dma/internal/crashtest/tinyfs"
	"dma/spooldir"
)

// fault is a way in which a disk fails.
type fault struct {
	name    string
	classes sysfault.Class
	action  sysfault.Action
	match   func(sysfault.Call) bool // nil: every call of the classes
}

func isWrite(c sysfault.Call) bool {
	return c.Name == "write" || c.Name == "pwrite64" || c.Name == "writev" || c.Name == "pwritev"
}

// faults lists what goes wrong at one call. A full disk refuses what needs
// room, which removing a name does not.
func faults() []fault {
	return []fault{
		{"ENOSPC", sysfault.Durable, sysfault.Action{Op: sysfault.Fail, Errno: syscall.ENOSPC}, func(c sysfault.Call) bool {
			return c.Class&sysfault.Mutate != 0 && !strings.HasPrefix(c.Name, "unlink") && c.Name != "ftruncate"
		}},
		{"EIO", sysfault.Durable | sysfault.Look, sysfault.Action{Op: sysfault.Fail, Errno: syscall.EIO}, nil},
		{"short", sysfault.Durable, sysfault.Action{Op: sysfault.Short, Max: 7}, isWrite},
	}
}

// TestFaultSubmitter disturbs dma at every call in the spool. A submission that
// fails says so, once, and leaves nothing; a short write is nothing special.
func TestFaultSubmitter(t *testing.T) {
	sizes := map[string]string{"small": message, "large": "Subject: large\n\n" + strings.Repeat("a line of some length, of which there are many\n", 15000) + lastLine + "\n"}
	for size, text := range sizes {
		for _, f := range faults() {
			t.Run(size+"/"+f.name, func(t *testing.T) {
				base := t.TempDir()
				dir := stages(base)
				to := []string{"carol", "dave"}
				var s *submission
				last := 0 // number of the last fsync in the undisturbed run
				sysfault.Enumerate(t, sysfault.Plan{
					Scope: sysfault.Scope{Roots: []string{base}, Classes: f.classes},
					Match: func(c sysfault.Call) bool {
						return inQueue(c) && (f.match == nil || f.match(c))
					},
					Action: func(sysfault.Call) sysfault.Action { return f.action },
					Max:    atMost(2), Seed: 3,
				}, func(t *testing.T) (cmd *exec.Cmd) {
					s, cmd = newSubmission(t, dir(t), to)
					cmd.Stdin = strings.NewReader(text)
					return cmd
				}, func(t *testing.T, n int, call sysfault.Call, res sysfault.Result) {
					if !res.State.Exited() {
						t.Fatalf("it ended with %#x: %s", res.State, &s.stderr)
					}
					code := res.State.ExitStatus()
					if n == 0 {
						for _, c := range res.Calls {
							if c.Name == "fsync" {
								last = c.N
							}
						}
					}
					good := n == 0 || f.action.Op == sysfault.Short
					left := s.spool()
					got := s.arrived()
					switch {
					case good && (code != 0 || got != len(to)):
						t.Errorf("exit %d, %d of %d got it: %s", code, got, len(to), &s.stderr)
					case good:
					case code != 75 || !oneLine(s.stderr.String()):
						t.Errorf("exit %d and %q, want 75 and one line", code, &s.stderr)
					case got != 0 && (call.N != last || got != len(to)):
						t.Errorf("it failed, and %d of %d got it", got, len(to))
					case len(left) > 0 && !strings.HasPrefix(call.Name, "unlink"):
						t.Errorf("it failed and left %v", left)
					}
					s.clean()
				})
			})
		}
	}
}

// oneLine reports whether text is one line as dma prints it.
func oneLine(text string) bool {
	return strings.HasPrefix(text, "dma: ") && strings.Count(text, "\n") == 1 && strings.HasSuffix(text, "\n")
}

// TestFaultDrain disturbs a drain once, at every call. When the disk is well
// again everything is delivered, and exactly once: what was done could be
// recorded.
func TestFaultDrain(t *testing.T) {
	for kind, mailbox := range mailboxes() {
		for _, f := range faults() {
			t.Run(kind+"/"+f.name, func(t *testing.T) {
				base := t.TempDir()
				dir := stages(base)
				var m *mixed
				var stderr *strings.Builder
				runner := 0
				sysfault.Enumerate(t, sysfault.Plan{
					Scope: sysfault.Scope{Roots: []string{base}, Classes: f.classes, Started: func(p *os.Process) { runner = p.Pid }},
					Match: func(c sysfault.Call) bool {
						// Not the configuration, which is read before, nor what
						// commands do.
						return c.Pid == runner && !strings.HasSuffix(c.Path, "/dma.conf") && (f.match == nil || f.match(c))
					},
					Action: func(sysfault.Call) sysfault.Action { return f.action },
					Max:    atMost(1), Seed: 11,
				}, func(t *testing.T) *exec.Cmd {
					m = newMixed(t, siteOptions{dir: dir(t), mailbox: mailbox})
					cmd := m.command("dma-runner", "drain")
					stderr = new(strings.Builder)
					cmd.Stderr = stderr
					return cmd
				}, func(t *testing.T, n int, call sysfault.Call, res sysfault.Result) {
					if !res.State.Exited() {
						t.Fatalf("it ended with %#x: %s", res.State, stderr)
					}
					if code := res.State.ExitStatus(); code != 0 && code != 75 || strings.Contains(stderr.String(), "panic") {
						t.Errorf("exit %d: %s", code, stderr)
					}
					apart := m.stands(m.id, toRefusal, spooldir.Tempfail) || m.stands(m.id, toNowhere, spooldir.Tempfail)
					m.settle()
					m.check(allowed{apart: apart})
					if box, ok := strings.CutSuffix(call.Path, ".lock"); ok {
						// A lock that cannot be read may be somebody else's by
						// now; one that cannot be removed stays, too. The next
						// delivery knows it as left over.
						m.submit([]string{filepath.Base(box)}, message)
						m.settle()
					}
					m.unlocked()
					m.clean()
					if t.Failed() {
						t.Logf("the disturbed drain said:\n%s", stderr)
					}
				})
			})
		}
	}
}

// TestSickDisk lets whole kinds of calls fail throughout a drain. Whatever they
// are, nothing is lost, and nothing is repeated that could be recorded.
func TestSickDisk(t *testing.T) {
	named := func(names ...string) func(sysfault.Call) bool {
		return func(c sysfault.Call) bool {
			for _, n := range names {
				if strings.HasPrefix(c.Name, n) {
					return true
				}
			}
			return false
		}
	}
	creates := func(c sysfault.Call) bool { return c.Name == "openat" && c.Class&sysfault.Mutate != 0 }
	for _, tc := range []struct {
		name  string
		errno syscall.Errno
		fails func(sysfault.Call) bool
		may   allowed
	}{
		{"no fsync", syscall.EIO, named("fsync"), allowed{}},
		{"no rename", syscall.EIO, named("rename"), allowed{}},
		{"no rename and full", syscall.ENOSPC, named("rename"), allowed{}},
		{"no link", syscall.ENOSPC, named("link"), allowed{}},
		{"no chmod", syscall.EIO, named("fchmodat", "chmod"), allowed{}},
		{"no unlink", syscall.EIO, named("unlink"), allowed{}},
		{"no new file", syscall.ENOSPC, creates, allowed{}},
		{"no write", syscall.ENOSPC, isWrite, allowed{}},
		{"full", syscall.ENOSPC, func(c sysfault.Call) bool {
			return isWrite(c) || creates(c) || named("rename", "link", "mkdir")(c)
		}, allowed{}},
		{"no list", syscall.EIO, named("getdents"), allowed{}},
		{"no read", syscall.EIO, named("read", "pread"), allowed{apart: true}},
		// Nothing can be recorded, and nothing is: what was done is done again.
		{"dead", syscall.EIO, func(c sysfault.Call) bool { return c.Class&sysfault.Durable != 0 }, allowed{command: true, host: true, childHost: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			base := t.TempDir()
			m := newMixed(t, siteOptions{dir: base})
			var stderr strings.Builder
			cmd := m.command("dma-runner", "drain")
			cmd.Stderr = &stderr
			runner, failed := 0, 0
			scope := sysfault.Scope{
				Roots: []string{base}, Classes: sysfault.Durable | sysfault.Look,
				Started: func(p *os.Process) { runner = p.Pid },
			}
			sysfault.Need(t)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			res, err := sysfault.Run(ctx, cmd, scope, func(c sysfault.Call) sysfault.Action {
				if c.Pid != runner || strings.HasSuffix(c.Path, "/dma.conf") || !tc.fails(c) {
					return sysfault.Action{}
				}
				failed++
				return sysfault.Action{Op: sysfault.Fail, Errno: tc.errno}
			})
			if err != nil {
				log := stderr.String()
				t.Fatalf("%v: %d calls failed; its log ends with\n%s", err, failed, log[max(0, len(log)-2000):])
			}
			if failed == 0 {
				t.Fatal("no call failed")
			}
			if failed > 2000 {
				t.Errorf("%d calls failed: it does not rest", failed)
			}
			if !res.State.Exited() || res.State.ExitStatus() != 0 && res.State.ExitStatus() != 75 {
				t.Errorf("it ended with %#x", res.State)
			}
			after := fmt.Sprint(m.spool())
			m.settle()
			m.check(tc.may)
			m.unlocked()
			m.clean()
			if t.Failed() {
				t.Logf("%d calls failed; it left %s and said:\n%s", failed, after, &stderr)
			}
		})
	}
}

// TestFullDisk fills the disk of a spool, whose mailboxes lie elsewhere. No
// mail is taken, what needs no room is delivered, and when there is room again
// the rest follows.
func TestFullDisk(t *testing.T) {
	const most = 64 << 20
	for fs, mount := range map[string]func(t *testing.T) string{
		"tmpfs": func(t *testing.T) string { return tinyfs.New(t, tinyfs.Limits{Bytes: 8 << 20}) },
		"ext4":  func(t *testing.T) string { return powercut.New(t, "ext4").Mount() },
	} {
		t.Run(fs, func(t *testing.T) {
			disk := mount(t)
			m := newMixed(t, siteOptions{spool: disk + "/spool", conf: "MINFREE 64K\n"})
			sp := m.open()
			sp.ReleaseBallast()
			tinyfs.Fill(t, disk+"/fill", 0, most)
			if fs == "ext4" {
				fillDirectory(t, disk+"/fill", disk+"/spool/sent")
			}

			for _, conf := range []string{"MINFREE 64K\n", "MINFREE 0\n"} {
				text, err := os.ReadFile(m.path("dma.conf"))
				if err != nil {
					t.Fatal(err)
				}
				m.write("full.conf", strings.Replace(string(text), "MINFREE 64K\n", conf, 1))
				before := m.spool()
				r := m.run(exec.Command(program(t, "dma"), "-C", m.path("full.conf"), "-odq", "carol"), message)
				if r.code != 75 || !oneLine(r.stderr) {
					t.Errorf("%s: exit %d and %q, want 75 and one line", strings.TrimSpace(conf), r.code, r.stderr)
				}
				if after := m.spool(); !slices.Equal(before, after) {
					t.Errorf("%s: it left %v of %v", strings.TrimSpace(conf), after, before)
				}
			}

			log := m.drain().stderr
			if n := len(m.mailbox("carol")); n != 1 {
				t.Errorf("carol has %d messages while the disk is full", n)
			}
			if got := m.relayed(); !slices.Equal(got, []string{"x@y.example"}) {
				t.Errorf("the smarthost took it for %v while the disk is full", got)
			}
			for _, name := range m.spool() {
				if strings.HasSuffix(name, "-carol") || strings.HasSuffix(name, "-x@y.example") {
					t.Errorf("delivered, and still there: %s", name)
				}
			}
			if fs == "ext4" && strings.Count(log, "removed at once") != 2 {
				t.Error("the disk refused no step to sent")
			}

			pads, _ := filepath.Glob(disk + "/spool/sent/.pad*")
			for _, file := range append(pads, disk+"/fill") {
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
			}
			m.settle()
			m.check(allowed{})
			m.unlocked()
			m.clean()
			if t.Failed() {
				t.Logf("with the full disk it said:\n%s", log)
			}
			// Mail is taken again.
			if code := m.submit([]string{"carol"}, message); code != 0 {
				t.Errorf("exit %d with room again", code)
			}
		})
	}
}

// fillDirectory makes links of file in a directory of a full disk until it has
// no room for another name.
func fillDirectory(t *testing.T, file, dir string) {
	t.Helper()
	n := 0
	for _, size := range []int{200, 50, 4} {
		for {
			n++
			err := os.Link(file, fmt.Sprintf("%s/.pad%s%04d", dir, strings.Repeat("x", size), n))
			if errors.Is(err, syscall.ENOSPC) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}
