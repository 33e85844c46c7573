package runner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"dma/agent"
	"dma/forward"
	"dma/internal/address"
	"dma/internal/config"
)

// site is a folder with a spool, users alice, bob and carol, and what files has.
// A line of conf takes the place of the key's own.
func site(t *testing.T, conf string, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "DIR/", dir+"/")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	passwd := ""
	for i, name := range []string{"alice", "bob", "carol"} {
		passwd += fmt.Sprintf("%s:x:%d:%d::DIR/home/%[1]s:/bin/sh\n", name, 64001+i, 64001+i)
		if err := os.MkdirAll(filepath.Join(dir, "home", name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "spool"), 0o755); err != nil {
		t.Fatal(err)
	}
	write("passwd", passwd)
	for _, line := range []string{
		"SPOOLDIR spool", "USERS passwd", "ALIASES aliases", "MAILNAME demo.example",
		"SMARTHOST mail.example.net:587", "MAILBOX mbox:DIR/mail/%u", "ALIASUSER carol",
	} {
		if key, _, _ := strings.Cut(line, " "); !strings.HasPrefix(conf, key+" ") {
			conf = conf + "\n" + line
		}
	}
	write("dma.conf", conf+"\n")
	write("aliases", "")
	for name, text := range files {
		write(name, text)
	}
	// Aliases of just now are not the last word.
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "aliases"), old, old); err != nil {
		t.Fatal(err)
	}
	return dir
}

// verify runs a command on a site.
func verify(dir string, args ...string) (out, errors string, code int) {
	var o, e bytes.Buffer
	code = Main(append([]string{"-C", filepath.Join(dir, "dma.conf")}, args...), Stdio{In: strings.NewReader(""), Out: &o, Err: &e})
	return strings.ReplaceAll(o.String(), dir, "DIR"), strings.ReplaceAll(e.String(), dir, "DIR"), code
}

