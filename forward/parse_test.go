package forward

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// describe writes targets as "kind value; kind value".
func describe(targets []Target) string {
	var list []string
	for _, t := range targets {
		s := t.Kind.String() + " " + t.Value
		if t.Detail != "" {
			s += " +" + t.Detail
		}
		list = append(list, strings.TrimSpace(s))
	}
	return strings.Join(list, "; ")
}

func TestParseForward(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", ""},
		{"\n\n  \t\n", ""},
		{"# nothing\n  # here\n,,\n", ""},
		{"jim", "address jim"},
		{"jim\r\nbob\r\n", "address jim; address bob"},
		{"jim\r", "address jim"},
		{"\ufeffjim", "address jim"},
		{"a@B.example, b@c.example ,d", "address a@b.example; address b@c.example; address d"},
		{"jim#1@example.org", "address jim#1@example.org"},
		{"jim #1@example.org\nbob", "address jim; address bob"},
		{"jim,#bob\n", "address jim"},
		{"Jim Doe <jim@example.org>", "address jim@example.org"},
		{`"Doe, Jim" <jim@example.org>, x`, "address jim@example.org; address x"},
		{"<jim@example.org>", "address jim@example.org"},
		{"jim@example.org (Jim, \\) (the) one)", "address jim@example.org"},
		{`"john doe"@example.org`, `address "john doe"@example.org`},
		{`"john doe"`, `address "john doe"`},
		{`"jim@example.org"`, "address jim@example.org"},
		{`\jim`, "mailbox jim"},
		{`"\jim"`, "mailbox jim"},
		{`"\\jim"`, "mailbox jim"},
		{`\"john doe"`, "mailbox john doe"},
		{`\jim@example.org`, "address jim@example.org"},
		{`"|/bin/cat"`, "command /bin/cat"},
		{`|/bin/cat -u`, "command /bin/cat -u"},
		{`|"/bin/cat -u"`, "command /bin/cat -u"},
		{`| /bin/cat -u  `, "command /bin/cat -u"},
		{`"| /bin/cat"`, "command /bin/cat"},
		{`" |/bin/cat"`, "command /bin/cat"},
		{`|/bin/echo "a,  b" c`, "command /bin/echo a,  b c"},
		{"|/bin/cat #x\njim", "command /bin/cat; address jim"},
		{"|/bin/cat,jim", "command /bin/cat; address jim"},
		{`"|echo \"a\\b\" '(x)'"`, `command echo "a\b" '(x)'`},
		{`"|tr \n x"`, "command tr n x"},
		{`/var/mail/jim`, "file /var/mail/jim"},
		{`"/var/mail/jim doe, x"`, "file /var/mail/jim doe, x"},
		{`/home/jim/Mail/`, "maildir /home/jim/Mail/"},
		{`~/Mail/`, "maildir ~/Mail/"},
		{`"~/mbox"`, "file ~/mbox"},
		{`~jim`, "address ~jim"},
		{`/dev/null`, "discard"},
		{`"/dev/null"`, "discard"},
		{`:include:/etc/list`, "include /etc/list"},
		{`:include: /etc/list, jim`, "include /etc/list; address jim"},
		{`":include:/etc/my list"`, "include /etc/my list"},
		{`:Include:~/list`, "include ~/list"},
		{"-jim", "address -jim"},
		{"${run{/bin/id}}", "address ${run{/bin/id}}"},
		{"%s%n@example.org", "address %s%n@example.org"},
	} {
		got, err := ParseForward("f", []byte(tt.in))
		if err != nil || describe(got) != tt.want {
			t.Errorf("%q: %s, %v; want %s", tt.in, describe(got), err, tt.want)
		}
	}
}

