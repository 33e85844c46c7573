package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"dma/spooldir"
)

// disk is what a power cut would leave: what files had in them when they were
// synced last, and the names in directories.
type disk struct {
	mu    sync.Mutex
	files map[string]string   // by path, as it was then
	names map[string][]string // by path
	syncs []string
}

// sync is Own.sync.
func (d *disk) sync(f *os.File) error {
	if err := f.Sync(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.syncs = append(d.syncs, f.Name())
	entries, err := os.ReadDir(f.Name())
	if err != nil {
		text, err := os.ReadFile(f.Name())
		d.files[f.Name()] = string(text)
		return err
	}
	d.names[f.Name()] = nil
	for _, e := range entries {
		d.names[f.Name()] = append(d.names[f.Name()], e.Name())
	}
	return nil
}

// has reports whether a power cut would leave the message of a job in the file,
// or Maildir, at path.
func (d *disk) has(j *Job, path string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	line := "X-Dma-Delivery: " + j.Message.ID + ".1\n"
	if !strings.HasSuffix(path, "/") {
		return strings.Contains(d.files[path], line) && slices.Contains(d.names[filepath.Dir(path)], filepath.Base(path))
	}
	for _, name := range d.names[path+"new"] {
		if strings.Contains(d.files[path+"tmp/"+name], line) {
			return true
		}
	}
	return false
}

func (d *disk) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.syncs)
}

// TestDoneWhenSynced: each message is answered for when it is on disk, and so
// many share an fsync as can.
func TestDoneWhenSynced(t *testing.T) { everyWay(t, testDoneWhenSynced) }

func testDoneWhenSynced(t *testing.T, newHome func(*testing.T) *home) {
	for _, test := range []struct {
		mailbox, path string
		first, more   int // fsyncs for a batch, the first one of the mailbox and the next
	}{
		{"mbox:~/mbox", "mbox", 2, 1},
		// Its folders are new, too.
		{"maildir:~/Maildir/", "Maildir/", maxBatch + 1 + 2, maxBatch + 1},
	} {
		t.Run(test.path, func(t *testing.T) {
			h := newHome(t)
			h.write(".forward", h.dir+"/box", h.dir+"/dir/")
			d := &disk{files: make(map[string]string), names: make(map[string][]string)}
			h.own.sync, h.own.Mailbox = d.sync, test.mailbox
			a, n, at := h.agent(), 0, make(map[*Job]string)
			jobs := func(kind spooldir.RecipientKind, target, path string, count int) []*Job {
				list := testJobs(count, kind)
				for _, j := range list {
					n++
					j.Target, j.Message.ID = target, fmt.Sprintf("id-%d", n)
					at[j] = h.dir + "/" + path
				}
				return list
			}
			// deliver delivers a batch, and returns how many fsyncs that took.
			deliver := func(batch []*Job) int {
				before := d.count()
				a.Deliver(t.Context(), h.user, batch, func(j *Job) {
					if j.Err != nil || !d.has(j, at[j]) {
						t.Errorf("%s: answered for with %v, and on disk: %v", j.Message.ID, j.Err, d.has(j, at[j]))
					}
				})
				return d.count() - before
			}
			for _, want := range []int{test.first, test.more} {
				if got := deliver(jobs(spooldir.Mailbox, "", test.path, maxBatch)); got != want {
					t.Errorf("%d fsyncs for %d messages, want %d: %q", got, maxBatch, want, d.syncs)
				}
			}
			deliver(slices.Concat(
				jobs(spooldir.Mailbox, "", test.path, 3), jobs(spooldir.File, h.dir+"/box", "box", 3),
				jobs(spooldir.File, h.dir+"/dir/", "dir/", 3), jobs(spooldir.Mailbox, "", test.path, 3),
			))
		})
	}
}
