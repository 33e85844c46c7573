package localwriter

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// BenchmarkDeliver reports messages a second and fsyncs a message, of 4 KB each,
// with so many messages between two commits.
func BenchmarkDeliver(b *testing.B) {
	content := "Subject: x\n\n" + strings.Repeat("A line of an ordinary message, with some text in it.\n", 76)
	for _, kind := range []string{"mbox", "maildir"} {
		for _, batch := range []int{1, 10, 100} {
			b.Run(fmt.Sprintf("%s/batch=%d", kind, batch), func(b *testing.B) {
				dir := b.TempDir()
				var syncs atomic.Int64
				sys := realSystem()
				sys.sync = func(f *os.File) error { syncs.Add(1); return f.Sync() }
				open := func() (Session, error) {
					if kind == "maildir" {
						return OpenMaildir(context.Background(), Maildir{Path: filepath.Join(dir, "Maildir"), UID: os.Geteuid(), sys: sys})
					}
					return OpenMbox(context.Background(), Mbox{Path: filepath.Join(dir, "mbox"), UID: os.Geteuid(), sys: sys})
				}
				b.SetBytes(int64(len(content)))
				for n := 0; n < b.N; {
					s, err := open()
					if err != nil {
						b.Fatal(err)
					}
					for range min(batch, b.N-n) {
						n++
						if _, err := s.Append(context.Background(), testMessage("bench", n, content)); err != nil {
							b.Fatal(err)
						}
					}
					if err := s.Commit(); err != nil {
						b.Fatal(err)
					}
					s.Close()
				}
				b.ReportMetric(float64(syncs.Load())/float64(b.N), "fsyncs/message")
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
			})
		}
	}
}

// BenchmarkSearch reports how fast a mailbox is searched for a Suspect message.
func BenchmarkSearch(b *testing.B) {
	path := mboxPath(b)
	text := rendering(b, testMessage("x", 1, "Subject: x\n\n"+strings.Repeat("A line of an ordinary message.\n", 120)))
	writeFile(b, path, strings.Repeat(text, 10000))
	b.SetBytes(int64(10000 * len(text)))
	s := openMbox(b, testMbox(path)).(*mboxSession)
	for b.Loop() {
		if _, err := s.search(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkQuote reports how fast content is quoted.
func BenchmarkQuote(b *testing.B) {
	m := testMessage("x", 1, strings.Repeat("A line of an ordinary message, From somebody.\n", 20000))
	buf := make([]byte, 64<<10)
	b.SetBytes(m.Size)
	for b.Loop() {
		for r := m.render(); ; {
			if _, err := r.Read(buf); err != nil {
				break
			}
		}
	}
}
