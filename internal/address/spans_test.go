package address

import (
	"slices"
	"strings"
	"testing"
)

func TestSpans(t *testing.T) {
	for in, want := range map[string][]string{
		" a@b.example\n":                          {"a@b.example"},
		"bob, Carl <c@d> (x), \"q r\"@s;":         nil, // a ; outside a group
		"bob, Carl <c@d> (x), \"q r\"@s":          {"bob", "c@d", `"q r"@s`},
		"friends: a, <b>;, c@[IPv6:::1]":          {"a", "b", "c@[IPv6:::1]"},
		"<@x,@y:a@z>, a (c) @ b, a@ b, two words": {},
		"<>, none:;":                              {},
		"a, \"b":                                  nil,
		"a, (b":                                   nil,
		"a, <b":                                   nil,
		"a, b>":                                   nil,
		"a, b]":                                   nil,
		"a, b\x00":                                nil,
		"a\\":                                     nil,
	} {
		spans, ok := Spans([]byte(in))
		var got []string
		for _, s := range spans {
			got = append(got, in[s.From:s.To])
		}
		if ok != (want != nil) || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v; want %q", in, got, ok, want)
		}
	}
}

// FuzzSpans: what is found is in order, does not overlap, and is never empty.
func FuzzSpans(f *testing.F) {
	for _, s := range []string{" a (b) <c>, d: e, f;\n", " \"a\\\"b\" <c>", "<@a:b@c>, d", "a\xff, b\n c", "a]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		at := 0
		spans, ok := Spans([]byte(s))
		for _, p := range spans {
			if !ok || p.From < at || p.To <= p.From || p.To > len(s) || strings.Trim(s[p.From:p.To], " \t\r\n") != s[p.From:p.To] {
				t.Fatalf("%q: %v", s, spans)
			}
			at = p.To
		}
	})
}
