package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dma/internal/passwd"
	"dma/spooldir"
)

// BenchmarkDeliver delivers batches of messages of 4 KiB to an mbox, with and
// without a process between.
func BenchmarkDeliver(b *testing.B) {
	dir := b.TempDir()
	u := passwd.User{Name: "alice", UID: 4711, Home: dir}
	text := "Subject: x\n\n" + strings.Repeat(strings.Repeat("x", 63)+"\n", 64)
	for _, way := range []string{"own", "remote"} {
		for _, n := range []int{1, maxBatch} {
			b.Run(fmt.Sprintf("%s/%d", way, n), func(b *testing.B) {
				own := &Own{UID: os.Geteuid(), Any: true, Mailbox: "mbox:" + filepath.Join(dir, fmt.Sprint(way, n))}
				var a Agent = own
				if way == "remote" {
					a = remoteOf(b, RemoteOptions{Starter: &starter{serve: serving(b, own, u)}, Mailbox: own.Mailbox})
				}
				jobs := testJobs(n, spooldir.Mailbox)
				for _, j := range jobs {
					j.Message.Content, j.Message.Size = strings.NewReader(text), int64(len(text))
				}
				for b.Loop() {
					a.Deliver(b.Context(), u, jobs, func(j *Job) {
						if j.Err != nil {
							b.Fatal(j.Err)
						}
					})
				}
				b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "messages/s")
			})
		}
	}
}
