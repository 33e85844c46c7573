package address

import (
	"strings"
	"testing"
)

func TestSpoolName(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", ""},
		{"alice+x@Example.org", "alice+x@Example.org"},
		{"a_b=c-d", "a_b=c-d"},
		{"/etc/passwd", "%2Fetc%2Fpasswd"},
		{"a b%c|d\n", "a%20b%25c%7Cd%0A"},
		{"ü", "%C3%BC"},
	} {
		if got := SpoolName(tt.in); got != tt.want {
			t.Errorf("SpoolName(%q) = %q; want %q", tt.in, got, tt.want)
		}
	}
}

func TestDecodeIsStrict(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"a b", `field "a b": an octet that should be written as %XX`},
		{"\xc3\xbc", `field "??": an octet that should be written as %XX`},
		{"a\n", `field "a?": an octet that should be written as %XX`},
		{"%", `field "%": a % without two digits`},
		{"%2", `field "%2": a % without two digits`},
		{"%c3", `field "%c3": a % without two upper-case hex digits`},
		{"%0G", `field "%0G": a % without two upper-case hex digits`},
		{"%41", `field "%41": %XX for an octet that stands for itself`},
	} {
		if got, err := Decode(tt.in); err == nil || err.Error() != tt.want || got != "" {
			t.Errorf("Decode(%q) = %q, error %v; want error %s", tt.in, got, err, tt.want)
		}
	}
}

func FuzzEncode(f *testing.F) {
	for _, s := range []string{"", "a", "%", "a b", "%41", "%0A", "\x00\x7f\xff", "%c3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e := Encode(s)
		if strings.ContainsFunc(e, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			t.Errorf("Encode(%q) = %q", s, e)
		}
		if d, err := Decode(e); err != nil || d != s {
			t.Errorf("Decode(Encode(%q)) = %q, %v", s, d, err)
		}
		if d, err := Decode(s); err == nil && Encode(d) != s {
			t.Errorf("Decode takes %q, which Encode writes as %q", s, Encode(d))
		}
		if n := SpoolName(s); strings.Trim(n, "@._+=-%0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
			t.Errorf("SpoolName(%q) = %q", s, n)
		}
	})
}
