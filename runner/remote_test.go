package runner

import (
	"strings"
	"testing"

	"dma/internal/config"
)

// TestNoRelay: when mail for other hosts waits, and for which reason.
func TestNoRelay(t *testing.T) {
	for _, c := range []struct {
		config      config.Config
		all, others string // what the reason is for all senders, and for those without a relay
	}{
		{config.Config{}, "", ""},
		{config.Config{Smarthost: []string{"a"}}, "", ""},
		{config.Config{Smarthost: []string{"a"}, NullClient: true}, "", ""},
		{config.Config{SmarthostBad: true}, "names no host", "names no host"},
		{config.Config{NullClient: true}, "NULLCLIENT", "NULLCLIENT"},
		{config.Config{NullClient: true, SenderRelay: "x"}, "", "NULLCLIENT"},
		{config.Config{SmarthostBad: true, SenderRelay: "x"}, "", "names no host"},
	} {
		for want, err := range map[*string]error{&c.all: noRelay(&c.config), &c.others: noDefault(&c.config)} {
			if (err != nil) != (*want != "") || err != nil && !strings.Contains(err.Error(), *want) {
				t.Errorf("%+v: %v, want %q", c.config, err, *want)
			}
		}
	}
}

// TestInHand: with several destinations none has all that is in hand.
func TestInHand(t *testing.T) {
	for _, c := range []struct {
		smarthost, senders bool
		concurrency        int
		messages, share    int
	}{
		{true, false, 10, 10, 0},
		{false, false, 10, 200, 10},
		{true, true, 10, 200, 10},
		{false, false, 1, 100, 1},
		{false, false, 100, 400, 100},
		{false, false, 1000, 2000, 1000},
	} {
		conf := &config.Config{Concurrency: c.concurrency}
		if c.smarthost {
			conf.Smarthost = []string{"a"}
		}
		if c.senders {
			conf.SenderRelay = "x"
		}
		if messages, share := inHand(conf); messages != c.messages || share != c.share {
			t.Errorf("%+v: %d, %d", c, messages, share)
		}
	}
}
