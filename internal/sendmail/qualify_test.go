package sendmail

import (
	"bytes"
	"strings"
	"testing"

	"dma/internal/address"
)

func TestQualify(t *testing.T) {
	// ^ marks where "@m.example" is put.
	for _, marked := range []string{
		" root^\n",
		" root^",
		"root^",
		" root^ (Cron Daemon)\n",
		" (Cron Daemon) root^\n",
		" root^(Cron (the) Daemon)\n",
		" root^,\n bob^ ,\tcarl@x.example\n",
		" root^,,bob^,\n",
		" Cron Daemon <root^>\n",
		" \"Cron, Daemon\" <root^>\n",
		" <root^>\n",
		" < root^ >\n",
		" <root^ (comment)>\n",
		" Bob\n <bob^>, x\n\t<y@z.example>\n",
		" friends: bob^, Carl <carl^>, d@e;\n",
		" friends: bob^;, carl^\n",
		" \"my friends\": bob^;\n",
		" j\xc3\xb6rg^\n",
		" host!user^\n",
		" john.doe^\n",
		" a@[IPv6:::1], bob^\n",

		// Nothing is missing, or nobody knows what is.
		" root@x.example\n",
		" Root <root@x.example> (root)\n",
		" undisclosed-recipients:;\n",
		" undisclosed-recipients:\n",
		" friends: ;\n",
		" <>\n",
		" MAILER-DAEMON <>\n",
		" \"root\"\n",
		" <\"root\">\n",
		" \"a b\"@x\n",
		" root root\n",
		" root . root\n",
		" .\n",
		" .root\n",
		" root @ x\n",
		" @x:root@y\n",
		" <@x,@y:root@z>\n",
		" <@x:root>\n",
		" \\root\n",
		" <root> root\n",
		" r(x)oot\n",
		"\n",
		" \n",
		"",

		// Broken syntax: hands off the whole field.
		" root, \"bob\n",
		" root, (bob\n",
		" root, <bob\n",
		" root, bob>\n",
		" root, <a<b>>\n",
		" root; bob\n",
		" root, [x\n",
		" root, b\x00b\n",
		" root, a:b:c;\n",
		" root, : c;\n",
		" <a> <b>, root\n",
	} {
		in := strings.ReplaceAll(marked, "^", "")
		want := strings.ReplaceAll(marked, "^", "@m.example")
		if got := string(qualify([]byte(in), "m.example")); got != want {
			t.Errorf("%q:\n got %q\nwant %q", in, got, want)
		}
		if got := string(qualify([]byte(in), "")); got != in {
			t.Errorf("%q without a mail name: got %q", in, got)
		}
	}
}

// FuzzQualify: a body only grows by "@m.example", at most once a word; done
// again, nothing more happens; and what was a list of addresses still is one,
// the same but for domains.
func FuzzQualify(f *testing.F) {
	for _, s := range []string{" root\n", " a (b) <c>, d: e, f;\n", " \"a\\\"b\" <c>", " a@[b], (c\\)) d", "<@a:b@c>, d", "a\xff, b\n c"} {
		f.Add(s)
	}
	const insert = "@m.example"
	f.Fuzz(func(t *testing.T, in string) {
		before := []byte(in)
		out := qualify(before, insert[1:])
		if string(before) != in {
			t.Fatal("the input was changed")
		}
		// Everything but the insertions is the input, in order.
		rest, words := in, 0
		for o := string(out); o != "" || rest != ""; {
			switch {
			case o != "" && rest != "" && o[0] == rest[0] && !(strings.HasPrefix(o, insert) && !strings.HasPrefix(rest, insert)):
				o, rest = o[1:], rest[1:]
			case strings.HasPrefix(o, insert):
				o, words = o[len(insert):], words+1
			default:
				t.Fatalf("%q became %q", in, out)
			}
		}
		if words > len(in) || bytes.Count(out, []byte("\n")) != strings.Count(in, "\n") {
			t.Fatalf("%q became %q", in, out)
		}
		if again := qualify(out, insert[1:]); !bytes.Equal(again, out) {
			t.Fatalf("%q, and again %q", out, again)
		}
		a, err := address.ParseList(strings.TrimSuffix(in, "\n"))
		if err != nil {
			return
		}
		b, err := address.ParseList(strings.TrimSuffix(string(out), "\n"))
		if err != nil || len(a) != len(b) {
			t.Fatalf("%q became %q: %v", in, out, err)
		}
		for i := range a {
			if a[i] != b[i] && (a[i].Domain != "" || b[i].Domain != insert[1:] || a[i].Local != b[i].Local) {
				t.Fatalf("%v became %v", a[i], b[i])
			}
		}
	})
}
