package forward

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dma/internal/address"

	"pgregory.net/rapid"
)

// testHost has some users, and mail for here.example.
func testHost(users ...string) Host {
	return Host{
		IsUser: func(name string) (bool, error) {
			if name == "nss" {
				return false, errors.New("LDAP does not answer")
			}
			for _, u := range users {
				if u == name {
					return true, nil
				}
			}
			return false, nil
		},
		IsLocal: func(a address.Address) (string, bool) {
			return a.Local, a.Domain == "" || a.Domain == "here.example"
		},
	}
}

func TestExpand(t *testing.T) {
	host := testHost("jim", "bob", "root", "games", "Upper", "plus+user", "news")
	for _, tt := range []struct {
		aliases, name string
		want          string // targets, or "error " and its text
		trail, owner  string
	}{
		{"", "jim", "user jim", "", ""},
		{"", "JIM", "user jim", "", ""},
		{"", "Upper", "user Upper", "", ""},
		{"", "upper", "error `upper`: no such user", "", ""},
		{"", "nobody", "error `nobody`: no such user", "", ""},
		{"", "nss", "error `nss`: looking for the user: LDAP does not answer", "", ""},
		{"", "jim+lists", "user jim +lists", "", ""},
		{"", "jim+a+b", "user jim +a+b", "", ""},
		{"", "plus+user", "user plus+user", "", ""},
		{"", "+jim", "error `+jim`: no such user", "", ""},
		{"a: jim", "A", "user jim", "a", ""},
		{"a: jim", "a+x", "user jim", "a", ""},
		{"a: bob\na+x: jim", "a+x", "user jim", "a+x", ""},
		{"a: jim+x", "a", "user jim +x", "a", ""},
		{"a: b, c\nb: jim\nc: jim, bob", "a", "user jim; user bob", "a b c", ""},
		{"a: x@Here.example, y@else.example", "a", "address x; address y@else.example", "a", ""},
		{"a: jim@here.example, jim, JIM", "a", "user jim", "a", ""},
		{"a: nobody, jim", "a", "address nobody; user jim", "a", ""},
		{"a: nss, jim", "a", "error `nss`: looking", "", ""},
		{`a: \Jim, |c, /f, /d/, /dev/null`, "a", "mailbox jim; command c; file /f; maildir /d/; discard", "a", ""},
		{`a: \jim+x`, "a", "mailbox jim +x", "a", ""},
		{`a: \nobody`, "a", "mailbox nobody", "a", ""},

		// The cases in which C dma loses mail.
		{"games: games, news", "games", "user games; user news", "games", ""},
		{`root: \games`, "root", "mailbox games", "root", ""},
		{"*: games", "games", "user games", "", ""},
		{"*: games", "jim", "user jim", "", ""},
		{"*: games", "nobody", "user games", "*", ""},
		{"a: b\nb: a", "a", "error alias loop: a -> b -> a; name a user in one of them", "", ""},

		// Loops.
		{"a: a", "a", "error alias loop: a -> a", "", ""},
		{"a: a, jim", "a", "user jim", "a", ""},
		{"a: b, jim\nb: a", "a", "user jim", "a b", ""},
		{"a: b, jim\nb: a", "b", "user jim", "b a", ""},
		{"x: a, jim\na: b\nb: c\nc: b", "x", "error alias loop: b -> c -> b", "", ""},
		{"jim: james\njames: jim", "jim", "user jim", "jim james", ""},
		{"jim: james\njames: jim", "james", "user jim", "james jim", ""},
		{"jim: bob\nbob: jim", "jim", "user jim", "jim bob", ""},
		{"jim: bob\nbob: jim", "bob", "user bob", "bob jim", ""},
		{"upper: Upper", "upper", "user Upper", "upper", ""},
		{"upper: Upper", "UPPER", "user Upper", "upper", ""},
		{"jim: jim@here.example, jim+x", "jim", "user jim", "jim", ""},
		{"*: nobody", "x", "error alias loop: * -> nobody -> *", "", ""},
		{"*: nobody, x@y", "z", "address x@y", "*", ""},
		{"*: a\na: *", "z", "error alias loop: * -> a -> *", "", ""},
		{"a: nobody\n*: jim", "a", "user jim", "a *", ""},

		// Mistakes cost their own name only.
		{"a: x y\nb: jim", "a", "error ALIASES:1: `x y` has a blank", "", ""},
		{"a: x y\nb: jim", "b", "user jim", "b", ""},
		{"a: b\nb: x y", "a", "error ALIASES:2: `x y`", "", ""},
		{"sales jim", "sales", "error ALIASES:1: no colon after `sales`", "", ""},
		{"sales jim\n*: bob", "sales", "error ALIASES:1: no colon", "", ""},
		{"a: x,\njim, bob", "jim", "user jim", "", ""},

		// Names that always lead somewhere.
		{"", "postmaster", "user root", "", ""},
		{"", "Mailer-Daemon", "user root", "", ""},
		{"root: jim", "postmaster", "user jim", "root", ""},
		{"*: jim", "postmaster", "user root", "", ""},
		{"mailer-daemon: postmaster", "mailer-daemon", "user root", "mailer-daemon", ""},
		{"postmaster: jim", "POSTMASTER", "user jim", "postmaster", ""},
		{"postmaster: nobody", "postmaster", "address nobody", "postmaster", ""},
		{`a: \postmaster, \MAILER-DAEMON`, "a", "mailbox root", "a", ""},
		{`postmaster: \postmaster`, "postmaster", "mailbox root", "postmaster", ""},
		{"root: postmaster", "postmaster", "user root", "root", ""},
		{"root: postmaster", "root", "user root", "root", ""},

		// Owners.
		{"l: jim\nowner-l: bob", "l", "user jim", "l", "owner-l"},
		{"l: jim\nOwner-L: bob", "L", "user jim", "l", "owner-l"},
		{"a: l\nl: jim\nowner-l: bob", "a", "address l", "a", ""},
		{"a: l\nl: jim\nowner-l: bob\nowner-a: bob", "a", "address l", "a", "owner-a"},
		{"a: bob, l\nl: jim\nowner-l: bob", "a", "user bob; address l", "a", ""},
		{"a: bob, l\nl: jim\nowner-l: bob\nowner-a: bob", "a", "user bob; address l", "a", "owner-a"},
		{"a: l1, l2\nl1: jim\nl2: bob, jim\nowner-l1: x\nowner-l2: y", "a", "address l1; address l2", "a", ""},
		{"l2: bob, l1\nl1: jim\nowner-l1: x\nowner-l2: y", "l2", "user bob; address l1", "l2", "owner-l2"},
		{"l2: bob, l1\nl1: jim\nowner-l1: x\nowner-l2: y", "l1", "user jim", "l1", "owner-l1"},
		{"a: b, c\nb: l, jim\nc: L@here.example, l+x\nl: x@y\nowner-l: bob", "a", "address l; user jim", "a b c", ""},
		{"a: \"my list\"\n\"my list\": jim\n\"owner-my list\": bob", "a", `address "my list"`, "a", ""},
		{"l: bob, l, L\nowner-l: bob", "l", "user bob", "l", "owner-l"},
		{"bob: bob, jim\nowner-bob: news", "bob", "user bob; user jim", "bob", "owner-bob"},
		{"a: bob, l\nl: jim, a\nowner-l: bob", "l", "user jim; user bob", "l a", "owner-l"},
		{"a: bob, l\nl: jim, a\nowner-l: bob", "a", "user bob; user jim", "a l", ""},
		{"l1: l2, jim\nl2: l1, bob\nowner-l1: x\nowner-l2: y", "l1", "user bob; user jim", "l1 l2", "owner-l1"},
		{"jim: l\nl: jim, bob\nowner-l: x", "jim", "user jim; user bob", "jim l", ""},
		{"a: l\nl: jim\njim: jim, bob\nowner-l: x", "a", "address l", "a", ""},
		{"*: a, l\na: nobody, l\nl: jim\nowner-l: x", "z", "address l", "* a", ""},
		{"*: a\na: l, jim\nl: nobody\nowner-l: x", "z", "user jim", "* a l", ""},
		{"a: l, \\\\l\nl: jim\nowner-l: bob", "a", "address l; mailbox l", "a", ""},
		{"a: l, bob\nl: x y\nowner-l: bob", "a", "address l; user bob", "a", ""},
		{"root: l\nl: jim\nowner-l: bob\nowner-root: news", "postmaster", "address l", "root", "owner-root"},
		{"*: l\nl: jim\nowner-l: bob", "nobody", "address l", "*", ""},
		{"l: jim\nowner-l: bob", "owner-l", "user bob", "owner-l", ""},
		{"owner-jim: bob", "jim", "user jim", "", ""},
	} {
		a, _ := load(t, tt.aliases)
		x, err := a.Expand(context.Background(), tt.name, host)
		got := describe(x.Targets)
		if err != nil {
			got = "error " + err.Error()
			if len(x.Targets)+len(x.Trail) > 0 {
				t.Errorf("%q: %s: an error and %+v", tt.aliases, tt.name, x)
			}
			if final := strings.HasSuffix(tt.want, "no such user"); errors.Is(err, ErrNoUser) != final {
				t.Errorf("%q: %s: final %v: %v", tt.aliases, tt.name, !final, err)
			}
			if i := strings.Index(got, "/aliases:"); i >= 0 {
				got = "error ALIASES" + got[i+len("/aliases"):]
			}
		}
		if got != tt.want && !(err != nil && strings.HasPrefix(tt.want, "error ") && strings.HasPrefix(got, tt.want)) {
			t.Errorf("%q: %s: %s; want %s", tt.aliases, tt.name, got, tt.want)
		}
		if trail := strings.Join(x.Trail, " "); trail != tt.trail || x.Owner != tt.owner {
			t.Errorf("%q: %s: trail %s, owner %s; want %s, %s", tt.aliases, tt.name, trail, x.Owner, tt.trail, tt.owner)
		}
	}
}

