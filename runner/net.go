package runner

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"dma/internal/config"
	"dma/internal/maillog"
	"dma/internal/rewrite"
	"dma/relay"
	"dma/smarthost"
	"dma/spooldir"
)

// noRelay says why no mail for other hosts can be sent now, nil if some can.
func noRelay(c *config.Config) error {
	if c.SenderRelay != "" {
		return nil // it depends on the sender
	}
	return noDefault(c)
}

// noDefault says why mail for other hosts cannot be sent now if its sender has no
// relay of its own, nil if it can: to the smarthost, or to the MX of recipients.
func noDefault(c *config.Config) error {
	switch {
	case c.SmarthostBad:
		return fmt.Errorf("SMARTHOST in %s names no host that can be used; mend it", c.File)
	case len(c.Smarthost) == 0 && c.NullClient:
		return fmt.Errorf("NULLCLIENT in %s sends all mail to a smarthost, and there is no SMARTHOST; set one", c.File)
	}
	return nil
}

// The bounds of messages that are on their way to several destinations.
const (
	leastInHand = 100
	mostInHand  = 400
)

// inHand returns how many messages may be on their way at a time, and how many of
// these to one destination, of which a server of the mailboxes is one; 0: all. Where
// all go to the smarthost these are as many as there may be sessions. Else there are
// twenty times as many, within bounds, and a destination that is slow takes a
// twentieth of them.
func inHand(c *config.Config) (messages, share int) {
	if len(c.Smarthost) > 0 && c.SenderRelay == "" && !strings.HasPrefix(c.Mailbox, lmtpScheme) {
		return c.Concurrency, 0
	}
	return max(min(20*c.Concurrency, mostInHand), leastInHand, 2*c.Concurrency), c.Concurrency
}

// newRelay makes the net process's part. password asks PASSWORDCMD; nil where there
// is none. flushed is that of relay.Options.
func (h *half) newRelay(password askFunc, flushed func() bool) *relay.Relay {
	c := h.config
	hosts, err := smarthost.ParseHosts(c.Smarthost, c.Port)
	if err != nil {
		h.log.ConfigProblem(c.File, 0, err.Error())
	}
	messages, share := inHand(c)
	mail := localMail(c, h.host)
	return relay.New(relay.Options{
		Spool: h.spool, Watcher: h.watcher, Log: h.log, Clock: h.clock, Retry: h.retry, Syncer: h.syncer,
		Deliverer: deliverer(c, h.host, hosts, password, h.log), Rewriter: rewriter(c, h.host, h.log),
		HostName: h.host, Concurrency: messages, Share: share, Rescan: h.rescan,
		Mailboxes: h.mailboxes(), Mailbox: mail.Mailbox, Flushed: flushed,
	})
}

// askFunc returns the secret of a login at a host.
type askFunc = func(ctx context.Context, login, host string) (string, error)

// deliverer is the way to other hosts.
func deliverer(c *config.Config, host string, hosts []smarthost.Host, password askFunc, log *maillog.Log) relay.Deliverer {
	problem := func(p config.Problem) { log.ConfigProblem(p.File, p.Line, p.Text) }
	cfg := routes(c, host, hosts, problem)
	cfg.Concurrency = c.Concurrency
	cfg.TLS, cfg.CertFile = smarthost.NewTLSPolicies(c, problem).For, c.CertFile
	cfg.Credentials = smarthost.NewCredentials(smarthost.CredentialOptions{
		File: c.AuthPath, Command: password, Problem: problem,
		State: filepath.Join(c.SpoolDir, spooldir.LockDir, spooldir.LoginsFile),
	})
	return smarthost.NewRouter(cfg)
}

// routes is the part of the configuration that says which hosts get mail.
func routes(c *config.Config, host string, hosts []smarthost.Host, problem func(config.Problem)) smarthost.RouterConfig {
	cfg := smarthost.RouterConfig{Config: smarthost.Config{Name: host, Hosts: hosts}, Port: c.Port, Waits: noDefault(c)}
	if c.SenderRelay != "" {
		cfg.Senders = smarthost.NewSenderRelays(c.SenderRelay, c.Port, problem)
	}
	if len(c.Resolver) > 0 {
		cfg.Resolver = smarthost.ResolverAt(c.Resolver...)
	}
	return cfg
}

// rewriter rewrites senders of mail for other hosts.
func rewriter(c *config.Config, host string, log *maillog.Log) *rewrite.Rewriter {
	user, domain := c.MasqueradeParts()
	return rewrite.New(rewrite.Config{
		HostName: host, Local: c.LocalDomains, User: user, Host: domain, Map: c.Rewrite,
		Problem: func(p config.Problem) { log.ConfigProblem(p.File, p.Line, p.Text) },
	})
}