func TestParseForwardErrors(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"jim bob", "f:1: `jim bob` has a blank in it; put a comma between addresses, or the entry in double quotes"},
		{"ok\n\njim bob", "f:3: `jim bob` has"},
		{"\"|cat\njim", "f:1: a quote is never closed; put a \" at the end of the entry"},
		{"|\"cat\njim", "f:1: a quote is never closed"},
		{"jim (x", "f:1: a ( is never closed; add the ), or put the entry in quotes"},
		{"(x)", "f:1: `(x)` is a comment only"},
		{"<jim", "f:1: a < is never closed; add the >"},
		{"<a@b> c", "f:1: `<a@b> c`: something follows the >"},
		{"jim@", `f:1: address "jim@": no domain after the @; correct it`},
		{"<>", `f:1: address "<>": empty`},
		{"|", "f:1: no command after the |; name one with its full path"},
		{`"| "`, "f:1: no command"},
		{"./Maildir/", "f:1: `./Maildir/`: write a path from / on"},
		{"&a@b", "f:1: `&a@b`: write the address without the &"},
		{`\`, "f:1: "},
		{`\ jim`, "f:1: "},
		{":fail: no", "f:1: "},
		{":blackhole:", "f:1: `:blackhole:`: there is :include:/path and nothing else"},
		{":include:", "f:1: "},
		{":include:list", "f:1: `list`: write the path of the file to include from / on"},
		{":include:/etc/lists/", "f:1: `/etc/lists/` is a directory; name a file to include"},
		{"/var/mail/jim doe", "f:1: `/var/mail/jim doe` has a blank"},
		{"\"|cat \x00\"", "f:1: the control character 0x00 is not allowed; remove it"},
		{"|cat\rjim", "f:1: the control character 0x0d"},
		{"/x\x1b[2J", "f:1: the control character 0x1b"},
		{"\x1b[2J x", "f:1: `?[2J x` has a blank"},
		{"|" + strings.Repeat("x", MaxTarget+1), "f:1: an entry of more than 4096 octets; for a long command"},
		{strings.Repeat("a\n", MaxTargets) + "b", "f:1001: more than 1000 targets;"},
		{strings.Repeat("#", MaxForward+1), "f: larger than 64 KiB;"},
	} {
		got, err := ParseForward("f", []byte(tt.in))
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%.60q: %s, error %v; want %s", tt.in, describe(got), err, tt.want)
		}
		if got != nil {
			t.Errorf("%.60q: targets with an error", tt.in)
		}
		if len(fmt.Sprint(err)) > 400 {
			t.Errorf("%.60q: error of %d octets", tt.in, len(err.Error()))
		}
	}
	for _, n := range []int{MaxTargets, 1} {
		if got, err := ParseForward("f", []byte(strings.Repeat("a\n", n))); err != nil || len(got) != n {
			t.Errorf("%d targets: %d, %v", n, len(got), err)
		}
	}
}

// TestCorpus reads the files of testdata/corpus, .forward files as people have
// them. Lines that begin with #= say what must come out; they are comments.
func TestCorpus(t *testing.T) {
	files, err := filepath.Glob("testdata/corpus/*")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			for s := bufio.NewScanner(strings.NewReader(string(data))); s.Scan(); {
				if w, ok := strings.CutPrefix(s.Text(), "#= "); ok {
					want = append(want, w)
				}
			}
			targets, err := ParseForward(".forward", data)
			var got []string
			for _, t := range targets {
				got = append(got, describe([]Target{t}))
			}
			if err != nil {
				got = []string{"error " + err.Error()}
			}
			if w, g := strings.Join(want, "\n"), strings.Join(got, "\n"); w != g {
				t.Errorf("got\n%s\nwant\n%s", g, w)
			}
		})
	}
}

func TestTargetLine(t *testing.T) {
	got, err := ParseForward("/home/jim/.forward", []byte("# x\n\na, b\r\n\"|c\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range []int{3, 3, 4} {
		if got[i].Line != line || got[i].File != "/home/jim/.forward" {
			t.Errorf("%v is at %s:%d, want line %d", got[i], got[i].File, got[i].Line, line)
		}
	}
}

// TestRoundTrip: whatever stands in a target, String writes it so that
// ParseForward reads it.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`[ -~ü]{0,12}`).Draw(t, "text")
		in := rapid.SampledFrom([]string{text, quote(text), quote("|" + text), quote("/" + text), quote(":include:/" + text),
			`\` + text, quote(`\` + text), "</" + text + "@x>", `"` + text + `"@x`, "<" + quote(text) + ">"}).Draw(t, "in")
		checkRoundTrip(t, in)
	})
}

func checkRoundTrip(t interface{ Fatalf(string, ...any) }, in string) {
	targets, err := ParseForward("f", []byte(in))
	if err != nil {
		return
	}
	for _, target := range targets {
		again, err := ParseForward("f", []byte(target.String()))
		if err != nil || len(again) != 1 || again[0].same() != target.same() {
			t.Fatalf("%q gives %#v, written %s, read as %#v, %v", in, target, target, again, err)
		}
	}
}

func FuzzForward(f *testing.F) {
	files, _ := filepath.Glob("testdata/corpus/*")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, s := range []string{"", `\"a b"`, `"\jim"`, "a (b", "<a", `"`, `|"a" "b"`, "a\\", ":include: \"/x y\"", "\xef\xbb\xbfa\r", "|\\", "</x>", `"a@b@c"`, `/" "`, "\ufeff\ufeff"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		targets, err := ParseForward("f", data)
		if err != nil {
			if targets != nil || printable(err.Error()) != err.Error() || len(err.Error()) > 1000 {
				t.Errorf("%v: %d targets, error %q", data, len(targets), err)
			}
			return
		}
		for _, target := range targets {
			if check(target) != nil || target.Line < 1 || target.Kind == User || target.Detail != "" {
				t.Errorf("%#v", target)
			}
		}
		checkRoundTrip(t, string(data))
	})
}
