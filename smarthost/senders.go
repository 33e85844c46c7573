package smarthost

import (
	"fmt"
	"strings"
	"sync"

	"dma/internal/address"
	"dma/internal/config"
	"dma/internal/mapfile"
)

// SenderRelays chooses relays by the sender of a message: those of the SENDERRELAY
// file, which is read again when it has changed. It is safe for use by many
// goroutines; nil has no relays.
type SenderRelays struct {
	port int

	mu       sync.Mutex
	file     mapfile.File
	entries  map[string]senderEntry
	reported mapfile.Reporter
}

// senderEntry is a line of a SENDERRELAY file.
type senderEntry struct {
	hosts []Host
	line  int
	why   string // the line cannot be read: the sender waits
}

// NewSenderRelays returns the relays of the file at path, with the given port
// where they name none. problem is told what is wrong with it; it may be nil.
func NewSenderRelays(path string, port int, problem func(config.Problem)) *SenderRelays {
	return &SenderRelays{port: port, file: mapfile.File{Path: path}, reported: mapfile.Reporter{Tell: problem}}
}

// For returns the relays for mail from sender, as MAIL says it; none if it has no
// relays of its own. The null sender has none. The error is a file that cannot be
// read, or whose line for the sender cannot be: then the mail waits, since no
// other relay is what was asked for.
func (s *SenderRelays) For(sender string) ([]Host, error) {
	if s == nil || sender == "" {
		return nil, nil
	}
	exact, domain, err := senderKeys(sender)
	if err != nil {
		return nil, nil // the transaction says what is wrong with it
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	text, changed, err := s.file.Read()
	if err != nil {
		return nil, fmt.Errorf("SENDERRELAY: %w", err)
	}
	if changed {
		var problems []config.Problem
		s.entries, problems = parseSenders(s.file.Path, text, s.port)
		s.reported.Report(problems)
	}
	e, ok := s.entries[exact]
	if !ok {
		e, ok = s.entries[domain]
	}
	if ok && e.why != "" {
		return nil, fmt.Errorf("SENDERRELAY: line %d of %s, which is for %s: %s", e.line, s.file.Path, oneLine(sender), e.why)
	}
	return e.hosts, nil
}

// senderKeys returns the names under which a sender is looked up: the address and
// its domain, without regard to case.
func senderKeys(sender string) (exact, domain string, err error) {
	a, err := address.Parse(sender)
	if err != nil {
		return "", "", err
	}
	a.Local, a.Domain = strings.ToLower(a.Local), inASCII(strings.ToLower(a.Domain))
	return a.String(), "@" + a.Domain, nil
}

// parseSenders reads a SENDERRELAY file. A line is an address, or @ and a domain,
// then white space or a colon, then the relays as in SMARTHOST; # begins a comment.
// A relay may have the login for it in front, as in the credentials file:
//
//	alice@example.org   alice.w|smtp.example.com:587
//	bob@example.org     bob@example.com|smtp.example.com:587
//	@lists.example.org  mx:lists.example.net, [192.0.2.1]:26
//
// The last of several lines for a sender counts.
func parseSenders(file string, text []byte, port int) (map[string]senderEntry, []config.Problem) {
	entries := make(map[string]senderEntry)
	var problems []config.Problem
	for line := range mapfile.Entries(text) {
		bad := func(text string) {
			problems = append(problems, config.Problem{File: file, Line: line.Line, Text: oneLine(text)})
		}
		var key string
		var err error
		if domain, ok := strings.CutPrefix(line.Key, "@"); ok {
			if _, key, err = senderKeys("x@" + domain); err == nil && strings.Contains(domain, "@") {
				err = fmt.Errorf("more than one @")
			}
		} else if key, _, err = senderKeys(line.Key); err == nil && !strings.Contains(key, "@") {
			err = fmt.Errorf("no @ in it")
		}
		if err != nil {
			bad(fmt.Sprintf("sender %.60q: neither an address nor @ and a domain (%v); the line is ignored", line.Key, err))
			continue
		}
		e := senderEntry{line: line.Line}
		if e.hosts, e.why = parseRelays(line.Value, port); e.why != "" {
			e.hosts = nil
			bad(e.why + "; mail from " + key + " waits until this line is mended")
		}
		entries[key] = e
	}
	return entries, problems
}

// parseRelays reads the relays of a line. One that is wrong spoils all: it may have
// been the one that counts.
func parseRelays(list string, port int) (hosts []Host, why string) {
	for word := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ' ' || r == '\t' || r == ',' }) {
		login, host, ok := strings.Cut(word, "|")
		if !ok {
			login, host = "", word
		}
		h, why := parseHost(host, port)
		switch {
		case why != "":
			return nil, fmt.Sprintf("relay %.60q: %s", word, why)
		case ok && (login == "" || len(login) > 1000):
			return nil, fmt.Sprintf("relay %.60q: the login before | is empty or longer than 1000 octets", word)
		}
		h.Login = login
		hosts = append(hosts, h)
	}
	if len(hosts) == 0 {
		return nil, "there is no relay after the sender"
	}
	return hosts, ""
}
