package passwd

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
)

// newSystem returns a system with joe in its file, and with script as getent.
func newSystem(t *testing.T, nsswitch, script string) (s *system, dir string) {
	t.Helper()
	dir = t.TempDir()
	s = &system{
		file:     File(filepath.Join(dir, "passwd")),
		nsswitch: filepath.Join(dir, "nsswitch.conf"),
		getent:   []string{filepath.Join(dir, "missing"), filepath.Join(dir, "getent")},
		limit:    time.Minute,
		sockets:  func(string) ([]string, bool) { return nil, false },
	}
	write(t, filepath.Join(dir, "passwd"), "joe:x:1000:1000::/home/joe:\nbroken:x\n")
	if nsswitch != "" {
		write(t, s.nsswitch, nsswitch)
	}
	if script != "" {
		if err := os.WriteFile(s.getent[1], []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return s, dir
}

const withLDAP = "group: files\npasswd:\tfiles [NOTFOUND=continue] ldap # comment\n"

func TestSystem(t *testing.T) {
	const ann = `echo "ann:*:5000:500:Ann:/home/ann:/bin/sh"`
	for _, tt := range []struct {
		about            string
		nsswitch, script string
		user             string
		uid              int    // expected
		err              string // expected, after `user "...": `
	}{
		{"in the file", withLDAP, "exit 1", "joe", 1000, ""},
		{"bad line in the file", withLDAP, ann, "broken", 0, "DIR/passwd:2 is a bad line"},
		{"found", withLDAP, ann, "ann", 5000, ""},
		{"found in lower case", withLDAP, ann, "ANN", 5000, ""},
		{"arguments", withLDAP, `test "$#$1$2" = 2passwdann && ` + ann, "ann", 5000, ""},
		{"environment", withLDAP, `test "$HOME$DMATEST$LANG" = "" && test "$(pwd)$PATH" = //usr/bin:/bin && ` + ann, "ann", 5000, ""},
		{"session", withLDAP, `[ ! -e /proc/self/stat ] || read -r _ _ _ _ _ sid _ < /proc/$$/stat; test "${sid-$$}" = $$ && ` + ann, "ann", 5000, ""},
		{"unknown", withLDAP, "exit 2", "bob", 0, "no such user"},
		{"no nsswitch.conf", "", ann, "ann", 0, "no such user"},
		{"files only", "passwd: files compat\n", ann, "ann", 0, "no such user"},
		{"no passwd line", "passwd_compat: nis\n# passwd: ldap\n", ann, "ann", 0, "no such user"},
		{"never asked", withLDAP, "echo asked; exit 1", "-x", 0, "no such user"},
		{"uid as a name", withLDAP, `echo "root:x:0:0::/:"`, "0", 0, "no such user"},
		{"uid as a name, with a blank", withLDAP, `echo "root:x:0:0::/:"`, " 0", 0, "no such user"},
		{"another user", withLDAP, `echo "root:x:0:0::/:"`, "0x0", 0, `getent answers with user "root"`},
		{"no getent", withLDAP, "", "ann", 0, "DIR/nsswitch.conf names ldap, and there is no getent to ask"},
		{"fails", withLDAP, "exit 1", "ann", 0, "getent: exit status 1"},
		{"killed", withLDAP, "kill -9 $$", "ann", 0, "getent: signal: killed"},
		{"answers and exits with 2", withLDAP, ann + "\nexit 2", "ann", 0, "getent: exit status 2"},
		{"nothing", withLDAP, "exit 0", "ann", 0, "getent: 1 fields instead of 7"},
		{"two lines", withLDAP, ann + "\n" + ann, "ann", 0, "getent: more than one line"},
		{"too much", withLDAP, "while :; do echo 0123456789012345678901234567890123456789; done", "ann", 0, "getent: too much output"},
	} {
		t.Run(tt.about, func(t *testing.T) {
			t.Setenv("DMATEST", "x")
			s, dir := newSystem(t, tt.nsswitch, tt.script)
			u, err := s.Lookup(context.Background(), tt.user)
			want := ""
			if tt.err != "" {
				want = "user " + strconv.Quote(tt.user) + ": " + strings.ReplaceAll(tt.err, "DIR", dir)
			}
			if got := errText(err); u.UID != tt.uid || got != want {
				t.Errorf("got %+v, error %s; want uid %d, error %s", u, got, tt.uid, want)
			}
			if unknown := tt.err == "no such user"; errors.Is(err, ErrUnknown) != unknown {
				t.Errorf("errors.Is(%v, ErrUnknown) is %v", err, !unknown)
			}
		})
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestSystemLookupID(t *testing.T) {
	ctx := context.Background()
	s, _ := newSystem(t, withLDAP, `case $2 in 5000|6000) echo "ann:*:5000:500:::";; *) exit 2;; esac`)
	if u, err := s.LookupID(ctx, 1000); u.Name != "joe" || err != nil {
		t.Errorf("1000: %+v, %v", u, err)
	}
	if u, err := s.LookupID(ctx, 5000); u.Name != "ann" || err != nil {
		t.Errorf("5000: %+v, %v", u, err)
	}
	if _, err := s.LookupID(ctx, 6000); errText(err) != "uid 6000: getent answers with uid 5000" {
		t.Errorf("6000: %v", err)
	}
	for _, uid := range []int{7000, -1} {
		if _, err := s.LookupID(ctx, uid); !errors.Is(err, ErrUnknown) {
			t.Errorf("%d: %v", uid, err)
		}
	}
}

// TestSystemCompat: a + line in the file means NIS, whatever nsswitch.conf says.
func TestSystemCompat(t *testing.T) {
	s, dir := newSystem(t, "", `echo "ann:*:5000:500:::"`)
	write(t, filepath.Join(dir, "passwd"), "joe:x:1000:1000:::\n+::::::\n")
	if u, err := s.Lookup(context.Background(), "ann"); u.UID != 5000 || err != nil {
		t.Errorf("%+v, %v", u, err)
	}
}

func TestSystemHangs(t *testing.T) {
	s, dir := newSystem(t, withLDAP, "exec sleep 1000")
	s.limit = time.Millisecond
	_, err := s.Lookup(context.Background(), "ann")
	if errText(err) != `user "ann": getent: context deadline exceeded` {
		t.Errorf("error %v", err)
	}
	write(t, filepath.Join(dir, "passwd"), "")
	if _, err = s.Lookup(context.Background(), "ann"); err == nil || errors.Is(err, ErrUnknown) {
		t.Errorf("no user in the file: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "passwd")); err != nil {
		t.Fatal(err)
	}
	if _, err = s.Lookup(context.Background(), "ann"); err == nil || errors.Is(err, ErrUnknown) {
		t.Errorf("no file: %v", err)
	}
}

// TestDeadDaemon: getent exits with 2 whether the user is unknown or the daemon
// that would know is dead.
func TestDeadDaemon(t *testing.T) {
	s, dir := newSystem(t, withLDAP, "exit 2")
	socket := filepath.Join(dir, "s")
	must := true
	s.sockets = func(source string) ([]string, bool) {
		if source != "ldap" {
			t.Errorf("asked for the daemon of %s", source)
		}
		return []string{filepath.Join(dir, "other"), socket}, must
	}
	lookup := func() error {
		_, err := s.Lookup(context.Background(), "bob")
		return err
	}
	if err := lookup(); errText(err) != `user "bob": ldap: its daemon does not run` {
		t.Errorf("no socket: %v", err)
	}
	must = false
	if err := lookup(); !errors.Is(err, ErrUnknown) {
		t.Errorf("no socket, none needed: %v", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if err := lookup(); !errors.Is(err, ErrUnknown) {
		t.Errorf("daemon alive: %v", err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := lookup(); err == nil || errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("daemon dead: %v", err)
	}
}

func TestDatabaseLine(t *testing.T) {
	for _, tt := range []struct {
		text string
		want []string
	}{
		{"", nil},
		{"passwd: files", nil},
		{"  passwd :\tcompat\n", nil},
		{"passwd: files systemd sss", []string{"systemd", "sss"}},
		{"passwd: sss[!UNAVAIL=return success=merge]files [x", []string{"sss"}},
		{"passwdx: ldap\npasswd:#ldap\n", nil},
		{"passwd:ldap", []string{"ldap"}},
	} {
		if got := databaseLine(tt.text, "passwd"); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q: %q; want %q", tt.text, got, tt.want)
		}
	}
}

// TestRealSystem: root exists, whoever keeps the users.
func TestRealSystem(t *testing.T) {
	ctx := context.Background()
	s := System()
	if u, err := s.Lookup(ctx, "root"); err != nil || u.UID != 0 {
		t.Errorf("root: %+v, %v", u, err)
	}
	if u, err := s.LookupID(ctx, 0); err != nil || u.UID != 0 {
		t.Errorf("uid 0: %+v, %v", u, err)
	}
}