func TestVerify(t *testing.T) {
	for _, tt := range []struct {
		about string
		conf  string
		files map[string]string
		args  string
		code  int
		want  string
	}{
		{"mailbox", "", nil, "alice", 0, `
alice: mailbox DIR/mail/alice
`},
		{"several addresses in an argument", "", nil, "alice@localhost, Bob <bob@DEMO.example>", 0, `
alice@localhost: mailbox DIR/mail/alice
bob@demo.example: mailbox DIR/mail/bob
`},
		{"maildir", "MAILBOX maildir:~/Maildir", nil, "alice, alice+work", 0, `
alice: maildir DIR/home/alice/Maildir/
alice+work: maildir DIR/home/alice/Maildir/, or its folder work
`},
		{"pipe", "MAILBOX pipe:/usr/bin/procmail -d", nil, "alice", 0, `
alice: mailbox, command /usr/bin/procmail -d, as alice
`},
		{"LMTP", "MAILBOX lmtp:/run/lmtp", map[string]string{"aliases": "a: \\\\bob"}, "alice, Alice+work, a", 0, `
alice: mailbox alice@demo.example, by LMTP to /run/lmtp
Alice+work: mailbox alice+work@demo.example, by LMTP to /run/lmtp
a: alias
  \bob (DIR/aliases:1): kept copy, mailbox bob@demo.example, by LMTP to /run/lmtp
`},
		{"remote", "", nil, "joe@example.org", 0, `
joe@example.org: remote, by way of the smarthost mail.example.net:587
`},
		{"null client", "NULLCLIENT", map[string]string{"aliases": "alice: bob"}, "alice", 0, `
alice: remote, by way of the smarthost mail.example.net:587
`},
		{"unusable smarthost", "SMARTHOST :x:", nil, "joe@example.org", 75, `
joe@example.org: remote, waits: SMARTHOST in DIR/dma.conf names no host that can be used; mend it
`},
		{"nobody", "", nil, "nobody", 67, `
nobody: no such user
`},
		{"nested aliases, each target once", "", map[string]string{
			"aliases": "team: bob, others,\n  Bob\nothers: \\carol, joe@example.org, bob, TEAM\n",
		}, "team", 0, `
team: alias
  bob (DIR/aliases:1): mailbox DIR/mail/bob
  others (DIR/aliases:1): alias
    \carol (DIR/aliases:3): kept copy, mailbox DIR/mail/carol
    joe@example.org (DIR/aliases:3): remote, by way of the smarthost mail.example.net:587
    bob (DIR/aliases:3): as above
    TEAM (DIR/aliases:3): loop, leads back to team
  Bob (DIR/aliases:2): as above
`},
		{"what aliases write and run", "", map[string]string{
			"aliases": "a: /var/log/a, /var/log/b/, /dev/null, \"|/bin/cat, -x\"\n",
		}, "a", 0, `
a: alias
  /var/log/a (DIR/aliases:1): file, as carol
  /var/log/b/ (DIR/aliases:1): maildir, as carol
  /dev/null (DIR/aliases:1): discarded
  "|/bin/cat, -x" (DIR/aliases:1): command, as carol
`},
		{"nobody to run it", "ALIASUSER dave", map[string]string{"aliases": "a: |x, bob"}, "a", 75, `
a: waits: it names a file or a command, and ALIASUSER cannot be looked up: user "dave": no such user
  "|x" (DIR/aliases:1)
  bob (DIR/aliases:1)
`},
		{"included file", "", map[string]string{
			"aliases": "list: :include:DIR/list\nowner-list: alice\n",
			"list":    "# members\nbob, joe@example.org\n\n\"carol\" (Carol)\r\n:include:DIR/more",
			"more":    "bob\nalice",
		}, "list", 0, `
list: alias, owner owner-list
  :include:DIR/list (DIR/aliases:1): included file
    bob (DIR/list:2): mailbox DIR/mail/bob
    joe@example.org (DIR/list:2): remote, by way of the smarthost mail.example.net:587
    carol (DIR/list:4): mailbox DIR/mail/carol
    :include:DIR/more (DIR/list:5): included file
      bob (DIR/more:1): as above
      alice (DIR/more:2): mailbox DIR/mail/alice
`},
		{"included file with a mistake", "", map[string]string{
			"aliases": "list: bob, :include:DIR/list\n", "list": "carol\n\"x\n",
		}, "list", 75, `
list: waits: DIR/list:2: a quote is never closed; put a " at the end of the entry
  bob (DIR/aliases:1)
  :include:DIR/list (DIR/aliases:1): included file
    (not shown: DIR/list:2: a quote is never closed; put a " at the end of the entry)
`},
		{"alias loop", "", map[string]string{"aliases": "a: b\nb: a\n"}, "a", 75, `
a: waits: alias loop: a -> b -> a; name a user in one of them
  b (DIR/aliases:1): alias
    a (DIR/aliases:2): loop, leads back to a
`},
		{"loop with an account on it", "", map[string]string{"aliases": "alice: x\nx: alice\nbob: bob, carol\n"}, "x, bob", 0, `
x: alias
  alice (DIR/aliases:2): alias
    x (DIR/aliases:1): leads back to x, which stands for the user alice
      alice: mailbox DIR/mail/alice
bob: alias
  bob (DIR/aliases:3): mailbox DIR/mail/bob
  carol (DIR/aliases:3): mailbox DIR/mail/carol
`},
		{"unknown name in an alias", "", map[string]string{"aliases": "a: bob, nobody\n"}, "a", 67, `
a: alias
  bob (DIR/aliases:1): mailbox DIR/mail/bob
  nobody (DIR/aliases:1): no such user
`},
		{"missing aliases", "ALIASES aliases, more", map[string]string{"aliases": "a: nobody"}, "alice, nobody, a", 75, `
alice: mailbox DIR/mail/alice
nobody: waits: no such user: nobody, but DIR/more does not exist; create it, or take it out of ALIASES
a: alias
  nobody (DIR/aliases:1): waits: no such user: nobody, but DIR/more does not exist; create it, or take it out of ALIASES
`},
		{"mistakes in lines", "", map[string]string{"aliases": "a \"x\ndoubt bob\nb: a, bob\n"}, "a, doubt, b", 75, `
a: waits: DIR/aliases:1: no colon after ` + "`a`" + `; write name: target, target
doubt: waits: DIR/aliases:2: no colon after ` + "`doubt`" + `; write name: target, target
b: waits: DIR/aliases:1: no colon after ` + "`a`" + `; write name: target, target
  a (DIR/aliases:3)
  bob (DIR/aliases:3)
`},
		{"postmaster", "", map[string]string{"aliases": "root: alice\na: \\postmaster\n"}, "Postmaster", 0, `
Postmaster: stands for root
  root: alias
    alice (DIR/aliases:1): mailbox DIR/mail/alice
`},
		{"catch-all", "", map[string]string{
			"aliases": "root: alice\n*: bob\nteam: carol, nobody\n", "home/bob/.forward": "carol\n",
		}, "any, Postmaster, carol, root, team", 67, `
any: no alias
  *: alias
    bob (DIR/aliases:2): user, DIR/home/bob/.forward
      carol (DIR/home/bob/.forward:1): mailbox DIR/mail/carol
Postmaster: no alias
  *: alias
    bob (DIR/aliases:2): user, DIR/home/bob/.forward
      carol (DIR/home/bob/.forward:1): mailbox DIR/mail/carol
carol: no alias
  *: alias
    bob (DIR/aliases:2): user, DIR/home/bob/.forward
      carol (DIR/home/bob/.forward:1): loop: the message was delivered to carol@demo.example before; the mail is returned
root: alias
  alice (DIR/aliases:1): mailbox DIR/mail/alice
team: alias
  carol (DIR/aliases:3): mailbox DIR/mail/carol
  nobody (DIR/aliases:3): no alias and no user
    *: alias
      bob (DIR/aliases:2): user, DIR/home/bob/.forward
        carol (DIR/home/bob/.forward:1): mailbox DIR/mail/carol
`},
		{"lists with owners", "", map[string]string{
			"aliases": "all: carol, L1, l2@demo.example, l1+x\nl1: carol, joe@example.org\nl2: all, bob\nowner-l1: alice\nowner-l2: alice\n",
		}, "all, l1", 0, `
all: alias
  carol (DIR/aliases:1): mailbox DIR/mail/carol
  L1 (DIR/aliases:1): alias, owner owner-l1
    carol (DIR/aliases:2): mailbox DIR/mail/carol
    joe@example.org (DIR/aliases:2): remote, by way of the smarthost mail.example.net:587
  l2@demo.example (DIR/aliases:1): alias, owner owner-l2
    all (DIR/aliases:3): loop, leads back to all
    bob (DIR/aliases:3): mailbox DIR/mail/bob
  l1+x (DIR/aliases:1): as above
l1: alias, owner owner-l1
  carol (DIR/aliases:2): mailbox DIR/mail/carol
  joe@example.org (DIR/aliases:2): remote, by way of the smarthost mail.example.net:587
`},
		{".forward", "", map[string]string{
			"home/alice/.forward": "\\alice, \"|/usr/bin/vacation alice\"\nroot, bob # jim\n:include:~/list\n~/copy/\n",
			"home/alice/list":     "joe@example.org\n",
			"home/bob/.forward":   "bob@demo.example, carol+x",
			"aliases":             "root: carol\n",
		}, "alice", 0, `
alice: user, DIR/home/alice/.forward
  \alice (DIR/home/alice/.forward:1): kept copy, mailbox DIR/mail/alice
  "|/usr/bin/vacation alice" (DIR/home/alice/.forward:1): command, as alice
  root (DIR/home/alice/.forward:2): alias
    carol (DIR/aliases:1): mailbox DIR/mail/carol
  bob (DIR/home/alice/.forward:2): user, DIR/home/bob/.forward
    \bob (DIR/home/bob/.forward:1): kept copy, mailbox DIR/mail/bob
    carol+x (DIR/home/bob/.forward:1): mailbox DIR/mail/carol
  :include:DIR/home/alice/list
    joe@example.org (DIR/home/alice/list:1): remote, by way of the smarthost mail.example.net:587
  DIR/home/alice/copy/ (DIR/home/alice/.forward:4): maildir, as alice
`},
		{".forward+detail", "", map[string]string{
			"home/alice/.forward": "bob", "home/alice/.forward+x": "carol",
		}, "alice, alice+x, alice+y", 0, `
alice: user, DIR/home/alice/.forward
  bob (DIR/home/alice/.forward:1): mailbox DIR/mail/bob
alice+x: user, DIR/home/alice/.forward+x
  carol (DIR/home/alice/.forward+x:1): mailbox DIR/mail/carol
alice+y: user, DIR/home/alice/.forward
  bob (DIR/home/alice/.forward:1): mailbox DIR/mail/bob
`},
		{".forward with a mistake", "", map[string]string{"home/alice/.forward": "bob\n\"x"}, "alice", 75, `
alice: waits: DIR/home/alice/.forward:2: a quote is never closed; put a " at the end of the entry
`},
		{".forward loop", "", map[string]string{
			"home/alice/.forward": "bob", "home/bob/.forward": "alice@localhost, alice",
		}, "alice", 67, `
alice: user, DIR/home/alice/.forward
  bob (DIR/home/alice/.forward:1): user, DIR/home/bob/.forward
    alice@localhost (DIR/home/bob/.forward:1): user, DIR/home/alice/.forward
      bob (DIR/home/alice/.forward:1): loop: the message was delivered to bob@demo.example before; the mail is returned
    alice (DIR/home/bob/.forward:1): loop: the message was delivered to alice@demo.example before; the mail is returned
`},
		{"bad address", "", nil, "a@b@c", 67, ""},
		{"no user beats waiting", "", map[string]string{"aliases": "a: a\n"}, "a, nobody", 67, `
a: waits: alias loop: a -> a; name a user in one of them
  a (DIR/aliases:1): loop, leads back to a
nobody: no such user
`},
		{"untrusted text", "", map[string]string{"home/alice/.forward": "\"|\u009bA\t\u202e b\""}, "alice", 0, `
alice: user, DIR/home/alice/.forward
  "|?A?? b" (DIR/home/alice/.forward:1): command, as alice
`},
	} {
		t.Run(tt.about, func(t *testing.T) {
			dir := site(t, tt.conf, tt.files)
			out, stderr, code := verify(dir, "verify", "--", tt.args)
			if out != strings.TrimPrefix(tt.want, "\n") || code != tt.code {
				t.Errorf("ends with %d, want %d, stderr %q, and says:\n%s\nwant:%s", code, tt.code, stderr, out, tt.want)
			}
		})
	}
}

