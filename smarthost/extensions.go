package smarthost

import (
	"strconv"
	"strings"
)

// extensions is what a reply to EHLO offers.
type extensions struct {
	pipelining bool  // RFC 2920
	eightBit   bool  // RFC 6152
	dsn        bool  // RFC 3461
	utf8       bool  // RFC 6531
	startTLS   bool  // RFC 3207
	size       bool  // RFC 1870
	maxSize    int64 // 0: no limit is named
	rcptMax    int   // RFC 9422; 0: no limit is named
	mailMax    int   // RFC 9422; 0: no limit is named
	auth       []string
}

// parseExtensions reads the lines of a reply to EHLO (RFC 5321 section 4.1.1.1).
// A line that makes no sense is an extension that is not offered.
func parseExtensions(lines []string) extensions {
	var e extensions
	if len(lines) == 0 {
		return e
	}
	for _, line := range lines[1:] { // the first is the greeting
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		switch word := strings.ToUpper(words[0]); word {
		case "PIPELINING":
			e.pipelining = true
		case "8BITMIME":
			e.eightBit = true
		case "DSN":
			e.dsn = true
		case "SMTPUTF8":
			e.utf8 = true
		case "STARTTLS":
			e.startTLS = true
		case "SIZE":
			e.size = true
			if len(words) > 1 {
				// A number beyond int64 is no limit in practice.
				if n, err := strconv.ParseInt(words[1], 10, 64); err == nil && n > 0 {
					e.maxSize = n
				}
			}
		case "LIMITS":
			for _, w := range words[1:] {
				name, value, _ := strings.Cut(strings.ToUpper(w), "=")
				n, err := strconv.Atoi(value)
				if err != nil || n < 1 {
					continue
				}
				switch name {
				case "RCPTMAX":
					e.rcptMax = n
				case "MAILMAX":
					e.mailMax = n
				}
			}
		default:
			// AUTH=LOGIN is how servers wrote it before the RFC.
			if name, list, ok := strings.Cut(word, "="); ok && name == "AUTH" {
				e.auth = append(append(e.auth, list), words[1:]...)
			} else if word == "AUTH" {
				e.auth = append(e.auth, words[1:]...)
			}
		}
	}
	return e
}
