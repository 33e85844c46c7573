package runner

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"dma/spooldir"
)

// strangers looks for users that are in the groups of a shared spool and have no
// business there: they could do in it what the processes can. It knows what the
// files say; the paths are those of passwd(5) and group(5).
func strangers(ids spooldir.Identities, users, groups string) error {
	own := map[int][]string{
		ids.QueueGID:  {spooldir.QueueUser},
		ids.NetGID:    {spooldir.NetUser},
		ids.SubmitGID: {spooldir.QueueUser, spooldir.NetUser},
	}
	check := func(gid int, user string) error {
		if allowed, ok := own[gid]; ok && !slices.Contains(allowed, user) {
			return exitf(exitNoPerm, "user %s is in the group %d, and who is in a group of dma, dmanet or dmasubmit gets at the mail of all; take the user out of it; dma and dmanet need groups of their own", user, gid)
		}
		return nil
	}
	for file, look := range map[string]func(f []string) error{
		users: func(f []string) error { // name:password:uid:gid:...
			gid, err := strconv.Atoi(f[3])
			if err != nil {
				return nil
			}
			return check(gid, f[0])
		},
		groups: func(f []string) error { // name:password:gid:members
			gid, err := strconv.Atoi(f[2])
			if err != nil {
				return nil
			}
			for name := range strings.SplitSeq(f[3], ",") {
				if name = strings.TrimSpace(name); name != "" {
					if err := check(gid, name); err != nil {
						return err
					}
				}
			}
			return nil
		},
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("members of groups: %w", err)
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Split(strings.TrimRight(line, "\r\n"), ":"); len(f) >= 4 {
				if err := look(f); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
