package runner

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"dma/agent"
	"dma/forward"
	"dma/internal/passwd"
	"dma/spooldir"
)

// onlooker is the agent of a user who looks at a spool that all users share: it
// serves whom the service does, and reads the one .forward that the user may read
// as the service has it read, under the user's own uid.
type onlooker struct {
	*agent.Remote
	own *agent.Own
}

// Forward implements agent.Agent for the user alone.
func (o onlooker) Forward(ctx context.Context, u passwd.User, detail string) (forward.Result, error) {
	return o.own.Forward(ctx, u, detail)
}

// doubt says why user dma, who reads the aliases and the files that they include,
// may see something else in one of them than this process, whose user is another
// one; nil if it is the same. Targets are what an included file holds: whose it is
// decides whether commands, files and includes count in it.
func (v *verifier) doubt(path string, targets []forward.Target) error {
	if v.ids == nil || v.all || v.caller == v.ids.QueueUID {
		return nil
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil // who reads it says so, or there is none
	}
	powers := slices.ContainsFunc(targets, func(t forward.Target) bool { return writes(t) || t.Kind == forward.Include })
	for _, at := range append(steps(path), steps(real)...) {
		info, err := os.Stat(at)
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		switch {
		case !ok:
		case !v.queueMay(info, st):
			return fmt.Errorf("user %s reads this file for mail, and may not by the owner and mode of %s; root can tell", spooldir.QueueUser, at)
		case powers && (int(st.Uid) == v.caller || int(st.Uid) == v.ids.QueueUID):
			return fmt.Errorf("user %s reads this file for mail, and by the owner of %s may not take its commands, files and includes as you would; root can tell", spooldir.QueueUser, at)
		}
	}
	return nil
}

// steps returns the directories on the way to path, and path.
func steps(path string) []string {
	list := []string{"/"}
	for i, c := range path {
		if c == '/' && i > 0 {
			list = append(list, path[:i])
		}
	}
	return append(list, strings.TrimSuffix(path, "/"))
}

// queueMay reports whether the queue process may read a file, or pass through a
// directory, by the owner and the mode of it.
func (v *verifier) queueMay(info fs.FileInfo, st *syscall.Stat_t) bool {
	need := fs.FileMode(0o4)
	if info.IsDir() {
		need = 0o1
	}
	perm := info.Mode().Perm()
	switch {
	case int(st.Uid) == v.ids.QueueUID:
		perm >>= 6
	case int(st.Gid) == v.ids.QueueGID || int(st.Gid) == v.ids.SubmitGID:
		perm >>= 3
	}
	return perm&need != 0
}
