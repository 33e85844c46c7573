package queue

import "testing"

func TestMTAName(t *testing.T) {
	for relay, want := range map[string]string{
		"mx.example[192.0.2.1]:25":   "mx.example",
		"mx.example[2001:db8::1]:25": "mx.example",
		"[192.0.2.1]:587":            "[192.0.2.1]",
		"[2001:db8::1]:25":           "[IPv6:2001:db8::1]",
		"mx.example":                 "mx.example",
	} {
		if got := mtaName(relay); got != want {
			t.Errorf("%s: %s, want %s", relay, got, want)
		}
	}
}