// TestExpandSubmitted: of the names that a message was submitted for, those
// that are no alias are the catch-all's, accounts and postmaster included.
func TestExpandSubmitted(t *testing.T) {
	host := testHost("jim", "bob", "root", "games")
	host.Submitted = true
	for _, tt := range []struct{ aliases, name, want, trail string }{
		{"", "jim", "user jim", ""},
		{"", "postmaster", "user root", ""},
		{"*: bob", "jim", "user bob", "*"},
		{"*: bob", "JIM", "user bob", "*"},
		{"*: bob", "jim+lists", "user bob", "*"},
		{"*: bob", "nobody", "user bob", "*"},
		{"*: bob", "bob", "user bob", "*"},
		{"*: bob", "root", "user bob", "*"},
		{"*: bob", "postmaster", "user bob", "*"},
		{"*: bob", "MAILER-DAEMON", "user bob", "*"},
		{"*: games", "games", "user games", "*"},
		{"*: games, jim, nss2", "nobody", "user games; user jim", "*"},
		{`*: \postmaster`, "nobody", "mailbox root", "*"},
		{`*: \postmaster`, "postmaster", "mailbox root", "*"},
		{"*: postmaster", "nobody", "user root", "*"},
		{"*: postmaster", "postmaster", "user root", "*"},
		{"*: mailer-daemon", "root", "user root", "*"},
		{"*: bob\njim: games", "jim", "user games", "jim"},
		{"*: bob\njim: games", "jim+x", "user games", "jim"},
		{"*: bob\njim: \\jim", "jim", "mailbox jim", "jim"},
		{"*: bob\njim: jim", "jim", "user jim", "jim"},
		{"*: bob\na: jim, nobody", "a", "user jim; user bob", "a *"},
		{"*: bob\nroot: jim", "postmaster", "user bob", "*"},
		{"*: bob\npostmaster: jim", "postmaster", "user jim", "postmaster"},
		{"*: x y", "jim", "error", ""},
		{"*: bob\nsales jim", "sales", "error", ""},
	} {
		a, _ := load(t, tt.aliases)
		x, err := a.Expand(context.Background(), tt.name, host)
		got := describe(x.Targets)
		if err != nil && !errors.Is(err, ErrNoUser) {
			got = "error"
		}
		if trail := strings.Join(x.Trail, " "); got != tt.want || trail != tt.trail {
			t.Errorf("%q: %s: %s, %v, trail %q; want %s, %q", tt.aliases, tt.name, got, err, trail, tt.want, tt.trail)
		}
	}
}

