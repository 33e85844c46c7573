package address

import (
	"slices"
	"strings"
	"testing"
)

func TestParseList(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want string // the addresses, separated by blanks
	}{
		{"", ""},
		{" ", ""},
		{", ,", ""},
		{"a", "a"},
		{"a@b, c@d", "a@b c@d"},
		{"a@b,,c@d,", "a@b c@d"},
		{"Joe Q. Public <john.q@example.com>", "john.q@example.com"},
		{`"Public, Joe" <j@x>, <k@y>`, "j@x k@y"},
		{`"a \" <x@y>, " <j@x>`, "j@x"},
		{"me@x.org <me@x.org>", "me@x.org"},
		{"J\xfcrgen <j@x>", "j@x"},
		{"=?utf-8?q?J=C3=BCrgen?= <j@x>", "j@x"},
		{"undisclosed-recipients:;", ""},
		{"undisclosed-recipients: ;", ""},
		{"undisclosed-recipients:", ""},
		{"A Group:Chris <c@x>, joe@y,John <jdoe@z>;", "c@x joe@y jdoe@z"},
		{"a, g: b, c;, d", "a b c d"},
		{"g:<a@b>;,h:;", "a@b"},
		{"Pete(A nice \\) chap) <pete(his account)@silly.test(his host)>", "pete@silly.test"},
		{"a@b (one (two (three))), c", "a@b c"},
		{"(only a comment)", ""},
		{"john . doe @ example . org", "john.doe@example.org"},
		{"Joe <@x,@y:a@b>", "a@b"},
		{"Joe < @x , @y : a@b >", "a@b"},
		{"a@[192.0.2.1], <b@[IPv6:2001:db8::1]>", "a@[192.0.2.1] b@[IPv6:2001:db8::1]"},
		{"a@b,\n c@d", "a@b c@d"},
		{"a@b,\r\n\tc@d", "a@b c@d"},
		{"Joe\n Public\n <j@x>", "j@x"},
		{"\"a\n b\"@c", `"a b"@c`},
		{`"a,b"@c, d`, `"a,b"@c d`},
		{`a\,b, \alice`, `"a,b" alice`},
		{"|cat, /var/mail/x", "|cat /var/mail/x"},
		{"root", "root"},
	} {
		got, err := ParseList(tt.in)
		var out []string
		for _, a := range got {
			out = append(out, a.String())
		}
		if s := strings.Join(out, " "); err != nil || s != tt.want {
			t.Errorf("ParseList(%q) = %s, %v; want %s", tt.in, s, err, tt.want)
		}
	}
}

func TestParseListErrors(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"a b", `address "ab": words without an address in <>; addresses are separated by commas`},
		{"a@b c@d", `address "a@bc@d": words without an address in <>; addresses are separated by commas`},
		{"Joe <a@b", `address "a@b": the closing > is missing`},
		{"Joe <>", `address "": empty`},
		{"<a b>", `address "a": a blank must be in quotes`},
		{"<a<b>", `address "<b>": a < inside <>`},
		{"a>", `address ">": a > without <`},
		{"<a> b", `address "b": a comma is missing before it`},
		{"<a> <b>", `address "<b>": a comma is missing before it`},
		{"g:; a", `address "a": a comma is missing before it`},
		{"a; b", `address "; b": a ; without a group; addresses are separated by commas`},
		{";id;", `address ";id;": a ; without a group; addresses are separated by commas`},
		{"a@b:c", `address ":c": a : out of place`},
		{":include:/x", `address ":include:/x": a : out of place`},
		{"g:h:a;", `address ":a;": a : out of place`},
		{"g:a@b", `address "g:a@b": the ; that closes the group is missing`},
		{"a (b", `address "(b": the closing ) is missing`},
		{`"a`, `address ""a": the closing quote is missing`},
		{`"a\`, `address ""a\": the closing quote is missing`},
		{`a\`, `address "\": a backslash at the end`},
		{"a)", `address "a)": a ) must be in quotes`},
		{"a@[b", `address "[b": the closing ] is missing`},
		{"a@b\nc@d", `address "a@b": a line break is not allowed`},
		{"a@b\n", `address "a@b": a line break is not allowed`},
		{"a@b\r c", `address "a@b": a line break is not allowed`},
		{"\"a\nb\"@c", `address ""a?b"@c": a line break is not allowed`},
		{"a\\\nb", `address "a\?b": a line break is not allowed`},
		{"a\x00@b", `address "a?@b": a control character is not allowed`},
		{"\xff@b", `address "?@b": not valid UTF-8`},
		{"a@b, c@", `address "c@": no domain after the @`},
		{strings.Repeat("a,", maxList) + "a", "address list: more than 10000 addresses"},
		{strings.Repeat(" ", maxListBytes+1), "address list: longer than 16 MiB"},
		{strings.Repeat("(", 1<<20), `address "` + strings.Repeat("(", 80) + `...": the closing ) is missing`},
	} {
		got, err := ParseList(tt.in)
		if err == nil || err.Error() != tt.want || got != nil {
			t.Errorf("ParseList(%.40q) = %v, error %v; want error %s", tt.in, got, err, tt.want)
		}
	}
}

func FuzzParseList(f *testing.F) {
	for _, s := range []string{
		"a@b, c@d", `"P, J" <j@x>`, "g: a, <b>;, c", "a (x(y)) . b @ c", "<@x,@y:a@b>", "a,\n b", `"a\"`, "\\", "g:", ";", "a@[IPv6:::1]",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseList(s)
		if err != nil {
			if got != nil {
				t.Errorf("%q: an error and %v", s, got)
			}
			if e := err.Error(); len(e) > 300 || strings.Trim(e, printable) != "" {
				t.Errorf("%q: error %q is not one printable line", s, e)
			}
			return
		}
		// Written out again, alone and in the company of what a list can have,
		// the addresses are the same.
		var plain, full []string
		for _, a := range got {
			plain = append(plain, a.String())
			full = append(full, `"x, <y>" (z) <`+a.String()+">")
		}
		for _, form := range []string{strings.Join(plain, ","), "g:" + strings.Join(full, ",\r\n ") + ";,"} {
			again, err := ParseList(form)
			if err != nil || !slices.Equal(again, got) {
				t.Errorf("%q: %v written as %q is read as %v, %v", s, got, form, again, err)
			}
		}
	})
}
