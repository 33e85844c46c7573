package machinetest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// silence is a file system whose server has taken every request and answers none:
// who asks waits in the kernel, where no signal reaches.
type silence struct {
	fd      int
	ended   chan struct{}
	mu      sync.Mutex
	waiting int // requests
}

// silent mounts it over a directory. The end function, which the end of the test
// calls too, lets everybody go who waits.
func (m *machine) silent(dir string) (s *silence, end func()) {
	m.t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	m.do(err)
	m.do(unix.Mount("silent", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40755,user_id=0,group_id=0,allow_other", fd)))
	s = &silence{fd: fd, ended: make(chan struct{})}
	go s.serve()
	var once sync.Once
	end = func() {
		once.Do(func() {
			m.do(unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH))
			<-s.ended
			m.do(unix.Close(fd)) // ends what still waits
		})
	}
	m.t.Cleanup(end)
	return s, end
}

// serve takes requests until the file system is unmounted. The first one, FUSE_INIT
// of linux/fuse.h, has to be answered, or the others would not come.
func (s *silence) serve() {
	defer close(s.ended)
	buf := make([]byte, 1<<17+4096)
	for {
		_, err := unix.Read(s.fd, buf)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOENT):
			continue
		case err != nil:
			return
		}
		le := binary.LittleEndian
		const initialize, interrupt = 26, 36
		switch le.Uint32(buf[4:]) {
		case initialize:
			answer := make([]byte, 16+64)
			le.PutUint32(answer, uint32(len(answer)))
			le.PutUint64(answer[8:], le.Uint64(buf[8:])) // which request
			le.PutUint32(answer[16:], 7)                 // the version of the protocol
			le.PutUint32(answer[20:], 31)
			le.PutUint32(answer[28:], 1<<18) // FUSE_PARALLEL_DIROPS: several may ask at once
			le.PutUint32(answer[36:], 4096)  // octets of a write at most
			_, _ = unix.Write(s.fd, answer)
		case interrupt:
		default:
			s.mu.Lock()
			s.waiting++
			s.mu.Unlock()
		}
	}
}

func (s *silence) held() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting
}

// TestSilentHome: the homes of many users stand on a file server that does not
// answer. Their mail waits, each with a line that says why; everybody else's goes
// on, the next time too, and the parent with it. When the server has gone, every
// message is there once.
func TestSilentHome(t *testing.T) {
	m := newMachine(t, "RETRY_MIN 1h")
	m.installHasty()
	m.do(os.Mkdir("/home/far", 0o755))
	var far []string
	var users, groups strings.Builder
	for i := range 12 {
		name := fmt.Sprintf("far%02d", i)
		far = append(far, name)
		fmt.Fprintf(&users, "%s:x:%d:%[2]d::/home/far/%[1]s:/bin/sh\n", name, 2100+i)
		fmt.Fprintf(&groups, "%s:x:%d:\n", name, 2100+i)
	}
	for file, more := range map[string]string{"/etc/passwd": users.String(), "/etc/group": groups.String()} {
		text, err := os.ReadFile(file)
		m.do(err)
		t.Cleanup(func() { m.write(file, string(text), 0o644) })
		m.write(file, string(text)+more, 0o644)
	}
	server, end := m.silent("/home/far")
	v := m.start()
	beside := func(subject string) {
		t.Helper()
		m.submit("alice", subject, "bob", "carol")
		v.await(subject, func() bool { return m.subjects("bob", subject) == 1 && m.subjects("carol", subject) == 1 })
	}
	m.submit("alice", "far", far...)
	v.await("agents that ask the server", func() bool { return server.held() >= 5 })
	beside("first")
	v.await("far mail that waits", func() bool { return len(m.in("tempfail")) == len(far) && len(m.queued()) == len(far) })
	troubles := 0
	for line := range strings.Lines(v.log()) {
		if strings.Contains(line, " forward-trouble ") {
			troubles++
			if !strings.Contains(line, "/home/far/") || !strings.Contains(line, "could not be read in time") {
				t.Error(line)
			}
		}
	}
	if troubles != len(far) {
		t.Errorf("%d lines of trouble for %d users", troubles, len(far))
	}
	m.root("", dmaFile, "-q").want(t, 0)
	beside("second")
	if list := m.as("alice", "", libexec+"/mailq").want(t, 0).stdout; strings.Count(list, "far") < len(far) {
		t.Errorf("mailq:\n%s", list)
	}

	// No home is there then: there is no .forward.
	end()
	v.await("end of the agents that waited", func() bool {
		return !slices.ContainsFunc(m.processes(), func(p process) bool { return strings.Contains(p.name, ": agent far") })
	})
	v.await("far mail", func() bool {
		if len(m.in("tempfail")) == len(m.queued()) && len(m.queued()) > 0 {
			m.root("", dmaFile, "-q").want(t, 0)
		}
		// A name that goes from tempfail to new is missed by a look at one after the other.
		return len(m.queued()) == 0 && !slices.ContainsFunc(far, func(user string) bool { return m.subjects(user, "far") == 0 })
	})
	for _, user := range far {
		if n := m.subjects(user, "far"); n != 1 {
			t.Errorf("%s has the message %d times", user, n)
		}
	}
	v.stop()
	m.nobodyLeft()
}
