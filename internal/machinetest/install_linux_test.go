package machinetest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestInstallGroups: where somebody else is in a group of dma's, or a user of dma's
// has not a group of its own, nothing is installed and no spool is made.
func TestInstallGroups(t *testing.T) {
	m := newMachine(t)
	script, err := filepath.Abs("../../scripts/install")
	m.do(err)
	good := make(map[string]string)
	for _, file := range []string{"/etc/passwd", "/etc/group"} {
		text, err := os.ReadFile(file)
		m.do(err)
		good[file] = string(text)
	}
	restore := func() {
		for file, text := range good {
			m.do(os.WriteFile(file, []byte(text), 0o644))
		}
	}
	t.Cleanup(restore)
	for _, tt := range []struct{ file, old, new, script, init string }{
		{"/etc/group", "dmasubmit:x:992:", "dmasubmit:x:992:alice,", "user alice is in the group dmasubmit", "user alice is in the group 992"},
		{"/etc/group", "dmanet:x:991:", "dmanet:x:991:bob", "user bob is in the group dmanet", "user bob is in the group 991"},
		{"/etc/passwd", "dmanet:x:991:991:", "dmanet:x:991:65534:", "user dmanet has the group nogroup", "is in the group 65534"},
	} {
		text := strings.Replace(good[tt.file], tt.old, tt.new, 1)
		if text == good[tt.file] {
			t.Fatalf("%s has no %s", tt.file, tt.old)
		}
		m.do(os.WriteFile(tt.file, []byte(text), 0o644))
		m.do(os.RemoveAll(spoolDir))
		for what, r := range map[string]result{
			tt.script: m.root("", "env", "PREFIX=/opt/usr", "BIN="+libexec, script),
			tt.init:   m.root("", runnerBin, "init"),
		} {
			if r.code != 77 || !strings.Contains(r.stderr, what) || strings.Count(r.stderr, "\n") != 1 {
				t.Errorf("%s: exit %d\n%s%s", tt.new, r.code, r.stdout, r.stderr)
			}
		}
		for _, path := range []string{spoolDir, "/opt/usr"} {
			if _, err := os.Lstat(path); err == nil {
				t.Errorf("%s: %s is there", tt.new, path)
			}
		}
		restore()
	}
	m.root("", "env", "PREFIX=/opt/usr", "BIN="+libexec, script).want(t, 0)
	if _, err := os.Lstat("/opt/usr/sbin/dma-runner"); err != nil {
		t.Error(err)
	}
}
