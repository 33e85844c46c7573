package smarthost

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Describe says in words where mail from sender to addr goes now: "by way of the
// smarthost relay.example.org:25". Where it goes to MX, the DNS is asked for them,
// but not for their addresses. The error is what would keep the mail here or, if it
// is Permanent, return it.
func (r *Router) Describe(ctx context.Context, sender, addr string) (string, error) {
	m := Message{Sender: sender, Recipients: []Recipient{{Address: addr}}}
	p := r.plan(&m)
	if len(p.hops) == 0 {
		o := p.why[0]
		return "", &Error{Command: o.Command, Err: errors.New(o.Text()), permanent: o.Verdict == Permfail}
	}
	h := p.hops[0]
	if own, err := r.cfg.Senders.For(sender); err == nil && len(own) > 0 {
		return "by way of the relay of " + oneLine(sender) + ": " + hostList(own), nil
	}
	if len(r.cfg.Hosts) > 0 {
		return "by way of the smarthost " + hostList(h.hosts), nil
	}
	domain := h.hosts[0]
	if !domain.MX {
		return "to " + hostList(h.hosts), nil
	}
	cfg := r.cfg.Config
	cfg.Direct = true
	levels, itself, err := exchangers(ctx, &cfg, domain)
	if err == nil && itself {
		_, err = addresses(ctx, &cfg, levels[0][0], true)
		if isNotFound(err) {
			if err = unsure(ctx, &cfg, levels[0][0]); err == nil {
				err = nowhere(&cfg, domain)
			}
		}
	}
	switch {
	case err != nil:
		return "", err
	case itself:
		return "to " + domain.Name + ", which has no mail exchangers", nil
	}
	var hosts []Host
	for _, level := range levels {
		hosts = append(hosts, level...)
	}
	return fmt.Sprintf("to the mail exchangers of %s: %s", domain.Name, hostList(hosts)), nil
}

func hostList(hosts []Host) string {
	words := make([]string, len(hosts))
	for i, h := range hosts {
		words[i] = h.String()
	}
	return strings.Join(words, ", ")
}
