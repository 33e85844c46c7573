package smarthost

import (
	"fmt"
	"testing"
)

func TestParseHosts(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"mail.example.org", "mail.example.org:25"},
		{"Mail.Example.ORG.:587", "mail.example.org:587"},
		{"[192.0.2.1]", "[192.0.2.1]:25"},
		{"[192.0.2.1]:26", "[192.0.2.1]:26"},
		{"192.0.2.1", "[192.0.2.1]:25"},
		{"192.0.2.1:26", "[192.0.2.1]:26"},
		{"[2001:db8::1]:465", "[2001:db8::1]:465"},
		{"[IPv6:2001:db8::1]", "[2001:db8::1]:25"},
		{"2001:db8::1", "[2001:db8::1]:25"},
		{"[fe80::1%eth0]", "[fe80::1%eth0]:25"},
		{"mx:example.org", "mx:example.org:25"},
		{"mx:example.org:26", "mx:example.org:26"},
		{"localhost", "localhost:25"},
		{"", ""}, {":25", ""}, {"a:0", ""}, {"a:65536", ""}, {"a:b", ""}, {"a:", ""}, {"a:+25", ""}, {"[a]", ""}, {"[192.0.2.1", ""},
		{"a b", ""}, {"a@b", ""}, {"mx:[192.0.2.1]", ""}, {"mx:", ""}, {"a\nb", ""}, {"[192.0.2.1]x", ""},
	} {
		hosts, err := ParseHosts([]string{c.in}, 25)
		got := ""
		if len(hosts) == 1 {
			got = hosts[0].String()
		}
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%q: %q, %v", c.in, got, err)
		}
		if c.want == "" {
			continue
		}
		if again, err := ParseHosts([]string{got}, 99); err != nil || again[0] != hosts[0] {
			t.Errorf("%q: %q is read as %v, %v", c.in, got, again, err)
		}
	}
	hosts, err := ParseHosts([]string{"a", "b b", "c:1"}, 25)
	if fmt.Sprint(hosts) != "[a:25 c:1]" || err == nil {
		t.Errorf("%v, %v", hosts, err)
	}
}

func FuzzParseHosts(f *testing.F) {
	for _, s := range []string{"a", "a:25", "[192.0.2.1]:25", "mx:a", "[IPv6:::1]", "::1%x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		hosts, err := ParseHosts([]string{s}, 25)
		if err != nil {
			return
		}
		again, err := ParseHosts([]string{hosts[0].String()}, 99)
		if err != nil || again[0] != hosts[0] {
			t.Fatalf("%q: %v is read as %v, %v", s, hosts, again, err)
		}
	})
}
