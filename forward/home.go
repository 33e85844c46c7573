package forward

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"dma/internal/address"
)

// maxDetail is the longest detail that can name a .forward of its own, in
// octets.
const maxDetail = 100

// ExpandPath returns the path that pattern, the value of FORWARD, means for a
// user: ~ at its beginning is the home directory, %u the user's name and %% a
// percent sign. It is "", no path, if pattern is "" or needs a home directory
// and home is "".
func ExpandPath(pattern, user, home string) string {
	if pattern == "" {
		return ""
	}
	path := pattern
	rest, tilde := strings.CutPrefix(pattern, "~")
	if tilde && (rest == "" || rest[0] == '/') {
		if home == "" {
			return ""
		}
		path = rest
	} else {
		home = ""
	}
	path = strings.NewReplacer("%%", "%", "%u", user).Replace(path)
	return filepath.Clean(home + path)
}

// Paths returns where to look for the .forward of mail for user+detail: the
// path of the pattern with "+detail" after it, as it is and in lower case, if
// detail is not empty and can be part of a file's name, and the path alone.
func Paths(pattern, user, home, detail string) []string {
	path := ExpandPath(pattern, user, home)
	if path == "" {
		return nil
	}
	if detail == "" || len(detail) > maxDetail || strings.Contains(detail, "/") || printable(detail) != detail {
		return []string{path}
	}
	return slices.Compact([]string{path + "+" + detail, path + "+" + strings.ToLower(detail), path})
}

// ReadOptions says what Read looks for.
type ReadOptions struct {
	// Paths are absolute paths without ~ and %u; see [Paths]. The first of
	// them that exists counts.
	Paths []string

	// Home is the user's home directory, or empty.
	Home string

	// UID is the user's id, under which Read should run.
	UID int

	// Alone reports whether the group gid has no member but the user, by its
	// members and by primary group. What such a group may write to, nobody
	// else may. Nil: no group is like that.
	Alone func(gid int) (bool, error)
}

// Result is what Read found.
type Result struct {
	// Path is the file, or empty if there is none.
	Path string
	// Targets is where the mail goes. Empty: there is no forwarding, also
	// where a file was found that has no entry.
	Targets []Target
}

// Forwards reports whether the mail goes anywhere else than to the user's
// mailbox.
func (r Result) Forwards() bool { return len(r.Targets) > 0 }

// Lists reports whether the file names the target of this kind and value. What
// is about to run a command or to write to a file on the word of somebody else
// reads the .forward and asks this first.
func (r Result) Lists(kind Kind, value string) bool {
	return slices.ContainsFunc(r.Targets, func(t Target) bool { return t.same() == same{kind: kind, value: value} })
}

// Reader reads .forward files. The zero Reader is ready; one may be used by
// several goroutines. While one read of a user's file hangs, the next waits
// for it.
type Reader struct {
	gate    gate
	timeout time.Duration // 0: readTime
}

// Read reads a user's .forward with all that it includes. It must run with the
// user's rights and no more.
//
// There is no forwarding if none of the paths exists. If the home directory
// does not exist, that is believed if its parent does: then the user has none.
// Without the parent, a file system may be missing.
//
// Every other finding is an error, of one printable line that says what to do,
// and temporary. The mail has to wait: to ignore the file would put mail where
// the user does not look for it, and to refuse the mail would lose it. These
// are: a sticky home directory (by old custom the user is editing the file); a
// file that cannot be read, is not regular, is larger than [MaxForward], has a
// mistake, belongs to somebody else than the user or root, or can be changed
// by others, since they may write to it or to a directory between the home and
// it; and no answer within 30 seconds or as long as ctx allows.
//
// A symbolic link is followed if the user or root owns it and it stays below
// the home directory; so a .forward that is kept elsewhere in the home works.
// If the path is not below the home directory, the directory of the path takes
// its place.
//
// An included file may belong to anybody, but must be regular and not
// writable for all. If others than the user and root can change it, it may
// name addresses and mailboxes only.
func (r *Reader) Read(ctx context.Context, o ReadOptions) (Result, error) {
	timeout := r.timeout
	if timeout == 0 {
		timeout = readTime
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if len(o.Paths) == 0 {
		return Result{}, nil
	}
	last := o.Paths[len(o.Paths)-1]
	res, err := within(ctx, &r.gate, last, func() (Result, error) { return read(o) })
	if err != nil {
		return Result{}, &oneLine{err}
	}
	return res, nil
}

// oneLine is an error whose text is made printable.
type oneLine struct{ error }

func (e *oneLine) Error() string { return printable(e.error.Error()) }
func (e *oneLine) Unwrap() error { return e.error }

// read does the work of Read, in the calling goroutine.
func read(o ReadOptions) (Result, error) {
	for _, path := range o.Paths {
		if !filepath.IsAbs(path) {
			return Result{}, fmt.Errorf("%s: the path of a .forward must begin with /; correct FORWARD or the home directory", path)
		}
		path = filepath.Clean(path)
		data, err := readForward(path, o)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Result{}, err
		}
		targets, err := ParseForward(path, data)
		if err != nil {
			return Result{}, err
		}
		f := flattener{options: o, visited: make(map[string]bool), seen: make(map[same]bool)}
		if err := f.flatten(targets, []string{path}); err != nil {
			return Result{}, err
		}
		return Result{Path: path, Targets: f.targets}, nil
	}
	return Result{}, nil
}

