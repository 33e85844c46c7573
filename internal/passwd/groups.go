package passwd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Grouper is a Source that also knows the groups of its users.
type Grouper interface {
	Source

	// Groups returns the groups that a login of u has, as initgroups(3) sets
	// them: the user's own first, the others ascending. Every error means that
	// it could not be told.
	Groups(ctx context.Context, u User) ([]int, error)
}

// maxGroups is what Linux takes for one process.
const maxGroups = 1 << 16

// groupFile is a file in the format of group(5).
type groupFile struct {
	path string

	mu   sync.Mutex
	info fs.FileInfo      // of the file that is in memory; nil if none is
	gids map[string][]int // by member
}

// of returns the groups that list name as a member.
func (g *groupFile) of(name string) ([]int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now, err := os.Stat(g.path)
	if err != nil {
		return nil, err
	}
	if g.info != nil && sameState(g.info, now) {
		return g.gids[name], nil
	}
	g.info = nil
	info, text, err := read(g.path, maxFile)
	if err != nil {
		return nil, err
	}
	g.info, g.gids = info, parseGroups(text)
	return g.gids[name], nil
}

// parseGroups reads name:password:gid:members. A line that is no group has no
// members, as for the C library.
func parseGroups(text string) map[string][]int {
	gids := make(map[string][]int)
	for line := range strings.SplitSeq(text, "\n") {
		f := strings.Split(strings.TrimSuffix(line, "\r"), ":")
		if len(f) != 4 || f[0] == "" || strings.ContainsAny(f[0][:1], "#+-") {
			continue
		}
		gid, ok := parseID(f[2])
		if !ok {
			continue
		}
		for name := range strings.SplitSeq(f[3], ",") {
			if name = strings.Trim(name, " \t"); ValidName(name) {
				gids[name] = append(gids[name], gid)
			}
		}
	}
	return gids
}

// Groups implements Grouper. Where nsswitch.conf names more than files for
// groups, or for what belongs to a login, id(1) is asked for all of them.
func (s *system) Groups(ctx context.Context, u User) ([]int, error) {
	gids, err := s.groupsOf(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("groups of user %q: %w", u.Name, err)
	}
	rest := slices.DeleteFunc(slices.Clone(gids), func(gid int) bool { return gid == u.GID })
	slices.Sort(rest)
	gids = append([]int{u.GID}, slices.Compact(rest)...)
	if len(gids) > maxGroups {
		return nil, fmt.Errorf("groups of user %q: more than %d", u.Name, maxGroups)
	}
	return gids, nil
}

func (s *system) groupsOf(ctx context.Context, u User) ([]int, error) {
	if !ValidName(u.Name) {
		return nil, errors.New("not the name of a user")
	}
	more, err := s.switched("group")
	if err != nil {
		return nil, err
	}
	logins, err := s.switched("initgroups")
	if err != nil {
		return nil, err
	}
	if more = append(more, logins...); len(more) == 0 {
		return s.groups.of(u.Name)
	}
	program := find(s.id)
	if program == "" {
		return nil, fmt.Errorf("%s names %s, and there is no id to ask", s.nsswitch, strings.Join(more, " "))
	}
	out, err := s.output(ctx, "id", program, "-G", u.Name)
	if err != nil {
		return nil, err
	}
	for _, source := range more {
		if err := s.alive(source); err != nil {
			return nil, err
		}
	}
	var gids []int
	for field := range strings.FieldsSeq(out) {
		gid, err := strconv.ParseUint(field, 10, 32)
		if err != nil || gid == 1<<32-1 {
			return nil, errors.New("id: something else than numbers")
		}
		gids = append(gids, int(gid))
	}
	// The first is the user's own: another one means another user.
	if len(gids) == 0 || gids[0] != u.GID {
		return nil, fmt.Errorf("id: the first group is not %d", u.GID)
	}
	return gids, nil
}
