package forward

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dma/internal/address"

	"golang.org/x/sys/unix"
)

// matrix makes what one row of permissions.txt says.
type matrix struct {
	t                 *testing.T
	dir, home         string
	user, root, other int
}

func (m *matrix) do(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// own gives path to the one whom the table calls name. A test that is not root
// makes only what is its own.
func (m *matrix) own(path, name string) {
	m.t.Helper()
	uid := map[string]int{"user": m.user, "root": m.root, "other": m.other}[name]
	if os.Geteuid() == 0 {
		m.do(os.Lchown(path, uid, uid))
	}
}

func (m *matrix) file(path, owner, mode string, content string) {
	m.t.Helper()
	m.do(os.WriteFile(path, []byte(content), 0o600))
	m.own(path, owner)
	m.chmod(path, mode)
}

func (m *matrix) mkdir(path, owner, mode string) {
	m.t.Helper()
	m.do(os.Mkdir(path, 0o700))
	m.own(path, owner)
	m.chmod(path, mode)
}

func (m *matrix) chmod(path, mode string) {
	m.t.Helper()
	n, err := strconv.ParseUint(mode, 8, 32)
	m.do(err)
	m.do(unix.Chmod(path, uint32(n)))
	if n&0o700 == 0 {
		m.t.Cleanup(func() { unix.Chmod(path, 0o700) })
	}
}

func (m *matrix) link(to, path, owner string) {
	m.t.Helper()
	m.do(os.Symlink(to, path))
	m.own(path, owner)
}

// prepare makes the files and returns the path of the .forward.
func (m *matrix) prepare(what, owner, mode, home string) string {
	t := m.t
	t.Helper()
	m.home = filepath.Join(m.dir, "homes", "jim")
	real := m.home
	m.mkdir(filepath.Dir(m.home), "root", "0755")
	homeOwner, homeMode := "user", "0755"
	switch home {
	case "missing":
		real = ""
	case "lost":
		m.home, real = filepath.Join(m.dir, "lost", "jim"), ""
	case "notdir":
		m.file(m.home, "user", "0644", "")
		real = ""
	case "symlink":
		real = filepath.Join(m.dir, "data")
		m.link("../data", m.home, "root")
	case "hidden":
		m.mkdir(m.home, "user", "0755")
		m.chmod(filepath.Dir(m.home), "0000")
		return filepath.Join(m.home, ".forward")
	default:
		homeOwner, homeMode, _ = strings.Cut(home, ":")
	}
	if real != "" {
		m.mkdir(real, homeOwner, "0755")
		defer m.chmod(real, homeMode)
	}
	const good = "bob@example.org\n"
	path := filepath.Join(m.home, ".forward")
	switch what {
	case "file":
		m.file(path, owner, mode, good)
	case "missing":
	case "empty":
		m.file(path, owner, mode, "")
	case "comments":
		m.file(path, owner, mode, "# none\n\n , # at all\n")
	case "mistake":
		m.file(path, owner, mode, "a b\n")
	case "64k":
		m.file(path, owner, mode, good+strings.Repeat("#", MaxForward-len(good)))
	case "64k+1":
		m.file(path, owner, mode, good+strings.Repeat("#", MaxForward-len(good)+1))
	case "sparse":
		m.file(path, owner, mode, good)
		m.do(os.Truncate(path, 1<<30))
	case "dir":
		m.mkdir(path, owner, mode)
	case "fifo":
		m.do(mkfifo(path))
		m.own(path, owner)
	case "socket":
		m.do(makeSocket(path))
		m.own(path, owner)
	case "device":
		if err := mkdevice(path); err != nil {
			t.Skip("no device can be made: ", err)
		}
	case "link", "abslink":
		to := filepath.Join(m.home, "dotfiles", "forward")
		m.mkdir(filepath.Dir(to), "user", mode)
		m.file(to, "user", "0644", good)
		if what == "link" {
			to = "dotfiles/forward"
		}
		m.link(to, path, owner)
	case "outlink":
		m.file(filepath.Join(m.dir, "outside"), "user", mode, good)
		m.link("../../outside", path, owner)
	case "dangling":
		m.link("nothing", path, owner)
	case "loop":
		m.link(".forward", path, owner)
	case "chain":
		for i := range maxLinks + 1 {
			m.link(fmt.Sprint("l", i+1), filepath.Join(m.home, fmt.Sprint("l", i)), owner)
		}
		m.file(filepath.Join(m.home, fmt.Sprint("l", maxLinks+1)), owner, mode, good)
		path = filepath.Join(m.home, "l0")
	case "below":
		path = filepath.Join(m.home, "mail", "forward")
		m.mkdir(filepath.Dir(path), owner, "0755")
		m.file(path, "user", "0644", good)
		m.chmod(filepath.Dir(path), mode)
	case "nobelow":
		path = filepath.Join(m.home, "mail", "forward")
	case "fixed":
		path = filepath.Join(m.dir, "forwards", "jim")
		m.mkdir(filepath.Dir(path), "root", "0755")
		m.file(path, owner, mode, good)
	default:
		t.Fatalf("what is %q?", what)
	}
	return path
}

func TestPermissions(t *testing.T) {
	f, err := os.Open("testdata/permissions.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows := 0
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		rows++
		col := strings.Fields(line)
		if len(col) < 9 {
			t.Fatalf("permissions.txt:%d: %d columns", n, len(col))
		}
		what, owner, mode, home, group := col[0], col[1], col[2], col[3], col[4]
		for i, col := range col[5:8] {
			if !strings.Contains(" used mailbox wait refuse ? ", " "+col+" ") {
				t.Errorf("permissions.txt:%d: peer %d does %q?", n, i, col)
			}
		}
		want := strings.Join(col[8:], " ")
		t.Run(fmt.Sprintf("%d-%s-%s-%s-%s-%s", n, what, owner, mode, home, group), func(t *testing.T) {
			m := &matrix{t: t, user: os.Geteuid(), other: 23456}
			if os.Geteuid() == 0 {
				m.user = 12345
			} else if owner != "user" || strings.Contains(home, ":") && !strings.HasPrefix(home, "user:") {
				t.Skip("needs root to give files away")
			}
			if strings.Contains(want, "permission denied") && os.Geteuid() == 0 && !canActAs {
				t.Skip("root may read everything")
			}
			m.dir = t.TempDir()
			m.do(os.Chmod(m.dir, 0o755))
			m.do(os.Chmod(filepath.Dir(m.dir), 0o755))
			o := ReadOptions{UID: m.user}
			o.Paths = []string{m.prepare(what, owner, mode, home)}
			o.Home = m.home
			o.Alone = func(gid int) (bool, error) {
				switch group {
				case "alone":
					return true, nil
				case "shared":
					return false, nil
				case "unknown":
					return false, errors.New("no answer")
				}
				t.Errorf("the members of group %d are asked for", gid)
				return false, nil
			}
			var res Result
			var err error
			actAs(t, m.user, func() { res, err = read(o) })
			got := "none"
			switch {
			case err != nil:
				got = "wait: " + err.Error()
				if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNoUser) {
					t.Errorf("%v could be taken for a final error", err)
				}
				if res.Path != "" || res.Targets != nil {
					t.Errorf("an error and %+v", res)
				}
			case res.Forwards():
				got = "used"
				if describe(res.Targets) != "address bob@example.org" {
					t.Errorf("targets %s", describe(res.Targets))
				}
			}
			want = strings.NewReplacer("HOME", m.home, "OTHER", fmt.Sprint(m.other), "USER", fmt.Sprint(m.user)).Replace(want)
			if text, ok := strings.CutPrefix(want, "wait: "); !ok && got != want || ok && !(strings.HasPrefix(got, "wait: ") && strings.Contains(got, text)) {
				t.Errorf("%s\ngot  %s\nwant %s", line, got, want)
			}
		})
	}
	if lines.Err() != nil || rows < 50 {
		t.Errorf("%d rows, %v", rows, lines.Err())
	}
}

