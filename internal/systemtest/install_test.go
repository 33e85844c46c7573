package systemtest

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"dma/internal/crashtest"
)

// installation runs scripts/install and scripts/uninstall.
type installation struct {
	t    testing.TB
	root string // what the scripts take for /; empty: this machine's
	bin  string // the folder with the programs; empty: they are built
	env  []string
}

// newInstallation makes one of programs that are none, but quickly copied.
func newInstallation(t testing.TB, env ...string) *installation {
	t.Helper()
	i := &installation{t: t, bin: t.TempDir(), env: env}
	for _, name := range []string{"dma", "dma-runner"} {
		if err := os.WriteFile(filepath.Join(i.bin, name), []byte("#!/bin/sh\n# "+name+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return i
}

// script runs one of them and returns what it said and its exit code.
func (i *installation) script(name string, env ...string) (string, int) {
	i.t.Helper()
	scripts, err := filepath.Abs("../../scripts")
	if err != nil {
		i.t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", filepath.Join(scripts, name))
	cmd.Dir = "/"
	cmd.Env = append(append(os.Environ(), "DESTDIR=", "PREFIX=/usr", "BIN="+i.bin), append(i.env, env...)...)
	if i.root != "" {
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: i.root}
	}
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		i.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func (i *installation) must(name string, env ...string) string {
	i.t.Helper()
	out, code := i.script(name, env...)
	if code != 0 {
		i.t.Fatalf("scripts/%s: %d\n%s", name, code, out)
	}
	return out
}

// tree describes every file below folders of a root: mode, owner and content or
// target, and not its times.
func tree(t testing.TB, root string, folders ...string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for _, folder := range folders {
		err := filepath.WalkDir(filepath.Join(root, folder), func(path string, d fs.DirEntry, err error) error {
			if os.IsNotExist(err) {
				return nil
			}
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			st := info.Sys().(*syscall.Stat_t)
			what := fmt.Sprintf("%v %d:%d", info.Mode(), st.Uid, st.Gid)
			switch {
			case info.Mode()&fs.ModeSymlink != 0:
				target, err := os.Readlink(path)
				if err != nil {
					return err
				}
				what += " -> " + target
			case info.Mode().IsRegular():
				data, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				what += fmt.Sprintf(" %x", sha256.Sum256(data))
			}
			rel, err := filepath.Rel(root, path)
			all["/"+rel] = what
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// difference tells what is not the same in two trees.
func difference(a, b map[string]string) []string {
	var diff []string
	for path, was := range a {
		if is, there := b[path]; !there {
			diff = append(diff, "- "+path)
		} else if is != was {
			diff = append(diff, "! "+path+" "+was+" / "+is)
		}
	}
	for path := range b {
		if _, there := a[path]; !there {
			diff = append(diff, "+ "+path)
		}
	}
	slices.Sort(diff)
	return diff
}

// TestInstallDestdir makes a tree to be packed, as any user, and takes it back.
func TestInstallDestdir(t *testing.T) {
	for _, prefix := range []string{"/usr", "/opt/dma"} {
		t.Run(strings.ReplaceAll(prefix[1:], "/", "-"), func(t *testing.T) {
			if prefix != "/usr" && !crashtest.Enabled() {
				t.Skip("a system test: set DMA_SYSTEM_TESTS=1")
			}
			dir := t.TempDir()
			i := newInstallation(t)
			env := []string{"DESTDIR=" + dir, "PREFIX=" + prefix}
			if prefix == "/usr" && crashtest.Enabled() {
				i.bin = ""
			}
			i.must("install", env...)
			first := tree(t, dir, "/")
			for path, want := range map[string]string{
				"/sbin/dma": "-rwxr-xr-x", "/sbin/dma-runner": "-rwxr-xr-x", "/sbin/sendmail": "-> dma", "/lib/sendmail": "-> ../sbin/dma",
				"/bin/mailq": "-> ../sbin/dma", "/bin/newaliases": "-> ../sbin/dma",
				"/share/man/man8/dma.8": "-rw-r--r--", "/share/man/man5/dma-spool.5": "-rw-r--r--",
				"/lib/systemd/system/dma-runner.service": "-rw-r--r--", "/lib/systemd/system/dma-submit.socket": "-rw-r--r--",
			} {
				if !strings.Contains(first[prefix+path], want) {
					t.Errorf("%s%s: %q; want %s", prefix, path, first[prefix+path], want)
				}
			}
			if !strings.Contains(first["/etc/dma/auth.conf"], "-rw-r-----") || first["/var"] != "" {
				t.Errorf("auth.conf %q, /var %q", first["/etc/dma/auth.conf"], first["/var"])
			}
			unit, err := os.ReadFile(filepath.Join(dir, prefix, "lib/systemd/system/dma-runner.service"))
			if err != nil || !strings.Contains(string(unit), "ExecStart="+prefix+"/sbin/dma-runner ") {
				t.Errorf("%v\n%s", err, unit)
			}
			i.must("install", env...)
			if d := difference(first, tree(t, dir, "/")); len(d) > 0 {
				t.Errorf("a second run changes %v", d)
			}
			i.must("uninstall", env...)
			if left := slices.Sorted(maps.Keys(tree(t, dir, "/"))); len(left) != 1 {
				t.Errorf("uninstall leaves %v", left)
			}
			if out, code := i.script("uninstall", env...); code != 66 {
				t.Errorf("a second uninstall: %d\n%s", code, out)
			}
		})
	}
}

// TestInstallOthers keeps what others have put, and what an administrator has
// changed.
func TestInstallOthers(t *testing.T) {
	dir := t.TempDir()
	i := newInstallation(t, "DESTDIR="+dir)
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// The programs of another dma: nothing is touched.
	write("/usr/sbin/dma", "another dma")
	before := tree(t, dir, "/")
	if out, code := i.script("install"); code != 73 || !strings.Contains(out, "/usr/sbin/dma is there already") {
		t.Errorf("%d\n%s", code, out)
	}
	if d := difference(before, tree(t, dir, "/")); len(d) > 0 {
		t.Errorf("changed: %v", d)
	}
	if err := os.Remove(filepath.Join(dir, "/usr/sbin/dma")); err != nil {
		t.Fatal(err)
	}
	// Mail of another dma waits.
	write("/var/spool/dma/Q123.456", "")
	if out, code := i.script("install"); code != 75 {
		t.Errorf("%d\n%s", code, out)
	}
	if err := os.RemoveAll(filepath.Join(dir, "/var")); err != nil {
		t.Fatal(err)
	}
	// Another mailer: its names stay, by a file, a link, a link to nowhere.
	write("/usr/sbin/sendmail", "another mailer")
	write("/usr/share/man/man8/dma.8", "another page")
	write("/etc/dma/dma.conf", "SMARTHOST mine\n")
	if err := os.MkdirAll(filepath.Join(dir, "/usr/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/nowhere", filepath.Join(dir, "/usr/bin/mailq")); err != nil {
		t.Fatal(err)
	}
	before = tree(t, dir, "/")
	for range 2 {
		out := i.must("install")
		if !strings.Contains(out, "another mailer has: /usr/sbin/sendmail /usr/bin/mailq;") {
			t.Errorf("install says\n%s", out)
		}
		for _, d := range difference(before, tree(t, dir, "/")) {
			if !strings.HasPrefix(d, "+ ") {
				t.Errorf("install: %s", d)
			}
		}
	}
	i.must("uninstall")
	if d := difference(before, tree(t, dir, "/")); len(d) > 0 {
		t.Errorf("uninstall: %v", d)
	}
	// What was changed since stays, and what another package has put over it.
	for _, path := range []string{"/usr/sbin/sendmail", "/usr/bin/mailq", "/etc/dma/dma.conf", "/usr/share/man/man8/dma.8"} {
		if err := os.Remove(filepath.Join(dir, path)); err != nil {
			t.Fatal(err)
		}
	}
	i.must("install")
	write("/etc/dma/dma.conf", "SMARTHOST mine\n")
	if err := os.Remove(filepath.Join(dir, "/usr/sbin/sendmail")); err != nil {
		t.Fatal(err)
	}
	write("/usr/sbin/sendmail", "another mailer")
	write("/usr/sbin/dma-runner", "another runner")
	if out, code := i.script("install"); code != 73 {
		t.Errorf("over another runner: %d\n%s", code, out)
	}
	i.must("uninstall")
	after := tree(t, dir, "/")
	for _, path := range []string{"/usr/sbin/sendmail", "/etc/dma/dma.conf", "/usr/sbin/dma-runner"} {
		if after[path] == "" {
			t.Errorf("uninstall removes %s", path)
		}
	}
	if after["/usr/sbin/dma"] != "" || after["/etc/dma/auth.conf"] != "" {
		t.Error("uninstall leaves what was not changed")
	}
}

// TestUnits lets systemd look at the units, which it does without a word, and
// bounds what it calls their exposure.
func TestUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is missing: install the package systemd")
	}
	dir := t.TempDir()
	i := newInstallation(t)
	i.must("install", "DESTDIR="+dir)
	units := filepath.Join(dir, "usr/lib/systemd/system")
	// The program has to exist where the unit says.
	runner := filepath.Join(i.bin, "dma-runner")
	entries, err := os.ReadDir(units)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		path := filepath.Join(units, e.Name())
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), "/usr/sbin/dma-runner", runner)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var services, all []string
	for _, e := range entries {
		all = append(all, filepath.Join(units, e.Name()))
		if filepath.Ext(e.Name()) == ".service" {
			services = append(services, filepath.Join(units, e.Name()))
		}
	}
	if out, err := exec.Command(analyze, append([]string{"verify", "--man=no"}, all...)...).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("verify: %v\n%s", err, out)
	}
	// The threshold is in tenths.
	out, err := exec.Command(analyze, append([]string{"security", "--no-pager", "--offline=yes", "--threshold=30"}, services...)...).CombinedOutput()
	t.Logf("%s", regexp.MustCompile(`(?m)exposure level for .*`).FindAll(out, -1))
	if err != nil {
		t.Errorf("security: %v\n%s", err, out)
	}
}
