//go:build !linux

package runner

import (
	"context"
	"time"

	"dma/forward"
)

// lookApart looks at the folders of aliases files, and of what they include.
func lookApart(paths []string, within time.Duration) (folders, error) {
	aliases, _, _ := forward.LoadAliases(paths...)
	look := looker{within: within}
	return look.folders(context.Background(), paths, aliases), nil
}