// readForward returns the content of one .forward. The error is
// fs.ErrNotExist, bare, if there is none.
func readForward(path string, o ReadOptions) ([]byte, error) {
	base := filepath.Clean(o.Home)
	if rel, ok := below(base, path); o.Home == "" || !ok || rel == "." {
		base = filepath.Dir(path)
	}
	real, err := baseDirectory(base, base == filepath.Clean(o.Home))
	if err != nil {
		return nil, err
	}
	s := safety{uid: o.UID, alone: o.Alone}
	f, unsafe, err := walk(real, base, path, s)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fs.ErrNotExist
	case err != nil:
		return nil, errors.New(reason(err))
	}
	if err := regular(path, f.info); err != nil {
		return nil, err
	}
	if unsafe == nil {
		unsafe = s.file(f.path, f.info)
	}
	if unsafe != nil {
		return nil, fmt.Errorf("%s is not used: %w", path, unsafe)
	}
	data, info, err := readRegular(f.path, MaxForward)
	if err != nil {
		return nil, errors.New(reason(err))
	}
	if !os.SameFile(info, f.info) {
		return nil, fmt.Errorf("%s is being replaced", path)
	}
	return data, nil
}

// baseDirectory returns base without symbolic links. The error is
// fs.ErrNotExist if there is no such directory, but its parent. Home says that
// it is a home directory, of which the sticky bit has a meaning.
func baseDirectory(base string, home bool) (string, error) {
	info, err := os.Stat(base)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(base); err == nil {
			return "", fmt.Errorf("%s is a symbolic link that leads nowhere; is a file system not mounted?", base)
		}
		parent := filepath.Dir(base)
		info, err := os.Stat(parent)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return "", fmt.Errorf("%s does not exist, nor does %s; mount its file system, or create %[2]s", base, parent)
		case err != nil:
			return "", errors.New(reason(err))
		case !info.IsDir():
			return "", fmt.Errorf("%s is not a directory; correct the home directory of the user", parent)
		}
		return "", fs.ErrNotExist
	}
	switch {
	case err != nil:
		return "", errors.New(reason(err))
	case !info.IsDir():
		return "", fmt.Errorf("%s is not a directory; correct the home directory of the user", base)
	case home && info.Mode()&fs.ModeSticky != 0:
		return "", fmt.Errorf("%s is sticky, which means that its .forward is being edited; chmod -t %[1]s", base)
	}
	real, err := filepath.EvalSymlinks(base)
	if err != nil {
		return "", errors.New(reason(err))
	}
	return real, nil
}

// flattener replaces includes by what they hold.
type flattener struct {
	options ReadOptions
	visited map[string]bool
	seen    map[same]bool
	targets []Target
}

// flatten takes up targets; trail has the files that lead to them.
func (f *flattener) flatten(targets []Target, trail []string) error {
	for _, t := range targets {
		if strings.HasPrefix(t.Value, "~/") && (writes(t) && t.Kind != Command || t.Kind == Include) {
			if !filepath.IsAbs(f.options.Home) {
				return t.problem("%s: the user has no home directory; write the path from / on", show(t.Value))
			}
			t.Value = strings.TrimSuffix(f.options.Home, "/") + t.Value[1:]
		}
		if t.Kind == Include {
			if err := f.include(t, trail); err != nil {
				return err
			}
			continue
		}
		if f.seen[t.same()] {
			continue
		}
		if len(f.targets) == MaxTargets {
			return t.problem("more than %d targets; use a mailing list program", MaxTargets)
		}
		f.seen[t.same()] = true
		f.targets = append(f.targets, t)
	}
	return nil
}

func (f *flattener) include(t Target, trail []string) error {
	if i := slices.Index(trail, t.Value); i >= 0 {
		loop := append(slices.Clone(trail[i:]), t.Value)
		return t.problem("include loop: %s; remove one of these entries", strings.Join(loop, " -> "))
	}
	if f.visited[t.Value] {
		return nil
	}
	if len(trail) > maxNesting {
		return t.problem("more than %d included files within each other; flatten them", maxNesting)
	}
	if len(f.visited) == maxIncludes {
		return t.problem("more than %d included files; put them together", maxIncludes)
	}
	f.visited[t.Value] = true
	in, err := readInclude(t, safety{uid: f.options.UID, alone: f.options.Alone}, true)
	if err == nil {
		err = in.refused()
	}
	if err != nil {
		return err
	}
	return f.flatten(in.targets, append(slices.Clone(trail), t.Value))
}

// KeepOwn returns targets with the user's own name, as an address or behind a
// backslash, replaced by the user's mailbox: one's own name in one's .forward is
// a kept copy, for which the .forward is not asked again. IsLocal is as in [Host].
func KeepOwn(targets []Target, user string, isLocal func(address.Address) (local string, ok bool)) []Target {
	var list []Target
	seen := make(map[same]bool)
	for _, t := range targets {
		local := ""
		switch t.Kind {
		case Mailbox:
			local = t.Value
		case Address:
			a, err := address.Parse(t.Value)
			name, ok := a.Local, a.Domain == ""
			if isLocal != nil {
				name, ok = isLocal(a)
			}
			if err == nil && ok {
				local = name
			}
		}
		for _, part := range parts(local) {
			if part == user || strings.ToLower(part) == user {
				t.Kind, t.Value, t.Detail = Mailbox, user, strings.TrimPrefix(local[len(part):], "+")
				break
			}
		}
		if !seen[t.same()] {
			seen[t.same()] = true
			list = append(list, t)
		}
	}
	return list
}
