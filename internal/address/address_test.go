package address

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		in            string
		local, domain string
		out           string // if not in
	}{
		{"a", "a", "", ""},
		{"a@b", "a", "b", ""},
		{" a@b\t", "a", "b", "a@b"},
		{"<a@b>", "a", "b", "a@b"},
		{"< a@b >", "a", "b", "a@b"},
		{"A.b@Example.ORG", "A.b", "example.org", "A.b@example.org"},
		{"a@example.org.", "a", "example.org", "a@example.org"},
		{`"a b"@c`, "a b", "c", ""},
		{`"a@b"@c`, "a@b", "c", ""},
		{`"a\"b\\c"@d`, `a"b\c`, "d", ""},
		{`"plain"@c`, "plain", "c", "plain@c"},
		{`"a b".c@d`, "a b.c", "d", `"a b.c"@d`},
		{`\alice`, "alice", "", "alice"},
		{`a\@b@c`, "a@b", "c", `"a@b"@c`},
		{".a@b", ".a", "b", `".a"@b`},
		{"a..b@c", "a..b", "c", `"a..b"@c`},
		{"a.@b", "a.", "b", `"a."@b`},
		{"/var/mail/x", "/var/mail/x", "", ""},
		{"|cat", "|cat", "", ""},
		{"a{b}%c!d@e", "a{b}%c!d", "e", ""},
		{"-oQ/tmp@x", "-oQ/tmp", "x", ""},
		{"$(id)@x", "", "", "address \"$(id)@x\": a ( must be in quotes"},
		{"`id`@x", "`id`", "x", ""},
		{"a+b=c@d_e", "a+b=c", "d_e", ""},
		{"jürgen@müller.example", "jürgen", "müller.example", ""},
		{"a@[192.0.2.1]", "a", "[192.0.2.1]", ""},
		{"a@[ipv6:2001:DB8::1]", "a", "[IPv6:2001:db8::1]", "a@[IPv6:2001:db8::1]"},
		{"a@[IPv6:1:2:3:4:5:6:7:8]", "a", "[IPv6:1:2:3:4:5:6:7:8]", ""},
		{"a@[IPv6:::ffff:192.0.2.1]", "a", "[IPv6:::ffff:192.0.2.1]", ""},
		{"a@[IPv6:::]", "a", "[IPv6:::]", ""},
		{"<@x,@y:a@b>", "a", "b", "a@b"},
		{"@[IPv6:::1]:a@b", "a", "b", "a@b"},
		{"@x:a", "a", "", "a"},
		{"a@r3---sn.example", "a", "r3---sn.example", ""},

		{"", "", "", `address "": empty`},
		{"<>", "", "", `address "<>": empty`},
		{`""`, "", "", `address """": empty`},
		{`""@b`, "", "", `address """@b": nothing before the @`},
		{"@b", "", "", `address "@b": nothing before the @`},
		{"a@", "", "", `address "a@": no domain after the @`},
		{"a@.", "", "", `address "a@.": no domain after the @`},
		{"a@b..", "", "", `address "a@b..": the domain has an empty label`},
		{"a@.b", "", "", `address "a@.b": the domain has an empty label`},
		{"a@-b", "", "", `address "a@-b": a label of the domain begins or ends with a hyphen`},
		{"a@b-.c", "", "", `address "a@b-.c": a label of the domain begins or ends with a hyphen`},
		{"a@b@c", "", "", `address "a@b@c": more than one @`},
		{"a@b c", "", "", `address "a@b c": the domain has a blank`},
		{"a@b;c", "", "", `address "a@b;c": the domain has a ;`},
		{"a@b/c", "", "", `address "a@b/c": the domain has a /`},
		{"a b@c", "", "", `address "a b@c": a blank must be in quotes`},
		{";id;", "", "", `address ";id;": a ; must be in quotes`},
		{"<a@b", "", "", `address "<a@b": the closing > is missing`},
		{"<", "", "", `address "<": the closing > is missing`},
		{"<a@b> x", "", "", `address "<a@b> x": the closing > is missing`},
		{"x <a@b>", "", "", `address "x <a@b>": a blank must be in quotes`},
		{"a,b", "", "", `address "a,b": a , must be in quotes`},
		{`"a`, "", "", `address ""a": the closing quote is missing`},
		{`a\`, "", "", `address "a\": a backslash at the end`},
		{"a\nRCPT TO:<b>", "", "", `address "a?RCPT TO:<b>": a line break is not allowed`},
		{"a\r@b", "", "", `address "a?@b": a line break is not allowed`},
		{"a@b\n", "", "", `address "a@b?": a line break is not allowed`},
		{"a\x00@b", "", "", `address "a?@b": a control character is not allowed`},
		{"\"a\tb\"@c", "", "", `address ""a?b"@c": a control character is not allowed`},
		{"a@b\x7f", "", "", `address "a@b?": a control character is not allowed`},
		{"a\u009b@b", "", "", `address "a??@b": a control character is not allowed`},
		{"a\xff@b", "", "", `address "a?@b": not valid UTF-8`},
		{"a@[1.2.3]", "", "", `address "a@[1.2.3]": not an address in the brackets: [1.2.3.4] or [IPv6:2001:db8::1]`},
		{"a@[1.2.3.256]", "", "", `address "a@[1.2.3.256]": not an address in the brackets: [1.2.3.4] or [IPv6:2001:db8::1]`},
		{"a@[1.2.3.04]", "", "", `address "a@[1.2.3.04]": not an address in the brackets: [1.2.3.4] or [IPv6:2001:db8::1]`},
		{"a@[1.2.3.4.5]", "", "", `address "a@[1.2.3.4.5]": not an address in the brackets: [1.2.3.4] or [IPv6:2001:db8::1]`},
		{"a@[IPv6:1::2::3]", "", "", `address "a@[IPv6:1::2::3]": not an IPv6 address in the brackets`},
		{"a@[IPv6:1:2:3:4:5:6:7]", "", "", `address "a@[IPv6:1:2:3:4:5:6:7]": not an IPv6 address in the brackets`},
		{"a@[IPv6:1:2:3:4:5:6:7:8:]", "", "", `address "a@[IPv6:1:2:3:4:5:6:7:8:]": not an IPv6 address in the brackets`},
		{"a@[IPv6:fe80::1%eth0]", "", "", `address "a@[IPv6:fe80::1%eth0]": not an IPv6 address in the brackets`},
		{"a@[1.2.3.4", "", "", `address "a@[1.2.3.4": the closing ] is missing`},
		{"a@[", "", "", `address "a@[": the closing ] is missing`},
		{"@x,y:a@b", "", "", `address "@x,y:a@b": source route: a host must begin with @`},
		{"@:a@b", "", "", `address "@:a@b": source route: no domain after the @`},
	} {
		got, err := Parse(tt.in)
		if tt.local == "" {
			if err == nil || err.Error() != tt.out {
				t.Errorf("Parse(%q) = %v, error %v; want error %s", tt.in, got, err, tt.out)
			}
			continue
		}
		if want := (Address{tt.local, tt.domain}); err != nil || got != want {
			t.Errorf("Parse(%q) = %#v, %v; want %#v", tt.in, got, err, want)
			continue
		}
		want := tt.out
		if want == "" {
			want = tt.in
		}
		if s := got.String(); s != want {
			t.Errorf("Parse(%q).String() = %s; want %s", tt.in, s, want)
		}
	}
}

