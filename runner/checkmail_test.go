package runner

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"dma/agent"
	"dma/forward"
	"dma/internal/passwd"
)

// checkOf returns what the check of local mail says of a site.
func checkOf(t *testing.T, dir string, change func(*mailCheck)) []string {
	t.Helper()
	var got []string
	say := func(kind string) func(string) {
		return func(text string) { got = append(got, kind+strings.ReplaceAll(text, dir, "DIR")) }
	}
	k := &mailCheck{verifier: openVerifier(t, dir, io.Discard), problem: say(""), note: say("note ")}
	if change != nil {
		change(k)
	}
	k.run()
	return got
}

// TestCheckMail: what check says about aliases and .forward files.
func TestCheckMail(t *testing.T) {
	nobodys := func(k *mailCheck) { k.aliasUser = "" }
	for _, tt := range []struct {
		about  string
		files  map[string]string
		change func(*mailCheck)
		want   []string
	}{
		{"all is well", map[string]string{
			"aliases": "team: alice, \\bob, carol+x, joe@example.org, list, /dev/null\nrun: |x\nlist: :include:DIR/list\n*: team\n", "list": "alice\n/tmp/x\n",
			"home/alice/.forward": "\\alice, joe@example.org, team, |x",
		}, nil, nil},
		{"mistakes in lines", map[string]string{"aliases": "a \"x\nb: bob\nb: alice\nc: \"x\nd: c, a\n"}, nil, []string{
			"DIR/aliases:1: no colon after `a`; write name: target, target",
			"note DIR/aliases:3: warning: `b` is an alias already in line 2, which stands; remove one of them",
			"DIR/aliases:4: a quote is never closed; put a \" at the end of the entry",
		}},
		{"what nobody may run or write", map[string]string{"aliases": "a: |x, /tmp/x\nb: a, :include:DIR/list\n", "list": "/tmp/y/\n"}, nobodys, []string{
			"DIR/aliases:1: \"|x\" is nobody's, and mail for a waits; set ALIASUSER in dma.conf to the user whose the commands and files of the aliases are",
			"DIR/aliases:1: /tmp/x is nobody's, and mail for a waits; set ALIASUSER in dma.conf to the user whose the commands and files of the aliases are",
			"DIR/list:1: /tmp/y/ is nobody's, and mail for b waits; set ALIASUSER in dma.conf to the user whose the commands and files of the aliases are",
		}},
		{"included files", map[string]string{"aliases": "a: :include:DIR/none\nb: a, bob\nc: :include:DIR/bad\nd: :include:DIR/empty\n", "bad": "bob\n\"x\n", "empty": ""}, nil, []string{
			"DIR/aliases:1: :include: DIR/none does not exist; create it, or remove what names it; mail for a waits",
			"DIR/bad:2: a quote is never closed; put a \" at the end of the entry; mail for c waits",
			"mail for d waits: no recipient in d -> :include:DIR/empty; add one, or write /dev/null",
		}},
		{"loop", map[string]string{"aliases": "a: b\nb: a\nalice: c\nc: alice\n"}, nil, []string{
			"mail for a waits: alias loop: a -> b -> a; name a user in one of them",
			"mail for b waits: alias loop: b -> a -> b; name a user in one of them",
		}},
		{"nobody", map[string]string{
			"aliases": "a: bob, jim\nb: \\jim, a\nbob: x@example.org\n", "home/alice/.forward": "bob\njim@localhost\n", "home/bob/.forward": "jim",
		}, nil, []string{
			"DIR/aliases:1: jim is no alias and no user, and mail for a to it is returned; correct the name",
			"DIR/aliases:2: there is no user jim, and mail for b to it is returned; correct the name",
			"DIR/home/alice/.forward:2: jim@localhost is no alias and no user, and mail for alice to it is returned; correct the name",
		}},
		{".forward", map[string]string{"home/alice/.forward": "\"x", "home/bob/.forward": "bob", "home/carol/.forward/x": "", "aliases": "b: alice\n"}, nil, []string{
			"mail for alice waits: DIR/home/alice/.forward:1: a quote is never closed; put a \" at the end of the entry",
			"mail for carol waits: DIR/home/carol/.forward is a directory; put a regular file in its place, or remove it",
		}},
		{"more .forward files than are looked at", map[string]string{"home/alice/.forward": "bob", "home/bob/.forward": "carol", "home/carol/.forward": "alice"}, func(k *mailCheck) { k.most = 2 }, []string{
			`note local mail: the .forward files of 1 more user of DIR/passwd were not looked at; ask for them with "dma-runner verify"`,
		}},
		{"no time", map[string]string{"aliases": "a: jim\n", "home/alice/.forward": "\"x"}, func(k *mailCheck) {
			ctx, cancel := context.WithCancel(k.ctx)
			cancel()
			k.ctx = ctx
		}, []string{"note local mail: not all was looked at within 1m0s"}},
		{"not for the caller", map[string]string{"aliases": "a: jim\n", "home/alice/.forward": "\"x"}, func(k *mailCheck) { k.all = false }, []string{
			"DIR/aliases:1: jim is no alias and no user, and mail for a to it is returned; correct the name",
		}},
		{"no mail is local", map[string]string{"aliases": "a: jim\nb \n", "home/alice/.forward": "\"x"}, func(k *mailCheck) { k.config.NullClient = true }, []string{
			"DIR/aliases:2: no colon after `b`; write name: target, target",
		}},
		{"untrusted text", map[string]string{"aliases": "a: \"|\u009bA\t\u202e b\"\n"}, nobodys, []string{
			"DIR/aliases:1: \"|?A?? b\" is nobody's, and mail for a waits; set ALIASUSER in dma.conf to the user whose the commands and files of the aliases are",
		}},
	} {
		t.Run(tt.about, func(t *testing.T) {
			if got := checkOf(t, site(t, "", tt.files), tt.change); !slices.Equal(got, tt.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}

// TestTakeMail: what the process that looks for root tells is told as text, and that
// it could not all be read is told too.
func TestTakeMail(t *testing.T) {
	var got []string
	say := func(kind string) func(string) {
		return func(text string) { got = append(got, kind+text) }
	}
	take := func(text string) error { return takeMail(strings.NewReader(text), say("problem "), say("note ")) }
	if err := take("!a\u009bb\n c\td\n " + strings.Repeat("x", 2*longestSaid) + "\n"); err != nil {
		t.Error(err)
	}
	if want := []string{"problem a?b", "note c?d", "note " + strings.Repeat("x", longestSaid)}; !slices.Equal(got, want) {
		t.Errorf("told: %q", got)
	}
	if err := take("!" + strings.Repeat("x", 1<<17) + "\n!a\n"); err == nil || !strings.Contains(err.Error(), "not all that was found") {
		t.Errorf("a line that is too long: %v", err)
	}
}

// hanging is an agent that does not come back with the .forward of bob.
type hanging struct {
	agent.Agent
	until chan struct{}
}

func (h hanging) Forward(ctx context.Context, u passwd.User, detail string) (forward.Result, error) {
	if u.Name == "bob" {
		<-h.until
	}
	return h.Agent.Forward(ctx, u, detail)
}

// TestCheckMailHangs: a file system that does not answer is said to do so, and holds
// up nothing else.
func TestCheckMailHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		until := make(chan struct{})
		defer close(until)
		dir := site(t, "", map[string]string{"home/alice/.forward": "\"x", "home/bob/.forward": "carol", "home/carol/.forward": "\"x"})
		got := checkOf(t, dir, func(k *mailCheck) { k.agent = hanging{k.agent, until} })
		want := []string{
			"mail for alice waits: DIR/home/alice/.forward:1: a quote is never closed; put a \" at the end of the entry",
			"mail for bob waits: DIR/home/bob/.forward could not be read within 20s; see whether its file system answers",
			"mail for carol waits: DIR/home/carol/.forward:1: a quote is never closed; put a \" at the end of the entry",
		}
		if !slices.Equal(got, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// TestCheckMailMany: of the problems of a file that is all wrong the first thousand
// are said.
func TestCheckMailMany(t *testing.T) {
	var aliases strings.Builder
	for i := range 2 * mostSaid {
		aliases.WriteString("a" + strings.Repeat("x", i%50) + strings.Repeat("y", i/50) + ": jim\n")
	}
	got := checkOf(t, site(t, "", map[string]string{"aliases": aliases.String()}), nil)
	if n := len(got); n != mostSaid+1 || got[n-1] != "more than 1000 problems with local mail; mend these first" {
		t.Errorf("%d, and the last is %q", n, got[n-1])
	}
}

// TestCheckWithMail: check counts what is wrong with local mail.
func TestCheckWithMail(t *testing.T) {
	dir := site(t, "", map[string]string{"aliases": "a: jim\n", "home/alice/.forward": "\"x"})
	if err := os.RemoveAll(filepath.Join(dir, "spool")); err != nil {
		t.Fatal(err)
	}
	// Where root runs the tests, the spool is root's.
	if out, stderr, code := verify(dir, "init", "--one-uid"); code != 0 {
		t.Fatal(out, stderr)
	}
	out, stderr, code := verify(dir, "check")
	for _, want := range []string{
		"DIR/aliases:1: jim is no alias and no user, and mail for a to it is returned; correct the name\n",
		"mail for alice waits: DIR/home/alice/.forward:1: a quote is never closed; put a \" at the end of the entry\n",
	} {
		if strings.Count("\n"+out, "\n"+want) != 1 {
			t.Errorf("no line %q in:\n%s", want, out)
		}
	}
	if code != 78 || !strings.Contains(stderr, "problems found") {
		t.Errorf("ends with %d: %s%s", code, out, stderr)
	}
}
