package parent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dma/agent"
	"dma/internal/crashtest"
	"dma/internal/passwd"
	"dma/internal/wire"
)

func TestMessages(t *testing.T) {
	for _, m := range []message{
		{number: 1, kind: 'a'}, {number: 1<<32 - 1, kind: 'a', fields: []string{"x"}}, {kind: 'b', fields: []string{"", "ö"}}, {number: 7, kind: 'c', fields: strings.Split("a b c d e f g h", " ")},
	} {
		if got, err := decode(m.encode()); err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%+v: %+v, %v", m, got, err)
		}
	}
	for _, bad := range []string{"", "abcd", "abcde" + strings.Repeat("\x00", maxFields)} {
		if m, err := decode([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, m)
		}
	}
	if got := oneLine("a\nb\x00c\xff\u0085" + strings.Repeat("x", 1000)); !strings.HasPrefix(got, "a?b?c??x") || len(got) > maxText {
		t.Errorf("one line: %q", got)
	}
}

// TestUser: a user arrives as it was sent.
func TestUser(t *testing.T) {
	u := users()["ann"]
	m, err := decode(message{fields: userFields(u)}.encode())
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseUser(m.fields)
	u.Gecos = "Ann, Ö" // without the NUL
	if err != nil || got != u {
		t.Errorf("%+v, %v", got, err)
	}
	for i, bad := range map[int]string{1: "a/b", 2: "-1", 3: "4294967295"} {
		fields := userFields(u)
		fields[i] = bad
		if got, err := parseUser(fields); err == nil {
			t.Errorf("%q: %+v", fields, got)
		}
	}
}

// TestLookup asks through a Client.
func TestLookup(t *testing.T) {
	f := newFixture(t)
	conn, _ := f.session(t, f.queue)
	c := NewClient(conn)
	ctx := context.Background()
	if u, err := c.Lookup(ctx, "ann"); err != nil || u.UID != 5000 || u.Home != "/home/ann" {
		t.Errorf("ann: %+v, %v", u, err)
	}
	if u, err := c.LookupID(ctx, 38); err != nil || u.Name != "list" {
		t.Errorf("uid 38: %+v, %v", u, err)
	}
	for _, err := range []error{second(c.Lookup(ctx, "eve")), second(c.Lookup(ctx, "../x")), second(c.LookupID(ctx, 77)), second(c.LookupID(ctx, -1))} {
		if !errors.Is(err, passwd.ErrUnknown) {
			t.Errorf("unknown: %v", err)
		}
	}
	if _, err := c.Lookup(ctx, "dead"); err == nil || errors.Is(err, passwd.ErrUnknown) || err.Error() != "ldap: connection? refused?" {
		t.Errorf("dead: %q", err)
	}
	if _, err := c.Password(ctx, "joe", "host"); err == nil {
		t.Error("the queue process gets a password")
	}
	receive(t, c.Done(), "end of the one that asks for what it may not")
}

func second[T any](_ T, err error) error { return err }

// TestSlowLookups: look-ups that hang hold up neither pings nor agents, and no
// more than twice maxLookups are in progress.
func TestSlowLookups(t *testing.T) {
	f := newFixture(t)
	f.lookup = limit
	conn, bad := f.session(t, f.queue)
	send := func(m message) {
		if err := conn.Send(m.encode()); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2*maxLookups + 3 {
		send(message{number: uint32(i), kind: kindLookup, fields: []string{"slow"}})
	}
	send(message{number: 99, kind: kindStop, fields: []string{"ann", "user"}})
	var refused, stopped int
	for range 4 {
		frame, _, err := conn.Receive(maxAnswer, 0)
		if err != nil {
			t.Fatal(err)
		}
		switch m, _ := decode(frame); {
		case m.number == 99 && m.fields[0] == statusOK:
			stopped++
		case m.number >= 2*maxLookups && m.fields[0] == statusTrouble:
			refused++
		default:
			t.Errorf("%+v", m)
		}
	}
	if refused != 3 || stopped != 1 || len(bad) > 0 {
		t.Errorf("%d refused, %d stopped, %d bad", refused, stopped, len(bad))
	}
}

// start asks for an agent and returns its process.
func (f *fixture) start(t *testing.T, c *Client, user string, role agent.Role) (*fakeChild, error) {
	t.Helper()
	conn, err := c.StartAgent(context.Background(), user, role)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close() })
	child := f.child(t)
	// It leads to the agent.
	if err := wire.New(dup(t, child.conns[0])).Send([]byte(user)); err != nil {
		t.Error(err)
	}
	if got, _, err := conn.Receive(64, 0); err != nil || string(got) != user {
		t.Errorf("from the agent of %s: %q, %v", user, got, err)
	}
	return child, nil
}

