package queue

import (
	"strings"

	"dma/internal/address"
	"dma/spooldir"
)

// IsLocal reports whether mail for an address belongs to this host, and for
// which local part.
func (c *Config) IsLocal(a address.Address) (local string, ok bool) {
	if c.NullClient {
		return "", false
	}
	if a.Domain == "" || a.Domain == "localhost" {
		return a.Local, true
	}
	for _, d := range c.LocalDomains {
		if strings.EqualFold(d, a.Domain) {
			return a.Local, true
		}
	}
	return "", false
}

// Mailbox reports whether a recipient that stands in remote belongs to this
// host: then it is for the server of the mailboxes, by LMTP, under the address
// addr, and for no other host. It needs no user database: what is not named as
// its user is, the queue process has replaced by a child that is.
func (c *Config) Mailbox(r *spooldir.Recipient) (addr string, ok bool) {
	if r.Kind == spooldir.Address {
		a, err := address.Parse(r.Address)
		if err != nil {
			return "", false
		}
		if _, ok := c.IsLocal(a); !ok {
			return "", false
		}
	}
	return c.mailboxOf(r), true
}

// mailboxOf is the address of the mailbox of a recipient of this host, for a
// server that knows users by it.
func (c *Config) mailboxOf(r *spooldir.Recipient) string {
	if r.Kind != spooldir.Address {
		return userAddress(r.User, r.Detail, c.HostName)
	}
	a, err := address.Parse(r.Address)
	if err != nil {
		return r.Address
	}
	return address.Address{Local: a.Local, Domain: c.HostName}.String()
}

// userAddress is the address of a user: name+detail@host.
func userAddress(name, detail, host string) string {
	if detail != "" {
		name += "+" + detail
	}
	return address.Address{Local: name, Domain: host}.String()
}

// qualify adds the host name to an address without domain.
func (c *Config) qualify(addr string) string {
	a, err := address.Parse(addr)
	if err != nil || a.Domain != "" {
		return addr
	}
	a.Domain = c.HostName
	return a.String()
}

// byLMTP reports whether a server of mailboxes has answered: package smarthost
// names it like this.
func byLMTP(e *spooldir.Entry) bool { return strings.HasPrefix(e.Relay, "lmtp:") }
