package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// readTime bounds every read of a user's or a list's file, beside the context.
const readTime = 30 * time.Second

// readRegular reads the regular file path, or what a symbolic link of that
// name leads to, of at most limit octets. It does not wait for a FIFO or a
// device. A file system that hangs can make it hang.
func readRegular(path string, limit int) ([]byte, fs.FileInfo, error) {
	// Opening a device can have an effect, so look before.
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if err := regular(path, info); err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return nil, nil, err
	}
	if err := regular(path, info); err != nil {
		return nil, nil, err
	}
	if info.Size() > int64(limit) {
		return nil, nil, fmt.Errorf("%s: %s", path, tooLarge(limit))
	}
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, nil, err
	}
	if len(data) > limit {
		return nil, nil, fmt.Errorf("%s: %s", path, tooLarge(limit))
	}
	return data, info, nil
}

// regular refuses everything but a regular file.
func regular(path string, info fs.FileInfo) error {
	var is string
	switch mode := info.Mode(); {
	case mode.IsRegular():
		return nil
	case mode.IsDir():
		is = "a directory"
	case mode&fs.ModeSymlink != 0:
		is = "a symbolic link"
	case mode&fs.ModeNamedPipe != 0:
		is = "a FIFO"
	case mode&fs.ModeSocket != 0:
		is = "a socket"
	default:
		is = "a device"
	}
	return fmt.Errorf("%s is %s; put a regular file in its place, or remove it", path, is)
}

// owner returns the uid and gid of a file.
func owner(info fs.FileInfo) (uid, gid int) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return -1, -1
	}
	return int(st.Uid), int(st.Gid)
}

// included is what a file named by :include: holds.
type included struct {
	targets []Target
	// distrust says why the file may only name addresses and mailboxes; empty
	// if it may name everything.
	distrust string
}

// readInclude reads the file that t names; who says who may change it. Home
// allows paths that begin with ~/.
func readInclude(t Target, who safety, home bool) (included, error) {
	var f included
	at := Problem{File: t.File, Line: t.Line}
	data, info, err := readRegular(t.Value, MaxInclude)
	if err != nil {
		at.Text = ":include: " + reason(err)
		return f, &unread{at, err}
	}
	if info.Mode().Perm()&0o002 != 0 {
		at.Text = fmt.Sprintf(":include: anybody may write to %s; chmod o-w %[1]s", t.Value)
		return f, at
	}
	f.distrust = distrust(t.Value, info, who)
	s := scanner{
		file: t.Value, data: text(data), line: 1, max: maxRecipients, home: home,
		// Its owner could let it lead to a file that the owner may not read.
		quiet: f.distrust != "",
	}
	f.targets, err = s.targets()
	return f, err
}

// unread is a Problem with its cause.
type unread struct {
	Problem
	cause error
}

func (e *unread) Unwrap() []error { return []error{e.Problem, e.cause} }

// reason returns the text of an error of the file system, with what to do.
func reason(err error) string {
	var pe *fs.PathError
	if !errors.As(err, &pe) {
		return err.Error()
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return pe.Path + " does not exist; create it, or remove what names it"
	case errors.Is(err, fs.ErrPermission) && pe.Op != "open":
		return fmt.Sprintf("%s cannot be read: %v; let %s enter its folder", pe.Path, pe.Err, self())
	case errors.Is(err, fs.ErrPermission):
		return fmt.Sprintf("%s cannot be read: %v; let %s read it", pe.Path, pe.Err, self())
	}
	return fmt.Sprintf("%s cannot be read: %v", pe.Path, pe.Err)
}

// self names the user who reads here.
func self() string {
	uid := os.Geteuid()
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return "user " + u.Username
	}
	return fmt.Sprintf("uid %d", uid)
}

// distrust says why somebody other than root and the owner has a say in what
// the file path leads to; empty if nobody has.
func distrust(path string, info fs.FileInfo, who safety) string {
	onWay := who
	onWay.sticky = true
	found, unsafe, err := walk("/", "/", filepath.Clean(path), onWay)
	if err == nil {
		err = unsafe
	}
	if err == nil && !os.SameFile(found.info, info) {
		err = fmt.Errorf("%s is being replaced", path)
	}
	if err == nil {
		err = who.file(path, info)
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

// refused returns an error if f names what it must not.
func (f included) refused() error {
	if f.distrust == "" {
		return nil
	}
	i := slices.IndexFunc(f.targets, func(t Target) bool { return writes(t) || t.Kind == Include })
	if i < 0 {
		return nil
	}
	return f.targets[i].problem("an included file may name commands, files and includes only if nobody else can change it: %s", f.distrust)
}

// gate lets only one read of each file run, so that a file system that hangs
// holds up one goroutine for a file and not one for every message. The zero
// gate is open.
type gate struct {
	mu   sync.Mutex
	busy map[string]*reading
}

type reading struct{ done chan struct{} }

// within runs f, for the file key, in a goroutine of its own, and waits for it
// as long as ctx allows. The goroutine of an f that hangs stays behind.
func within[T any](ctx context.Context, g *gate, key string, f func() (T, error)) (T, error) {
	var zero T
	r := &reading{done: make(chan struct{})}
	for {
		g.mu.Lock()
		if g.busy == nil {
			g.busy = make(map[string]*reading)
		}
		before, ok := g.busy[key]
		if !ok {
			g.busy[key] = r
			g.mu.Unlock()
			break
		}
		g.mu.Unlock()
		select {
		case <-before.done:
		case <-ctx.Done():
			return zero, slow(ctx, key)
		}
	}
	var value T
	var err error
	go func() {
		defer func() {
			g.mu.Lock()
			delete(g.busy, key)
			g.mu.Unlock()
			close(r.done)
		}()
		value, err = f()
	}()
	select {
	case <-r.done:
		return value, err
	case <-ctx.Done():
		return zero, slow(ctx, key)
	}
}

func slow(ctx context.Context, path string) error {
	return fmt.Errorf("%s could not be read in time; see whether its file system answers: %w", printable(path), context.Cause(ctx))
}

// below returns path relative to base, if it is in or below it.
func below(base, path string) (string, bool) {
	if path == base {
		return ".", true
	}
	if !strings.HasSuffix(base, "/") {
		base += "/"
	}
	return strings.CutPrefix(path, base)
}