// ownHome is a home directory of whoever runs the test.
func ownHome(t *testing.T, files map[string]string) string {
	t.Helper()
	home := t.TempDir()
	if err := os.Chmod(home, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		path := filepath.Join(home, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, path, strings.ReplaceAll(content, "HOME", home))
	}
	return home
}

func TestRead(t *testing.T) {
	long := "a@b\n"
	for i := range MaxTargets {
		long += fmt.Sprintf("a%d@b\n", i)
	}
	for name, tt := range map[string]struct {
		files  map[string]string
		detail string
		mode   map[string]fs.FileMode
		want   string
	}{
		"all kinds": {files: map[string]string{".forward": "\\jim, \"|cat -u\", ~/mbox, ~/Mail/, /dev/null, x@y, bob"},
			want: ".forward: mailbox jim; command cat -u; file HOME/mbox; maildir HOME/Mail/; discard; address x@y; address bob"},
		"duplicates": {files: map[string]string{".forward": "x@y, x@Y, HOME/mbox\n~/mbox"}, want: ".forward: address x@y; file HOME/mbox"},
		"detail": {files: map[string]string{".forward": "a", ".forward+lists": "b"}, detail: "lists",
			want: ".forward+lists: address b"},
		"detail in capitals": {files: map[string]string{".forward": "a", ".forward+lists": "b"}, detail: "LISTS",
			want: ".forward+lists: address b"},
		"detail as it is first": {files: map[string]string{".forward": "a", ".forward+lists": "b", ".forward+LISTS": "c"}, detail: "LISTS",
			want: ".forward+LISTS: address c"},
		"detail without a file": {files: map[string]string{".forward": "a"}, detail: "lists", want: ".forward: address a"},
		"detail, empty file":    {files: map[string]string{".forward": "a", ".forward+lists": ""}, detail: "lists", want: ".forward+lists: "},
		"detail, bad file": {files: map[string]string{".forward": "a", ".forward+lists": "b c"}, detail: "lists",
			want: "error HOME/.forward+lists:1:"},
		"detail with a slash": {files: map[string]string{".forward": "a", ".forward+x/y": "b"}, detail: "x/y", want: ".forward: address a"},
		"include":             {files: map[string]string{".forward": ":include:~/list, a", "list": "b\n:include:HOME/l2", "l2": "c, |d"}, want: ".forward: address b; address c; command d; address a"},
		"include twice":       {files: map[string]string{".forward": ":include:~/list, :include:HOME/list", "list": "b"}, want: ".forward: address b"},
		"include itself":      {files: map[string]string{".forward": ":include:~/.forward"}, want: "error HOME/.forward:1: include loop: HOME/.forward -> HOME/.forward; remove"},
		"include loop": {files: map[string]string{".forward": "a, :include:~/x", "x": "\n:include:~/y", "y": ":include:~/x"},
			want: "error HOME/y:1: include loop: HOME/x -> HOME/y -> HOME/x"},
		"include missing":      {files: map[string]string{".forward": "a\n:include:~/x"}, want: "error HOME/.forward:2: :include: HOME/x does not exist; create it"},
		"include mistake":      {files: map[string]string{".forward": "a\n:include:~/x", "x": "a\nb c"}, want: "error HOME/x:2: `b c` has a blank"},
		"include open":         {files: map[string]string{".forward": ":include:~/x", "x": "a"}, mode: map[string]fs.FileMode{"x": 0o646}, want: "error HOME/.forward:1: :include: anybody may write to HOME/x; chmod o-w HOME/x"},
		"include group":        {files: map[string]string{".forward": ":include:~/x", "x": "a, \\jim"}, mode: map[string]fs.FileMode{"x": 0o664}, want: ".forward: address a; mailbox jim"},
		"include group |":      {files: map[string]string{".forward": ":include:~/x", "x": "a\n|cat"}, mode: map[string]fs.FileMode{"x": 0o664}, want: "error HOME/x:2: an included file may name commands"},
		"include dir open":     {files: map[string]string{".forward": ":include:~/d/x", "d/x": "a\n|cat"}, mode: map[string]fs.FileMode{"d": 0o777}, want: "error HOME/d/x:2: an included file may name commands"},
		"include dir sticky":   {files: map[string]string{".forward": ":include:~/d/x", "d/x": "a\n|cat"}, mode: map[string]fs.FileMode{"d": 0o777 | fs.ModeSticky}, want: "error HOME/d/x:2: an included file may name commands"},
		"include below sticky": {files: map[string]string{".forward": ":include:~/d/e/x", "d/e/x": "a\n|cat"}, mode: map[string]fs.FileMode{"d": 0o777 | fs.ModeSticky}, want: ".forward: address a; command cat"},
		"too many":             {files: map[string]string{".forward": ":include:~/x", "x": long}, want: "error HOME/x:1001: more than 1000 targets"},
	} {
		t.Run(name, func(t *testing.T) {
			home := ownHome(t, tt.files)
			for name, mode := range tt.mode {
				if err := os.Chmod(filepath.Join(home, name), mode); err != nil {
					t.Fatal(err)
				}
			}
			var r Reader
			res, err := r.Read(context.Background(), ReadOptions{
				Paths: Paths("~/.forward", "jim", home, tt.detail), Home: home, UID: os.Geteuid(),
			})
			got := filepath.Base(res.Path) + ": " + describe(res.Targets)
			if err != nil {
				got = "error " + err.Error()
			}
			want := strings.ReplaceAll(tt.want, "HOME", home)
			if got != want && !(err != nil && strings.HasPrefix(want, "error ") && strings.HasPrefix(got, want)) {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestReadNothing(t *testing.T) {
	var r Reader
	for name, o := range map[string]ReadOptions{
		"no path": {},
		"no home": {Paths: Paths("~/.forward", "jim", "", "x")},
		"off":     {Paths: Paths("", "jim", "/", "")},
	} {
		if res, err := r.Read(context.Background(), o); err != nil || res.Path != "" || res.Forwards() {
			t.Errorf("%s: %+v, %v", name, res, err)
		}
	}
	if _, err := r.Read(context.Background(), ReadOptions{Paths: []string{"x\n"}}); err == nil || !strings.HasPrefix(err.Error(), "x?: the path") {
		t.Errorf("a relative path: %v", err)
	}
}

func TestResultLists(t *testing.T) {
	home := ownHome(t, map[string]string{".forward": "|cat -u, ~/mbox, ~/d/, cat"})
	var r Reader
	res, err := r.Read(context.Background(), ReadOptions{Paths: []string{home + "/.forward"}, Home: home, UID: os.Geteuid()})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		kind  Kind
		value string
		want  bool
	}{
		{Command, "cat -u", true},
		{Command, "cat", false},
		{Command, "", false},
		{File, home + "/mbox", true},
		{File, "~/mbox", false},
		{File, home + "/d/", false},
		{Maildir, home + "/d/", true},
		{Address, "cat", true},
	} {
		if got := res.Lists(tt.kind, tt.value); got != tt.want {
			t.Errorf("Lists(%v, %q) = %v", tt.kind, tt.value, got)
		}
	}
}

// TestReadHangs: while a home directory does not answer, Read does after its
// time.
func TestReadHangs(t *testing.T) {
	home := ownHome(t, map[string]string{".forward": "a"})
	if err := os.Chmod(home+"/.forward", 0o664); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		var r Reader
		release := make(chan struct{})
		o := ReadOptions{Paths: []string{home + "/.forward"}, Home: home, UID: os.Geteuid(),
			Alone: func(int) (bool, error) { <-release; return true, nil }}
		start := time.Now()
		for range 2 {
			if _, err := r.Read(t.Context(), o); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "in time") {
				t.Errorf("error %v", err)
			}
		}
		if d := time.Since(start); d != 2*readTime {
			t.Errorf("waited %v", d)
		}
		close(release)
		synctest.Wait()
		if res, err := r.Read(t.Context(), o); err != nil || !res.Forwards() {
			t.Errorf("%+v, %v", res, err)
		}
	})
}

func TestExpandPath(t *testing.T) {
	for _, tt := range []struct{ pattern, home, want string }{
		{"~/.forward", "/home/jim", "/home/jim/.forward"},
		{"~/.forward", "/home/%u/", "/home/%u/.forward"},
		{"~", "/home/jim", "/home/jim"},
		{"~/.forward", "", ""},
		{"~/.forward", "/", "/.forward"},
		{"/var/forward/%u", "", "/var/forward/jim"},
		{"/var/forward/%u.%u%%u", "/home/jim", "/var/forward/jim.jim%u"},
		{"~%u/x", "/home/jim", "~jim/x"},
		{"", "/home/jim", ""},
	} {
		if got := ExpandPath(tt.pattern, "jim", tt.home); got != tt.want {
			t.Errorf("ExpandPath(%q, jim, %q) = %q, want %q", tt.pattern, tt.home, got, tt.want)
		}
	}
	for detail, want := range map[string]string{
		"":                       "/h/.forward",
		"x":                      "/h/.forward+x /h/.forward",
		"Lists":                  "/h/.forward+Lists /h/.forward+lists /h/.forward",
		"..":                     "/h/.forward+.. /h/.forward",
		"a/../b":                 "/h/.forward",
		"a\nb":                   "/h/.forward",
		strings.Repeat("x", 101): "/h/.forward",
	} {
		if got := strings.Join(Paths("~/.forward", "jim", "/h", detail), " "); got != want {
			t.Errorf("detail %q: %s", detail, got)
		}
	}
}

func TestKeepOwn(t *testing.T) {
	targets, err := ParseForward("f", []byte(`jim, JIM, jim+x, jim@here.example, jim@else.example, bob, |jim, \jim, \Jim, \jim+y, \JIM+x, \bob`))
	if err != nil {
		t.Fatal(err)
	}
	got := describe(KeepOwn(targets, "jim", func(a address.Address) (string, bool) {
		return a.Local, a.Domain == "" || a.Domain == "here.example"
	}))
	if want := "mailbox jim; mailbox jim +x; address jim@else.example; address bob; command jim; mailbox jim +y; mailbox bob"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := describe(KeepOwn(targets[3:4], "jim", nil)); got != "address jim@here.example" {
		t.Errorf("without IsLocal: %s", got)
	}
}
