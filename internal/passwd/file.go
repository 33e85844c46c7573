package passwd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// What a table is read for at most.
const (
	maxFile     = 32 << 20
	maxBadLines = 100
)

// BadLine is a line of a passwd file that is no user. Text is one printable line.
type BadLine struct {
	Line int // from 1
	Text string
}

// Table is the Source made of a file in the format of passwd(5).
type Table struct {
	path string

	mu   sync.Mutex
	info fs.FileInfo // of the file that is in memory; nil if none is
	data *table
}

// table is the content of the file; it does not change.
type table struct {
	byName map[string]User
	byID   map[int]User
	doubt  map[string]int // names of bad lines, with the line
	bad    []BadLine
	compat bool // it has a line of the compat mode of nsswitch.conf
}

// File returns the Source for the file at path. It is read at the first lookup,
// and again when its time, size or inode has changed. Comments and lines that
// begin with + or - are skipped, and so are bad lines, which BadLines returns;
// whether a user exists whose line is bad can't be told. Nor can it if the file
// is missing, unreadable, not a regular file, above 32 MiB, or without a single
// user. Of two lines with one name or uid the first counts.
func File(path string) *Table { return &Table{path: path} }

// Lookup implements Source.
func (t *Table) Lookup(ctx context.Context, name string) (User, error) {
	if !ValidName(name) {
		return User{}, fmt.Errorf("user %q: %w", clip(name), ErrUnknown)
	}
	d, err := t.load(ctx)
	if err != nil {
		return User{}, fmt.Errorf("user %q: %w", name, err)
	}
	return d.lookup(t.path, name)
}

func (d *table) lookup(path, name string) (User, error) {
	if u, ok := d.byName[name]; ok {
		return u, nil
	}
	if line, ok := d.doubt[name]; ok {
		return User{}, fmt.Errorf("user %q: %s:%d is a bad line", name, path, line)
	}
	return User{}, fmt.Errorf("user %q: %w", name, ErrUnknown)
}

// LookupID implements Source.
func (t *Table) LookupID(ctx context.Context, uid int) (User, error) {
	d, err := t.load(ctx)
	if err != nil {
		return User{}, fmt.Errorf("uid %d: %w", uid, err)
	}
	return d.lookupID(uid)
}

func (d *table) lookupID(uid int) (User, error) {
	if u, ok := d.byID[uid]; ok {
		return u, nil
	}
	return User{}, fmt.Errorf("uid %d: %w", uid, ErrUnknown)
}

// BadLines returns the lines of the file that were skipped as bad, the first
// 100 of them.
func (t *Table) BadLines(ctx context.Context) ([]BadLine, error) {
	d, err := t.load(ctx)
	if err != nil {
		return nil, err
	}
	return d.bad, nil
}

// Users returns all users of the file, by uid and name.
func (t *Table) Users(ctx context.Context) ([]User, error) {
	d, err := t.load(ctx)
	if err != nil {
		return nil, err
	}
	return slices.SortedFunc(maps.Values(d.byName), func(a, b User) int {
		return cmp.Or(cmp.Compare(a.UID, b.UID), cmp.Compare(a.Name, b.Name))
	}), nil
}

// load returns the content of the file as it is now.
func (t *Table) load(ctx context.Context) (*table, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now, err := os.Stat(t.path)
	if err != nil {
		return nil, err
	}
	if t.info != nil && sameState(t.info, now) {
		return t.data, nil
	}
	t.info = nil
	info, text, err := read(t.path, maxFile)
	if err != nil {
		return nil, err
	}
	d := parse(text)
	if len(d.byName) == 0 {
		return nil, fmt.Errorf("%s: no user in it", t.path)
	}
	t.info, t.data = info, d
	return d, nil
}

func sameState(a, b fs.FileInfo) bool {
	return a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size() && os.SameFile(a, b)
}

// read returns the regular file at path and its state before it was read.
func read(path string, most int64) (fs.FileInfo, string, error) {
	// O_NONBLOCK: a FIFO is refused below, not waited for.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, "", err
	}
	if !info.Mode().IsRegular() {
		return nil, "", fmt.Errorf("%s: not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, "", err
	}
	if int64(len(data)) > most {
		return nil, "", fmt.Errorf("%s: larger than %d octets", path, most)
	}
	return info, string(data), nil
}

// parse reads the content of a passwd file.
func parse(text string) *table {
	d := &table{byName: make(map[string]User), byID: make(map[int]User), doubt: make(map[string]int)}
	n := 0
	for line := range strings.SplitSeq(text, "\n") {
		n++
		switch {
		case strings.Trim(line, " \t\r") == "" || line[0] == '#':
			continue
		case line[0] == '+' || line[0] == '-':
			d.compat = true
			continue
		}
		u, err := parseLine(line)
		if err != nil {
			if name, _, _ := strings.Cut(line, ":"); ValidName(name) && d.doubt[name] == 0 {
				d.doubt[name] = n
			}
			if len(d.bad) < maxBadLines {
				d.bad = append(d.bad, BadLine{n, err.Error()})
			}
			continue
		}
		if _, ok := d.byName[u.Name]; !ok {
			d.byName[u.Name] = u
		}
		if _, ok := d.byID[u.UID]; !ok {
			d.byID[u.UID] = u
		}
	}
	return d
}

// parseLine reads name:password:uid:gid:gecos:home:shell.
func parseLine(line string) (User, error) {
	if len(line) > 4096 {
		return User{}, errors.New("longer than 4096 octets")
	}
	f := strings.Split(line, ":")
	if len(f) != 7 {
		return User{}, fmt.Errorf("%d fields instead of 7", len(f))
	}
	if !ValidName(f[0]) {
		return User{}, fmt.Errorf("bad user name %q", clip(f[0]))
	}
	uid, ok := parseID(f[2])
	if !ok {
		return User{}, fmt.Errorf("user %q: bad uid %q", f[0], clip(f[2]))
	}
	gid, ok := parseID(f[3])
	if !ok {
		return User{}, fmt.Errorf("user %q: bad gid %q", f[0], clip(f[3]))
	}
	if hasControl(f[5]) || f[5] != "" && f[5][0] != '/' {
		return User{}, fmt.Errorf("user %q: the home %q is no absolute path", f[0], clip(f[5]))
	}
	if hasControl(f[6]) {
		return User{}, fmt.Errorf("user %q: the shell %q has control characters", f[0], clip(f[6]))
	}
	return User{Name: f[0], UID: uid, GID: gid, Gecos: f[4], Home: f[5], Shell: f[6]}, nil
}

// parseID reads a uid or gid; the highest, 2^32-1, means "none" to the kernel.
func parseID(s string) (int, bool) {
	v, err := strconv.ParseUint(s, 10, 32)
	if err != nil || v == 1<<32-1 || int(v) < 0 {
		return 0, false
	}
	return int(v), true
}

// clip bounds what stands in an error text.
func clip(s string) string {
	const most = 64
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
