package forward

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// maxLinks bounds the symbolic links on the way to one file.
const maxLinks = 10

// safety says who else may have a hand in a file.
type safety struct {
	uid int // the owner; root is always allowed
	// alone reports whether a group has no member but the owner. Nil: it never is.
	alone func(gid int) (bool, error)
	// sticky allows directories in which everybody may make files, such as
	// /tmp, on the way to (not around) the file.
	sticky bool
}

// file returns an error if somebody else owns path or may write to it.
func (s safety) file(path string, info fs.FileInfo) error {
	uid, gid := owner(info)
	if uid != 0 && uid != s.uid {
		return fmt.Errorf("%s belongs to uid %d, not to uid %d; chown it", path, uid, s.uid)
	}
	perm := info.Mode().Perm()
	if perm&0o002 != 0 {
		return fmt.Errorf("anybody may write to %s; chmod go-w %[1]s", path)
	}
	if perm&0o020 == 0 {
		return nil
	}
	if s.alone == nil {
		return fmt.Errorf("the group %d may write to %s; chmod go-w %[2]s", gid, path)
	}
	alone, err := s.alone(gid)
	if err != nil {
		return fmt.Errorf("the group %d may write to %s, and its members cannot be found out: %w; chmod go-w %[2]s", gid, path, err)
	}
	if !alone {
		return fmt.Errorf("the group %d may write to %s, and has other members; chmod go-w %[2]s", gid, path)
	}
	return nil
}

// found is where a walk ends.
type found struct {
	path string // without symbolic links
	info fs.FileInfo
}

// walk goes from the directory base to path, which is below it, step by step.
// It follows symbolic links as long as they belong to root or the owner and
// stay below base, which is also known as alias. It returns what it finds at
// the end; unsafe is the first thing on the way in which somebody else has a
// hand (it does not look at the end itself). The error is fs.ErrNotExist if
// there is nothing, unless that is at the end of a link.
//
// The result holds as long as nobody but root and the owner has a hand in the
// way, which is what unsafe says.
func walk(base, alias, path string, s safety) (f found, unsafe, err error) {
	enter := func(rest string) ([]string, error) {
		for _, b := range []string{alias, base} {
			if rel, ok := below(b, filepath.Clean(rest)); ok {
				return strings.Split(rel, "/"), nil
			}
		}
		return nil, fmt.Errorf("%q leads out of %s; copy the file instead of linking to it", path, base)
	}
	rest, err := enter(path)
	if err != nil {
		return f, nil, err
	}
	f.path = base
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			if f.path == base {
				return f, unsafe, fmt.Errorf("%q leads out of %s; copy the file instead of linking to it", path, base)
			}
			f.path = filepath.Dir(f.path)
			continue
		}
		if unsafe == nil {
			unsafe = s.directory(f.path, len(rest) == 0)
		}
		next := filepath.Join(f.path, name)
		info, err := os.Lstat(next)
		if err != nil {
			if links > 0 && errors.Is(err, fs.ErrNotExist) {
				return f, unsafe, fmt.Errorf("%s is a symbolic link that leads nowhere; remove it, or create %q", path, next)
			}
			return f, unsafe, err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			f.path = next
			continue
		}
		if uid, _ := owner(info); uid != 0 && uid != s.uid && unsafe == nil {
			unsafe = fmt.Errorf("the symbolic link %s belongs to uid %d, not to uid %d; remove it", next, uid, s.uid)
		}
		if links++; links > maxLinks {
			return f, unsafe, fmt.Errorf("%s: more than %d symbolic links, or a loop of them; put a regular file in its place", path, maxLinks)
		}
		to, err := os.Readlink(next)
		if err != nil {
			return f, unsafe, err
		}
		if filepath.IsAbs(to) {
			more, err := enter(to)
			if err != nil {
				return f, unsafe, err
			}
			f.path, rest = base, append(more, rest...)
		} else {
			rest = append(strings.Split(to, "/"), rest...)
		}
	}
	f.info, err = os.Lstat(f.path)
	return f, unsafe, err
}

// Fixed reports whether nobody but root and the user of this process has a say in
// where path leads to, be there anything or not. A file system that hangs can make it
// hang.
func Fixed(path string) bool {
	_, unsafe, err := walk("/", "/", filepath.Clean(path), safety{uid: os.Geteuid(), sticky: true})
	return unsafe == nil && (err == nil || errors.Is(err, fs.ErrNotExist))
}

// directory returns an error if somebody else may change what is in dir; last
// says that the file itself is there.
func (s safety) directory(dir string, last bool) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if s.sticky && !last && info.Mode()&fs.ModeSticky != 0 {
		if uid, _ := owner(info); uid == 0 || uid == s.uid {
			return nil
		}
	}
	return s.file(dir, info)
}
