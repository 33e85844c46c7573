package runner

import (
	"strings"
	"testing"
	"time"

	"dma/smarthost"
)

// TestRefusedLogins: mailq shows those that are not tried now, in lines of its own,
// whatever the relay said.
func TestRefusedLogins(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	refusal := func(login string, until time.Duration) smarthost.Refusal {
		return smarthost.Refusal{
			Login: login, Host: "mail.example.com", Relay: "mail.example.com[192.0.2.1]:587",
			Reason: "535 5.7.8 no\n\x1b[31m", Times: 2, At: now.Add(-time.Minute), Until: now.Add(until),
		}
	}
	var b strings.Builder
	if err := printRefused(&b, []smarthost.Refusal{refusal("late", 0), refusal("me@example.com", time.Minute)}, now); err != nil {
		t.Fatal(err)
	}
	local := func(d time.Duration) string { return now.Add(d).Local().Format(time.DateTime) }
	want := "login of me@example.com refused by mail.example.com[192.0.2.1]:587 2 times, last at " + local(-time.Minute) +
		"; not tried before " + local(time.Minute) + "\n               535 5.7.8 no??[31m\n"
	if b.String() != want {
		t.Errorf("%q\nwant\n%q", b.String(), want)
	}
}
