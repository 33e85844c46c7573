package runner

import (
	"errors"
	"fmt"

	"dma/internal/config"
	"dma/internal/maillog"
	"dma/internal/passwd"
	"dma/internal/rewrite"
	"dma/relay"
	"dma/smarthost"
)

// noRelay says why mail for other hosts cannot be sent now, nil if it can.
func noRelay(c *config.Config) error {
	switch {
	case c.SmarthostBad:
		return fmt.Errorf("SMARTHOST in %s names no host that can be used; mend it", c.File)
	case len(c.Smarthost) == 0:
		return errors.New("mail for other hosts waits: no SMARTHOST is configured in dma.conf")
	}
	return nil
}

// newRelay makes the net process's part.
func (h *half) newRelay(users passwd.Source) *relay.Relay {
	c := h.config
	hosts, err := smarthost.ParseHosts(c.Smarthost, c.Port)
	if err != nil {
		h.log.ConfigProblem(c.File, 0, err.Error())
	}
	return relay.New(relay.Options{
		Spool: h.spool, Watcher: h.watcher, Log: h.log, Clock: h.clock, Retry: h.retry, Syncer: h.syncer,
		Deliverer: deliverer(c, h.host, hosts, users, h.log), Rewriter: rewriter(c, h.host, h.log),
		HostName: h.host, Concurrency: c.Concurrency, Rescan: h.rescan,
	})
}

// deliverer is the way to the smarthosts. Without one it is asked for nothing:
// see noRelay.
func deliverer(c *config.Config, host string, hosts []smarthost.Host, users passwd.Source, log *maillog.Log) relay.Deliverer {
	problem := func(p config.Problem) { log.ConfigProblem(p.File, p.Line, p.Text) }
	return smarthost.NewRouter(smarthost.RouterConfig{
		Config: smarthost.Config{
			Name: host, Hosts: hosts, Concurrency: c.Concurrency,
			TLS: smarthost.NewTLSPolicies(c, problem).For, CertFile: c.CertFile,
			Credentials: smarthost.NewCredentials(smarthost.CredentialOptions{
				File: c.AuthPath, Command: passwordCommand(c, users), Problem: problem,
			}),
		},
		Port: c.Port,
	})
}

// rewriter rewrites senders of mail for other hosts.
func rewriter(c *config.Config, host string, log *maillog.Log) *rewrite.Rewriter {
	user, domain := c.MasqueradeParts()
	return rewrite.New(rewrite.Config{
		HostName: host, Local: c.LocalDomains, User: user, Host: domain, Map: c.Rewrite,
		Problem: func(p config.Problem) { log.ConfigProblem(p.File, p.Line, p.Text) },
	})
}
