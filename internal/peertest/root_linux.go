package peertest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Ids of Postfix.
const (
	postfixID  = 501
	postdropID = 502
)

// T is what the harness needs of a testing.TB; a program that is no test brings
// its own.
type T interface {
	Helper()
	Fatalf(format string, args ...any)
	Cleanup(func())
	TempDir() string
}

// Root is a root directory with packages unpacked in it, one view for each
// test: what is written there goes with the test.
type Root struct {
	T   T
	Dir string // its path for this process
}

// NewRoot mounts a root of the set, which Main has to know, and makes in it what
// an installation and a boot would: devices, /proc, accounts, the usual files of
// /etc, mail directories.
func NewRoot(t T, set Set) *Root {
	t.Helper()
	if err := available(); err != nil {
		t.Fatalf("%v", err)
	}
	r := &Root{T: t}
	lower, err := Unpack(context.Background(), set)
	r.check(err)
	dir := t.TempDir()
	r.Dir = filepath.Join(dir, "root")
	for _, name := range []string{"root", "upper", "work"} {
		r.check(os.Mkdir(filepath.Join(dir, name), 0o755))
	}
	// Everybody has to be able to reach the root.
	for p := dir; p != "/" && p != os.TempDir(); p = filepath.Dir(p) {
		r.check(os.Chmod(p, 0o755))
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, dir, dir)
	r.mount("overlay", r.Dir, "overlay", 0, options)
	for _, name := range []string{"proc", "dev", "tmp", "run", "var/mail", "home", "root"} {
		r.check(os.MkdirAll(r.Path(name), 0o755))
	}
	r.mount("proc", r.Path("proc"), "proc", 0, "")
	r.mount("tmpfs", r.Path("dev"), "tmpfs", 0, "mode=755,size=16m")
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		r.check(unix.Mknod(r.Path("dev", name), unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))))
		r.check(os.Chmod(r.Path("dev", name), 0o666))
	}
	for link, target := range map[string]string{"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"} {
		r.check(os.Symlink("/proc/self/fd"+target, r.Path("dev", link)))
	}
	r.check(os.Mkdir(r.Path("dev/shm"), 0o1777))
	r.check(os.Chmod(r.Path("tmp"), 0o1777|os.ModeSticky))
	r.accounts()
	return r
}

// In is the same root for a subtest, which then fails where the harness does and
// ends what it has started.
func (r *Root) In(t T) *Root {
	in := *r
	in.T = t
	return &in
}

func (r *Root) check(err error) {
	if err != nil {
		r.T.Helper()
		r.T.Fatalf("peer root: %v", err)
	}
}

func (r *Root) mount(source, target, fstype string, flags uintptr, options string) {
	r.T.Helper()
	if err := unix.Mount(source, target, fstype, flags, options); err != nil {
		r.T.Fatalf("mount %s on %s: %v", fstype, target, err)
	}
	r.T.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			r.T.Fatalf("umount %s: %v", target, err)
		}
	})
}

// Bind shows a folder or a file of the machine inside the root.
func (r *Root) Bind(outside, inside string) {
	r.T.Helper()
	info, err := os.Stat(outside)
	r.check(err)
	target := r.Path(inside)
	if info.IsDir() {
		r.check(os.MkdirAll(target, 0o755))
	} else if !exists(target) {
		r.Write(inside, "")
	}
	r.mount(outside, target, "", unix.MS_BIND, "")
}

// Path is where a path of the root is for this process.
func (r *Root) Path(inside ...string) string {
	return filepath.Join(append([]string{r.Dir}, inside...)...)
}

// Write writes a file of root's, mode 0644, with the folders on the way to it.
func (r *Root) Write(path, text string) {
	r.T.Helper()
	r.check(os.MkdirAll(filepath.Dir(r.Path(path)), 0o755))
	r.check(os.WriteFile(r.Path(path), []byte(text), 0o644))
}

// Append adds to a file, as Write.
func (r *Root) Append(path, text string) {
	r.T.Helper()
	old, err := os.ReadFile(r.Path(path))
	if err != nil && !os.IsNotExist(err) {
		r.check(err)
	}
	r.Write(path, string(old)+text)
}

// Read returns what is in a file.
func (r *Root) Read(path string) string {
	r.T.Helper()
	data, err := os.ReadFile(r.Path(path))
	r.check(err)
	return string(data)
}

// Own gives a file or folder, not what is in it, to a user and its group, with a mode.
func (r *Root) Own(path, user string, mode os.FileMode) {
	r.T.Helper()
	u := r.account(user)
	r.check(os.Chown(r.Path(path), int(u.Uid), int(u.Gid)))
	r.check(os.Chmod(r.Path(path), mode))
}

