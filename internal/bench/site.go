package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"dma/spooldir"
)

// site is a spool with a configuration and a user, in a folder of its own.
type site struct {
	dir string
	bin string
	fs  string
	msg []byte
}

func newSite() (*site, error) {
	dir, err := os.MkdirTemp("", "dma-bench-")
	if err != nil {
		return nil, err
	}
	wd, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	s := &site{dir: dir, bin: filepath.Join(wd, "bin")}
	// 4 KiB, in lines as people write them.
	s.msg = append([]byte("Subject: a message\n\n"), bytes.Repeat([]byte(strings.Repeat("x", 71)+"\n"), 56)...)
	for _, d := range []string{"mail", "home"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(s.path("passwd"), []byte("alice:x:2001:2001:Alice:"+s.path("home")+":/bin/sh\n"), 0o644); err != nil {
		return nil, err
	}
	if err := s.configure("mbox:"+s.path("mail")+"/%u", ""); err != nil {
		return nil, err
	}
	if out, err := s.command(context.Background(), "dma-runner", "init", "--one-uid").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("init: %w: %s", err, out)
	}
	spool, err := spooldir.Open(s.path("spool"))
	if err != nil {
		return nil, err
	}
	s.fs = spool.FileSystem().Type
	for _, w := range spool.FileSystem().Warnings {
		s.fs += "; " + w
	}
	return s, nil
}

func (s *site) remove() { os.RemoveAll(s.dir) }

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

// configure writes dma.conf.
func (s *site) configure(mailbox, smarthost string) error {
	text := "SPOOLDIR " + s.path("spool") + "\nMAILNAME bench.example\nUSERS " + s.path("passwd") +
		"\nALIASES " + s.path("aliases") + "\nMAILBOX " + mailbox + "\n"
	if smarthost != "" {
		text += "SMARTHOST " + smarthost + "\n"
	}
	return os.WriteFile(s.path("dma.conf"), []byte(text), 0o644)
}

// command makes a command of ours with the site's configuration.
func (s *site) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, filepath.Join(s.bin, program), append([]string{"-C", s.path("dma.conf")}, args...)...)
}

// submit queues a message.
func (s *site) submit(ctx context.Context, recipients ...string) *exec.Cmd {
	cmd := s.command(ctx, "dma", append([]string{"-odq", "-i", "-f", "alice"}, recipients...)...)
	cmd.Stdin = bytes.NewReader(s.msg)
	return cmd
}

// fill queues n messages without starting a program for each.
func (s *site) fill(n int, recipient string) error {
	spool, err := spooldir.Open(s.path("spool"))
	if err != nil {
		return err
	}
	content := append([]byte("Received: by bench.example (dma); Thu, 01 Jan 2026 00:00:00 +0000\n"), s.msg...)
	for range n {
		d, err := spool.Create(&spooldir.Envelope{Sender: "alice@bench.example", Recipients: []spooldir.Recipient{{Address: recipient}}})
		if err != nil {
			return err
		}
		if _, err := d.Write(content); err != nil {
			return err
		}
		if err := d.Commit(); err != nil {
			return err
		}
	}
	return nil
}

// drain delivers everything.
func (s *site) drain(ctx context.Context) error {
	cmd := s.command(ctx, "dma-runner", "drain")
	log, err := os.Create(s.path("log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stderr = log
	return cmd.Run()
}