func TestVerifyArguments(t *testing.T) {
	dir := site(t, "", nil)
	for _, tt := range []struct {
		args []string
		code int
	}{
		{nil, 64}, {[]string{"--"}, 64}, {[]string{"-x"}, 64}, {[]string{"--", "-x"}, 67}, {[]string{"--", "alice"}, 0}, {[]string{""}, 67},
	} {
		if out, stderr, code := verify(dir, append([]string{"verify"}, tt.args...)...); code != tt.code {
			t.Errorf("%q: ends with %d, want %d: %s%s", tt.args, code, tt.code, out, stderr)
		}
	}
}

// TestVerifyWithoutSpool: the spool may be missing; then nobody knows who
// serves it, and the tree is shown all the same.
func TestVerifyWithoutSpool(t *testing.T) {
	dir := site(t, "", map[string]string{"aliases": "a: alice, |x"})
	if err := os.Remove(filepath.Join(dir, "spool")); err != nil {
		t.Fatal(err)
	}
	out, stderr, code := verify(dir, "verify", "a")
	want := "a: alias\n  alice (DIR/aliases:1): user\n    (.forward of alice: only alice, root and the owner of the spool see it)\n  \"|x\" (DIR/aliases:1): command, as carol\n"
	if out != want || code != 0 || !strings.Contains(stderr, "who serves the spool cannot be told: lstat DIR/spool") {
		t.Errorf("ends with %d and says %s%s", code, out, stderr)
	}
}

