package runner

import (
	"slices"
	"testing"

	"dma/internal/config"
)

// TestListed: the user of the aliases counts as one of FORWARDUSERS.
func TestListed(t *testing.T) {
	for _, tt := range []struct {
		c    config.Config
		want []string
	}{
		{config.Config{}, nil},
		{config.Config{AliasUser: "list"}, []string{"list"}},
		{config.Config{ForwardUsers: []string{"www-data", "list"}, AliasUser: "list"}, []string{"www-data", "list"}},
		{config.Config{ForwardUsers: []string{"www-data"}, AliasUser: "list"}, []string{"www-data", "list"}},
		{config.Config{ForwardUsers: []string{"www-data"}}, []string{"www-data"}},
	} {
		if got := listed(&tt.c); !slices.Equal(got, tt.want) {
			t.Errorf("%+v: %q", tt.c, got)
		}
	}
}
