package systemtest

import (
	"strings"
	"testing"

	"dma/spooldir"
)

// sendmail -bs: a whole message is queued, with lines as long as mail has them;
// half of one never is, however the client goes away. The header is as that of any
// message that is submitted.
func TestSMTPOnStandardInput(t *testing.T) {
	const hello = "EHLO me\r\nMAIL FROM:<alice@host.example>\r\nRCPT TO:<bob@host.example>\r\n"
	for name, test := range map[string]struct {
		dialog string
		queued int
	}{
		"whole":           {hello + "DATA\r\nReturn-Path: <x@y.example>\r\nSubject: x\r\n\r\nbody\r\n.\r\nQUIT\r\n", 1},
		"without QUIT":    {hello + "DATA\r\nSubject: x\r\n\r\nbody\r\n.\r\n", 1},
		"long line":       {hello + "DATA\r\nSubject: x\r\n\r\n" + strings.Repeat("x", 100000) + "\r\n.\r\nQUIT\r\n", 1},
		"half of DATA":    {hello + "DATA\r\nSubject: x\r\n\r\nhalf", 0},
		"half of a chunk": {hello + "BDAT 1000 LAST\r\nSubject: x\r\n\r\nhalf", 0},
		"one chunk of n":  {hello + "BDAT 22\r\nSubject: x\r\n\r\n12345678", 0},
		"option as user":  {"EHLO me\r\nMAIL FROM:<-oQ@host.example>\r\nRCPT TO:<-bp@host.example>\r\nDATA\r\n\r\nx\r\n.\r\nQUIT\r\n", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSiteWith(t, siteOptions{conf: "DEFER\n"})
			s.dma(test.dialog, "-bs")
			if n := len(s.in(spooldir.New)); n != test.queued {
				t.Errorf("%d messages are queued, want %d", n, test.queued)
			}
			for _, name := range s.in(spooldir.New) {
				if text := slurp(t, s.path("spool", "new", name)); strings.Contains(text, "Return-Path") {
					t.Errorf("queued with a Return-Path:\n%s", text)
				}
			}
		})
	}
}