func TestExpandNoRoot(t *testing.T) {
	a, _ := load(t, "")
	_, err := a.Expand(context.Background(), "postmaster", testHost("jim"))
	if err == nil || errors.Is(err, ErrNoUser) || !strings.Contains(err.Error(), "add the alias postmaster") {
		t.Errorf("error %v", err)
	}
	a, _ = load(t, "*: jim")
	x, err := a.Expand(context.Background(), "postmaster", testHost("jim"))
	if err != nil || describe(x.Targets) != "user jim" {
		t.Errorf("%v, %v", x, err)
	}
}

func TestExpandBounds(t *testing.T) {
	var b strings.Builder
	for i := range maxDepth + 1 {
		fmt.Fprintf(&b, "a%d: a%d\n", i, i+1)
	}
	fmt.Fprintf(&b, "a%d: jim\n", maxDepth+1)
	for i := range 3 {
		fmt.Fprintf(&b, "w%d: ", i)
		for j := range maxRecipients / 2 {
			fmt.Fprintf(&b, "x%d-%d@y.example,", i, j)
		}
		b.WriteString("\n")
	}
	b.WriteString("two: w0, w1\nthree: two, w2\n")
	a, problems := load(t, b.String())
	if len(problems) > 0 {
		t.Fatal(problems[0])
	}
	host := testHost("jim")
	for name, want := range map[string]string{
		"a0":    "error more than 50 aliases within aliases, from `a0` on; flatten them",
		"a2":    "1 targets",
		"two":   "10000 targets",
		"three": "error more than 10000 targets; split the list",
	} {
		x, err := a.Expand(context.Background(), name, host)
		got := fmt.Sprintf("%d targets", len(x.Targets))
		if err != nil {
			got = "error " + err.Error()
		}
		if !strings.HasPrefix(got, want) || errors.Is(err, ErrNoUser) {
			t.Errorf("%s: %s; want %s", name, got, want)
		}
	}
}