// TestVerifyOthers: a spool that serves one uid keeps the mail of others.
func TestVerifyOthers(t *testing.T) {
	dir := site(t, "", nil)
	v := openVerifier(t, dir, io.Discard)
	own := v.agent.(*agent.Own)
	own.Any, own.UID = false, 64001
	for name, want := range map[string]bool{"alice": false, "bob": true} {
		v.waits = false
		if v.address(way{}, name, address.Address{Local: name}); v.waits != want {
			t.Errorf("%s: waits %v", name, v.waits)
		}
	}
}

func openVerifier(t *testing.T, dir string, out io.Writer) *verifier {
	t.Helper()
	conf, _, err := config.Load(filepath.Join(dir, "dma.conf"), true)
	if err != nil {
		t.Fatal(err)
	}
	v, err := (&call{config: conf, stdio: Stdio{Out: out, Err: os.Stderr}}).verifier(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.load(); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestVerifyMatchesExpand: a branch ends at the targets that forward.Expand
// returns, for any aliases.
func TestVerifyMatchesExpand(t *testing.T) {
	names := []string{"a", "b", "c", "d", "e", "alice", "bob", "Bob", "postmaster", "root", "zoe", "a+x", "alice+x", "Alice", `\alice`, `\bob+y`, "joe@example.org", "a@localhost", ":include:DIR/i1", ":include:DIR/i2", "|x", "/dev/null"}
	compared, lists := 0, 0
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		pick := func(sep string) string {
			var list []string
			for range 1 + rnd.IntN(3) {
				list = append(list, names[rnd.IntN(len(names))])
			}
			return strings.Join(list, sep)
		}
		var aliases strings.Builder
		for _, name := range []string{"a", "b", "c", "d", "alice", "root", "*", "owner-b", "owner-c", "owner-alice"} {
			if rnd.IntN(4) > 0 {
				fmt.Fprintf(&aliases, "%s: %s\n", name, pick(", "))
			}
		}
		text := aliases.String()
		dir := site(t, "", map[string]string{"aliases": text, "i1": pick("\n"), "i2": pick("\n")})
		v := openVerifier(t, dir, io.Discard)
		for _, start := range []string{"a", "alice", "e", "postmaster", "b+x"} {
			submitted := rnd.IntN(2) == 0
			x, err := v.aliases.Expand(context.Background(), start, forward.Host{IsUser: v.isUser, IsLocal: v.isLocal, Submitted: submitted})
			if err != nil {
				continue
			}
			compared++
			var want, got []string
			for _, target := range x.Targets {
				if _, list := v.aliases.Owner(target.Value); list && target.Kind == forward.Address {
					lists++
				}
				want = append(want, fmt.Sprint(target.Kind, target.Value, "+", target.Detail))
			}
			b := branch{verifier: v, way: way{}, stuck: true, lists: x.Targets, met: make(map[string]bool), seen: make(map[forward.Target]bool)}
			b.name(0, start, start, forward.Target{}, submitted)
			for target := range b.seen {
				got = append(got, fmt.Sprint(target.Kind, target.Value, "+", target.Detail))
			}
			slices.Sort(want)
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Fatalf("%s leads to %q, and Expand says %q:\n%s", start, got, want, text)
			}
		}
	}
	if compared < 500 || lists < 100 {
		t.Errorf("only %d expansions without an error, with %d lists", compared, lists)
	}
}

