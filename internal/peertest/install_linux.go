package peertest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

var build struct {
	once sync.Once
	dir  string
	err  error
}

// Programs builds dma and dma-runner once, as they are installed, and returns
// their folder, which [Run] has made and removes.
func Programs(t T) string {
	t.Helper()
	build.once.Do(func() {
		build.dir = os.Getenv(programsEnv)
		cmd := exec.Command("go", "build", "-o", build.dir, "dma/cmd/dma", "dma/cmd/dma-runner")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			build.err = fmt.Errorf("go build: %w\n%s", err, out)
		}
	})
	if build.err != nil {
		t.Fatalf("%v", build.err)
	}
	return build.dir
}

// InstallDMA puts dma and dma-runner into /usr/sbin of the root, owned by root
// and without set-id bits, and makes sendmail, mailq and newaliases links to
// dma. Another sendmail there is kept as sendmail.peer.
func (r *Root) InstallDMA() {
	r.T.Helper()
	dir := Programs(r.T)
	for _, name := range []string{"dma", "dma-runner"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		r.check(err)
		r.check(os.RemoveAll(r.Path("usr/sbin", name)))
		r.check(os.WriteFile(r.Path("usr/sbin", name), data, 0o755))
	}
	if exists(r.Path("usr/sbin/sendmail")) {
		r.check(os.Rename(r.Path("usr/sbin/sendmail"), r.Path("usr/sbin/sendmail.peer")))
	}
	for _, link := range []string{"usr/sbin/sendmail", "usr/lib/sendmail", "usr/bin/mailq", "usr/bin/newaliases"} {
		r.check(os.RemoveAll(r.Path(link)))
		r.check(os.Symlink("/usr/sbin/dma", r.Path(link)))
	}
}

// Ids of dma's accounts.
const (
	dmaID       = 601
	dmanetID    = 602
	dmasubmitID = 603
)

// InstallHost is InstallDMA for all users of a host, as scripts/install has it:
// with the users dma and dmanet, and dma set-gid to the group dmasubmit. The spool
// is left to dma-runner init.
func (r *Root) InstallHost() {
	r.T.Helper()
	r.InstallDMA()
	for name, id := range map[string]int{"dma": dmaID, "dmanet": dmanetID} {
		r.Group(name, id)
		r.systemUser(name, id)
	}
	r.Group("dmasubmit", dmasubmitID)
	r.check(os.Chown(r.Path("usr/sbin/dma"), 0, dmasubmitID))
	r.check(os.Chmod(r.Path("usr/sbin/dma"), 0o755|os.ModeSetgid))
}
