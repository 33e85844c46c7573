package smarthost

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"dma/internal/address"
)

// Host is one entry of a list of hosts.
type Host struct {
	Name string     // a host name, or the domain whose MX are meant; empty with IP
	IP   netip.Addr // an address given as such
	MX   bool       // the hosts are those that the MX records of Name list
	Port int

	// Login, if it is not empty, is the one to log in with: credentials for
	// another one do not count, and without them nothing is sent.
	Login string

	// Domain is set by MX routing: the domain whose MX records name this host.
	Domain string
}

// String returns h in a form that ParseHosts reads.
func (h Host) String() string {
	switch {
	case h.IP.IsValid():
		return fmt.Sprintf("[%s]:%d", h.IP, h.Port)
	case h.MX:
		return fmt.Sprintf("mx:%s:%d", h.Name, h.Port)
	}
	return fmt.Sprintf("%s:%d", h.Name, h.Port)
}

// ParseHosts reads the entries of SMARTHOST: host, host:port, [ip], [ip]:port and
// mx:name, each with the default port where it has none. It returns the hosts
// that it could read and, for the first that it could not, an error that names it.
func ParseHosts(list []string, defaultPort int) ([]Host, error) {
	var hosts []Host
	var bad error
	for _, s := range list {
		h, why := parseHost(s, defaultPort)
		if why == "" {
			hosts = append(hosts, h)
		} else if bad == nil {
			bad = fmt.Errorf("smarthost %.100q: %s", s, why)
		}
	}
	return hosts, bad
}

func parseHost(s string, port int) (h Host, why string) {
	h.Port = port
	if ip, err := netip.ParseAddr(s); err == nil {
		h.IP = ip
		return h, checkPort(port)
	}
	s, h.MX = strings.CutPrefix(s, "mx:")
	name := s
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		var err error
		if h.Port, err = strconv.Atoi(s[i+1:]); err != nil || strings.TrimLeft(s[i+1:], "0123456789") != "" {
			return h, "the port is not a number"
		}
		name = s[:i]
	}
	if why := checkPort(h.Port); why != "" {
		return h, why
	}
	if literal, ok := strings.CutPrefix(name, "["); ok {
		literal, ok = strings.CutSuffix(literal, "]")
		if len(literal) > 5 && strings.EqualFold(literal[:5], "IPv6:") {
			literal = literal[5:]
		}
		ip, err := netip.ParseAddr(literal)
		if !ok || err != nil || h.MX {
			return h, "not an address in brackets"
		}
		h.IP = ip
		return h, ""
	}
	if ip, err := netip.ParseAddr(name); err == nil && !h.MX && ip.Is4() {
		h.IP = ip
		return h, ""
	}
	a, err := address.Parse("x@" + name)
	if err != nil || strings.ContainsAny(name, "<> \t[]@\"") {
		return h, "not a host name"
	}
	h.Name = a.Domain
	return h, ""
}

func checkPort(port int) string {
	if port < 1 || port > 65535 {
		return "the port is not between 1 and 65535"
	}
	return ""
}

// relayName is how a peer is named in outcomes: host[ip]:port, or [ip]:port for
// an address that was given as such.
func relayName(h Host, ip string) string {
	return h.Name + "[" + ip + "]:" + strconv.Itoa(h.Port)
}
