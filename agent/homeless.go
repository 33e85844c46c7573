package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"dma/internal/passwd"
)

// homeless reports whether a user surely has no home directory, as many accounts
// of the system do. A directory that is missing where nothing else is either, or
// where directories come into being when they are asked for, may be one whose
// file system is not mounted now.
func homeless(u passwd.User) bool {
	if u.Home == "" {
		return true
	}
	if _, err := os.Lstat(u.Home); !errors.Is(err, fs.ErrNotExist) || !filepath.IsAbs(u.Home) {
		return false
	}
	parent, err := os.Open(filepath.Dir(filepath.Clean(u.Home)))
	if err != nil {
		return false
	}
	defer parent.Close()
	others, err := parent.Readdirnames(1)
	return err == nil && len(others) > 0 && !automounts(parent)
}
