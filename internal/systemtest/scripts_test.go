package systemtest

import (
	"errors"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"dma/spooldir"

	"github.com/rogpeppe/go-internal/testscript"
)

// The scripts in testdata/script show what the programs say and how they exit
// when their input is bad. Each runs in a folder with a site in it; $CONF is
// its configuration. Besides the usual commands they have
//
//	exits CODE PROGRAM ARG...  runs a program, which has to end with CODE;
//	                           \n, \x00 and the like in an ARG are Go's escapes
//	conf LINE                  adds a line to the configuration
//	mail USER N                USER's mailbox has to have N messages
//	owner UID FILE...          changes the owner, for root
//
// and the conditions [root], and [nouser]: nobody has made user dma here.
func TestScripts(t *testing.T) {
	t.Parallel()
	dir := filepath.Dir(program(t, "dma"))
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			s := newSiteWith(t, siteOptions{dir: env.WorkDir, conf: "# further lines\n"})
			env.Setenv("CONF", s.path("dma.conf"))
			env.Setenv("PATH", dir+":/usr/bin:/bin")
			env.Setenv("LOGNAME", "alice")
			env.Values["site"] = s
			return nil
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Geteuid() == 0, nil
			case "nouser":
				_, err := user.Lookup(spooldir.QueueUser)
				return errors.As(err, new(user.UnknownUserError)), nil
			}
			return false, errors.New("unknown condition")
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": scriptExits,
			"conf": func(ts *testscript.TestScript, _ bool, args []string) {
				f, err := os.OpenFile(ts.Getenv("CONF"), os.O_WRONLY|os.O_APPEND, 0)
				ts.Check(err)
				_, err = f.WriteString(strings.Join(args, " ") + "\n")
				ts.Check(errors.Join(err, f.Close()))
			},
			"mail": func(ts *testscript.TestScript, _ bool, args []string) {
				list, err := readMbox(ts.MkAbs("mail/" + args[0]))
				ts.Check(err)
				if n, err := strconv.Atoi(args[1]); err != nil || n != len(list) {
					ts.Fatalf("%s has %d messages, not %s", args[0], len(list), args[1])
				}
			},
			"owner": func(ts *testscript.TestScript, _ bool, args []string) {
				uid, err := strconv.Atoi(args[0])
				ts.Check(err)
				for _, top := range args[1:] {
					ts.Check(filepath.Walk(ts.MkAbs(top), func(path string, _ os.FileInfo, err error) error {
						return errors.Join(err, os.Chown(path, uid, uid))
					}))
				}
			},
		},
	})
}

// scriptExits is the command exits.
func scriptExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	for i, arg := range args {
		if strings.Contains(arg, `\`) {
			args[i], err = strconv.Unquote(`"` + strings.ReplaceAll(arg, `"`, `\"`) + `"`)
			ts.Check(err)
		}
	}
	code := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if code != want {
		ts.Fatalf("%q: exit %d, not %d", args[1:], code, want)
	}
	if said := ts.ReadFile("stderr"); code != 0 && said == "" {
		ts.Fatalf("%q says nothing", args[1:])
	}
}

// Another user can neither write into a spool nor serve it, and is told so.
func TestForeignSpool(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	const uid = 65534
	dir, err := os.MkdirTemp("", "dma-foreign-") // a folder of the test's own would be closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := newSiteWith(t, siteOptions{dir: dir})
	s.check(os.Chmod(dir, 0o755))
	for _, name := range []string{"dma", "dma-runner"} {
		placeProgram(t, s.path(name), name)
	}
	as := func(uid uint32, name string, args ...string) result {
		t.Helper()
		cmd := exec.Command(s.path(name), append([]string{"-C", s.path("dma.conf")}, args...)...)
		cmd.Dir = "/"
		cmd.Env = []string{"PATH=/usr/bin:/bin"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		return s.run(cmd, "Subject: x\n\n")
	}
	expect := func(what string, r result, code int, words ...string) {
		t.Helper()
		if r.code != code || slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(r.stderr, w) }) || strings.Count(r.stderr, "\n") > 1 {
			t.Errorf("%s: exit %d instead of %d, %q", what, r.code, code, r.stderr)
		}
	}

	// A closed spool of root.
	expect("dma", as(uid, "dma", "bob"), 75, "no way into the queue", "may not enter it")
	for _, c := range []string{"run", "drain", "flush", "mailq"} {
		expect(c, as(uid, "dma-runner", c), 77, "may not enter it")
	}
	// One that can be entered.
	for _, d := range []string{"", "tmp", "new", "lock"} {
		s.check(os.Chmod(s.path("spool", d), 0o755))
	}
	expect("dma", as(uid, "dma", "bob"), 75, "no way into the queue", "writing in ")
	for _, c := range []string{"run", "drain", "flush", "mailq"} {
		expect(c, as(uid, "dma-runner", c), 77, "belongs to uid 0, and this is uid 65534", "run dma-runner as its owner")
	}
	expect("init", as(uid, "dma-runner", "init"), 77, "belongs to uid 0")
	s.empty()

	// Root becomes the owner.
	s.check(filepath.Walk(s.path("spool"), func(path string, _ os.FileInfo, err error) error {
		return errors.Join(err, os.Chown(path, uid, uid))
	}))
	for _, d := range []string{"", "tmp", "new", "lock"} {
		s.check(os.Chmod(s.path("spool", d), 0o700))
	}
	for _, d := range []string{"mail", "home/bob"} {
		s.check(os.Chown(s.path(d), uid, uid))
	}
	expect("dma", as(uid, "dma", "-odq", "bob"), 0)
	r := as(0, "dma-runner", "drain")
	if r.code != 0 {
		t.Errorf("drain by root: exit %d, %q", r.code, r.stderr)
	}
	info, err := os.Stat(s.path("mail", "bob"))
	if err != nil {
		t.Fatalf("%v\n%s", err, r.stderr)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != uid {
		t.Errorf("the mailbox belongs to %+v", info.Sys())
	}
	s.empty()
}