func TestExpandInclude(t *testing.T) {
	// Directories of a test may be writable for a group; those of a list here are not.
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	files := map[string]string{
		"plain":   "jim # me\n\nbob@x.example\n",
		"empty":   "# nobody\n",
		"self":    "a\njim\n",
		"list":    "list\njim\n",
		"command": "|cat\n/var/spool/f\n",
		"bad":     "jim\nsecret words here\n",
		"nested":  ":include:" + in("plain") + "\n:include:" + in("plain") + ", x@y",
		"loop":    "jim\n:include:" + in("loop2"),
		"loop2":   ":include:" + in("loop"),
		"open":    "jim",
		"group":   "jim, |cat",
		"group2":  "jim, \\bob, x@y",
		"group3":  ":include:" + in("plain"),
		"group4":  "secret words here",
		"tilde":   "~/mbox",
	}
	for i := range maxNesting + 1 {
		files[fmt.Sprintf("deep%d", i)] = fmt.Sprintf(":include:%s%d", in("deep"), i+1)
	}
	files[fmt.Sprintf("deep%d", maxNesting+1)] = "jim"
	var aliases strings.Builder
	for name, content := range files {
		write(t, in(name), content)
		fmt.Fprintf(&aliases, "%s: :include:%s\n", name, in(name))
	}
	for i := range maxIncludes + 1 {
		write(t, in(fmt.Sprint("many", i)), "jim")
	}
	for _, n := range []int{maxIncludes, maxIncludes + 1} {
		fmt.Fprintf(&aliases, "many%d: ", n)
		for i := range n {
			fmt.Fprintf(&aliases, ":include:%s%d,", in("many"), i)
		}
		aliases.WriteString("\n")
	}
	for _, name := range []string{"missing", "fifo", "dir", "link", "large", "dangling"} {
		fmt.Fprintf(&aliases, "%s: :include:%s\n", name, in(name))
	}
	fmt.Fprintf(&aliases, "device: :include:/dev/zero\nmix: \\root, :include:%s, :include:%s\n", in("empty"), in("plain"))
	for _, err := range []error{
		os.Chmod(in("open"), 0o666),
		os.Chmod(in("group"), 0o664), os.Chmod(in("group2"), 0o664), os.Chmod(in("group3"), 0o664), os.Chmod(in("group4"), 0o664),
		mkfifo(in("fifo")), os.Mkdir(in("dir"), 0o755), os.Symlink("plain", in("link")), os.Symlink("nothing", in("dangling")),
		os.WriteFile(in("large"), nil, 0o644), os.Truncate(in("large"), 1<<30),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	a, problems := load(t, aliases.String())
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	for name, want := range map[string]string{
		"plain":    "user jim; address bob@x.example",
		"empty":    "error no recipient in empty -> :include:DIR/empty; add one",
		"mix":      "error no recipient in :include:DIR/empty; add one",
		"self":     "address a; user jim",
		"list":     "user jim",
		"command":  "command cat; file /var/spool/f",
		"bad":      "error DIR/bad:2: `secret words here` has",
		"nested":   "user jim; address bob@x.example; address x@y",
		"loop":     "error DIR/loop2:1: include loop: :include:DIR/loop -> :include:DIR/loop2 -> :include:DIR/loop; remove",
		"open":     "error ALIASES:: :include: anybody may write to DIR/open; chmod o-w DIR/open",
		"group":    "error DIR/group:1: an included file may name commands, files and includes only if nobody else can change it: the group",
		"group2":   "user jim; mailbox bob; address x@y",
		"group3":   "error DIR/group3:1: an included file may name",
		"group4":   "error DIR/group4:1: this entry has a blank",
		"tilde":    "error DIR/tilde:1: `~/mbox`: there is no home",
		"deep0":    "error DIR/deep9:1: more than 10 included files within each other",
		"deep2":    "user jim",
		"many100":  "user jim",
		"many101":  "error ALIASES:: more than 100 included files for one recipient",
		"missing":  "error ALIASES:: :include: DIR/missing does not exist; create it",
		"dangling": "error ALIASES:: :include: DIR/dangling does not exist",
		"fifo":     "error ALIASES:: :include: DIR/fifo is a FIFO; put a regular file in its place",
		"dir":      "error ALIASES:: :include: DIR/dir is a directory",
		"device":   "error ALIASES:: :include: /dev/zero is a device",
		"link":     "user jim; address bob@x.example",
		"large":    "error ALIASES:: :include: DIR/large: larger than 1024 KiB",
	} {
		x, err := a.Expand(context.Background(), name, testHost("jim", "bob", "root"))
		got := describe(x.Targets)
		if err != nil {
			got = strings.ReplaceAll("error "+err.Error(), dir, "DIR")
			if i := strings.Index(got, "/aliases:"); i >= 0 {
				_, rest, _ := strings.Cut(got[i+len("/aliases:"):], ":")
				got = "error ALIASES::" + rest
			}
		}
		if got != want && !(err != nil && strings.HasPrefix(want, "error ") && strings.HasPrefix(got, want)) {
			t.Errorf("%s: %s; want %s", name, got, want)
		}
		if errors.Is(err, ErrNoUser) {
			t.Errorf("%s: a final error: %v", name, err)
		}
	}

	for _, tt := range []struct {
		kind  Kind
		value string
		want  bool
		fails bool
	}{
		{Command, "cat", true, false},
		{File, "/var/spool/f", true, false},
		{File, "/var/spool/g", false, true},
		{Command, "/var/spool/f", false, true},
	} {
		got, err := a.Lists(context.Background(), tt.kind, tt.value)
		if got != tt.want || (err != nil) != tt.fails {
			t.Errorf("Lists(%v, %s) = %v, %v", tt.kind, tt.value, got, err)
		}
	}
	if err := os.Remove(in("command")); err != nil {
		t.Fatal(err)
	}
	if got, _ := a.Lists(context.Background(), Command, "cat"); got {
		t.Error("a command is listed that only a file names that others can change")
	}
	a, _ = load(t, "a: b, |cat -u\n")
	if got, err := a.Lists(context.Background(), Command, "cat -u"); !got || err != nil {
		t.Error(got, err)
	}
	if got, err := a.Lists(context.Background(), Command, "cat"); got || err != nil {
		t.Error(got, err)
	}
}

// TestWithin: a read that hangs costs one goroutine and no more waiting than
// the context allows.
func TestWithin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gate
		release := make(chan struct{})
		var runs atomic.Int32
		read := func() (int, error) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			return within(ctx, &g, "/net/x", func() (int, error) {
				runs.Add(1)
				<-release
				return 7, nil
			})
		}
		for range 3 {
			start := time.Now()
			if _, err := read(); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "/net/x could not be read in time") {
				t.Errorf("error %v", err)
			}
			if waited := time.Since(start); waited != time.Minute {
				t.Errorf("waited %v", waited)
			}
		}
		if n := runs.Load(); n != 1 {
			t.Errorf("%d reads hang", n)
		}
		if _, err := within(t.Context(), &g, "/other", func() (int, error) { return 0, nil }); err != nil {
			t.Errorf("another file: %v", err)
		}
		close(release)
		synctest.Wait()
		if n, err := read(); n != 7 || err != nil || runs.Load() != 2 {
			t.Errorf("%d, %v after %d reads", n, err, runs.Load())
		}
	})
}

