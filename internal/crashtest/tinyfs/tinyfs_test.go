package tinyfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"dma/internal/crashtest"
)

func TestMain(m *testing.M) { crashtest.Main(m) }

func TestBytes(t *testing.T) {
	dir := New(t, Limits{Bytes: 64 << 10})
	Fill(t, filepath.Join(dir, "ballast"), 0, 1<<20)
	if err := os.WriteFile(filepath.Join(dir, "x"), []byte("x"), 0600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("write on a full file system: %v, want ENOSPC", err)
	}
	if err := os.Remove(filepath.Join(dir, "ballast")); err != nil {
		t.Fatal(err)
	}
	Fill(t, filepath.Join(dir, "ballast"), 8<<10, 1<<20)
	if err := os.WriteFile(filepath.Join(dir, "y"), make([]byte, 8<<10), 0600); err != nil {
		t.Fatalf("write into the room that was left: %v", err)
	}
}

func TestInodes(t *testing.T) {
	dir := New(t, Limits{Inodes: 5})
	if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0600); err != nil {
		t.Fatal(err)
	}
	var links int
	var err error
	for links = 0; links < 10 && err == nil; links++ {
		err = os.Link(filepath.Join(dir, "f"), filepath.Join(dir, fmt.Sprint(links)))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("after %d links: %v, want ENOSPC", links, err)
	}
}