// TestVerifyBound: a tree ends, however large the expansion is.
func TestVerifyBound(t *testing.T) {
	files := map[string]string{"aliases": ""}
	for i := range 18 {
		files["aliases"] += fmt.Sprintf("a%d: \\bob, |x%[1]d\n", i)
	}
	dir := site(t, "", files)
	v := openVerifier(t, dir, io.Discard)
	v.lines = maxLines - 2
	if v.over() {
		t.Error("over before the bound")
	}
	var out bytes.Buffer
	v.out.Reset(&out)
	v.address(way{}, "a1", address.Address{Local: "a1"})
	if err := v.out.Flush(); err != nil || !v.over() || strings.Count(out.String(), "\n") != 2 {
		t.Errorf("over %v, error %v, lines:\n%s", v.over(), err, out.String())
	}
}

// TestVerifyDepth: the 21st expansion of an expansion is taken for a loop.
func TestVerifyDepth(t *testing.T) {
	dir := site(t, "", map[string]string{"aliases": "a: \\bob, joe@example.org, alice\n"})
	v := openVerifier(t, dir, io.Discard)
	for _, depth := range []int{19, 20, 21} {
		v.returned = false
		var out bytes.Buffer
		v.out.Reset(&out)
		v.address(way{depth: depth}, "a", address.Address{Local: "a"})
		if err := v.out.Flush(); err != nil {
			t.Fatal(err)
		}
		want := map[int]int{19: 0, 20: 3, 21: 1}[depth]
		if n := strings.Count(out.String(), ": loop: more than 20 expansions"); n != want || v.returned != (want > 0) {
			t.Errorf("depth %d: %d loops, want %d, returned %v:\n%s", depth, n, want, v.returned, out.String())
		}
	}
}

