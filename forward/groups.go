package forward

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// GroupFiles are the files that tell who is in a group. An empty path is the
// system's.
type GroupFiles struct {
	Group  string // group(5): /etc/group
	Passwd string // passwd(5), for primary groups: /etc/passwd
	Switch string // nsswitch.conf(5): /etc/nsswitch.conf

	// Userdb are the folders with records of systemd (userdbd, homed): those in
	// /etc, /run and /usr/lib if nil.
	Userdb []string
}

// maxGroupFile bounds each of them, in octets.
const maxGroupFile = 16 << 20

// Alone reports whether the user uid is in the group gid, by membership or as
// the primary group, and nobody else is; it is what ReadOptions.Alone asks. Other
// names for the same uid are the same user. A group that nobody is in does not
// count: programs run with the rights of such groups. The error says that it
// cannot be told, also where nsswitch.conf names more sources than the files:
// these cannot be asked for all members of a group.
func (g GroupFiles) Alone(uid, gid int) (bool, error) {
	if err := g.complete(); err != nil {
		return false, err
	}
	users, err := g.lines(cmp.Or(g.Passwd, "/etc/passwd"), 7)
	if err != nil {
		return false, err
	}
	is := make(map[string]bool) // names of the user
	in := false
	for _, f := range users {
		id, ok := number(f[2])
		primary, ok2 := number(f[3])
		if !ok || !ok2 {
			continue
		}
		if id == uid {
			is[f[0]] = true
		}
		if primary == gid {
			if id != uid {
				return false, nil
			}
			in = true
		}
	}
	groups, err := g.lines(cmp.Or(g.Group, "/etc/group"), 4)
	if err != nil {
		return false, err
	}
	for _, f := range groups {
		if id, ok := number(f[2]); !ok || id != gid {
			continue
		}
		for name := range strings.SplitSeq(f[3], ",") {
			switch name = strings.Trim(name, " \t"); {
			case name == "":
			case !is[name]:
				return false, nil
			default:
				in = true
			}
		}
	}
	return in, nil
}

// complete returns an error if the files are not all there is.
func (g GroupFiles) complete() error {
	path := cmp.Or(g.Switch, "/etc/nsswitch.conf")
	data, _, err := readRegular(path, maxGroupFile)
	if errors.Is(err, fs.ErrNotExist) {
		if runtime.GOOS == "darwin" {
			return errors.New("opendirectoryd is not asked")
		}
		return nil
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		name, sources, _ := strings.Cut(line, ":")
		if name = strings.TrimSpace(name); name != "passwd" && name != "group" {
			continue
		}
		for _, s := range strings.Fields(actions(sources)) {
			// With compat the files have lines that say so, see lines. systemd has
			// its own users, whom only records of membership put into the groups of
			// others.
			if s != "files" && s != "compat" && (s != "systemd" || g.memberships()) {
				return fmt.Errorf("%s names %s besides the files", path, show(s))
			}
		}
	}
	return nil
}

// memberships reports whether systemd knows users as members of groups: a record
// lies as user:group.membership in a folder of its own (nss-systemd(8)).
func (g GroupFiles) memberships() bool {
	dirs := g.Userdb
	if dirs == nil {
		dirs = []string{"/etc/userdb", "/run/userdb", "/run/host/userdb", "/usr/lib/userdb"}
	}
	for _, dir := range dirs {
		found, err := filepath.Glob(filepath.Join(dir, "*.membership"))
		if err != nil || len(found) > 0 {
			return true
		}
	}
	return false
}

// actions leaves out what steers the search, as [NOTFOUND=return].
func actions(s string) string {
	var b strings.Builder
	for s != "" {
		before, rest, _ := strings.Cut(s, "[")
		b.WriteString(before + " ")
		_, s, _ = strings.Cut(rest, "]")
	}
	return b.String()
}

// lines returns the fields of the lines of a file that have that many of them.
func (g GroupFiles) lines(path string, fields int) ([][]string, error) {
	data, _, err := readRegular(path, maxGroupFile)
	if err != nil {
		return nil, err
	}
	var list [][]string
	for line := range strings.Lines(string(data)) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '+' || line[0] == '-':
			return nil, fmt.Errorf("%s takes lines from elsewhere", path)
		default:
			if f := strings.Split(line, ":"); len(f) == fields {
				list = append(list, f)
			}
		}
	}
	return list, nil
}

func number(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 31)
	return int(n), err == nil
}
