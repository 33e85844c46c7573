package peertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Set is a list of Debian packages that one root directory holds, with all that
// they depend on.
type Set []string

// Peers returns the set that the tests use: Postfix with smtp-sink, Dovecot, and
// the programs that send and take mail on a host.
func Peers() Set {
	return Set{"postfix", "libsasl2-modules", "dovecot-core", "dovecot-lmtpd", "procmail", "vacation", "mutt",
		"bsd-mailx", "maildrop", "cron", "ncurses-base", "libnss-extrausers"}
}

// CDMA returns the set with the DragonFly Mail Agent, which conflicts with Postfix.
func CDMA() Set { return Set{"dma"} }

// base is what every root has besides: what Debian calls essential and the
// programs' scripts use.
func base() Set {
	return Set{"base-files", "base-passwd", "bash", "bsdutils", "coreutils", "dash", "diffutils", "findutils", "grep", "gzip", "hostname",
		"libc-bin", "mawk", "netbase", "perl-base", "sed", "tzdata", "util-linux"}
}

// layout is part of the name of an unpacked set: another one for another way
// to unpack.
const layout = "2"

func (s Set) dir(cache string) string {
	sum := sha256.Sum256([]byte(layout + "\n" + strings.Join(s, " ")))
	return filepath.Join(cache, fmt.Sprintf("%x", sum[:8]))
}

// cacheDir is where the unpacked sets lie.
func cacheDir() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil { // no HOME
		cache = os.TempDir()
	}
	cache = filepath.Join(cache, "dma-peertest")
	return cache, os.MkdirAll(cache, 0o755)
}

// Unpack returns the folder with the unpacked set, which is for reading only.
// The first call on a machine downloads it, in a minute or less; others of the
// same time wait for that.
func Unpack(ctx context.Context, set Set) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := waitLock(ctx, lock); err != nil {
		return "", fmt.Errorf("%s: %w", lock.Name(), err)
	}
	dir := set.dir(cache)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	work := dir + ".new"
	if err := os.RemoveAll(work); err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	debs, err := download(ctx, set, filepath.Join(work, "apt"))
	if err != nil {
		return "", err
	}
	root := filepath.Join(work, "root")
	if err := unpack(ctx, debs, root); err != nil {
		return "", err
	}
	return dir, os.Rename(root, dir)
}

// waitLock takes the lock that is given up with the file.
func waitLock(ctx context.Context, f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// download has apt-get fetch the set and its dependencies as for a machine on
// which nothing is installed. It returns the files.
func download(ctx context.Context, set Set, dir string) ([]string, error) {
	archives := filepath.Join(dir, "archives")
	if err := os.MkdirAll(filepath.Join(archives, "partial"), 0o755); err != nil {
		return nil, err
	}
	status := filepath.Join(dir, "status")
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return nil, err
	}
	fetch := append([]string{"-qq", "-y", "--no-install-recommends", "--download-only", "-o", "Dir::State::status=" + status,
		"-o", "Dir::Cache=" + dir, "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root", "install"}, slices.Concat(base(), set)...)
	err := command(ctx, "apt-get", fetch...)
	if err != nil { // no package lists, or old ones
		if err := command(ctx, "apt-get", "-qq", "-o", "DPkg::Lock::Timeout=60", "update"); err != nil {
			return nil, err
		}
		err = command(ctx, "apt-get", fetch...)
	}
	if err != nil {
		return nil, err
	}
	debs, err := filepath.Glob(filepath.Join(archives, "*.deb"))
	if err == nil && len(debs) == 0 {
		err = errors.New("apt-get install --download-only: no packages")
	}
	return debs, err
}

// command runs a program of the machine; its output is in the error.
func command(ctx context.Context, name string, args ...string) error {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

// unpack makes the root directory: /bin, /lib and /sbin are links into /usr.
func unpack(ctx context.Context, debs []string, root string) error {
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.MkdirAll(filepath.Join(root, "usr", name), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+name, filepath.Join(root, name)); err != nil {
			return err
		}
	}
	var group sync.WaitGroup
	var mu sync.Mutex
	var failed error
	next := make(chan string)
	for range runtime.NumCPU() {
		group.Go(func() {
			for deb := range next {
				err := command(ctx, "/bin/sh", "-c", `dpkg-deb --fsys-tarfile "$1" | tar -xpf - -C "$2" --keep-directory-symlink --exclude=./usr/share/doc --exclude=./usr/share/locale`,
					"sh", deb, root)
				mu.Lock()
				if failed == nil && err != nil {
					failed = fmt.Errorf("%s: %w", deb, err)
				}
				mu.Unlock()
			}
		})
	}
	for _, deb := range debs {
		next <- deb
	}
	close(next)
	group.Wait()
	return failed
}

// exists reports whether there is such a name.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
