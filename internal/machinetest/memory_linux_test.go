package machinetest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestAgentMemory has a user read the whole memory of the own agent, which the
// kernel allows, while a message is delivered, and while the same agent has the
// next one: there is the content of these messages, and neither another recipient
// of theirs nor anything of another user's mail.
func TestAgentMemory(t *testing.T) {
	// A command that is every user's mailbox: no child stands between the message
	// and the agent. It waits for its user's leave.
	const lda = libexec + "/lda"
	m := newMachine(t, "MAILBOX pipe:"+lda)
	m.write(lda, "#!/bin/sh\ncat >> $HOME/got\n[ -e $HOME/slow ] || exit 0\ntouch $HOME/began\nwhile [ ! -e $HOME/go ]; do sleep 0.05; done\nrm $HOME/go\n", 0o755)
	m.own("alice", "slow", "", 0o644)
	m.own("bob", "slow", "", 0o644)
	v := m.start()
	send := func(user, number string) {
		t.Helper()
		message := fmt.Sprintf("To: %s@host.example\nBcc: %[1]s.%[2]s.hidden@example.net, carol+%[1]s.%[2]s.beside\nSubject: x\n\n%[1]s.%[2]s.content\n", user, number)
		m.as("mallory", message, dmaFile, "-t").want(t, 0)
	}
	began := func(user string) process {
		t.Helper()
		v.await("command of "+user, func() bool { return os.Remove("/home/"+user+"/began") == nil })
		agent, ok := m.findAgent(user)
		if !ok {
			t.Fatalf("no agent of %s\n%s", user, v.log())
		}
		return agent
	}
	send("alice", "first")
	began("alice")
	send("bob", "first")
	agent := began("bob")
	actor := m.actor()
	for _, number := range []string{"first", "second"} {
		if number == "second" { // which waits while the agent is at the first
			send("bob", number)
			m.own("bob", "go", "", 0o644)
			if again := began("bob"); again.pid != agent.pid {
				t.Fatalf("the second message has agent %d, the first had %d", again.pid, agent.pid)
			}
		}
		r := m.as("bob", "", actor, "memory", strconv.Itoa(agent.pid))
		if r.code != 0 {
			t.Fatalf("%s: %s", r.what, r.stderr)
		}
		if !strings.Contains(r.stdout, "bob."+number+".content") || !strings.Contains(r.stdout, "mallory@host.example") {
			t.Fatalf("%s: %d octets of memory, without the message", number, len(r.stdout)) // or the check sees nothing
		}
		for _, word := range []string{"first.hidden", "second.hidden", ".beside", "alice."} {
			if i := strings.Index(r.stdout, word); i >= 0 {
				t.Errorf("%s: the memory of bob's agent has %q", number, r.stdout[max(0, i-40):min(len(r.stdout), i+60)])
			}
		}
		t.Logf("%s: %d octets", number, len(r.stdout))
		// Nor has it a descriptor of what stands in the spool.
		links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", agent.pid))
		m.do(err)
		for _, link := range links {
			if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, "/var/") {
				t.Errorf("%s: a descriptor of %s", number, to)
			}
		}
	}
	m.own("bob", "go", "", 0o644)
	m.own("alice", "go", "", 0o644)
	v.await("end", func() bool { return len(m.queued()) == len(m.in("remote"))+len(m.in("tempfail")) })
	v.stop()
}