// accounts makes the files of /etc that the packages' scripts would have made.
func (r *Root) accounts() {
	r.T.Helper()
	r.Write("etc/passwd", r.Read("usr/share/base-passwd/passwd.master"))
	r.Write("etc/group", r.Read("usr/share/base-passwd/group.master"))
	r.Write("etc/shadow", "root:*:19000:0:99999:7:::\n")
	r.Write("etc/hosts", "127.0.0.1 localhost "+Hostname+" host smtp.example other.example\n::1 ip6-localhost\n")
	r.Write("etc/hostname", Hostname+"\n")
	r.Write("etc/mailname", Hostname+"\n")
	r.Write("etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
	r.Write("etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n")
	r.Write("etc/aliases", "postmaster: root\n")
	r.Write("etc/shells", "/bin/sh\n/bin/bash\n")
	r.check(os.Chmod(r.Path("var/mail"), 0o2775|os.ModeSetgid))
	r.check(os.Chown(r.Path("var/mail"), 0, 8)) // mail
	r.Group("postfix", postfixID)
	r.Group("postdrop", postdropID)
	r.systemUser("postfix", postfixID)
	if exists(r.Path("usr/sbin/postfix")) {
		r.postfixFolders()
	}
	r.Group("dovecot", 503)
	r.systemUser("dovecot", 503)
	r.Group("dovenull", 504)
	r.systemUser("dovenull", 504)
	r.Group("crontab", 505)
}

func (r *Root) systemUser(name string, id int) {
	r.Append("etc/passwd", fmt.Sprintf("%s:x:%d:%d::/nonexistent:/usr/sbin/nologin\n", name, id, id))
	r.Append("etc/shadow", name+":*:19000:0:99999:7:::\n")
}

// User makes an account with a group of the same name and id, and a home in
// /home of mode 0755.
func (r *Root) User(name string, uid int) {
	r.T.Helper()
	r.Group(name, uid)
	home := "/home/" + name
	r.Append("etc/passwd", fmt.Sprintf("%s:x:%d:%d:%s Example,,,:%s:/bin/sh\n", name, uid, uid, strings.ToUpper(name[:1])+name[1:], home))
	r.Append("etc/shadow", name+":*:19000:0:99999:7:::\n")
	r.check(os.MkdirAll(r.Path(home), 0o755))
	r.Own(home, name, 0o755)
}

// Group makes a group with further members.
func (r *Root) Group(name string, gid int, members ...string) {
	r.T.Helper()
	r.Append("etc/group", fmt.Sprintf("%s:x:%d:%s\n", name, gid, strings.Join(members, ",")))
}

// account looks a user of the root up, with all groups.
func (r *Root) account(name string) syscall.Credential {
	r.T.Helper()
	var c syscall.Credential
	found := false
	for line := range strings.Lines(r.Read("etc/passwd")) {
		f := strings.Split(line, ":")
		if len(f) == 7 && f[0] == name {
			uid, err1 := strconv.ParseUint(f[2], 10, 32)
			gid, err2 := strconv.ParseUint(f[3], 10, 32)
			if err1 == nil && err2 == nil {
				c.Uid, c.Gid, found = uint32(uid), uint32(gid), true
			}
		}
	}
	if !found {
		r.T.Fatalf("no user %s in the root", name)
	}
	c.Groups = []uint32{c.Gid}
	for line := range strings.Lines(r.Read("etc/group")) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 4 {
			continue
		}
		for member := range strings.SplitSeq(f[3], ",") {
			if gid, err := strconv.ParseUint(f[2], 10, 32); err == nil && member == name {
				c.Groups = append(c.Groups, uint32(gid))
			}
		}
	}
	return c
}

// Command is a program of the root, to be run in it as root in /. A name
// without a slash is looked for in the usual folders.
func (r *Root) Command(name string, args ...string) *exec.Cmd {
	r.T.Helper()
	path := name
	if !strings.Contains(name, "/") {
		for _, dir := range []string{"/usr/sbin", "/usr/bin", "/usr/local/bin"} {
			if exists(r.Path(dir, name)) {
				path = dir + "/" + name
				break
			}
		}
		if path == name {
			r.T.Fatalf("no program %s in the root", name)
		}
	}
	return &exec.Cmd{
		Path: path, Args: append([]string{name}, args...), Dir: "/",
		Env:         []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LOGNAME=root", "USER=root", "SHELL=/bin/sh", "LC_ALL=C"},
		SysProcAttr: &syscall.SysProcAttr{Chroot: r.Dir},
		WaitDelay:   10 * time.Second,
	}
}

// CommandAs is Command as a user of the root, in the user's home.
func (r *Root) CommandAs(user, name string, args ...string) *exec.Cmd {
	r.T.Helper()
	cmd := r.Command(name, args...)
	c := r.account(user)
	cmd.SysProcAttr.Credential = &c
	cmd.Dir = "/home/" + user
	cmd.Env = append(cmd.Env, "HOME="+cmd.Dir, "LOGNAME="+user, "USER="+user)
	return cmd
}

// Result is how a program ended.
type Result struct {
	Code           int // -1: by a signal
	Stdout, Stderr string
}

// Run runs a program to its end, two minutes at most, with the text as its input.
func (r *Root) Run(cmd *exec.Cmd, stdin string) Result {
	r.T.Helper()
	var stdout, stderr bytes.Buffer
	if cmd.Stdin == nil {
		cmd.Stdin = strings.NewReader(stdin)
	}
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		r.T.Fatalf("%v: %v", cmd.Args, err)
	}
	timer := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	if !timer.Stop() {
		r.T.Fatalf("%v did not end within two minutes\n%s", cmd.Args, &stderr)
	}
	if err != nil && cmd.ProcessState == nil {
		r.T.Fatalf("%v: %v", cmd.Args, err)
	}
	return Result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// Must runs a program that has to succeed and returns its output.
func (r *Root) Must(cmd *exec.Cmd, stdin string) string {
	r.T.Helper()
	res := r.Run(cmd, stdin)
	if res.Code != 0 {
		r.T.Fatalf("%v: exit %d\n%s%s", cmd.Args, res.Code, res.Stdout, res.Stderr)
	}
	return res.Stdout
}
