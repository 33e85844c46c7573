package queue

import (
	"slices"
	"strings"
	"testing"
)

// FuzzTrace: whatever a header holds, the trace is that of a reader who has all of it
// before him, and nothing of the body counts.
func FuzzTrace(f *testing.F) {
	for _, s := range []string{
		"", "\n", "Received: a\nReceived : b\n\tReceived: folded\n\nReceived: body\n", "delivered-to: a@b \r\nDELIVERED-TO:\r\n\r\nx",
		"no colon\n: no name\nReceived", "Delivered-To: " + strings.Repeat("x", 5000) + "\nReceived: z\n", "\x00Received: a\n Received: b",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := readTrace(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if len(text) > maxTraceHeader {
			return
		}
		received := 0
		var delivered []string
		for line := range strings.Lines(text) {
			if strings.TrimRight(line, "\r\n") == "" {
				break
			}
			name, value, ok := strings.Cut(line[:min(len(line), 4096)], ":")
			switch name = strings.TrimRight(name, " \t"); {
			case !ok:
			case strings.EqualFold(name, "Received"):
				received++
			case strings.EqualFold(name, "Delivered-To") && len(delivered) < 1000:
				delivered = append(delivered, strings.TrimSpace(value))
			}
		}
		if got.received != received || !slices.Equal(got.delivered, delivered) {
			t.Errorf("%d Received and %q, want %d and %q", got.received, got.delivered, received, delivered)
		}
	})
}