func TestAgents(t *testing.T) {
	inHome := agent.Setup{Mailbox: "maildir:~/Maildir", MinUID: 1000, Listed: []string{"list"}, AliasUser: "news"}
	inDir := inHome
	inDir.Mailbox = "mbox:/DIR/%u" // a directory that everybody can write to
	for _, tt := range []struct {
		user   string
		role   agent.Role
		setup  agent.Setup
		want   Account
		refuse string
	}{
		{"ann", agent.UserRole, inDir, Account{5000, 5000, []int{5000, 7000}}, ""},
		{"ann", agent.MailboxRole, inDir, Account{5000, 5000, nil}, ""},
		{"ann", agent.UserRole, inHome, Account{5000, 5000, []int{5000, 7000}}, ""},
		{"ann", agent.MailboxRole, inHome, Account{}, "not served: MAILBOX maildir:~/Maildir needs the rights of the user"},
		{"bob", agent.UserRole, inDir, Account{5001, 0, []int{0, 7000}}, ""},
		{"lost", agent.UserRole, inDir, Account{}, "groups: no answer"},
		{"lost", agent.MailboxRole, inDir, Account{5002, 5002, nil}, ""},
		{"eve", agent.UserRole, inDir, Account{}, `not served: user "eve": no such user`},
		{"dead", agent.UserRole, inDir, Account{}, "ldap: connection? refused?"},
		{"daemon", agent.UserRole, inDir, Account{}, "not served: user daemon is below MINUID 1000"},
		{"daemon", agent.MailboxRole, inDir, Account{1, 1, nil}, ""},
		{"daemon", agent.UserRole, inHome, Account{1, 1, []int{1, 7000}}, ""},
		{"list", agent.UserRole, inDir, Account{38, 38, []int{38, 7000}}, ""},
		{"news", agent.UserRole, inDir, Account{9, 9, []int{9, 7000}}, ""},
		{"root", agent.UserRole, inDir, Account{}, "not served: nothing runs as root; name a person in the aliases"},
		{"root", agent.UserRole, inHome, Account{}, "not served: nothing runs as root; name a person in the aliases"},
		{"toor", agent.UserRole, inHome, Account{}, "not served: nothing runs as toor; name a person in the aliases"},
		{"root", agent.MailboxRole, inHome, Account{}, "not served: MAILBOX maildir:~/Maildir needs the rights of the user"},
		{"root", agent.MailboxRole, inDir, Account{65534, 65533, nil}, ""},
		{"dma", agent.UserRole, inDir, Account{}, "not served: user dma is the mail system; name a person in the aliases"},
		{"dma", agent.MailboxRole, inDir, Account{}, "not served: user dma is the mail system; name a person in the aliases"},
		{"alsodma", agent.UserRole, inDir, Account{}, "not served: user alsodma is the mail system; name a person in the aliases"},
		{"dmanet", agent.MailboxRole, inDir, Account{}, "not served: user dmanet is the mail system; name a person in the aliases"},
	} {
		t.Run(tt.user+" "+string(tt.role)+" "+tt.setup.Mailbox, func(t *testing.T) {
			f := newFixture(t)
			dir := t.TempDir()
			f.openMailDir = func(_ string, u passwd.User) (*mailDir, error) {
				d, err := os.Open(dir)
				if err != nil {
					return nil, err
				}
				m := &mailDir{dir: d, base: u.Name}
				m.stat.Mode = unix.S_IFDIR | 0o1777
				return m, nil
			}
			f.o.Agent = tt.setup
			conn, _ := f.session(t, f.queue)
			c := NewClient(conn)
			got, err := f.start(t, c, tt.user, tt.role)
			if tt.user == "root" && tt.role == agent.MailboxRole && tt.refuse == "" && os.Geteuid() != 0 {
				t.Skip("root's mailbox belongs to root")
			}
			if tt.refuse != "" {
				if err == nil || err.Error() != tt.refuse || errors.Is(err, agent.ErrNotServed) != strings.HasPrefix(tt.refuse, "not served: ") {
					t.Fatalf("%v; want %s", err, tt.refuse)
				}
				if len(f.starter.started) > 0 || len(f.agents.live) > 0 {
					t.Error("something was started")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer got.kill()
			if !reflect.DeepEqual(got.spec.account, tt.want) {
				t.Errorf("%+v; want %+v", got.spec.account, tt.want)
			}
			if s := got.spec; s.worker || s.role != RoleAgent || s.title != "agent "+tt.user+" "+string(tt.role) || slices.Contains(s.env, "X=1") {
				t.Errorf("%+v", s)
			}
			setup, err := agent.ReadSetup(got.conns[1])
			u := users()[tt.user]
			u.Gecos = "" // no agent needs it
			if err != nil || setup.User != u || setup.Role != tt.role || setup.Mailbox != tt.setup.Mailbox ||
				setup.UID != tt.want.UID || setup.GID != tt.want.GID || !slices.Equal(setup.Groups, tt.want.Groups) ||
				setup.MailFile != (tt.user == "root") || setup.MailFile != (len(got.conns) == 5) {
				t.Errorf("%+v, %v", setup, err)
			}
		})
	}
}

// TestOneAgent: a user has one agent of a role at a time, whatever is asked for,
// and a killed one makes room.
func TestOneAgent(t *testing.T) {
	f := newFixture(t)
	conn, _ := f.session(t, f.queue)
	c := NewClient(conn)
	ctx := context.Background()
	first, err := f.start(t, c, "ann", agent.UserRole)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.start(t, c, "ann", agent.UserRole); !errors.Is(err, agent.ErrBusy) {
		t.Errorf("a second one: %v", err)
	}
	if err := c.StopAgent(ctx, "bob", agent.UserRole); err != nil {
		t.Error(err)
	}
	if err := c.StopAgent(ctx, "ann", agent.MailboxRole); err != nil {
		t.Error(err)
	}
	select {
	case <-first.gone:
		t.Error("another's end ended it")
	default:
	}
	if err := c.StopAgent(ctx, "ann", agent.UserRole); err != nil {
		t.Error(err)
	}
	receive(t, first.gone, "end of the agent")
	second, err := f.start(t, c, "ann", agent.UserRole)
	if err != nil {
		t.Fatal(err)
	}
	second.end(errors.New("idle"))
	if err := c.StopAgent(ctx, "ann", agent.UserRole); err != nil {
		t.Error(err)
	}
	// The lock of an agent that a killed parent left.
	lock, err := f.locks.take(5000, agent.UserRole)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.start(t, c, "ann", agent.UserRole); !errors.Is(err, agent.ErrBusy) {
		t.Errorf("while the lock is held: %v", err)
	}
	lock.Close()
	third, err := f.start(t, c, "ann", agent.UserRole)
	if err != nil {
		t.Fatal(err)
	}
	third.kill()
}

func TestMaxAgents(t *testing.T) {
	f := newFixture(t)
	conn, _ := f.session(t, f.queue)
	c := NewClient(conn)
	for i := range MaxAgents {
		child, err := f.start(t, c, fmt.Sprint("user", i), agent.UserRole)
		if err != nil {
			t.Fatal(i, err)
		}
		defer child.kill()
	}
	if _, err := f.start(t, c, "ann", agent.UserRole); err == nil || err.Error() != fmt.Sprint(MaxAgents, " agents are at work") {
		t.Errorf("%v", err)
	}
	if err := c.StopAgent(context.Background(), "user3", agent.UserRole); err != nil {
		t.Error(err)
	}
	child, err := f.start(t, c, "ann", agent.UserRole)
	if err != nil {
		t.Fatal(err)
	}
	child.kill()
	f.starter.fail.Store(true)
	for range 20 {
		if _, err := f.start(t, c, "bob", agent.UserRole); err == nil || errors.Is(err, agent.ErrBusy) {
			t.Fatal(err)
		}
	}
}

// TestHangingMailDirs: mail directories that do not answer keep back no agents but
// the writers to them, and those no longer than they hang.
func TestHangingMailDirs(t *testing.T) {
	f := newFixture(t)
	f.o.Agent.Mailbox = "mbox:/DIR/%u"
	f.lookup = time.Millisecond
	hang := make(chan struct{})
	f.openMailDir = func(string, passwd.User) (*mailDir, error) {
		<-hang
		return nil, errForeign
	}
	conn, _ := f.session(t, f.queue)
	c := NewClient(conn)
	for i := range MaxAgents {
		if _, err := f.start(t, c, fmt.Sprint("user", i), agent.MailboxRole); err == nil || !strings.Contains(err.Error(), context.DeadlineExceeded.Error()) {
			t.Fatal(i, err)
		}
	}
	if _, err := f.start(t, c, "ann", agent.MailboxRole); err == nil || err.Error() != "mail directories do not answer" {
		t.Errorf("%v", err)
	}
	// Another parent with the same slots, and patience.
	g := newFixture(t)
	g.o.Agent.Mailbox, g.openMailDir, g.opening = f.o.Agent.Mailbox, f.openMailDir, f.opening
	conn, _ = g.session(t, g.queue)
	c = NewClient(conn)
	child, err := g.start(t, c, "ann", agent.UserRole)
	if err != nil {
		t.Fatal(err)
	}
	child.kill()
	close(hang)
	for range MaxAgents { // those that hung give their places back
		f.opening <- struct{}{}
	}
	for range MaxAgents {
		<-f.opening
	}
	if child, err = g.start(t, c, "ann", agent.MailboxRole); err != nil {
		t.Fatal(err)
	}
	child.kill()
}

// TestMailDir: links of root are followed, and nothing is looked at of what belongs
// to somebody else.
func TestMailDir(t *testing.T) {
	var unavailable error
	if os.Geteuid() != 0 {
		unavailable = errors.New("not root")
	}
	crashtest.Need(t, unavailable)
	dir, err := os.MkdirTemp("/var/tmp", "dma-parent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	mail, home := filepath.Join(dir, "mail"), filepath.Join(dir, "home")
	for _, err := range []error{
		os.Chmod(dir, 0o755), os.Mkdir(mail, 0o755), os.Mkdir(home, 0o700), os.Mkdir(home+"/mail", 0o700),
		os.Mkdir(dir+"/open", 0o700), os.Chmod(dir+"/open", 0o777), os.Mkdir(dir+"/open/mail", 0o755),
		os.Symlink("mail", dir+"/link"), os.Symlink(dir+"/open/../link", dir+"/again"), os.Symlink("../mail", mail+"/up"),
		os.Symlink("loop", dir+"/loop"), os.Symlink("mail", dir+"/theirs"), os.Lchown(dir+"/theirs", 5001, 5001),
		os.Symlink(mail, home+"/link"), os.Lchown(home, 5001, 5001), os.WriteFile(dir+"/file", nil, 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]error{
		"/mail": nil, "/link": nil, "/mail/up/up": nil, "/loop": unix.ELOOP, "/file": unix.ENOTDIR, "/missing": fs.ErrNotExist,
		"/theirs": errForeign, "/home": errForeign, "/home/mail": errForeign, "/home/link": errForeign, "/home/missing": errForeign,
		"/open/mail": errForeign, "/again": errForeign, "/open": nil,
	} {
		m, err := openMailDir(dir+path+"/%u", passwd.User{Name: "ann"})
		if !errors.Is(err, want) {
			t.Errorf("%s: %v", path, err)
		}
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(dir+path, &st); err != nil || st.Ino != m.stat.Ino || m.base != "ann" {
			t.Errorf("%s: %+v, %v", path, m, err)
		}
		m.dir.Close()
	}
}

// TestGarbage: whoever sends it is of no further use.
func TestGarbage(t *testing.T) {
	file := func(t *testing.T) *os.File {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	frame := func(kind byte, fields ...string) []byte {
		return append([]byte{0, 0, 0, 1, kind}, strings.Join(fields, "\x00")...)
	}
	for _, tt := range []struct {
		about string
		net   bool
		frame []byte
		files int
	}{
		{"empty", false, nil, 0},
		{"short", false, []byte("abc"), 0},
		{"no such kind", false, frame('z', "x"), 0},
		{"an answer", false, frame(kindAnswer, "ok"), 0},
		{"ready with more", false, frame(kindReady, "x"), 0},
		{"no name", false, frame(kindLookup), 0},
		{"two names", false, frame(kindLookup, "a", "b"), 0},
		{"a path", false, frame(kindLookup, "../etc"), 0},
		{"an option", false, frame(kindLookup, "-x"), 0},
		{"a line", false, frame(kindLookup, "a\nb"), 0},
		{"long name", false, frame(kindLookup, strings.Repeat("a", 300)), 0},
		{"no uid", false, frame(kindLookupID, "x"), 0},
		{"uid with a sign", false, frame(kindLookupID, "+5"), 0},
		{"no uid but none", false, frame(kindLookupID, "4294967295"), 0},
		{"no such role", false, frame(kindStart, "ann", "root"), 0},
		{"a command", false, frame(kindStart, "ann", "user", "/bin/sh"), 0},
		{"a descriptor", false, frame(kindStart, "ann", "user"), 1},
		{"a descriptor nobody wants", false, frame(kindLookup, "ann"), 1},
		{"two descriptors", false, frame(kindStart, "ann", "user"), 2},
		{"password for the queue", false, frame(kindPassword, "joe", "host"), 0},
		{"huge", false, make([]byte, maxRequest+1), 0},
		{"look-up for the net", true, frame(kindLookup, "ann"), 0},
		{"agent for the net", true, frame(kindStop, "ann", "user"), 0},
		{"descriptor from the net", true, frame(kindPassword, "joe", "host"), 1},
		{"login", true, frame(kindPassword, "-x", "host"), 0},
		{"login with a line", true, frame(kindPassword, "a\nb", "host"), 0},
		{"host", true, frame(kindPassword, "joe", "a b"), 0},
		{"host is a command", true, frame(kindPassword, "joe", "$(id)"), 0},
	} {
		t.Run(tt.about, func(t *testing.T) {
			f := newFixture(t)
			w := f.queue
			if tt.net {
				w = f.net
			}
			conn, bad := f.session(t, w)
			var files []*os.File
			olderKernel(f.ours)
			for range tt.files {
				files = append(files, file(t))
			}
			conn.Send(tt.frame, files...) // may be cut off at its header
			if err := receive(t, bad, "verdict"); err == nil {
				t.Error("nothing said")
			}
			if len(f.starter.started) > 0 {
				t.Error("something was started")
			}
		})
	}
}

// TestFlood: a worker that asks and does not read is of no further use, and
// holds nothing up meanwhile.
func TestFlood(t *testing.T) {
	f := newFixture(t)
	f.timing.send = 50 * time.Millisecond
	conn, bad := f.session(t, f.queue)
	conn.SetWriteDeadline(time.Now().Add(limit))
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for i := uint32(0); ; i++ {
			if conn.Send(message{number: i, kind: kindLookup, fields: []string{"ann"}}.encode()) != nil {
				return
			}
		}
	}()
	if err := receive(t, bad, "verdict"); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v", err)
	}
	conn.Close()
	receive(t, sent, "end of the flood")
}

func TestPassword(t *testing.T) {
	me := passwd.User{Name: "me", UID: os.Getuid(), GID: os.Getgid(), Home: "/home/me"}
	if me.UID == 0 {
		me.UID, me.GID = 65534, 65534
	} else {
		t.Skip("to run a command as a user takes root")
	}
	for _, tt := range []struct {
		about, command, user string
		want, err            string
	}{
		{"environment", `echo "$LOGIN $HOST $HOME $PWD $PATH $(id -u) $(id -g) $(id -G)"; echo more`, "me",
			"joe mail.example.net /home/me / /usr/local/bin:/usr/bin:/bin 65534 65534 65534 7000", ""},
		{"none", "", "me", "", "there is no PASSWORDCMD"},
		{"no user", "echo x", "", "", "PASSWORDCMD needs a TOKENUSER to run as"},
		{"root", "echo x", "root", "", "TOKENUSER root may be neither root nor a user of the mail system"},
		{"dma", "echo x", "alsodma", "", "TOKENUSER alsodma may be neither root nor a user of the mail system"},
		{"dmanet", "echo x", "dmanet", "", "TOKENUSER dmanet may be neither root nor a user of the mail system"},
		{"unknown", "echo x", "eve", "", `TOKENUSER: user "eve": no such user`},
		{"fails", "echo secret; echo secret >&2; exit 3", "me", "", "PASSWORDCMD: exit status 3"},
		{"nothing", ":", "me", "", "PASSWORDCMD: it printed nothing"},
		{"a NUL", `printf 'a\000b\n'`, "me", "", "PASSWORDCMD: it printed a NUL"},
		{"descriptors", "ls /dev/fd/ | tr '\\n' ' '", "me", "0 1 2 3 ", ""},
	} {
		t.Run(tt.about, func(t *testing.T) {
			closeInherited()
			f := newFixture(t)
			f.o.Users = users(me)
			f.o.PasswordCmd, f.o.TokenUser = tt.command, tt.user
			conn, _ := f.session(t, f.net)
			got, err := NewClient(conn).Password(context.Background(), "joe", "mail.example.net")
			if err != nil && err.Error() != tt.err || got != tt.want || (err == nil) != (tt.err == "") {
				t.Errorf("%q, %v; want %q, %s", got, err, tt.want, tt.err)
			}
		})
	}
}

// TestLogin: what a login may be, and that none leads elsewhere.
func TestLogin(t *testing.T) {
	for _, good := range []string{"joe", "joe.doe+x@mail.example", "CORP\\joe", "joe%site", "jörg", "a_b-c=d:e", "0"} {
		if !validLogin(good) {
			t.Errorf("%q is refused", good)
		}
	}
	for _, bad := range []string{"", "-x", ".", "..", ".x", "../../bank", "a/b", "/etc", "a b", "a\tb", "a*", "a?", "[a]", "$HOME", "`id`", "a;b", "a|b", "a&b", "a>b", "a'b", `a"b`, "{a,b}", "~a", "a\nb", "a\u0085b", "a\u00a0b", "\xff", strings.Repeat("a", 513)} {
		if validLogin(bad) {
			t.Errorf("%q is taken", bad)
		}
	}
	for _, bad := range []string{"..", ".", ".x", "a/b", "-h"} {
		if validHost(bad) {
			t.Errorf("host %q is taken", bad)
		}
	}
}

// FuzzRequest is a queue process that sends what it likes: nothing it says makes
// anything start as root, as a user of the mail system, or with a path or
// command of its own.
func FuzzRequest(f *testing.F) {
	for _, m := range []message{
		{kind: kindReady}, {kind: kindPong, fields: []string{"idle", "1", "0"}}, {kind: kindLookup, fields: []string{"ann"}}, {kind: kindLookupID, fields: []string{"0"}},
		{kind: kindStart, fields: []string{"ann", "user"}}, {kind: kindStart, fields: []string{"root", "mailbox"}}, {kind: kindStart, fields: []string{"dma", "user"}},
		{kind: kindStart, fields: []string{"toor", "user"}}, {kind: kindStop, fields: []string{"ann", "user"}}, {kind: kindPassword, fields: []string{"joe", "host"}},
	} {
		b := m.encode()
		f.Add(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b, true)
		f.Add(b, binary.BigEndian.AppendUint16(nil, uint16(len(b))), false)
	}
	fx := newFixture(f)
	fx.lookup = time.Millisecond
	fx.o.Ready, fx.o.Alive = nil, nil
	fx.o.Agent.Mailbox = "mbox:/nonexistent/%u"
	fx.openMailDir = func(string, passwd.User) (*mailDir, error) { return nil, errForeign }
	f.Fuzz(func(t *testing.T, first, second []byte, withFile bool) {
		for _, w := range []*worker{fx.queue, fx.net} {
			conn, bad := fx.session(t, w)
			olderKernel(fx.ours)
			var files []*os.File
			if withFile {
				ours, theirs, err := wire.Pair()
				if err != nil {
					t.Fatal(err)
				}
				defer ours.Close()
				defer theirs.Close()
				files = append(files, theirs)
			}
			// The parent may close at any time.
			conn.Send(first, files...)
			conn.Send(second)
			conn.Raw(func(fd int) {
				unix.Write(fd, second) // without a frame
				unix.Shutdown(fd, unix.SHUT_WR)
			})
			receive(t, bad, "end")
		}
		for {
			select {
			case c := <-fx.starter.started:
				s := c.spec
				c.kill()
				if s.account.UID <= 0 || s.account.UID == queueUID || s.account.UID == netUID || s.role != RoleAgent || s.worker {
					t.Fatalf("started: %+v", s)
				}
				continue
			default:
			}
			return
		}
	})
}
