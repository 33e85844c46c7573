package config

import (
	"path/filepath"
	"strconv"
	"strings"

	"dma/internal/address"
)

// checkPath takes a path, which counts from dir if it is relative.
func checkPath(dir string) check {
	return func(s string) (string, string) {
		switch {
		case s == "":
			return "", "must be a path"
		case s[0] == '~':
			return "", "must be a path without ~"
		case filepath.IsAbs(s):
			return s, ""
		}
		return filepath.Join(dir, s), ""
	}
}

// checkPattern takes a path in a home or from the root, for ExpandPath.
func checkPattern(s string) (string, string) {
	if !strings.HasPrefix(s, "/") && !strings.HasPrefix(s, "~/") {
		return "", "must be a path that begins with / or ~/"
	}
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			continue
		}
		if i++; i == len(s) || s[i] != 'u' && s[i] != '%' {
			return "", "must have no % but %u, the user, and %%"
		}
	}
	return s, ""
}

func checkMailbox(s string) (string, string) {
	kind, target, _ := strings.Cut(s, ":")
	switch kind {
	case "mbox", "maildir":
		if _, why := checkPattern(target); why != "" {
			return "", "after " + kind + ": it " + why
		}
		return s, ""
	case "pipe":
		if strings.Trim(target, blanks) == "" {
			return "", "after pipe: it must be a command"
		}
		return s, ""
	case "lmtp":
		if strings.HasPrefix(target, "/") {
			return s, ""
		}
		if host, port, ok := cutPort(target); ok && port != "" && isHost(host) {
			return s, ""
		}
		return "", "after lmtp: it must be the path of a socket, host:port or [ip]:port"
	}
	return "", "must begin with mbox:, maildir:, pipe: or lmtp:"
}

func checkMboxLock(s string) (string, string) {
	if s != "fcntl" && s != "flock" {
		return "", "must be fcntl or flock"
	}
	return s, ""
}

// checkRelay takes one entry of SMARTHOST. An IPv6 address without brackets,
// which C dma understands, gets them.
func checkRelay(s string) (string, string) {
	const form = "must be host, host:port, [ip], [ip]:port or mx:name"
	if isIPv6(s) {
		return "[" + s + "]", ""
	}
	if name, ok := strings.CutPrefix(s, "mx:"); ok {
		if !isName(name) {
			return "", form
		}
		return s, ""
	}
	host, _, ok := cutPort(s)
	if !ok || !isHost(host) {
		return "", form
	}
	return s, ""
}

// checkResolver takes the address of a DNS server. An IPv6 address without brackets
// gets them.
func checkResolver(s string) (string, string) {
	if isIPv6(s) {
		return "[" + s + "]", ""
	}
	host, _, ok := cutPort(s)
	if ip := strings.Trim(host, "[]"); !ok || host != ip && host != "["+ip+"]" || !isIPv4(ip) && (host == ip || !isIPv6(ip)) {
		return "", "must be ip, ip:port or [ip]:port"
	}
	return s, ""
}

// cutPort takes ":port" off the end of s; port is empty if there is none.
func cutPort(s string) (host, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.HasSuffix(s, "]") {
		return s, "", true
	}
	v, err := strconv.ParseUint(s[i+1:], 10, 16)
	return s[:i], s[i+1:], err == nil && v > 0
}

// isHost reports whether s is a host name or an address in brackets.
func isHost(s string) bool {
	if !strings.HasPrefix(s, "[") {
		return isName(s)
	}
	ip, ok := strings.CutSuffix(s[1:], "]")
	return ok && (isIPv4(ip) || isIPv6(ip))
}

// isName reports whether s is a domain name, of which the address parser judges.
func isName(s string) bool {
	_, why := checkDomain(s)
	return why == ""
}

func checkDomain(s string) (string, string) {
	a, err := address.Parse("x@" + s)
	if err != nil || strings.HasPrefix(s, "[") || strings.Trim(s, " ") != s {
		return "", "must be a domain name"
	}
	return a.Domain, ""
}

func isIPv4(s string) bool {
	_, err := address.Parse("x@[" + s + "]")
	return err == nil && s != "" && '0' <= s[0] && s[0] <= '9'
}

// isIPv6 takes a zone too, as in fe80::1%eth0.
func isIPv6(s string) bool {
	ip, zone, has := strings.Cut(s, "%")
	if has && (zone == "" || cutName(zone) != zone) {
		return false
	}
	_, err := address.Parse("x@[IPv6:" + ip + "]")
	return err == nil
}

func checkFingerprint(s string) (string, string) {
	s = strings.ToLower(strings.ReplaceAll(s, ":", ""))
	if len(s) != 64 || strings.Trim(s, "0123456789abcdef") != "" {
		return "", "must be the SHA-256 of the certificate in 64 hex digits (until then VERIFYCERT is on)"
	}
	return s, ""
}

func checkMailName(s string) (string, string) {
	if strings.HasPrefix(s, "/") {
		return s, ""
	}
	if cutName(s) != s || !isName(s) {
		return "", "must be a host name, or the path from / of a file that holds one"
	}
	return strings.TrimSuffix(s, "."), ""
}

// checkMasquerade takes either half of an address; @host is the same as host.
func checkMasquerade(s string) (string, string) {
	user, host, at := "x", s, false
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		user, host, at = s[:i], s[i+1:], true
	}
	if user == "" {
		user = "x"
	}
	if at && host == "" && s != "@" {
		host = "x"
	}
	if _, err := address.Parse(user + "@" + host); err != nil || !isName(host) {
		return "", "must be user@host, host or user@"
	}
	return s, ""
}

func checkUser(s string) (string, string) {
	if s == "" || len(s) > 256 || s[0] == '-' || strings.ContainsAny(s, " \t:/") {
		return "", "must be the name of a user"
	}
	return s, ""
}
