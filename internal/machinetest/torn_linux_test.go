package machinetest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// stopWriting stops the writer of a user's mailbox in the middle of a message:
// when the mailbox is longer than least, and shorter than most. It lets the writer
// go on by short steps until then.
func (m *machine) stopWriting(v *service, user string, least, most int64) (pid int) {
	m.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if pid == 0 || errors.Is(syscall.Kill(pid, syscall.SIGSTOP), syscall.ESRCH) {
			pid = 0
			if writers := m.victims(v)["mailbox writer"]; len(writers) > 0 {
				pid = writers[0]
			}
			continue
		}
		for state := ""; !strings.HasPrefix(state, "T") && !strings.HasPrefix(state, "Z"); {
			status := statusOf(fmt.Sprintf("/proc/%d/status", pid))
			if status == nil {
				break
			}
			state = status["State"]
		}
		info, err := os.Stat("/var/mail/" + user)
		switch {
		case err == nil && info.Size() >= most:
			m.t.Fatalf("the mailbox of %s has %d octets: the writer was not stopped in time", user, info.Size())
		case err == nil && info.Size() > least:
			return pid
		}
		if errors.Is(syscall.Kill(pid, syscall.SIGCONT), syscall.ESRCH) {
			pid = 0
		}
		time.Sleep(time.Millisecond)
	}
	m.t.Fatalf("nobody writes the mailbox of %s\n%s", user, v.log())
	return 0
}

// awaitWriter waits for a mailbox writer that is not pid.
func (m *machine) awaitWriter(v *service, pid int) (next int) {
	m.t.Helper()
	v.await("another mailbox writer", func() bool {
		for _, p := range m.victims(v)["mailbox writer"] {
			if p != pid {
				next = p
			}
		}
		return next != 0
	})
	return next
}

// TestTorn kills or stops the writer of bob's mailbox in the middle of a message
// while others come, which must not come to stand behind what there is of it.
func TestTorn(t *testing.T) {
	line := strings.Repeat("0123456789", 7) + "\n"
	body := strings.Repeat(line, 64<<20/len(line)) + "the end\n"
	for name, interrupt := range map[string]func(*machine, *service) (waits bool){
		"killed": func(m *machine, v *service) bool {
			m.do(syscall.Kill(m.stopWriting(v, "bob", 4<<20, 60<<20), syscall.SIGKILL))
			return false
		},
		"killed, and the next one too": func(m *machine, v *service) bool {
			pid := m.stopWriting(v, "bob", 4<<20, 60<<20)
			m.do(syscall.Kill(pid, syscall.SIGKILL))
			m.do(syscall.Kill(m.awaitWriter(v, pid), syscall.SIGKILL))
			return false
		},
		"killed, with the queue process": func(m *machine, v *service) bool {
			pid := m.stopWriting(v, "bob", 4<<20, 60<<20)
			for _, p := range m.victims(v)["queue"] {
				m.do(syscall.Kill(p, syscall.SIGKILL))
			}
			m.do(syscall.Kill(pid, syscall.SIGKILL))
			return false
		},
		"stopped": func(m *machine, v *service) bool {
			// By bob himself, who gets another writer in spite of that.
			pid := m.stopWriting(v, "bob", 4<<20, 60<<20)
			m.submit("alice", "meanwhile", "bob")
			m.awaitWriter(v, pid)
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			conf := []string{"RETRY_MIN 1m"} // what failed is not to come back before the others
			if name == "stopped" {
				conf = []string{"RETRY_MIN 1s", "RETRY_MAX 2s"}
			}
			m := newMachine(t, conf...)
			if name == "stopped" {
				m.installHasty()
			}
			v := m.start()
			want := map[string]int{"first": 1, "big": 1}
			m.submit("alice", "first", "bob")
			v.empties(m)
			m.as("alice", "Subject: big\n\n"+body, dmaFile, "bob").want(t, 0)
			if interrupt(m, v) {
				want["meanwhile"] = 1
			}
			for i := range 5 {
				subject := fmt.Sprint("small ", i)
				m.submit("carol", subject, "bob")
				want[subject] = 1
			}
			v.await("big message", func() bool { return len(m.in("local")) == 0 && len(m.in("forwarding")) == 0 })
			if name == "stopped" {
				v.stop() // which forgets that bob gets no agent for a while
				v = m.start()
			}
			v.empties(m)
			v.stop()

			text := m.mailbox("bob")
			got := subjects(text)
			for subject := range want {
				if got[subject] != 1 {
					t.Errorf("%q is there %d times", subject, got[subject])
				}
			}
			if len(got) != len(want) || strings.Count("\n"+text, "\nFrom ") != len(want) || strings.Count(text, "\n\nFrom ") != len(want)-1 {
				t.Errorf("%d messages, %d From_ lines; want %d", len(got), strings.Count("\n"+text, "\nFrom "), len(want))
			}
			if strings.Count(text, "\n\n"+body+"\n") != 1 || strings.Count(text, line) != strings.Count(body, line) {
				t.Errorf("the big message is not there whole and once: %d octets", len(text))
			}
			for _, left := range []string{"/var/mail/bob.lock", "/var/mail/bob.lock.dma"} {
				if _, err := os.Lstat(left); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s is left: %v", left, err)
				}
			}
			for line := range strings.Lines(v.log()) {
				if strings.Contains(line, " corrupt ") || strings.Contains(line, "panic") || strings.Contains(line, "bounced") {
					t.Error(line)
				}
			}
		})
	}
}