const helperEnv = "DMA_TEST_VERIFY"

// TestVerifyHelper is the process of TestVerifyCallers.
func TestVerifyHelper(t *testing.T) {
	if os.Getenv(helperEnv) == "" {
		t.Skip("a helper of another test")
	}
	os.Exit(Main(strings.Split(os.Getenv(helperEnv), "\n"), Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}

// TestVerifyCallers: the owner of the spool and root see every .forward, others
// their own, each with no rights but the owner's or their own.
func TestVerifyCallers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can become others")
	}
	dir := site(t, "", map[string]string{
		"aliases":             "team: alice, bob, carol\nclosed: :include:DIR/closed\n",
		"home/alice/.forward": "a@example.org",
		"home/bob/.forward":   "b@example.org",
		"closed":              "bob\n",
	})
	const owner, alice, bob = 64100, 64001, 64002
	// The spool and the homes belong to the owner, as they do where USERS is
	// in use; nobody else may enter the spool or read the list.
	for path, mode := range map[string]os.FileMode{
		"spool": 0o700, "spool/tmp": 0o700, "home/alice": 0o755, "home/bob": 0o755, "home/carol": 0o755,
		"home/alice/.forward": 0o644, "home/bob/.forward": 0o644, "closed": 0o600,
	} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(path, 0o755); err != nil && !errors.Is(err, syscall.ENOTDIR) {
			t.Fatal(err)
		}
		if err := errors.Join(os.Chown(path, owner, owner), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(dir, "test")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, data, 0o755); err != nil {
		t.Fatal(err)
	}
	const relay = "remote, by way of the smarthost mail.example.net:587\n"
	forwards := func(name string) string {
		return fmt.Sprintf("  %s (DIR/aliases:1): user, DIR/home/%[1]s/.forward\n    %[2]s@example.org (DIR/home/%[1]s/.forward:1): %[3]s", name, name[:1], relay)
	}
	hidden := func(name string) string {
		return fmt.Sprintf("  %s (DIR/aliases:1): user\n    (.forward of %[1]s: only %[1]s, root and the owner of the spool see it)\n", name)
	}
	mailbox := "  carol (DIR/aliases:1): mailbox DIR/mail/carol\n"
	runs := func(uid uint32, args ...string) (string, int) {
		cmd := exec.Command(program, "-test.run=^TestVerifyHelper$")
		cmd.Env = []string{helperEnv + "=-C\n" + dir + "/dma.conf\n" + strings.Join(args, "\n")}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(string(out), dir, "DIR"), cmd.ProcessState.ExitCode()
	}
	run := func(uid uint32, address string) (string, int) { return runs(uid, "verify", address) }
	for uid, want := range map[uint32]string{
		0:     forwards("alice") + forwards("bob") + mailbox,
		owner: forwards("alice") + forwards("bob") + mailbox,
		alice: forwards("alice") + hidden("bob") + hidden("carol"),
		bob:   hidden("alice") + forwards("bob") + hidden("carol"),
		64999: hidden("alice") + hidden("bob") + hidden("carol"),
	} {
		if out, code := run(uid, "team"); out != "team: alias\n"+want || code != 0 {
			t.Errorf("uid %d: ends with %d and says\n%s\nwant\n%s", uid, code, out, want)
		}
	}
	if out, code := run(owner, "closed"); code != 0 {
		t.Errorf("the owner: ends with %d: %s", code, out)
	}
	if out, code := run(alice, "closed"); code != 77 || !strings.HasPrefix(out, "closed: cannot be told: ") {
		t.Errorf("alice: ends with %d: %s", code, out)
	}

	// Who checks the aliases looks into what they include with the same rights.
	aliases := func(uid uint32) (string, int) { return runs(uid, "aliases") }
	const good = "DIR/aliases: 2 names, 0 problems"
	for _, uid := range []uint32{0, owner} {
		if out, code := aliases(uid); code != 0 || out != good+"\n" {
			t.Errorf("aliases, uid %d: ends with %d: %s", uid, code, out)
		}
	}
	want := fmt.Sprintf("DIR/aliases:2: warning: :include: DIR/closed cannot be read by uid %d, who asks; uid %d has to be able to\n%s, 1 warning\n", alice, owner, good)
	if out, code := aliases(alice); code != 0 || out != want {
		t.Errorf("aliases, alice: ends with %d: %s", code, out)
	}
	if err := os.Chown(filepath.Join(dir, "closed"), alice, alice); err != nil {
		t.Fatal(err)
	}
	want = fmt.Sprintf("DIR/aliases:2: :include: DIR/closed cannot be read: permission denied; let uid %d read it\nDIR/aliases: 2 names, 1 problem\n", owner)
	for _, uid := range []uint32{0, owner} {
		if out, code := aliases(uid); code != 78 || out != want {
			t.Errorf("aliases, uid %d: ends with %d: %s", uid, code, out)
		}
	}
	// Root reads with the rights of the owner, who may not read this one.
	path := filepath.Join(dir, "home/bob/.forward")
	if err := errors.Join(os.Chown(path, 0, 0), os.Chmod(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	want = fmt.Sprintf("bob: waits: DIR/home/bob/.forward cannot be read: permission denied; let uid %d read it\n", owner)
	if out, code := run(0, "bob"); code != 75 || out != want {
		t.Errorf("root: ends with %d: %s", code, out)
	}
}

// TestAliases: each bad line is said with file and line, and counted. What no mail
// waits for is a warning.
func TestAliases(t *testing.T) {
	for _, tt := range []struct {
		about, conf string
		files       map[string]string
		out         string
		err         []string // beginnings of lines
		code        int
	}{
		{"good", "", map[string]string{"aliases": "a: bob\n"}, "DIR/aliases: 1 name, 0 problems\n", nil, 0},
		{"bad lines", "ALIASES aliases, more", map[string]string{
			"aliases": "a: bob\n\nbad line\nb: \"x\nc: bob\na: carol\n",
			"more":    "d: bob\n: x\n",
		}, "DIR/aliases, DIR/more: 4 names, 3 problems, 1 warning\n", []string{
			"DIR/aliases:3: ", "DIR/aliases:4: ", "DIR/aliases:6: warning: `a` is an alias already in line 1, which stands", "DIR/more:2: ",
		}, 78},
		{"two lines for a name", "", map[string]string{"aliases": "a: bob\nA: carol\n"}, "DIR/aliases: 1 name, 0 problems, 1 warning\n",
			[]string{"DIR/aliases:2: warning: "}, 0},
		{"included files", "", map[string]string{
			"aliases": "a: :include:DIR/good, :include:DIR/bad\nb: :include:DIR/missing\nc: :include:DIR/bad\n",
			"good":    "bob\n:include:DIR/inner\n", "inner": "x y\n", "bad": "\n\nx y\n",
		}, "DIR/aliases: 3 names, 3 problems\n", []string{
			"DIR/inner:1: `x y` has a blank", "DIR/bad:3: `x y` has a blank", "DIR/aliases:2: :include: DIR/missing does not exist; create it",
		}, 78},
		{"missing file", "ALIASES aliases, /nonexistent/more", nil, "DIR/aliases, /nonexistent/more: 0 names, 1 problem\n", []string{
			"/nonexistent/more: it does not exist; create it, or take it out of ALIASES; until then mail for unknown names waits",
		}, 78},
	} {
		t.Run(tt.about, func(t *testing.T) {
			dir := site(t, tt.conf, tt.files)
			out, stderr, code := verify(dir, "aliases")
			lines := strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
			if stderr == "" {
				lines = nil
			}
			if code != tt.code || out != tt.out || !slices.EqualFunc(lines, tt.err, strings.HasPrefix) {
				t.Errorf("ends with %d and says %q and\n%s", code, out, stderr)
			}
			// What is said of the aliases is said by check, too.
			checked, _, _ := verify(dir, "check")
			for _, line := range lines {
				if !strings.Contains(checked, line) {
					t.Errorf("check does not say %q", line)
				}
			}
		})
	}
	dir := site(t, "", nil)
	if out, stderr, code := verify(dir, "newaliases"); code != 64 {
		t.Errorf("newaliases ends with %d: %s%s", code, out, stderr)
	}
}
