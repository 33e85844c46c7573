package runner

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dma/spooldir"
)

// TestStrangers: the groups of a shared spool are those of its processes alone.
func TestStrangers(t *testing.T) {
	ids := spooldir.Identities{QueueUID: 990, QueueGID: 990, NetUID: 991, NetGID: 991, SubmitGID: 992}
	const users = "root:x:0:0::/root:/bin/sh\ndma:x:990:990::/:/bin/false\ndmanet:x:991:991::/:/bin/false\nbad line\nann:x:1000:1000::/home/ann:/bin/sh\n"
	const groups = "root:x:0:\ndma:x:990:dma\ndmanet:x:991:\ndmasubmit:x:992:dma, dmanet\nbad:x\nstaff:x:50:ann,dma\n"
	for name, tt := range map[string]struct{ users, groups, bad string }{
		"own":                  {users, groups, ""},
		"member of dma":        {users, strings.Replace(groups, "990:dma", "990:dma,ann", 1), "user ann is in the group 990"},
		"net in dma":           {users, strings.Replace(groups, "990:dma", "990:dmanet", 1), "user dmanet is in the group 990"},
		"member of dmanet":     {users, strings.Replace(groups, "991:", "991:ann", 1), "user ann is in the group 991"},
		"member of dmasubmit":  {users, strings.Replace(groups, "dma, dmanet", "dma, ann,dmanet", 1), "user ann is in the group 992"},
		"primary group":        {strings.Replace(users, ":1000:1000", ":1000:991", 1), groups, "user ann is in the group 991"},
		"primary of submitter": {strings.Replace(users, ":1000:1000", ":1000:992", 1), groups, "user ann is in the group 992"},
	} {
		dir := t.TempDir()
		for file, text := range map[string]string{"passwd": tt.users, "group": tt.groups} {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		err := strangers(ids, filepath.Join(dir, "passwd"), filepath.Join(dir, "group"))
		if (err == nil) != (tt.bad == "") || err != nil && !strings.Contains(err.Error(), tt.bad) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
