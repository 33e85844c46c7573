package smarthost

import (
	"strconv"
	"strings"

	"dma/internal/config"
)

// authEntry is a line of a credentials file.
type authEntry struct {
	login
	bad bool // cannot be used: its host waits; with the zero Host, each that has no entry of its own
}

// parseAuth reads a credentials file, C dma's auth.conf. A line is
//
//	login|host:password
//
// where a blank, a tab or | may stand for the colon, and the password is what
// follows, to the end of the line, as it is. # begins a comment, at the start of a
// line only. The host is written as in SMARTHOST, mx:name as its name:
//
//	me|relay.example.org:secret       any port
//	me|relay.example.org:587:secret   this port
//	me|[192.0.2.1] secret
//	me|[2001:db8::1]:587 secret
//
// So a password that begins with a number and one of these separators needs a
// blank before it, not a colon. A line without a password has it from the
// command, if there is one. A login that ends with ;AUTH= and the name of a
// mechanism, as in the URLs of RFC 5092, uses that mechanism only; OAUTHBEARER and
// XOAUTH2 make the password a token. The last of several lines for a host counts.
//
// No problem shows anything of a line.
func parseAuth(file string, data []byte, command bool) ([]authEntry, []config.Problem) {
	var entries []authEntry
	var problems []config.Problem
	n := 0
	for text := range strings.SplitSeq(strings.TrimPrefix(string(data), "\ufeff"), "\n") {
		n++
		text = strings.TrimSuffix(text, "\r")
		if bare := strings.TrimLeft(text, authBlanks); bare == "" || bare[0] == '#' {
			continue
		}
		e := authEntry{login: login{line: n}}
		why := e.parse(text)
		if why == "" && e.secret.IsZero() && !command {
			why = "there is no password, and no PASSWORDCMD"
		}
		if e.bad = why != ""; e.bad {
			whom := "the host waits"
			if e.host == (Host{}) {
				whom = "each host without a line of its own waits"
			}
			problems = append(problems, config.Problem{File: file, Line: n, Text: why + "; mail for " + whom + " until this line is mended"})
		} else if s := e.secret.reveal(); strings.Trim(s, authBlanks) != s {
			problems = append(problems, config.Problem{File: file, Line: n, Text: "the password begins or ends with a blank, which is taken as a part of it"})
		}
		entries = append(entries, e)
	}
	return entries, problems
}

const (
	authBlanks     = " \t"
	authSeparators = ": \t|"
)

// parse reads a line; why says what is wrong with it.
func (e *authEntry) parse(line string) (why string) {
	user, rest, ok := strings.Cut(line, "|")
	if !ok {
		return "a line must be login|host:password"
	}
	host, password := cutHost(strings.TrimLeft(rest, authBlanks))
	if e.host, why = parseDestination(host); why != "" {
		e.host = Host{}
		return "after login| there must be a host, host:port, [ip] or [ip]:port"
	}
	user = strings.Trim(user, authBlanks)
	if i := strings.LastIndexByte(user, ';'); i >= 0 && len(user) > i+6 && strings.EqualFold(user[i+1:i+6], "AUTH=") {
		e.mechanism = strings.ToUpper(user[i+6:])
		user = user[:i]
		if !knownMechanism(e.mechanism) {
			return "after ;AUTH= there must be SCRAM-SHA-256, CRAM-MD5, PLAIN, LOGIN, OAUTHBEARER or XOAUTH2"
		}
	}
	e.user = user
	if user == "" || len(user) > 1000 || strings.ContainsFunc(user, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return "the login is empty, longer than 1000 octets or has control characters"
	}
	if password == "" {
		return ""
	}
	password, err := cleanSecret(password)
	if err != nil {
		return "the password " + err.Error()
	}
	e.secret = NewSecret(password)
	return ""
}

// cutHost splits what stands after login| into the host, with its port if it has
// one, and the password.
func cutHost(s string) (host, password string) {
	end := 0
	if strings.HasPrefix(s, "[") {
		end = max(strings.IndexByte(s, ']'), 0)
	}
	i := strings.IndexAny(s[end:], authSeparators)
	if i < 0 {
		return s, ""
	}
	i += end
	if s[i] == ':' {
		digits := len(s) - i - 1 - len(strings.TrimLeft(s[i+1:], "0123456789"))
		after := i + 1 + digits
		port, err := strconv.Atoi(s[i+1 : after])
		if err == nil && checkPort(port) == "" && after < len(s) && strings.IndexByte(authSeparators, s[after]) >= 0 {
			i = after
		}
	}
	if password = s[i+1:]; s[i] != ':' && s[i] != '|' {
		password = strings.TrimLeft(password, authBlanks)
	}
	return s[:i], password
}

// findAuth returns the entry for h: for its name or address with the port, then
// without; a host that MX records name has that of the domain if there is none
// for itself. The last of several counts, and a usable one before a bad one. If h
// names a login, only that one does.
func findAuth(entries []authEntry, h Host) *authEntry {
	h.Name, h.Domain = inASCII(h.Name), inASCII(h.Domain)
	var best *authEntry
	most := 0
	for i := range entries {
		e := &entries[i]
		weight := 0
		switch {
		case e.host == (Host{}):
			weight = 1
		case e.host.Port != 0 && e.host.Port != h.Port, h.Login != "" && e.user != h.Login && !e.bad:
			continue
		case e.host.Name == h.Name && e.host.IP == h.IP:
			weight = 6
		case h.Domain != "" && e.host.Name == h.Domain:
			weight = 4
		default:
			continue
		}
		if e.host.Port != 0 {
			weight++
		}
		if !e.bad {
			weight += 10
		}
		if weight >= most {
			best, most = e, weight
		}
	}
	return best
}
