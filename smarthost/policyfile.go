package smarthost

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"

	"dma/internal/config"
	"dma/internal/mapfile"
)

// TLSPolicies chooses the policy for a host: that of the TLSPOLICY file, which is
// read again when it has changed, else that of C dma's keys. It is safe for use
// by many goroutines.
type TLSPolicies struct {
	keys *config.Config

	mu       sync.Mutex
	file     mapfile.File
	entries  []policyEntry
	reported mapfile.Reporter
}

// NewTLSPolicies returns the policies of a configuration. problem is told what is
// wrong with the TLSPOLICY file, and with INSECURE; it may be nil.
func NewTLSPolicies(c *config.Config, problem func(config.Problem)) *TLSPolicies {
	p := &TLSPolicies{keys: c, file: mapfile.File{Path: c.TLSPolicy}, reported: mapfile.Reporter{Tell: problem}}
	if c.Insecure && problem != nil {
		problem(config.Problem{File: c.File, Text: "INSECURE has no effect: passwords and tokens never cross a connection that is not encrypted; remove it"})
	}
	return p
}

// For returns the policy for h, given whether there are credentials for it. The
// error is a TLSPOLICY file that cannot be read, or whose line for h cannot be.
func (p *TLSPolicies) For(h Host, credentials bool) (TLSPolicy, error) {
	if p.keys.TLSPolicy == "" {
		return KeysPolicy(p.keys, credentials), nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	data, changed, err := p.file.Read()
	if err != nil {
		return TLSPolicy{}, fmt.Errorf("TLSPOLICY: %w", err)
	}
	if changed {
		var problems []config.Problem
		p.entries, problems = parsePolicies(p.file.Path, data)
		p.reported.Report(problems)
	}
	e := findPolicy(p.entries, h)
	switch {
	case e == nil:
		return KeysPolicy(p.keys, credentials), nil
	case e.any:
		return TLSPolicy{}, fmt.Errorf("%s:%d cannot be read, and may be for %s", p.file.Path, e.line, destinationName(h))
	case e.bad:
		return TLSPolicy{}, fmt.Errorf("%s:%d: the policy for %s cannot be read", p.file.Path, e.line, e.name())
	}
	return e.policy, nil
}

// policyEntry is a line of a TLSPOLICY file.
type policyEntry struct {
	host   Host   // port 0: any
	parent string // "." for all destinations, ".example.org" for all below
	policy TLSPolicy
	line   int
	bad    bool // the policy cannot be read: the destination waits
	any    bool // and so cannot the destination: each host without a line of its own waits
}

func (e *policyEntry) name() string {
	switch {
	case e.parent == ".":
		return "*"
	case e.parent != "":
		return e.parent
	}
	return destinationName(e.host)
}

// findPolicy returns the entry for h: for its name or address with the port, for
// that without, for the nearest domain above, for all. The last of several that
// are the same counts. A host that the MX records of a domain name has the entry
// of that domain. An entry whose destination cannot be read might be for h, and
// goes before those for domains and for all.
func findPolicy(entries []policyEntry, h Host) *policyEntry {
	h.Name = inASCII(cmp.Or(h.Domain, h.Name))
	var best *policyEntry
	most := 0
	for i := range entries {
		e := &entries[i]
		weight := 0
		switch {
		case e.any:
			weight = 1 << 19
		case e.parent == ".":
			weight = 1
		case e.parent != "":
			if strings.HasSuffix(h.Name, e.parent) {
				weight = 1 + len(e.parent)
			}
		case e.host.Name == h.Name && e.host.IP == h.IP:
			switch e.host.Port {
			case 0:
				weight = 1 << 20
			case h.Port:
				weight = 1 << 21
			}
		}
		if weight > 0 && weight >= most {
			best, most = e, weight
		}
	}
	return best
}

// parsePolicies reads a TLSPOLICY file. A line is a destination, a policy and
// its options; # begins a comment at the start of a line and after a blank.
//
//	relay.example.org         verify
//	relay.example.org:2465    encrypt implicit
//	[192.0.2.1]               fingerprint match=0123...,4567...
//	example.net               verify match=.mx.example.net,mail.example.com
//	.example.com              may
//	*                         encrypt
//
// The destination is written as in SMARTHOST, mx:name as its name. The policies
// are none, may, encrypt, verify, fingerprint; the options starttls, implicit, and
// match with the names that a certificate may have, for verify, or the SHA-256 that
// it must have, for fingerprint.
func parsePolicies(file string, data []byte) ([]policyEntry, []config.Problem) {
	var entries []policyEntry
	var problems []config.Problem
	line := 0
	for text := range strings.SplitSeq(strings.TrimPrefix(string(data), "\ufeff"), "\n") {
		line++
		var words []string
		for _, w := range strings.Fields(text) {
			if w[0] == '#' {
				break
			}
			words = append(words, w)
		}
		if len(words) == 0 {
			continue
		}
		bad := func(text string) {
			problems = append(problems, config.Problem{File: file, Line: line, Text: oneLine(text)})
		}
		e := policyEntry{line: line}
		if why := e.destination(words[0]); why != "" {
			bad(fmt.Sprintf("destination %.60q: %s; mail for each host without a line of its own waits until this line is mended", words[0], why))
			entries = append(entries, policyEntry{line: line, bad: true, any: true})
			continue
		}
		var err error
		if e.policy, err = parsePolicy(words[1:]); err != nil {
			e.bad = true
			bad(err.Error() + "; mail for " + e.name() + " waits until this line is mended")
		}
		entries = append(entries, e)
	}
	return entries, problems
}

func (e *policyEntry) destination(s string) (why string) {
	switch {
	case s == "*":
		e.parent = "."
	case s[0] == '.':
		h, why := parseHost(s[1:], 1)
		if why != "" || h.Name == "" || h.MX || strings.Contains(s, ":") {
			return "not a domain after the dot"
		}
		e.parent = "." + inASCII(h.Name)
	default:
		e.host, why = parseDestination(strings.TrimPrefix(s, "mx:"))
	}
	return why
}

// parseDestination reads a host without prefix; Port is 0 if it has none.
func parseDestination(s string) (Host, string) {
	h, why := parseHost(s, 1)
	if other, _ := parseHost(s, 2); other.Port != h.Port {
		h.Port = 0
	}
	if why == "" && h.MX {
		why = "mx: does not belong here"
	}
	h.Name = inASCII(h.Name)
	return h, why
}

// inASCII writes the name of a host as the DNS has it, if it can be.
func inASCII(name string) string {
	if ascii, _, err := asciiDomain(name); err == nil && name != "" {
		return ascii
	}
	return name
}

// destinationName is the inverse of parseDestination.
func destinationName(h Host) string {
	if h.Port != 0 {
		return h.String()
	}
	if h.IP.IsValid() {
		return "[" + h.IP.String() + "]"
	}
	return h.Name
}

// parsePolicy reads the words after the destination.
func parsePolicy(words []string) (TLSPolicy, error) {
	var p TLSPolicy
	if len(words) == 0 {
		return p, errors.New("there is no policy: write none, may, encrypt, verify or fingerprint")
	}
	for l := TLSNone; l <= TLSFingerprint; l++ {
		if strings.EqualFold(words[0], l.String()) {
			p.Level = l
		}
	}
	if p.Level == 0 {
		return p, fmt.Errorf("%.40q is no policy: write none, may, encrypt, verify or fingerprint", words[0])
	}
	for _, w := range words[1:] {
		list, isMatch := strings.CutPrefix(w, "match=")
		switch {
		case p.Level == TLSNone:
			return p, errors.New("none has no options")
		case w == "starttls" && p.Start != StartAtOnce:
			p.Start = StartTLS
		case w == "implicit" && p.Start != StartTLS:
			p.Start = StartAtOnce
		case isMatch && p.Level == TLSVerify:
			for name := range strings.SplitSeq(list, ",") {
				h, why := parseHost(strings.TrimPrefix(name, "."), 1)
				if why != "" || h.MX || strings.Contains(name, ":") || h.Name == "" {
					return p, fmt.Errorf("match: %.60q is not the name of a host, or a dot and a domain", name)
				}
				if h.Name = inASCII(h.Name); name[0] == '.' {
					h.Name = "." + h.Name
				}
				p.Names = append(p.Names, h.Name)
			}
		case isMatch && p.Level == TLSFingerprint:
			for digits := range strings.SplitSeq(list, ",") {
				f, err := parseFingerprint(digits)
				if err != nil {
					return p, fmt.Errorf("match: %w", err)
				}
				p.Fingerprints = append(p.Fingerprints, f)
			}
		default:
			return p, fmt.Errorf("%.40q is no option of %v: there are starttls or implicit, and match= for verify and fingerprint", w, p.Level)
		}
	}
	if p.Level == TLSFingerprint && len(p.Fingerprints) == 0 {
		return p, errors.New("fingerprint needs match= and the SHA-256 of a certificate")
	}
	return p, nil
}

// parseFingerprint reads 64 hexadecimal digits, with colons or without.
func parseFingerprint(s string) (f Fingerprint, err error) {
	b, err := hex.DecodeString(strings.ReplaceAll(s, ":", ""))
	if err != nil || len(b) != len(f) {
		return f, fmt.Errorf("%.80q is not the SHA-256 of a certificate in 64 hex digits", s)
	}
	return Fingerprint(b), nil
}