func TestParseLength(t *testing.T) {
	for _, tt := range []struct {
		in string
		ok bool
	}{
		{strings.Repeat("a", 998), true},
		{strings.Repeat("a", 999), false},
		// Quoting makes it longer than what was given.
		{"." + strings.Repeat("a", 995), true},
		{"." + strings.Repeat("a", 996), false},
		{"a@" + strings.Repeat("b", 63), true},
		{"a@" + strings.Repeat("b", 64), false},
		{"a@" + strings.Repeat("b.", 127) + "c", true},
		{"a@" + strings.Repeat("b.", 127) + "cc", false},
	} {
		if a, err := Parse(tt.in); (err == nil) != tt.ok {
			t.Errorf("Parse of %d octets %.10q...: error %v", len(tt.in), tt.in, err)
		} else if err != nil && len(err.Error()) > 200 {
			t.Errorf("error of %d octets", len(err.Error()))
		} else if err == nil {
			if b, err := Parse(a.String()); a != b {
				t.Errorf("%.10q...: not read back: %v", tt.in, err)
			}
		}
	}
}

func TestParsePath(t *testing.T) {
	for _, s := range []string{"", "<>", " <> "} {
		if a, err := ParsePath(s); err != nil || !a.IsZero() || a.String() != "" {
			t.Errorf("ParsePath(%q) = %v, %v", s, a, err)
		}
	}
	if a, err := ParsePath("<a@B>"); err != nil || a != (Address{"a", "b"}) {
		t.Errorf("ParsePath = %v, %v", a, err)
	}
	for _, s := range []string{"<", "@", "<><>", "a b", "\n"} {
		if a, err := ParsePath(s); err == nil {
			t.Errorf("ParsePath(%q) = %v, no error", s, a)
		}
	}
}

func TestASCII(t *testing.T) {
	for _, tt := range []struct {
		a    Address
		want bool
	}{
		{Address{}, true},
		{Address{"a", "b"}, true},
		{Address{"ä", "b"}, false},
		{Address{"a", "ö"}, false},
	} {
		if got := tt.a.ASCII(); got != tt.want {
			t.Errorf("%v.ASCII() = %v", tt.a, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"a", "a@b", "<a@B.>", `"a b"@c`, `a\ b`, ".a@b", "@x,@[IPv6:::1]:a@b", "a@[1.2.3.4]",
		"ü@ü.example", "", "<>", "a\n", "a@", `"`, `\`, "a\u0085",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := Parse(s)
		if err != nil {
			if a != (Address{}) {
				t.Errorf("%q: an error and %#v", s, a)
			}
			if e := err.Error(); len(e) > 300 || strings.Trim(e, printable) != "" {
				t.Errorf("%q: error %q is not one printable line", s, e)
			}
			return
		}
		out := a.String()
		if len(out) > maxLen || strings.ContainsFunc(out, func(r rune) bool { return r < 0x20 || r >= 0x7f && r < 0xa0 }) {
			t.Errorf("%q: String %q", s, out)
		}
		if a.Local == "" || a.Domain != lower(a.Domain) {
			t.Errorf("%q: %#v", s, a)
		}
		for _, form := range []string{out, "<" + out + ">"} {
			if b, err := Parse(form); b != a {
				t.Errorf("%q: %#v written as %s is read as %#v, %v", s, a, form, b, err)
			}
			if l, err := ParseList(form); len(l) != 1 || l[0] != a {
				t.Errorf("%q: %#v written as %s is read as the list %v, %v", s, a, form, l, err)
			}
		}
	})
}

const printable = " !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~"
