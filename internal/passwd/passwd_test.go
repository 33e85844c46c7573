package passwd

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestValidName(t *testing.T) {
	for _, name := range []string{"root", "a.b", "domain user", `DOM\joe`, "jürgen", "joe$", "1000", "...", strings.Repeat("a", 256)} {
		if !ValidName(name) {
			t.Errorf("%q is refused", name)
		}
	}
	for _, name := range []string{"", ".", "..", "-x", "+x", "a:b", "a/b", "a\nb", "a\x00", "\x7f", "a\u0085", "\xff", strings.Repeat("a", 257)} {
		if ValidName(name) {
			t.Errorf("%q is taken", name)
		}
	}
}

func TestFullName(t *testing.T) {
	for _, tt := range []struct{ name, gecos, want string }{
		{"joe", "", ""},
		{"joe", "Joe Doe", "Joe Doe"},
		{"joe", " Joe Doe ,Room 5,,", "Joe Doe"},
		{"joe", "& Doe & Sons", "Joe Doe Joe Sons"},
		{"Joe", "&", "Joe"},
		{"1st", "&", "1st"},
		{"joe", "Jürgen", "Jürgen"},
		{"joe", "J\xfcrgen", "Jürgen"},
		{"joe", "J\toe\x1b[1m\u009b", "Joe[1m"},
		{"joe", ",x", ""},
		{"joe", strings.Repeat("&", 4000), strings.Repeat("Joe", 86)},
	} {
		if got := (User{Name: tt.name, Gecos: tt.gecos}).FullName(); got != tt.want {
			t.Errorf("%s %q: %q; want %q", tt.name, tt.gecos, got, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"root:x:0:0:root:/root:/bin/sh\n", "a:x:1:1:&,b:/home/a:\na:x:2:2:::", "# c\n+@x::::::\n-y\n", "a:b", "a:x:-1:0:::", ":::::::\n", "a:x:1:2:\xff\x01:/:/\x00",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d := parse(s)
		for name, u := range d.byName {
			if name != u.Name || !ValidName(name) || u.UID < 0 || u.GID < 0 || u.Home != "" && u.Home[0] != '/' || hasControl(u.Home) || hasControl(u.Shell) {
				t.Errorf("%q: %+v", s, u)
			}
			if n := u.FullName(); hasControl(n) || !utf8.ValidString(n) || len(n) > maxFullName+maxName {
				t.Errorf("%q: full name %q", s, n)
			}
			if first, ok := d.byID[u.UID]; !ok || first.UID != u.UID {
				t.Errorf("%q: uid %d not found", s, u.UID)
			}
		}
		for _, b := range d.bad {
			if b.Line < 1 || len(b.Text) > 1500 || strings.ContainsFunc(b.Text, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
				t.Errorf("bad line %+v is not one printable line", b)
			}
		}
	})
}