// TestExpandAlways: for any table, an expansion ends; it has targets or an
// error, never both and never neither; what it names as a User is one.
func TestExpandAlways(t *testing.T) {
	host := testHost("u", "v")
	names := rapid.SampledFrom([]string{"a", "b", "c", "d", "u", "v", "*", "postmaster", "root", "u+x", "owner-a", "owner-b"})
	rapid.Check(t, func(t *rapid.T) {
		a := &Aliases{entries: map[string][]Target{}}
		for _, name := range rapid.SliceOfNDistinct(names, 0, 10, rapid.ID).Draw(t, "names") {
			for _, to := range rapid.SliceOfN(names, 1, 3).Draw(t, name) {
				a.entries[name] = append(a.entries[name], Target{Kind: Address, Value: to})
			}
		}
		for _, name := range []string{"a", "u", "v", "z", "postmaster"} {
			x, err := a.Expand(context.Background(), name, host)
			if (err == nil) != (len(x.Targets) > 0) {
				t.Fatalf("%s: %+v, %v", name, x, err)
			}
			if (name == "u" || name == "postmaster") && errors.Is(err, ErrNoUser) {
				t.Fatalf("%s: %v", name, err)
			}
			seen := map[string]bool{}
			for _, target := range x.Targets {
				if s := describe([]Target{target}); seen[s] {
					t.Fatalf("%s: %s twice", name, s)
				} else {
					seen[s] = true
				}
				_, list := a.Owner(target.Value)
				if ok, _ := host.IsUser(target.Value); target.Kind == User && !ok || target.Kind == Address && a.has(target.Value) && !list {
					t.Fatalf("%s: %+v", name, target)
				}
			}
		}
	})
}
